package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/logservice/segment"
)

// member drives one log member: the deciding logservice.Member, its log in segments and its store of checkpoints, on a disk
// in memory. What logservice.Server does around them stands here once more, without goroutines.
type member struct {
	*process
	id      uint64
	address string
	disk    *disk.Memory
	first   logservice.Group
	nonce   uint64

	log       *segment.Log
	store     *checkpoint.Store
	core      *logservice.Member
	published uint64
	// recent are the entries published in this life, the last one being published.
	recent  []*logv1.Entry
	tails   []*tail
	appends map[uint64]*stream
	streams uint64
	rounds  map[uint64]func(logservice.RoundResult)
	offers  map[uint64]func(logservice.OfferResult)
	tokens  uint64
	writing *logservice.Group
	staging staging

	// slowSync is how long writes take for a while; rotten says that its disk was damaged at rest, retired that it is to be
	// replaced or was.
	slowSync, slowUntil, shortUntil time.Duration
	rotten, retired                 bool
	term                            uint64
}

const (
	tickInterval   = 50 * time.Millisecond
	segmentBytes   = 8 << 10
	tailHeartbeat  = 300 * time.Millisecond
	tailBatchBytes = 4 << 10
)

func (s *Simulation) newMember(id uint64, name string, region int, first logservice.Group) {
	p := s.newProcess(name, region)
	m := &member{process: &p, id: id, address: name + ":1", disk: disk.NewMemory(s.random.Uint64()), first: first, nonce: s.random.Uint64() >> 1}
	s.processes = append(s.processes, m.process)
	s.members = append(s.members, m)
	m.start()
	m.tickLater()
}

func (s *Simulation) memberByID(id uint64) *member {
	for _, m := range s.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

func (s *Simulation) memberAt(address string) *member {
	for _, m := range s.members {
		if m.address == address {
			return m
		}
	}
	return nil
}

// leader is the leader of the latest term; nil for none.
func (s *Simulation) leader() (leader *member) {
	var term uint64
	for _, m := range s.members {
		if m.core == nil {
			continue
		}
		if state := m.core.State(); state.IsLeader && state.Term > term {
			leader, term = m, state.Term
		}
	}
	return leader
}

// start begins a life of the process on what its disk holds.
func (m *member) start() {
	if m.retired || m.up {
		return
	}
	m.disk.Restart()
	err := m.open()
	if err == nil {
		m.up = true
		m.published = m.core.State().Published
		m.step(logservice.HeldCheckpoints{Names: m.store.List()})
		return
	}
	m.core = nil
	m.disk.Kill()
	switch {
	case errors.Is(err, segment.ErrCorrupt) && m.rotten:
		m.s.counts.add("damaged log refused")
		m.s.tell("%s refuses to start: %v", m.name, err)
		m.retire()
	case errors.Is(err, logservice.ErrNoSpace), errors.Is(err, errInjected), m.s.shortReads(m):
		m.s.after(m.s.between(50*time.Millisecond, 300*time.Millisecond), m.start)
	default:
		m.s.fail("%s does not start: %v", m.name, err)
	}
}

func (m *member) open() (err error) {
	m.recent, m.tails, m.writing, m.staging = nil, nil, nil, staging{}
	m.appends, m.rounds, m.offers = map[uint64]*stream{}, map[uint64]func(logservice.RoundResult){}, map[uint64]func(logservice.OfferResult){}
	if err := m.disk.MkdirAll("data"); err != nil {
		return err
	}
	m.log, err = segment.Open(m.disk, "data/log", segment.Options{SegmentBytes: segmentBytes, ManualReserve: true,
		Identity: segment.Identity{ClusterHash: 1, MemberID: m.id, DataDirectoryID: m.id}})
	if err != nil {
		return err
	}
	if m.log.Membership() == nil {
		if err := m.log.Append(m.first); err != nil {
			return err
		}
	}
	if m.store, err = checkpoint.Open(m.disk, "data/checkpoints", checkpoint.Options{}); err != nil {
		return err
	}
	m.nonce += 1 << 32
	m.core, err = logservice.NewMember(logservice.MemberConfig{ID: m.id, Region: regionName(m.region), Storage: m.log,
		Nonce: m.nonce, ClusterID: m.s.clusterID, Publication: m.s.profile.publication,
		HeartbeatTicks: 2, ElectionTicks: 8, StaggerTicks: 2, StallTicks: 10, NoSpaceRetryTicks: 5,
		RoundRetryTicks: 5, RoundTimeoutTicks: 40, MaxMemoryBytes: 4 << 10, RecordInterval: 50, MaxGroupBytes: 4 << 10,
		MaxMessageBytes: 2 << 10, CheckpointLogBytes: m.s.profile.checkpointBytes, TailBytes: m.s.profile.checkpointBytes,
		MaxPinBytes: m.s.profile.checkpointBytes, CheckpointTicks: 4, CheckpointTimeoutTicks: 100, CheckpointRestTicks: 20,
		SessionSilence: 12 * time.Second})
	return err
}

func (m *member) tickLater() {
	m.s.after(m.s.between(tickInterval*19/20, tickInterval*21/20), func() {
		if m.retired && !m.up {
			return
		}
		m.do(m.life, func() {
			lowest := uint64(0)
			for _, t := range m.tails {
				if !t.stream.broken && (lowest == 0 || t.next < lowest) {
					lowest = t.next
				}
			}
			m.step(logservice.Pinned{Index: lowest}, logservice.Tick{})
			m.elected()
		})
		m.tickLater()
	})
}

// elected notes that the member leads in another term than before.
func (m *member) elected() {
	if m.core == nil {
		return
	}
	if state := m.core.State(); state.IsLeader && state.Term != m.term {
		m.term = state.Term
		m.s.counts.add("election")
		m.s.tell("%s leads in term %d", m.name, state.Term)
	}
}

// step steps the member. A paused one is stepped when it goes on.
func (m *member) step(events ...logservice.Event) {
	m.do(m.life, func() {
		effects := m.core.Step(m.monotonic().Add(m.wallJump), events...)
		if effects.Failure != nil {
			m.broke(effects.Failure)
			return
		}
		m.perform(&effects)
	})
}

// broke ends the process where its disk failed it.
func (m *member) broke(err error) {
	m.s.tell("%s ends itself: %v", m.name, err)
	m.s.counts.add("member ended itself")
	if !m.rotten && !m.s.shortReads(m) && !errors.Is(err, errInjected) {
		m.s.fail("%s failed without a fault: %v", m.name, err)
		return
	}
	m.end(m.disk.Kill)
	m.s.after(m.s.between(50*time.Millisecond, time.Second), m.start)
}

// end takes the process away; what becomes of its disk is the caller's to say.
func (m *member) end(lose func()) {
	if !m.up {
		return
	}
	lose()
	m.resetStreams()
	m.died()
	m.core, m.log, m.store = nil, nil, nil
}

// resetStreams tells frontends that the connection is gone, as far as the network does.
func (m *member) resetStreams() {
	for _, f := range m.s.frontends {
		f.lostMember(m)
	}
}

// retire takes a member out of service for good: it is replaced.
func (m *member) retire() {
	m.retired = true
	m.s.admin.replace(m)
}

func (m *member) perform(effects *logservice.Effects) {
	s := m.s
	m.publish(effects)
	if s.failure != "" {
		return
	}
	if effects.Append != nil {
		m.write(effects.Append)
	}
	if effects.Install != nil {
		m.install(effects.Install)
	}
	m.performCheckpoints(effects)
	for _, f := range effects.Frames {
		m.sendFrame(f)
	}
	for _, r := range effects.Rejections {
		if st := m.appends[r.Stream]; st != nil {
			rejection := r.Rejection
			s.counts.add("proposal rejected")
			st.send(m.process, func() { s.frontendOf(st).rejected(st, rejection) })
		}
	}
	for _, r := range effects.Rounds {
		if answer := m.rounds[r.Token]; answer != nil {
			delete(m.rounds, r.Token)
			answer(r)
		}
	}
	for _, r := range effects.Offers {
		if answer := m.offers[r.Token]; answer != nil {
			delete(m.offers, r.Token)
			answer(r)
		}
	}
	for _, v := range effects.Verdicts {
		m.judged(v)
	}
	for _, r := range effects.Changes {
		if r.Refusal != nil {
			s.counts.add("membership change refused")
		}
	}
	if effects.Removed {
		s.tell("%s was removed", m.name)
		s.counts.add("member removed")
		m.retired = true
		m.after(0, func() { m.end(m.disk.Kill) })
	}
}

// publish gives what a step has published to the truth and to the tails.
func (m *member) publish(effects *logservice.Effects) {
	if effects.Published <= m.published {
		return
	}
	first := effects.Published + 1 - uint64(len(effects.Entries))
	for next := m.published + 1; next <= effects.Published; {
		if next >= first {
			e := effects.Entries[next-first]
			m.published = next
			m.recent = append(m.recent, tailEntry(next, e.GetTerm(), uint8(e.GetType()), e.GetData()))
			m.s.truth.published(m, next, e.GetTerm(), uint8(e.GetType()), e.GetData())
			next++
			continue
		}
		if next < m.log.FirstIndex() {
			// A snapshot: what is below is in its checkpoint.
			m.published, m.recent = m.log.FirstIndex()-1, nil
			next = m.log.FirstIndex()
			continue
		}
		stored, err := m.log.Entries(next, min(first, effects.Published+1), 1<<20)
		if err != nil {
			m.after(0, func() { m.broke(err) })
			return
		}
		for _, e := range stored {
			m.published = e.Index
			m.recent = append(m.recent, tailEntry(e.Index, e.Term, e.Type, e.Data))
			m.s.truth.published(m, e.Index, e.Term, e.Type, e.Data)
		}
		next = m.published + 1
	}
	for _, t := range m.tails {
		m.serveTail(t, false)
	}
}

// tailEntry is an entry as tails send it.
func tailEntry(index, term uint64, kind uint8, data []byte) *logv1.Entry {
	t := &logv1.Entry{Index: index, Term: term}
	if kind != 0 {
		t.Kind = logv1.EntryKind_ENTRY_KIND_MEMBERSHIP
		return t
	}
	if len(data) > 0 {
		envelope := &logv1.Envelope{}
		if proto.Unmarshal(data, envelope) == nil {
			t.Kind, t.Envelope = envelope.GetKind(), data
		}
	}
	return t
}

// write makes a group durable after a while, and then lets the space of the next segment be reserved.
func (m *member) write(g *logservice.Group) {
	s := m.s
	m.writing = g
	delay := s.between(0, 3*time.Millisecond)
	if m.slowUntil > s.now {
		s.counts.add("slow fsync")
		delay += s.between(m.slowSync/2, m.slowSync)
	}
	// The disk goes on while the process is paused.
	life := m.life
	s.after(delay, func() {
		if m.life != life || !m.up {
			return
		}
		err := m.log.Append(*g)
		m.wrote(err)
	})
}

// wrote tells the member of the end of a write. Any error but ErrNoSpace ends the process.
func (m *member) wrote(err error) {
	m.writing = nil
	if err == nil {
		if reserveErr := m.log.Reserve(); reserveErr != nil && !errors.Is(reserveErr, logservice.ErrNoSpace) {
			err = reserveErr
		}
	}
	switch {
	case errors.Is(err, logservice.ErrNoSpace):
		m.s.counts.add("write without room")
	case err != nil:
		m.do(m.life, func() { m.broke(err) })
		return
	}
	m.step(logservice.StorageDone{Err: err})
}

func (m *member) sendFrame(f logservice.OutgoingFrame) {
	s, to := m.s, m.s.memberByID(f.To)
	if to == nil {
		return
	}
	l := s.link(m.process, to.process)
	if s.severed(l) || s.loss > 0 && s.random.Float64() < s.loss {
		s.counts.add("frame lost")
		if f.Frame.GetProposal() != nil && s.one(2) {
			m.after(0, func() { m.step(logservice.Unsent{To: f.To, Frames: []*logv1.PeerFrame{f.Frame}}) })
		}
		return
	}
	copies := 1
	if !s.quiet && f.Frame.GetProposal() == nil && s.one(80) {
		copies = 2
		s.counts.add("frame repeated")
	}
	for range copies {
		at := s.now + s.transit(l)
		if at < l.arrival {
			if s.quiet || !s.one(20) {
				at = l.arrival
			} else {
				s.counts.add("frame reordered")
			}
		}
		l.arrival = max(l.arrival, at)
		life := to.life
		s.after(at-s.now, func() {
			if to.life == life {
				to.step(logservice.Received{From: m.id, Frame: f.Frame})
			}
		})
	}
}

// tail is the stream on which a frontend follows the log here.
type tail struct {
	stream     *stream
	next       uint64
	previous   uint64
	checked    bool
	told       uint64
	toldMember bool
}

// openTail begins to serve a tail, or says why not.
func (m *member) openTail(st *stream, next, previousTerm uint64) {
	t := &tail{stream: st, next: next, previous: previousTerm, checked: next == 1}
	m.tails = append(slices.DeleteFunc(m.tails, func(t *tail) bool { return t.stream.broken }), t)
	m.serveTail(t, true)
	m.heartbeat(t)
}

func (m *member) heartbeat(t *tail) {
	m.after(tailHeartbeat, func() {
		if !t.stream.broken {
			m.serveTail(t, true)
			m.heartbeat(t)
		}
	})
}

// entriesFrom reads published entries for a tail.
func (m *member) entriesFrom(next uint64) (entries []*logv1.Entry, err error) {
	if first := m.published + 1 - uint64(len(m.recent)); next >= first {
		bytes := 0
		for _, e := range m.recent[next-first:] {
			if bytes += len(e.Envelope) + 64; len(entries) > 0 && bytes > tailBatchBytes {
				break
			}
			entries = append(entries, e)
		}
		return entries, nil
	} else if next < first {
		stored, err := m.log.Entries(next, first, tailBatchBytes)
		if err != nil {
			return nil, err
		}
		for _, e := range stored {
			entries = append(entries, tailEntry(e.Index, e.Term, e.Type, e.Data))
		}
	}
	return entries, nil
}

func (m *member) termOf(index uint64) (uint64, error) {
	if first := m.published + 1 - uint64(len(m.recent)); index >= first && index <= m.published {
		return m.recent[index-first].Term, nil
	}
	return m.log.Term(index)
}

// serveTail sends what is new; due says that something must be said even without entries.
func (m *member) serveTail(t *tail, due bool) {
	s := m.s
	f := s.frontendOf(t.stream)
	if t.stream.broken {
		return
	}
	for {
		answer := &logv1.TailResponse{PublishedIndex: m.published, FirstIndex: m.log.FirstIndex()}
		if t.next < m.log.FirstIndex() {
			s.counts.add("tail of what was trimmed")
			st := t.stream
			st.send(m.process, func() { f.trimmed(st, m) })
			t.stream = &stream{s: s, a: st.a, b: st.b, broken: true}
			return
		}
		if !t.checked && m.published+1 >= t.next {
			mine, err := m.termOf(t.next - 1)
			if err != nil {
				m.after(0, func() { m.broke(err) })
				return
			}
			if mine != t.previous {
				s.fail("%s: %s has applied entry %d of term %d, here it is of term %d", m.name, f.name, t.next-1, t.previous, mine)
				return
			}
			t.checked = true
		}
		if t.checked && m.published >= t.next {
			entries, err := m.entriesFrom(t.next)
			if err != nil {
				m.after(0, func() { m.broke(err) })
				return
			}
			answer.Entries = entries
			t.next += uint64(len(entries))
		}
		if membership := m.core.Membership(); membership.GetIndex() != t.told || !t.toldMember {
			answer.Membership, t.told, t.toldMember = membership, membership.GetIndex(), true
			due = true
		}
		if !due && len(answer.Entries) == 0 {
			return
		}
		st := t.stream
		st.send(m.process, func() { f.tailed(st, m, answer) })
		due = false
	}
}

// openAppend takes the proposals of a frontend from a stream.
func (m *member) openAppend(st *stream) (id uint64) {
	m.streams++
	id = m.streams
	m.appends[id] = st
	f := m.s.frontendOf(st)
	st.send(m.process, func() { f.appendUp(st, id) })
	var beat func()
	beat = func() {
		if st.broken {
			delete(m.appends, id)
			m.step(logservice.StreamClosed{Stream: id})
			return
		}
		st.send(m.process, func() { f.appendHeard(st) })
		m.after(tailHeartbeat, beat)
	}
	m.after(tailHeartbeat, beat)
	return id
}

func (m *member) ask(answer func(logservice.RoundResult)) {
	m.tokens++
	m.rounds[m.tokens] = answer
	m.step(logservice.AskRound{Token: m.tokens})
}

func regionName(region int) string { return fmt.Sprintf("region-%d", region) }
