package logservice

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// One frontend floods and one voter hears nothing: no member holds more than the bounds allow, the flood is told to slow
// down, and who writes through another member waits no longer than without it.
func TestFloodAndStuckFollower(t *testing.T) {
	const streamBytes, payloadBytes = 20_000, 1000
	s := newSimulation(1, PublicationQuorum, simProfiles[0], checkAll)
	s.quiet = true
	s.run(time.Second)
	leader := s.leader()
	if leader == nil {
		t.Fatal("no leader")
	}
	var others []*simNode
	for _, n := range s.nodes {
		n.member.config.MaxGroupBytes = 1 << 20
		n.member.inFlight.maxStreamBytes, n.member.inFlight.maxBytes = streamBytes, 2*streamBytes
		if n != leader && slices.Contains(leader.member.voters, n.id) {
			others = append(others, n)
		}
	}
	stuck, polite := others[0], others[1]

	// write proposes through the polite member and returns how long it takes until that member publishes it.
	write := func(each func()) time.Duration {
		began := s.now
		s.propose(polite)
		seq := polite.seq
		for !s.checker.settled[[2]uint64{uint64(polite.index + 1), seq}] || polite.published < s.checker.highest() && each == nil {
			if s.failure != "" || s.now-began > time.Second {
				t.Fatalf("after %v: %s", s.now-began, s.failure)
			}
			if each != nil {
				each()
			}
			s.run(time.Millisecond)
		}
		return s.now - began
	}
	s.isolate([]*simNode{stuck})
	var alone, beside []time.Duration
	for range 20 {
		alone = append(alone, write(nil))
	}

	most := 0
	flood := func() {
		for range 20 {
			leader.seq++
			leader.step(Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH,
				Session: uint64(leader.index + 1), Seq: leader.seq, Payload: make([]byte, payloadBytes)}})
		}
		for _, n := range s.nodes {
			held := n.member.log.bytes + n.member.inFlight.bytes
			for _, m := range n.member.groups.queue {
				held += entriesBytes(m.GetEntries())
			}
			most = max(most, held)
		}
	}
	for range 20 {
		beside = append(beside, write(flood))
	}
	// What is in flight counts in the log, in the queue to the disk and in the account, at most once each.
	if limit := 3*(streamBytes+2*payloadBytes) + 2*400; most > limit {
		t.Errorf("a member held %d bytes, the bound is %d", most, limit)
	}
	if s.counts["rejection"] == 0 {
		t.Error("the flood was not told to slow down")
	}
	if slices.Max(beside) > slices.Max(alone)+10*time.Millisecond {
		t.Errorf("beside a flood a write takes up to %v, alone %v", slices.Max(beside), slices.Max(alone))
	}
	t.Logf("held %d bytes at most, %d rejections; alone %v, beside the flood %v at most", most, s.counts["rejection"],
		slices.Max(alone), slices.Max(beside))

	// The one that was stuck catches up.
	s.heal()
	s.run(3 * time.Second)
	if s.failure != "" || stuck.published < s.checker.highest() {
		t.Errorf("afterwards %d of %d: %s", stuck.published, s.checker.highest(), s.failure)
	}
}

// Streams that flood a leader together reach its bound on what is not committed. Who writes little beside them gets through
// each time there is room for that little, and the floods are told when to try again.
func TestFloodsTogether(t *testing.T) {
	const bound, floods, rounds = 10_000, 3, 50
	s := newSoleMember(t, func(c *MemberConfig) { c.MaxUncommittedBytes = bound })
	s.step(Campaign{})
	seqs := make([]uint64, floods+2)
	propose := func(stream uint64, bytes int) Propose {
		seqs[stream]++
		p := batch(stream, seqs[stream], bytes)
		p.Stream = stream
		return p
	}
	refused := 0
	for range rounds {
		// A first group is on its way to the disk, and leaves room for less than what each flood brings meanwhile.
		effects := s.m.Step(s.now, propose(2, bound-1000))
		if effects.Append == nil || len(effects.Rejections) > 0 {
			t.Fatalf("the first flood is refused: %v", effects.Rejections)
		}
		events := []Event{}
		for stream := uint64(2); stream < floods+2; stream++ {
			for range 5 {
				events = append(events, propose(stream, 1000))
			}
		}
		// The one that writes little comes last. The tick ends the wait for company.
		events = append(events, propose(1, 100), Tick{}, Tick{})
		rejections := s.m.Step(s.now, events...).Rejections
		for _, r := range rejections {
			switch {
			case r.Stream == 1:
				t.Fatalf("refused beside the floods: %v", r.Rejection)
			case r.Rejection.Reason != logv1.AppendRejection_REASON_OVERLOADED || r.Rejection.RetryAfterMilliseconds == 0:
				t.Fatalf("a flood is told %v", r.Rejection)
			}
		}
		refused += len(rejections)
		s.step(StorageDone{s.storage.write(*effects.Append)})
	}
	if refused != rounds*floods*5 {
		t.Errorf("%d of the floods' proposals were refused", refused)
	}
	found := 0
	for _, e := range s.storage.entries {
		if h, ok := parseEnvelope(e.Data); ok && h.session == 1 {
			found++
		}
	}
	if found != rounds {
		t.Errorf("%d of %d are in the log", found, rounds)
	}
}

// Streams that flood at one time get as much of the leader's bound each, leave as much for one that comes later, and get all of
// it back once the log has what they brought.
func TestFloodsShareAlike(t *testing.T) {
	const bound, piece = 100_000, 1000
	for floods := 1; floods <= 4; floods++ {
		s := newSoleMember(t, func(c *MemberConfig) { c.MaxUncommittedBytes = bound })
		s.step(Campaign{})
		seqs := map[uint64]uint64{}
		propose := func(stream uint64) Propose {
			seqs[stream]++
			p := batch(stream, seqs[stream], piece)
			p.Stream = stream
			return p
		}
		for range 2 {
			// One group is on its way to the disk all the while.
			effects := s.m.Step(s.now, propose(1))
			if effects.Append == nil {
				t.Fatal("nothing to write")
			}
			taken := map[uint64]int{1: 1}
			for range 100 {
				events := []Event{}
				for stream := range uint64(floods) {
					events = append(events, propose(stream+1))
					taken[stream+1]++
				}
				for _, r := range s.m.Step(s.now, append(events, Tick{}, Tick{})...).Rejections {
					taken[r.Stream]--
				}
			}
			share := bound / (floods + 1) / (piece + envelopeOverheadBytes)
			for stream := range uint64(floods) {
				if n := taken[stream+1]; n < share-1 || n > share+1 {
					t.Errorf("%d floods: stream %d has %d pieces in flight, want about %d", floods, stream+1, n, share)
				}
			}
			if late := s.m.Step(s.now, propose(9), Tick{}, Tick{}).Rejections; len(late) > 0 {
				t.Errorf("%d floods: one that comes later is refused: %v", floods, late[0].Rejection)
			}
			s.step(StorageDone{s.storage.write(*effects.Append)})
			s.step(Tick{}, Tick{})
			if left := s.m.uncommitted.share; left.bytes != 0 || len(left.used) != 0 {
				t.Fatalf("%d floods: %d bytes are accounted for when all is committed", floods, left.bytes)
			}
		}
	}
}

// What tails share does not grow with what a tail has not read: beyond the bound it is read from the disk.
func TestTailsHoldBoundedMemory(t *testing.T) {
	const maxBytes = 10_000
	storage := &memoryStorage{}
	p := newPublished(storage, 0, maxBytes)
	for i := range uint64(1000) {
		data := encodeEnvelope(envelopeHeader{kind: logv1.EntryKind_ENTRY_KIND_BATCH, stamp: 1, session: 1, seq: i + 1,
			payload: fmt.Appendf(nil, "%0200d", i)})
		if err := storage.write(Group{Entries: []Entry{{Index: i + 1, Term: 1, Data: data}}}); err != nil {
			t.Fatal(err)
		}
		stored, err := storage.Entries(i+1, i+2, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		p.advance(&Effects{Published: i + 1, Durable: i + 1, Entries: []*raftpb.Entry{raftEntry(stored[0])}})
		if p.bytes > maxBytes {
			t.Fatalf("%d bytes at entry %d, the bound is %d", p.bytes, i+1, maxBytes)
		}
	}
	// One that begins to read only now gets all.
	for next := uint64(1); next <= 1000; {
		entries, err := p.read(next, 3000)
		if err != nil || len(entries) == 0 || entries[0].Index != next {
			t.Fatalf("from %d: %d entries, %v", next, len(entries), err)
		}
		next += uint64(len(entries))
	}
}
