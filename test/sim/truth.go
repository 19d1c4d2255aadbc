package sim

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/test/check"
)

// truth is the log as it was first published by anybody, and the state that it makes.
type truth struct {
	s       *Simulation
	machine *statemachine.Machine
	// last is the index of the last entry taken.
	last    uint64
	logs    check.Agreement[string]
	digests check.Agreement[string]
	// checkpoints are the bytes of checkpoints, by their sha256.
	checkpoints check.Agreement[checkpoint.Name]
	changes     []check.Change
	leases      map[int64]*leaseRecord
	leaseOrder  []int64
	// gate is the entry from which on the next apply version is in force, zero for none yet, and pastGate the sessions that
	// were open then.
	gate     uint64
	pastGate map[uint64]bool
	// wrong are the sessions that reported a wrong digest of an index.
	wrong map[uint64]map[uint64]bool
}

// leaseRecord is what is known of one lease.
type leaseRecord struct {
	check.Lease
	granted time.Duration
}

func newTruth(s *Simulation) truth {
	return truth{s: s, machine: statemachine.New(s.newestBuild().options()), wrong: map[uint64]map[uint64]bool{}, leases: map[int64]*leaseRecord{}}
}

// published takes an entry that a member publishes: all members must publish the same bytes, and the first to publish an
// index tells what it does.
func (t *truth) published(m *member, index, term uint64, kind uint8, data []byte) {
	s := t.s
	s.note(uint64(m.index), index, term)
	if err := t.logs.Claim(m.name, index, fmt.Sprintf("%d %d %x", term, kind, data)); err != nil {
		s.fail("published logs differ: %v", err)
		return
	}
	if index <= t.last {
		return
	}
	if index != t.last+1 {
		s.fail("%s publishes %d, nobody %d", m.name, index, t.last+1)
		return
	}
	t.last = index
	entry := tailEntry(index, term, kind, data)
	var envelope *logv1.Envelope
	if entry.Envelope != nil {
		envelope = &logv1.Envelope{}
		if err := proto.Unmarshal(entry.Envelope, envelope); err != nil {
			s.fail("entry %d: %v", index, err)
			return
		}
	}
	envelope, err := s.newestBuild().translated(t.machine, entry.Kind, envelope)
	if err != nil {
		s.fail("entry %d: %v", index, err)
		return
	}
	applied, err := t.machine.Apply(index, term, entry.Kind, envelope, false)
	if err != nil {
		s.fail("entry %d: %v", index, err)
		return
	}
	t.decided(applied)
	t.passed()
	if index%digestEvery == 0 {
		if err := t.digest("the log", t.machine); err != nil {
			s.fail("%v", err)
		}
	}
}

// decided takes what an entry did.
func (t *truth) decided(a *statemachine.Applied) {
	s := t.s
	for i := range a.Events {
		e := &a.Events[i]
		t.changes = append(t.changes, check.Change{Revision: e.KV.ModRevision, Key: string(e.KV.Key), Value: string(e.KV.Value), Deleted: !e.Put})
	}
	for i := range a.LeaseChanges {
		c := &a.LeaseChanges[i]
		l := t.leases[c.ID]
		switch c.Kind {
		case lease.Granted:
			t.leases[c.ID] = &leaseRecord{Lease: check.Lease{ID: c.ID, TTL: c.TTL, Confirmed: []time.Duration{s.now}}, granted: s.now}
			t.leaseOrder = append(t.leaseOrder, c.ID)
		case lease.Revoked:
			l.Ended, l.Revoked = s.now, true
		case lease.Expired:
			l.Ended = s.now
			s.counts.add("lease ended")
		case lease.Adopted:
			s.counts.add("lease adopted")
		case lease.Orphaned:
			s.counts.add("lease orphaned")
		}
	}
	for i := range a.SessionsOpened {
		if o := &a.SessionsOpened[i]; o.ApplyVersionMax < t.machine.AppliesVersion() {
			s.fail("session %d is opened for a build that understands apply version %d, %d is in force", o.ID, o.ApplyVersionMax, t.machine.AppliesVersion())
		}
	}
	for i := range a.SessionsEnded {
		ended := &a.SessionsEnded[i]
		s.counts.add("session ended: " + ended.Reason.String())
		if ended.Reason != statemachine.EndExpired || s.profile.jumps {
			continue
		}
		for _, f := range s.frontends {
			if !f.running() {
				continue
			}
			if session, until, ok := f.mirror.SessionHolder(); ok && session == ended.ID && until > f.boot() {
				s.fail("session %d of %s ends %v before it stops to hold it", ended.ID, f.name, until-f.boot())
			}
		}
	}
}

// digestEvery is at how many entries states are compared: a sum costs more than an entry.
const digestEvery = 8

// digest compares the sums of a state with those of others at the same index.
func (t *truth) digest(who string, m *statemachine.Machine) error {
	d, err := m.Digest()
	if err != nil {
		return err
	}
	return t.digests.Claim(who, d.Index, string(d.Bytes()))
}

// checkpoint compares the bytes of a checkpoint with those that others made of the same index.
func (t *truth) checkpoint(who string, name checkpoint.Name) error {
	if err := t.checkpoints.Claim(who, name.Index, name); err != nil {
		return fmt.Errorf("checkpoints differ: %w", err)
	}
	return nil
}
