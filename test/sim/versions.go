package sim

import (
	"bytes"
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/test/check"
)

// This file is about frontends of two builds beside each other: this one, and a next one. The next one is this one with a
// translation before apply: from the next apply version on it knows a command of a new kind, and a put has another outcome. Its
// digests are of another version as well. What holds the two together, and what stops a frontend that was left behind, is
// this build's.

// build is a program that a frontend runs.
type build struct {
	name string
	// applyVersion is the highest that it understands.
	applyVersion uint32
	// digestVersion is that of its digests, whose bytes are XORed with digestMask.
	digestVersion uint32
	digestMask    byte
}

const nextVersion = statemachine.ApplyVersion + 1

var (
	thisBuild = &build{"this build", statemachine.ApplyVersion, statemachine.DigestVersion, 0}
	nextBuild = &build{"the next build", nextVersion, statemachine.DigestVersion + 1, 0x5a}
)

func (b *build) options() statemachine.Options {
	return statemachine.Options{ApplyVersion: b.applyVersion}
}

// newestBuild is the one whose state is the truth.
func (s *Simulation) newestBuild() *build {
	if s.profile.versions {
		return nextBuild
	}
	return thisBuild
}

// fieldNextKind is the field of a command of the new kind: an encoded Put.
const fieldNextKind protowire.Number = 200

// nextKind is a put as a command of the kind that this build does not know.
func nextKind(p *commandv1.Put) *commandv1.Command {
	encoded, err := proto.Marshal(p)
	if err != nil {
		panic(err) // nothing in it can fail to be encoded
	}
	c := &commandv1.Command{}
	c.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, fieldNextKind, protowire.BytesType), encoded))
	return c
}

// otherOutcome begins the keys of which a put keeps more than its value, from the next version on.
const otherOutcome = "y/"

// translated is what an entry means to a build, in the words of this one.
func (b *build) translated(m *statemachine.Machine, kind logv1.EntryKind, e *logv1.Envelope) (*logv1.Envelope, error) {
	if b != nextBuild || m.AppliesVersion() < nextVersion || kind != logv1.EntryKind_ENTRY_KIND_BATCH {
		return e, nil
	}
	batch := &commandv1.CommandBatch{}
	if err := proto.Unmarshal(e.GetPayload(), batch); err != nil {
		return nil, err
	}
	for _, c := range batch.GetCommands() {
		if unknown := c.ProtoReflect().GetUnknown(); len(unknown) > 0 {
			_, _, n := protowire.ConsumeTag(unknown)
			encoded, _ := protowire.ConsumeBytes(unknown[max(n, 0):])
			p := &commandv1.Put{}
			if err := proto.Unmarshal(encoded, p); err != nil {
				return nil, err
			}
			c.ProtoReflect().SetUnknown(nil)
			c.Operation = &commandv1.Command_Put{Put: p}
		} else if p := c.GetPut(); p != nil && bytes.HasPrefix(p.GetKey(), []byte(otherOutcome)) {
			p.Value = append(p.Value, " of the next version"...)
		}
	}
	payload, err := proto.Marshal(batch)
	if err != nil {
		return nil, err
	}
	changed := proto.CloneOf(e)
	changed.Payload = payload
	return changed, nil
}

// modern writes as its frontend can: by the new kind of command where that is in force, and keys whose puts have another
// outcome then.
func (c *client) modern() {
	s, f := c.s, c.frontend()
	if s.one(3) {
		c.command(f, put(otherOutcome+"k", c.value()), func(answerOf) {})
		return
	}
	o := check.Operation{Client: c.index, Kind: check.Put, Key: "x", Value: c.value(), Call: s.now}
	c.commandOf(f, func() *commandv1.Command {
		if f.build == nextBuild && f.machine.AppliesVersion() >= nextVersion {
			s.counts.add("command of the next version")
			return nextKind(put(o.Key, o.Value).GetPut())
		}
		return put(o.Key, o.Value)
	}, func(a answerOf) {
		if o.Outcome = a.outcome; a.outcome == check.Done {
			o.Return, o.Revision = s.now, a.revision
		}
		s.load.operations = append(s.load.operations, o)
	})
}

// restartWith ends a frontend and starts it again with a build.
func (f *frontend) restartWith(b *build) {
	f.s.tell("%s is restarted with %s", f.name, b.name)
	if f.up {
		f.crash(f.disk.Kill)
	}
	f.build = b
	f.s.after(f.s.between(50*time.Millisecond, 500*time.Millisecond), f.start)
}

func upgradeFrontend(s *Simulation) {
	if f := s.anyFrontend(); f.up && f.build == thisBuild {
		s.counts.add("frontend upgraded")
		f.restartWith(nextBuild)
	}
}

func rollBackFrontend(s *Simulation) {
	f := s.anyFrontend()
	if !f.up || f.build != nextBuild {
		return
	}
	if s.truth.machine.AppliesVersion() < nextVersion {
		s.counts.add("frontend rolled back")
	} else if s.counts.add("frontend rolled back too late"); s.one(2) {
		_ = f.disk.Remove(imageFile) // it then comes to the gate in the log, or to a checkpoint from beyond it
	}
	f.restartWith(thisBuild)
}

// raiseVersion asks for the gate, too early where frontends of this build are left.
func raiseVersion(s *Simulation) {
	s.admin.command(&commandv1.Command{Operation: &commandv1.Command_RaiseApplyVersion{
		RaiseApplyVersion: &commandv1.RaiseApplyVersion{ApplyVersion: nextVersion}}})
	s.fault("gate asked for", "apply version %d is asked for", nextVersion)
}

// upgrade goes on with an upgrade until it is done: all frontends, then the gate. It returns whether it is.
func (a *admin) upgrade() (done bool) {
	s := a.s
	if !s.profile.versions {
		return true
	}
	for _, f := range s.frontends {
		if f.build != nextBuild {
			if f.up && s.quiet {
				f.restartWith(nextBuild)
			}
			return false
		}
	}
	if s.truth.machine.AppliesVersion() >= nextVersion {
		return true
	}
	if s.quiet {
		raiseVersion(s)
	}
	return false
}

// leftBehind takes the end of a frontend whose build does not understand what the log says, and brings it back with the
// next one. It returns false where the reason is another.
func (f *frontend) leftBehind(err error) bool {
	s := f.s
	if f.build != thisBuild || s.truth.gate == 0 || !errors.Is(err, statemachine.ErrUnknown) && !errors.Is(err, statemachine.ErrNewer) {
		return false
	}
	s.counts.add("frontend left behind")
	s.tell("%s ends: %v", f.name, err)
	if f.up {
		if _, session := f.mirror.Incarnation(); s.truth.pastGate[session] {
			s.fail("%s: the gate was passed although session %d of %s was open: %v", f.name, session, f.build.name, err)
		}
		if f.applied+1 != s.truth.gate {
			s.fail("%s: %s ends after entry %d, the gate is %d: %v", f.name, f.build.name, f.applied, s.truth.gate, err)
		}
	}
	if errors.Is(err, statemachine.ErrNewer) {
		s.counts.add("newer image left alone")
	}
	f.restartWith(nextBuild)
	return true
}

// passed notes the gate, and who was there.
func (t *truth) passed() {
	if t.gate != 0 || t.machine.AppliesVersion() < nextVersion {
		return
	}
	t.gate, t.pastGate = t.last, map[uint64]bool{}
	t.s.counts.add("gate passed")
	t.s.tell("apply version %d is in force from %d on", nextVersion, t.last)
	for _, session := range t.machine.Sessions() {
		t.pastGate[session.ID] = true
		if session.ApplyVersionMax < nextVersion {
			t.s.fail("the gate is passed at %d although session %d understands apply version %d only", t.last, session.ID, session.ApplyVersionMax)
		}
	}
}

// report tells the log what the state after an entry sums up to. A frontend with bad memory says something else.
func (f *frontend) report() {
	s, m := f.s, f.s.memberAt(f.current)
	_, session := f.mirror.Incarnation()
	if session == 0 || m == nil {
		return
	}
	d, err := f.machine.Digest()
	if err != nil {
		s.fail("%s: digest: %v", f.name, err)
		return
	}
	digest := d.Bytes()
	for i := range digest {
		digest[i] ^= f.build.digestMask
	}
	if f.wrongUntil > s.now {
		s.counts.add("wrong digest reported")
		digest[f.index%len(digest)] ^= 1 << (f.index / len(digest))
		if s.truth.wrong[d.Index] == nil {
			s.truth.wrong[d.Index] = map[uint64]bool{}
		}
		s.truth.wrong[d.Index][session] = true
	}
	r := &logv1.DigestReport{Session: session, Index: d.Index, ApplyVersion: d.ApplyVersion, DigestVersion: f.build.digestVersion, Digest: digest}
	s.datagram(f.process, m.process, func() { m.step(logservice.DigestReported{Report: r}) })
}

// judged checks a verdict of the leader: only who reported something wrong may be in the minority, and a tie is only where
// somebody did.
func (m *member) judged(v *logv1.DigestVerdict) {
	wrong := m.s.truth.wrong[v.GetIndex()]
	if len(wrong) == 0 || v.GetVerdict() == logv1.DigestVerdict_VERDICT_MINORITY && !wrong[v.GetSession()] {
		m.s.fail("false alarm of %s: %v; wrong at %d: %v", m.name, v, v.GetIndex(), wrong)
		return
	}
	m.s.counts.add("verdict on a wrong digest")
}

// wrongDigest gives a frontend bad memory for a while, as far as its reports tell.
func wrongDigest(s *Simulation) {
	f := s.anyFrontend()
	f.wrongUntil = s.now + s.between(4*time.Second, 10*time.Second)
	s.fault("bad memory", "%s reports digests that are wrong", f.name)
}
