package logservice

import (
	"container/heap"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// simulation drives members single-threaded through a schedule that follows from a seed: delays, losses, cuts, slow
// disks, crashes that lose what was not synced, transfers and configuration changes. After every step it checks that all
// published entries agree, that log time never goes back, and that read rounds are linearizable.
type simulation struct {
	t           *testing.T
	seed        uint64
	random      *rand.Rand
	publication Publication
	now         time.Time
	queue       simQueue
	order       int
	nodes       []*simNode
	initial     []InitialMember
	arrival     map[[2]int]time.Time
	cut         map[[2]int]bool
	loss        float64
	quiet       bool

	agreed    map[uint64]string
	highest   uint64
	stamps    map[uint64]uint64
	asked     map[uint64]uint64
	nextToken uint64
	answered  int
	failed    bool
}

type simNode struct {
	s       *simulation
	index   int
	id      uint64
	storage *memoryStorage
	member  *Member
	life    int
	pub     uint64
	seq     uint64
	paused  time.Time
	writing *Group
}

type simEvent struct {
	at    time.Time
	order int
	do    func()
}

type simQueue []simEvent

func (q simQueue) Len() int      { return len(q) }
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q simQueue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].order < q[j].order
}
func (q *simQueue) Push(x any) { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

func newSimulation(t *testing.T, seed uint64, publication Publication) *simulation {
	s := &simulation{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 7)), publication: publication,
		now: time.Unix(1_000_000, 0), arrival: map[[2]int]time.Time{}, cut: map[[2]int]bool{},
		agreed: map[uint64]string{}, stamps: map[uint64]uint64{}, asked: map[uint64]uint64{}}
	voters := 3 + 2*s.random.IntN(2)
	for i := range voters {
		s.initial = append(s.initial, InitialMember{Name: fmt.Sprintf("m%d", i), Address: "x:1"})
	}
	record, id, err := FirstRecord(s.initial)
	if err != nil {
		t.Fatal(err)
	}
	for i := range voters + 2 {
		n := &simNode{s: s, index: i, storage: &memoryStorage{membership: record}}
		if n.id = uint64(1000 + i); i < voters {
			n.id = id(s.initial[i].Name)
		}
		s.nodes = append(s.nodes, n)
		n.start()
		n.tickLater()
	}
	return s
}

func (s *simulation) errorf(format string, args ...any) {
	s.t.Helper()
	s.failed = true
	s.t.Errorf("seed %d %v at %v: %s", s.seed, s.publication, s.now.Sub(time.Unix(1_000_000, 0)), fmt.Sprintf(format, args...))
}

func (s *simulation) after(d time.Duration, do func()) {
	s.order++
	heap.Push(&s.queue, simEvent{s.now.Add(d), s.order, do})
}

func (s *simulation) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.queue) > 0 && !s.failed && !s.queue[0].at.After(end) {
		e := heap.Pop(&s.queue).(simEvent)
		s.now = e.at
		e.do()
	}
	s.now = end
}

func (s *simulation) node(id uint64) *simNode {
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

func (n *simNode) start() {
	var log *slog.Logger
	if n.s.t.Name() == "" {
		log = slog.Default()
	}
	m, err := NewMember(MemberConfig{ID: n.id, Region: fmt.Sprintf("r%d", n.index), Storage: n.storage, Nonce: n.s.random.Uint64() >> 1,
		ClusterID: n.s.random.Uint64() | 1, Publication: n.s.publication, Logger: log, MaxMemoryBytes: 2000,
		RecordInterval: 20, MaxGroupBytes: 400, MaxMessageBytes: 300})
	if err != nil {
		n.s.errorf("node %d: %v", n.index, err)
		return
	}
	n.member, n.pub = m, m.State().Published
}

func (n *simNode) tickLater() {
	n.s.after(50*time.Millisecond+time.Duration(n.s.random.IntN(1000))*time.Microsecond, func() {
		n.step(Tick{})
		n.tickLater()
	})
}

// step steps the member; a paused one gets the events when it goes on.
func (n *simNode) step(events ...Event) {
	if n.member == nil || n.s.failed {
		return
	}
	if n.paused.After(n.s.now) {
		life := n.life
		if _, tick := events[0].(Tick); !tick {
			n.s.after(n.paused.Sub(n.s.now), func() {
				if n.life == life {
					n.step(events...)
				}
			})
		}
		return
	}
	effects := n.member.Step(n.s.now, events...)
	n.perform(&effects)
}

func (n *simNode) perform(effects *Effects) {
	s := n.s
	if effects.Failure != nil {
		s.errorf("node %d failed: %v", n.index, effects.Failure)
		return
	}
	if effects.Published < n.pub {
		s.errorf("node %d: published went from %d to %d", n.index, n.pub, effects.Published)
	}
	for n.pub < effects.Published {
		entries, err := n.member.log.Entries(n.pub+1, effects.Published+1, 1<<20)
		if err != nil {
			s.errorf("node %d can't read %d: %v", n.index, n.pub+1, err)
			return
		}
		for _, e := range entries {
			s.published(n, e)
			n.pub = e.GetIndex()
		}
	}
	if effects.Append != nil {
		n.write(effects.Append)
	}
	for _, r := range effects.Rounds {
		if r.Failure == "" {
			s.answered++
			if r.Index < s.asked[r.Token] {
				s.errorf("node %d: round %d answered with %d, %d was published before", n.index, r.Token, r.Index, s.asked[r.Token])
			}
		}
	}
	for _, f := range effects.Frames {
		s.send(n, f)
	}
}

// published checks one entry that a member has published.
func (s *simulation) published(n *simNode, e *raftpb.Entry) {
	index := e.GetIndex()
	text := fmt.Sprintf("term %d type %v %x", e.GetTerm(), e.GetType(), e.GetData())
	if known, ok := s.agreed[index]; ok {
		if known != text {
			s.errorf("node %d publishes at %d: %s\nwas: %s", n.index, index, text, known)
		}
		return
	}
	s.agreed[index] = text
	s.highest = max(s.highest, index)
	before := s.stamps[index-1]
	s.stamps[index] = before
	if h, ok := parseEnvelope(e.GetData()); ok && !isConfChange(e) {
		s.stamps[index] = h.stamp
		if genesis := h.kind == logv1.EntryKind_ENTRY_KIND_GENESIS; genesis != (before == 0) {
			s.errorf("entry %d of kind %v after stamp %d", index, h.kind, before)
		}
		if before != 0 && (h.stamp < before || h.stamp-before > uint64(MaxLogTimeAdvance)) {
			s.errorf("log time goes from %d to %d at %d", before, h.stamp, index)
		}
	}
}

// write finishes after a while, unless the node crashes before: then the write happened or did not.
func (n *simNode) write(g *Group) {
	s, life := n.s, n.life
	delay := time.Duration(s.random.IntN(3000)) * time.Microsecond
	if s.random.IntN(200) == 0 && !s.quiet {
		delay = time.Duration(s.random.IntN(1500)) * time.Millisecond
	}
	n.writing = g
	s.after(delay, func() {
		if n.life != life {
			return
		}
		n.writing = nil
		if err := n.storage.write(*g); err != nil {
			s.errorf("node %d: %v", n.index, err)
		}
		n.step(StorageDone{})
	})
}

func (s *simulation) send(from *simNode, f OutgoingFrame) {
	to := s.node(f.To)
	link := [2]int{from.index, to.index}
	if s.cut[link] || s.random.Float64() < s.loss {
		return
	}
	copies := 1
	if !s.quiet && s.random.IntN(50) == 0 {
		copies = 2
	}
	for range copies {
		at := s.now.Add(time.Duration(20+10*(from.index+to.index))*time.Millisecond + time.Duration(s.random.IntN(20000))*time.Microsecond)
		if s.random.IntN(20) > 0 && at.Before(s.arrival[link]) {
			at = s.arrival[link]
		}
		s.arrival[link] = at
		life := to.life
		s.after(at.Sub(s.now), func() {
			if to.life == life {
				to.step(Received{From: from.id, Frame: f.Frame})
			}
		})
	}
}

func (n *simNode) crash() {
	if n.member == nil {
		return
	}
	n.member = nil
	n.life++
	if n.writing != nil && n.s.random.IntN(2) == 0 {
		if err := n.storage.write(*n.writing); err != nil {
			n.s.errorf("node %d: %v", n.index, err)
		}
	}
	n.writing = nil
}

// load proposes and asks at random members.
func (s *simulation) load() {
	n := s.nodes[s.random.IntN(len(s.nodes))]
	if s.random.IntN(3) == 0 {
		s.nextToken++
		s.asked[s.nextToken] = s.highest
		n.step(AskRound{Token: s.nextToken})
	} else {
		n.seq++
		n.step(Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: uint64(n.index + 1),
			Seq: n.seq, Payload: fmt.Appendf(nil, "%d", s.random.IntN(1000))}})
	}
	s.after(time.Duration(s.random.IntN(30))*time.Millisecond, s.load)
}

// trouble does one bad thing at a time.
func (s *simulation) trouble() {
	if s.quiet {
		return
	}
	n := s.nodes[s.random.IntN(len(s.nodes))]
	switch s.random.IntN(9 + int(s.seed%2)*6) {
	case 0, 1:
		n.crash()
		s.after(time.Duration(s.random.IntN(3000))*time.Millisecond, func() {
			if n.member == nil {
				n.start()
			}
		})
	case 2, 3:
		for _, o := range s.nodes {
			if s.random.IntN(2) == 0 {
				s.cut[[2]int{n.index, o.index}] = true
			}
			if s.random.IntN(2) == 0 {
				s.cut[[2]int{o.index, n.index}] = true
			}
		}
	case 4:
		clear(s.cut)
	case 5:
		n.paused = s.now.Add(time.Duration(s.random.IntN(3000)) * time.Millisecond)
	case 6:
		n.step(Transfer{Token: 1, Target: s.nodes[s.random.IntN(len(s.nodes))].id})
	case 7:
		n.step(Campaign{})
	default: // odd seeds are mostly about configurations
		s.reconfigure()
	}
	s.loss = float64(s.random.IntN(3)) / 20
	s.after(time.Duration(s.random.IntN(800))*time.Millisecond, s.trouble)
}

// reconfigure changes the role of one or two nodes, where there is a leader.
func (s *simulation) reconfigure() {
	for _, n := range s.nodes {
		if n.member == nil || !n.member.State().IsLeader {
			continue
		}
		// At most one removal in a change: of two removed ones, each may hold entries that keep the others, which do not
		// know of the change's commit yet, from being elected.
		removes := false
		change := &raftpb.ConfChangeV2{}
		for range 1 + s.random.IntN(2) {
			target := s.nodes[s.random.IntN(len(s.nodes))]
			kind := raftpb.ConfChangeAddNode
			switch voters := n.member.voters; {
			case slices.Contains(voters, target.id) && len(voters) > 3 && !removes:
				kind, removes = raftpb.ConfChangeRemoveNode, true
			case s.random.IntN(3) == 0 && !slices.Contains(voters, target.id):
				kind = raftpb.ConfChangeAddLearnerNode
			}
			if slices.ContainsFunc(change.Changes, func(c *raftpb.ConfChangeSingle) bool { return c.GetNodeId() == target.id }) {
				continue
			}
			change.Changes = append(change.Changes, &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: &target.id})
		}
		n.step(Reconfigure{Change: change})
		return
	}
}

// settle heals everything, and checks that the log goes on and that all voters come to publish the same.
func (s *simulation) settle() {
	s.quiet, s.loss = true, 0
	clear(s.cut)
	for _, n := range s.nodes {
		n.paused = time.Time{}
		if n.member == nil {
			n.start()
		}
	}
	s.run(5 * time.Second)
	before := s.highest
	s.run(5 * time.Second)
	if s.highest < before+20 {
		for _, n := range s.nodes {
			s.t.Logf("node %d: %+v %v", n.index, n.member.State(), n.member.record.conf)
		}
		s.errorf("the log does not go on: %d, then %d", before, s.highest)
	}
	var voters []uint64
	for _, n := range s.nodes {
		if n.member.State().IsLeader {
			voters = n.member.voters
		}
	}
	for _, n := range s.nodes {
		if slices.Contains(voters, n.id) && n.pub+20 < s.highest {
			s.errorf("node %d has published %d of %d", n.index, n.pub, s.highest)
		}
	}
}

func simulate(t *testing.T, seed uint64, publication Publication) *simulation {
	s := newSimulation(t, seed, publication)
	s.after(0, s.load)
	s.after(time.Second, s.trouble)
	s.run(12 * time.Second)
	s.settle()
	return s
}

func TestSimulation(t *testing.T) {
	seeds := uint64(30)
	for _, publication := range []Publication{PublicationQuorum, PublicationLeader} {
		entries, rounds := 0, 0
		for seed := range seeds {
			s := simulate(t, seed, publication)
			entries += len(s.agreed)
			rounds += s.answered
			if t.Failed() {
				return
			}
		}
		t.Logf("%v: %d entries, %d rounds answered in %d seeds", publication, entries, rounds, seeds)
	}
}

// The same seed leads to the same history.
func TestSimulationIsReproducible(t *testing.T) {
	for seed := range uint64(3) {
		a, b := simulate(t, seed, PublicationQuorum), simulate(t, seed, PublicationQuorum)
		if len(a.agreed) != len(b.agreed) || a.order != b.order || a.answered != b.answered {
			t.Errorf("seed %d: %d entries and %d events, then %d and %d", seed, len(a.agreed), a.order, len(b.agreed), b.order)
		}
		for index, text := range a.agreed {
			if b.agreed[index] != text {
				t.Fatalf("seed %d: entry %d differs", seed, index)
			}
		}
	}
}
