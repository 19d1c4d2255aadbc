package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"strings"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/idgen"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	statecheckpoint "github.com/logmirror/logmirror/statemachine/checkpoint"
	"github.com/logmirror/logmirror/watch"
)

// frontend drives one frontend: what its log client, mirror, keeper, watch hub and id sources decide is their own code; the
// streams, probes and rounds that carry it, and the services' translation of requests into commands, are this driver's.
// Its disk holds the incarnation, and a checkpoint of its own in place of the image.
type frontend struct {
	*process
	id   uint64
	disk *disk.Memory
	// build is the program that it runs.
	build *build

	client  *logclient.Stepper
	mirror  *mirror.Stepper
	machine *statemachine.Machine
	keeper  *keeper.Stepper
	hub     watch.Stepper
	ids     [3]*idgen.Stepper

	// callers are told the ends of calls and reads.
	calls map[*mirror.Call]func(statemachine.Result, error)
	reads map[*mirror.Read]func(error)
	// renewals wait for their decision.
	renewals []renewal

	current                   string
	tail, append              *stream
	tailHeard, appendHeardAt  time.Duration
	appendIsUp                bool
	appendID                  uint64
	tailSince                 time.Duration
	trimmedBy                 []string
	applied                   uint64
	wakeAt                    time.Duration
	wakes                     int
	persisting, bootstrapping bool
	catchingUp                bool
	// digestDue: the entry applied last is one at which digests are reported; until wrongUntil they are wrong.
	digestDue  bool
	wrongUntil time.Duration
	// firstRead and firstWrite are when this frontend first worked again after all was healed.
	firstRead, firstWrite time.Duration
}

type renewal struct {
	r    *keeper.Renewal
	done func(ttl time.Duration, err error)
}

var errInjected = errors.New("simulated: input/output error")

const (
	silenceTimeout   = 1200 * time.Millisecond
	roundTimeout     = 800 * time.Millisecond
	readRoundTimeout = 3 * time.Second
	imageFile        = "frontend/image"
	identityFile     = "frontend/identity"
)

func (s *Simulation) newFrontend(region int) *frontend {
	p := s.newProcess("f"+string(rune('0'+len(s.frontends))), region)
	f := &frontend{process: &p, build: thisBuild, id: s.random.Uint64() | 1, disk: disk.NewMemory(s.random.Uint64())}
	s.processes = append(s.processes, f.process)
	s.frontends = append(s.frontends, f)
	f.start()
	return f
}

func (s *Simulation) frontendOf(st *stream) *frontend {
	for _, f := range s.frontends {
		if f.process == st.a {
			return f
		}
	}
	return nil
}

// start begins a life with what the disk holds.
func (f *frontend) start() {
	s := f.s
	if f.up {
		return
	}
	f.disk.Restart()
	incarnation, machine, err := f.load()
	if err != nil {
		if !f.leftBehind(err) {
			s.fail("%s: %v", f.name, err)
		}
		return
	}
	config := mirror.Config{Name: f.name, Region: regionName(f.region), BatchBytesMax: 600, BatchesInFlight: 4, BytesInFlight: 2400,
		FailFastAfter: 1500 * time.Millisecond, UnknownAfter: 4 * time.Second, StallAfter: 1500 * time.Millisecond,
		ResendAfterMin: 300 * time.Millisecond, ResendAfterMax: 3 * time.Second, AgeInterval: 700 * time.Millisecond}
	f.machine = machine
	stepper, err := mirror.NewStepper(mirror.StepperConfig{Config: config, FrontendID: f.id, Incarnation: incarnation, Machine: machine,
		Observers: []mirror.Observer{observer{f}},
		Spread:    func() time.Duration { return s.between(0, 500*time.Millisecond) }}, f.boot())
	if err != nil {
		s.fail("%s: %v", f.name, err)
		return
	}
	var addresses []string
	for _, m := range s.members {
		addresses = append(addresses, m.address)
	}
	if f.client, err = logclient.NewStepper(logclient.Config{Members: addresses, ProbeInterval: 700 * time.Millisecond,
		StallTimeout: 1500 * time.Millisecond, PreferAfter: 2 * time.Second}, machine.Index()+1, machine.Term(),
		func(d time.Duration) time.Duration { return s.between(d/2, d+1) }, f.monotonic()); err != nil {
		s.fail("%s: %v", f.name, err)
		return
	}
	f.up, f.mirror, f.applied = true, stepper, machine.Index()
	f.calls, f.reads, f.renewals = map[*mirror.Call]func(statemachine.Result, error){}, map[*mirror.Read]func(error){}, nil
	f.hub = watch.NewStepper(machine.Space(), watch.Config{ProgressInterval: 4 * time.Second, StreamBufferBytes: 4 << 10,
		StreamBufferResponses: 16, MaxResponseBytes: 1 << 10, CatchUpEvents: 20, CatchUpBytes: 1 << 10, CatchUpWatches: 2})
	f.keeper = keeper.NewStepper(keeper.Config{Mirror: holder{f}, Leases: machine, FrontendID: f.id, Clock: f.boot, RetryMinimum: 100 * time.Millisecond})
	ids := idgen.Config{Window: 4 * time.Second, BlockSize: 10}
	f.ids = [3]*idgen.Stepper{idgen.NewNodeStepper(statemachine.IDSnowflake, ids), idgen.NewNodeStepper(statemachine.IDRaindrop, ids),
		idgen.NewSegmentStepper("orders", ids)}
	f.current, f.tail, f.append, f.appendIsUp, f.trimmedBy = "", nil, nil, false, nil
	f.wakeAt, f.persisting, f.bootstrapping, f.catchingUp = 0, false, false, false
	f.probe()
	f.repeat(80*time.Millisecond, 160*time.Millisecond, f.look)
	f.repeat(200*time.Millisecond, 300*time.Millisecond, func() { f.hub.ProgressTick() })
	f.repeat(3*time.Second, 9*time.Second, f.saveImage)
	f.keepTime()
	f.pump()
}

// load reads the incarnation and the image. What is damaged of the image is set aside; one of a newer build is an error.
func (f *frontend) load() (incarnation uint64, machine *statemachine.Machine, err error) {
	s := f.s
	if err := f.disk.MkdirAll("frontend"); err != nil {
		s.fail("%s: %v", f.name, err)
	}
	data, err := disk.ReadFile(f.disk, identityFile, 8)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil || len(data) != 8:
		s.fail("%s: identity of %d bytes: %v", f.name, len(data), err)
	default:
		incarnation = binary.BigEndian.Uint64(data)
	}
	if data, err = disk.ReadFile(f.disk, imageFile, 64<<20); err == nil {
		var r *statecheckpoint.Reader
		if r, err = statecheckpoint.NewReader(bytes.NewReader(data)); err == nil {
			if machine, _, err = r.Restore(f.build.options(), nil); err == nil {
				s.counts.add("start from an image")
				if err := s.truth.digest(f.name, machine); err != nil {
					s.fail("%s: the state restored at %d: %v", f.name, machine.Index(), err)
				}
				return incarnation, machine, nil
			}
		}
		if errors.Is(err, statemachine.ErrNewer) {
			return 0, nil, err
		}
		s.counts.add("damaged image set aside")
	}
	return incarnation, statemachine.New(f.build.options()), nil
}

// saveImage makes the present state durable.
func (f *frontend) saveImage() {
	if data, ok := f.checkpointNow(); ok && f.machine.Index() > 0 {
		if err := disk.WriteFile(f.disk, imageFile, data); err == nil {
			f.s.counts.add("image saved")
		}
	}
}

// checkpointNow is the canonical bytes of the state as it is.
func (f *frontend) checkpointNow() ([]byte, bool) {
	const epoch = 1
	source := statecheckpoint.Pin(f.machine, epoch)
	defer source.Release()
	var b bytes.Buffer
	if _, err := source.Write(&b); err != nil {
		f.s.fail("%s: checkpoint at %d: %v", f.name, f.machine.Index(), err)
		return nil, false
	}
	return b.Bytes(), true
}

// crash ends the process; the machine loses what was not synced, or only the process goes.
func (f *frontend) crash(lose func()) {
	if !f.up {
		return
	}
	lose()
	for _, st := range []*stream{f.tail, f.append} {
		if st != nil {
			st.broken = true
		}
	}
	f.hub.Close()
	f.died()
}

// holder is what the keeper sees of the mirror. Proposals take the other way.
type holder struct{ f *frontend }

func (h holder) SessionHolder() (uint64, time.Duration, bool) { return h.f.mirror.SessionHolder() }
func (h holder) Propose(context.Context, *commandv1.Command) (statemachine.Result, error) {
	return statemachine.Result{}, mirror.ErrUnavailable
}
func (h holder) Linearize(context.Context) (uint64, error) { return 0, mirror.ErrUnavailable }

// observer is told of each applied entry.
type observer struct{ f *frontend }

func (o observer) Applied(a *statemachine.Applied) {
	o.f.keeper.Applied(a)
	o.f.hub.Applied(a)
	o.f.digestDue = a.DigestDue
}

// pump does what the parts want done, until they want nothing more.
func (f *frontend) pump() {
	s := f.s
	for f.up && s.failure == "" {
		effects := f.mirror.Take()
		if effects.Fatal != nil {
			s.fail("%s: %v", f.name, effects.Fatal)
			return
		}
		for _, p := range effects.Send {
			f.hand(p)
		}
		s.counts["resend"] += effects.Resends
		if effects.Persist != 0 {
			f.persist(effects.Persist)
		}
		for _, round := range effects.Rounds {
			f.askRound(round, nil, f.boot()+readRoundTimeout)
		}
		if effects.Checkpoint != nil {
			f.buildCheckpoint()
		}
		for _, c := range effects.Calls {
			if done := f.calls[c]; done != nil {
				delete(f.calls, c)
				done(c.Result, c.Err)
			}
		}
		for _, r := range effects.Reads {
			if done := f.reads[r]; done != nil {
				delete(f.reads, r)
				done(r.Err)
			}
		}
		f.wake(effects.Wake)
		proposals := f.keeper.Proposals()
		for _, p := range proposals {
			decided := p.Decided
			f.propose(p.Command, true, func(r statemachine.Result, err error) { decided(r.Err, err == nil) })
		}
		f.keeper.Settle()
		renewals := f.renewals
		f.renewals = nil
		for _, r := range renewals {
			if !r.r.Done {
				f.renewals = append(f.renewals, r)
				continue
			}
			r.done(r.r.TTL, r.r.Err)
		}
		if len(effects.Send)+len(effects.Calls)+len(effects.Reads)+len(effects.Rounds)+len(proposals) == 0 {
			break
		}
	}
	f.readHistory()
}

// readHistory lets watches that lag catch up, a slice at a time.
func (f *frontend) readHistory() {
	if f.catchingUp || f.hub.Stats().Lagging == 0 {
		return
	}
	f.catchingUp = true
	f.after(f.s.between(time.Millisecond, 20*time.Millisecond), func() {
		f.catchingUp = false
		f.hub.CatchUp()
		f.readHistory()
	})
}

// wake calls the mirror's timer at a time on its clock.
func (f *frontend) wake(at time.Duration) {
	if at == 0 || f.wakeAt != 0 && f.wakeAt <= at && f.wakeAt > f.boot() {
		return
	}
	f.wakeAt = at
	f.wakes++
	mine := f.wakes
	f.after(f.real(at-f.boot()), func() {
		if f.wakes == mine {
			f.wakeAt = 0
			f.mirror.Timer(f.boot())
			f.pump()
		}
	})
}

// keepTime lets the keeper look at the time.
func (f *frontend) keepTime() {
	f.after(min(max(f.real(f.keeper.Tick()), time.Millisecond), 500*time.Millisecond), func() {
		f.keepTime()
		f.pump()
	})
}

// propose hands a command to the log.
func (f *frontend) propose(c *commandv1.Command, wait bool, done func(statemachine.Result, error)) *mirror.Call {
	call := f.mirror.Propose(f.boot(), c, mirror.ProposeOptions{WaitForLog: wait})
	if call.Done {
		done(call.Result, call.Err)
		return call
	}
	f.calls[call] = done
	return call
}

// persist makes an incarnation durable.
func (f *frontend) persist(incarnation uint64) {
	f.after(f.s.between(time.Millisecond, 20*time.Millisecond), func() {
		data := binary.BigEndian.AppendUint64(nil, incarnation)
		if err := disk.WriteFile(f.disk, identityFile, data); err != nil {
			f.s.counts.add("frontend ended itself")
			f.s.tell("%s ends itself: %v", f.name, err)
			f.crash(f.disk.Kill)
			f.s.after(f.s.between(50*time.Millisecond, time.Second), f.start)
			return
		}
		f.mirror.Persisted(f.boot(), incarnation)
		f.pump()
	})
}

// hand gives a proposal to the stream.
func (f *frontend) hand(p *logv1.Proposal) {
	m := f.s.memberAt(f.current)
	if f.append == nil || !f.appendIsUp || m == nil {
		return
	}
	st, id := f.append, f.appendID
	st.send(f.process, func() { m.step(logservice.Propose{Stream: id, Proposal: p}) })
}

// probe asks the members that are due for their status.
func (f *frontend) probe() {
	due, next := f.client.Probes(f.monotonic())
	for _, address := range due {
		f.ask(address)
	}
	f.after(f.real(max(next.Sub(f.monotonic()), 20*time.Millisecond)), f.probe)
}

func (f *frontend) ask(address string) {
	began, answered := f.boot(), false
	f.after(time.Second, func() {
		if !answered {
			answered = true
			f.client.Unanswered(address, f.monotonic())
			f.look()
		}
	})
	m := f.s.memberAt(address)
	if m == nil {
		return
	}
	life := f.life
	f.s.datagram(f.process, m.process, func() {
		state := m.core.State()
		f.s.datagram(m.process, f.process, func() {
			f.do(life, func() {
				if !answered {
					answered = true
					f.client.Answered(address, f.boot()-began, state.Published, state.Leader, f.monotonic())
					f.look()
				}
			})
		})
	})
}

// look holds the streams to the member that is to be used.
func (f *frontend) look() {
	now := f.boot()
	if f.tail != nil && now-f.tailHeard > silenceTimeout {
		f.tail.broken, f.tail = true, nil
		f.client.Failed(f.current, f.monotonic())
	}
	if f.append != nil && now-f.appendHeardAt > silenceTimeout {
		f.dropAppend()
		f.client.Failed(f.current, f.monotonic())
	}
	if f.tail != nil && now-f.tailSince > 2*silenceTimeout {
		f.client.Lived(f.current)
	}
	address, ok := f.client.Current(f.monotonic())
	if address != f.current || !ok {
		f.closeStreams()
		if f.current = address; !ok {
			f.current = ""
			return
		}
	}
	m := f.s.memberAt(f.current)
	if m == nil {
		f.client.Failed(f.current, f.monotonic())
		return
	}
	if f.tail == nil {
		st := f.s.newStream(f.process, m.process)
		f.tail, f.tailHeard, f.tailSince = st, now, now
		next, previous := f.client.Next()
		st.send(f.process, func() { m.openTail(st, next, previous) })
	}
	if f.append == nil {
		st := f.s.newStream(f.process, m.process)
		f.append, f.appendHeardAt = st, now
		st.send(f.process, func() { m.openAppend(st) })
	}
}

func (f *frontend) closeStreams() {
	if f.tail != nil {
		f.tail.broken, f.tail = true, nil
	}
	f.dropAppend()
}

func (f *frontend) dropAppend() {
	if f.append == nil {
		return
	}
	f.append.broken, f.append = true, nil
	if f.appendIsUp {
		f.appendIsUp = false
		f.mirror.AppendDown(f.boot())
		f.pump()
	}
}

// lostMember is told that a member's process is gone, if the network says so.
func (f *frontend) lostMember(m *member) {
	if !f.up || f.s.memberAt(f.current) != m || f.s.severed(f.s.link(m.process, f.process)) {
		return
	}
	f.after(f.s.between(time.Millisecond, 40*time.Millisecond), func() {
		if f.s.memberAt(f.current) == m && (f.tail != nil || f.append != nil) {
			f.closeStreams()
			f.client.Failed(f.current, f.monotonic())
			f.look()
		}
	})
}

// appendUp says that proposals are taken on a stream.
func (f *frontend) appendUp(st *stream, id uint64) {
	if st != f.append {
		return
	}
	f.appendIsUp, f.appendID, f.appendHeardAt = true, id, f.boot()
	f.mirror.AppendUp(f.boot())
	f.pump()
}

func (f *frontend) appendHeard(st *stream) {
	if st == f.append {
		f.appendHeardAt = f.boot()
	}
}

func (f *frontend) rejected(st *stream, r *logv1.AppendRejection) {
	if st == f.append {
		f.mirror.AppendRejected(f.boot(), []*logv1.AppendRejection{r})
		f.pump()
	}
}

// tailed takes one answer of a tail and applies what it brings.
func (f *frontend) tailed(st *stream, m *member, answer *logv1.TailResponse) {
	if st != f.tail {
		return
	}
	f.tailHeard = f.boot()
	if answer.GetMembership() != nil {
		f.client.Learn(answer.GetMembership(), f.monotonic())
	}
	entries, err := f.client.Take(answer.GetEntries(), f.monotonic())
	if err != nil {
		f.s.fail("%s: tail from %s: %v", f.name, m.name, err)
		return
	}
	if len(entries) > 0 {
		f.trimmedBy = nil
	}
	for i := range entries {
		f.apply(entries[i:i+1], answer.GetPublishedIndex())
		if !f.up || f.s.failure != "" {
			return
		}
	}
	if len(entries) == 0 {
		f.apply(nil, answer.GetPublishedIndex())
	}
}

func (f *frontend) apply(entries []logclient.Entry, published uint64) {
	err := f.translate(entries)
	if err == nil {
		err = f.mirror.Apply(f.boot(), entries, published)
	}
	if err != nil {
		if !f.leftBehind(err) {
			f.s.fail("%s: %v", f.name, err)
		}
		return
	}
	if f.digestDue {
		f.digestDue = false
		f.report()
	}
	if len(entries) > 0 {
		f.applied = entries[0].Index
		f.s.note(uint64(f.index), f.applied)
		if f.applied%digestEvery == 0 {
			if err := f.s.truth.digest(f.name, f.machine); err != nil {
				f.s.fail("%s: the state at %d: %v", f.name, f.applied, err)
				return
			}
		}
	}
	f.pump()
}

// translate makes of entries what they mean to the frontend's build.
func (f *frontend) translate(entries []logclient.Entry) (err error) {
	for i := range entries {
		if entries[i].Envelope, err = f.build.translated(f.machine, entries[i].Kind, entries[i].Envelope); err != nil {
			return err
		}
	}
	return nil
}

// trimmed takes a member's word that it no longer has what is wanted. When two have said so, or one again and again, the
// life ends, and the next begins with the newest checkpoint.
func (f *frontend) trimmed(st *stream, m *member) {
	if st != f.tail {
		return
	}
	f.tail.broken, f.tail = true, nil
	f.trimmedBy = append(f.trimmedBy, m.name)
	f.client.Failed(m.address, f.monotonic())
	if len(f.trimmedBy) >= 3 || len(f.trimmedBy) == 2 && f.trimmedBy[0] != f.trimmedBy[1] {
		f.bootstrap()
	}
}

// bootstrap replaces the image by the newest sealed checkpoint that a member in reach holds, and restarts.
func (f *frontend) bootstrap() {
	if f.bootstrapping {
		return
	}
	f.bootstrapping = true
	f.after(f.s.between(50*time.Millisecond, 400*time.Millisecond), func() {
		f.bootstrapping = false
		for _, m := range f.s.members {
			if !f.s.reachable(f.process, m.process) {
				continue
			}
			for _, sealed := range m.core.State().Checkpoints.Sealed {
				if !sealed.Held || sealed.Name.Index <= f.applied {
					continue
				}
				data, err := m.bytesOf(sealed.Name)
				if err != nil {
					continue
				}
				if err := disk.WriteFile(f.disk, imageFile, data); err != nil {
					continue
				}
				f.s.counts.add("bootstrap from a checkpoint")
				f.s.tell("%s begins anew from checkpoint %d", f.name, sealed.Name.Index)
				f.crash(f.disk.Kill)
				f.start()
				return
			}
		}
		f.trimmedBy = nil
		f.look()
	})
}

// buildCheckpoint makes the checkpoint that the entry applied last asks for, and uploads it.
func (f *frontend) buildCheckpoint() {
	data, ok := f.checkpointNow()
	if !ok {
		return
	}
	name := checkpoint.Name{Index: f.machine.Index(), SHA256: sha256.Sum256(data), SizeBytes: int64(len(data)),
		FormatVersion: statecheckpoint.FormatVersion}
	if err := f.s.truth.checkpoint(f.name, name); err != nil {
		f.s.fail("%v", err)
		return
	}
	f.s.counts.add("checkpoint built")
	_, session := f.mirror.Incarnation()
	f.upload(name, data, session, 5)
}

func (f *frontend) upload(name checkpoint.Name, data []byte, session uint64, tries int) {
	f.after(f.s.between(30*time.Millisecond, 300*time.Millisecond), func() {
		again := func() {
			if tries > 1 {
				f.upload(name, data, session, tries-1)
			}
		}
		m := f.s.memberAt(f.current)
		if m == nil || !f.s.reachable(f.process, m.process) {
			again()
			return
		}
		m.tokens++
		m.offers[m.tokens] = func(r logservice.OfferResult) {
			switch {
			case r.Held:
				return
			case r.Err == nil:
				m.after(0, func() {
					if m.receive(name, data) != nil {
						again()
						return
					}
					f.s.counts.add("checkpoint uploaded")
				})
			default:
				again()
			}
		}
		m.step(logservice.OfferCheckpoint{Token: m.tokens, Session: session, Name: name})
	})
}

// askRound asks a read round of one member after the other until one answers or the time is over.
func (f *frontend) askRound(round uint64, tried []string, until time.Duration) {
	answer := func(index uint64, err error) {
		f.mirror.RoundAnswered(f.boot(), round, index, err)
		f.pump()
	}
	if f.boot() >= until {
		f.after(0, func() { answer(0, mirror.ErrUnavailable) })
		return
	}
	address := f.current
	if len(tried) > 0 {
		if nearest, ok := f.client.Nearest(f.monotonic(), tried...); ok {
			address = nearest
		} else {
			tried = nil
		}
	}
	settled := false
	again := func() {
		if !settled {
			settled = true
			f.askRound(round, append(strings.Split(strings.Join(tried, "\n"), "\n"), address), until)
		}
	}
	f.after(roundTimeout, again)
	m := f.s.memberAt(address)
	if m == nil {
		return
	}
	life := f.life
	f.s.datagram(f.process, m.process, func() {
		m.ask(func(r logservice.RoundResult) {
			f.s.datagram(m.process, f.process, func() {
				f.do(life, func() {
					switch {
					case settled:
					case r.Failure != "" || r.Index == 0:
						f.s.counts.add("read round failed")
						again()
					default:
						settled = true
						answer(r.Index, nil)
					}
				})
			})
		})
	})
}
