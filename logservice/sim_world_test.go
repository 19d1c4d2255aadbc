package logservice

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// simulation drives members single-threaded through a schedule that follows from a seed. This file is its world: time,
// network, disks, clocks and processes. sim_schedule_test.go draws what goes wrong in it, sim_check_test.go looks for
// what must never be.
//
// Time is scaled down so that a schedule of a few virtual seconds holds dozens of elections: a tick is 20 ms, an election
// needs 8 of them.
type simulation struct {
	seed        uint64
	random      *rand.Rand
	publication Publication
	profile     simProfile
	now         time.Duration
	queue       simQueue
	order       uint64
	nodes       []*simNode
	// delay is the least time of a link, arrival when its last frame arrives; cut links lose all.
	delay, arrival [][]time.Duration
	cut            [][]bool
	loss           float64
	// One frame in reorder overtakes others, one write in slow takes long.
	reorder, slow int
	// quiet is set once everything is healed.
	quiet bool
	// askFrom and proposeFrom are those that work is given to, where a fault is about some.
	askFrom, proposeFrom []*simNode
	// hushed is set while nobody proposes.
	hushed bool
	// watch sees a member after each step, before what it sends has left.
	watch    func(n *simNode)
	counts   simCounts
	checker  simChecker
	failure  string
	nextWork uint64
	// offers are the uploads that wait for an answer.
	offers    map[uint64]func(OfferResult)
	nextOffer uint64
	members   simMembers
}

// simNode is a machine with its disk and clock, and the member that runs on it, if one does.
type simNode struct {
	s       *simulation
	index   int
	id      uint64
	storage *memoryStorage
	member  *Member
	// life tells the lives of the process apart: frames to an earlier one are lost.
	life     int
	seq      uint64
	paused   time.Duration
	deferred []Event
	writing  *Group
	noSpace  bool
	// held are the checkpoints on the disk. staged is what a snapshot needs, installing does an install that is under way.
	held       map[CheckpointName]bool
	staged     *simStaged
	installing func()
	// The member's clock shows clockNow at clockAt, and runs at rate.
	clockAt  time.Duration
	clockNow time.Time
	rate     float64

	// What the checker remembers of this life.
	published uint64
	// kept is the last published entry that its log was seen to hold.
	kept      uint64
	leaderOf  uint64
	confIndex uint64
}

const (
	simTick       = 20 * time.Millisecond
	simTroubled   = 2200 * time.Millisecond
	simSettle     = 8 * time.Second
	simExtraNodes = 2
)

// simStart is what a node's clock shows at the start, give or take an hour.
var simStart = time.Unix(1_000_000, 0)

func newSimulation(seed uint64, publication Publication, profile simProfile, checks simChecks) *simulation {
	s := &simulation{seed: seed, random: rand.New(rand.NewPCG(seed, uint64(publication))), publication: publication,
		profile: profile, counts: simCounts{}, offers: map[uint64]func(OfferResult){}}
	voters := 3
	if s.random.IntN(3) == 0 {
		voters = 5
	}
	count := voters + simExtraNodes
	s.checker = newSimChecker(s, checks)
	s.reorder, s.slow = 5+s.random.IntN(30), 10+s.random.IntN(150)
	for range count {
		s.cut = append(s.cut, make([]bool, count))
		s.arrival = append(s.arrival, make([]time.Duration, count))
		delays := make([]time.Duration, count)
		for i := range delays {
			delays[i] = time.Millisecond + time.Duration(s.random.IntN(int(20*time.Millisecond)))
		}
		s.delay = append(s.delay, delays)
	}
	var initial []InitialMember
	for i := range voters {
		initial = append(initial, InitialMember{Name: fmt.Sprintf("m%d", i), Address: "x:1"})
	}
	record, id, err := FirstRecord(initial)
	if err != nil {
		s.errorf("first record: %v", err)
		return s
	}
	for i := range count {
		n := &simNode{s: s, index: i, storage: &memoryStorage{membership: record}, held: map[CheckpointName]bool{}, rate: 1,
			clockNow: simStart.Add(time.Duration(s.random.Int64N(int64(time.Hour))))}
		if n.id = uint64(1000 + i); i < voters {
			n.id = id(initial[i].Name)
		}
		s.nodes = append(s.nodes, n)
		n.start()
		n.tickLater()
	}
	return s
}

func (s *simulation) errorf(format string, args ...any) {
	if s.failure == "" {
		s.failure = fmt.Sprintf("at %v: %s", s.now, fmt.Sprintf(format, args...))
	}
}

type simEvent struct {
	at    time.Duration
	order uint64
	do    func()
}

// simQueue is a binary heap of events, earliest first, those of one instant in the order in which they were made.
type simQueue []simEvent

func (q simQueue) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}

func (q *simQueue) push(e simEvent) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.less(i, parent) {
			return
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

func (q *simQueue) pop() simEvent {
	h := *q
	top, end := h[0], len(h)-1
	h[0], h[end] = h[end], simEvent{}
	h = h[:end]
	*q = h
	for i := 0; ; {
		least, left := i, 2*i+1
		for child := left; child < min(left+2, end); child++ {
			if h.less(child, least) {
				least = child
			}
		}
		if least == i {
			return top
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

func (s *simulation) after(d time.Duration, do func()) {
	s.order++
	s.queue.push(simEvent{s.now + d, s.order, do})
}

func (s *simulation) run(d time.Duration) {
	end := s.now + d
	for len(s.queue) > 0 && s.failure == "" && s.queue[0].at <= end {
		e := s.queue.pop()
		s.now = e.at
		e.do()
	}
	s.now = end
}

// between draws a duration.
func (s *simulation) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.random.Int64N(int64(most-least)))
}

// one draws true once in n.
func (s *simulation) one(n int) bool { return s.random.IntN(n) == 0 }

func (s *simulation) node(id uint64) *simNode {
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// leader is the leader of the latest term among those that think they lead; nil for none.
func (s *simulation) leader() (leader *simNode) {
	for _, n := range s.nodes {
		if n.leads() && (leader == nil || n.member.state.term > leader.member.state.term) {
			leader = n
		}
	}
	return leader
}

func (n *simNode) leads() bool { return n.member != nil && n.member.state.role == raft.StateLeader }

func (n *simNode) clock() time.Time {
	return n.clockNow.Add(time.Duration(float64(n.s.now-n.clockAt) * n.rate))
}

// setClock lets the clock jump and then run at another rate.
func (n *simNode) setClock(jump time.Duration, rate float64) {
	n.clockNow, n.clockAt = n.clock().Add(jump), n.s.now
	n.rate = rate
}

func (n *simNode) start() {
	config := MemberConfig{ID: n.id, Region: "r", Storage: n.storage,
		Nonce: n.s.random.Uint64() >> 1, ClusterID: n.s.random.Uint64() | 1, Publication: n.s.publication,
		HeartbeatTicks: 2, ElectionTicks: 8, StaggerTicks: 2, StallTicks: 6, NoSpaceRetryTicks: 5,
		RoundRetryTicks: 5, RoundTimeoutTicks: simRoundTimeoutTicks,
		MaxMemoryBytes: 400, RecordInterval: 20, MaxGroupBytes: 400, MaxMessageBytes: 300}
	n.checkpointConfig(&config)
	m, err := NewMember(config)
	if err != nil {
		n.s.errorf("node %d does not start: %v", n.index, err)
		return
	}
	n.member = m
	n.s.checker.started(n)
	n.step(HeldCheckpoints{n.heldList()})
}

func (n *simNode) tickLater() {
	interval := time.Duration(float64(simTick) / n.rate)
	n.s.after(n.s.between(interval*19/20, interval*21/20), func() {
		if n.paused <= n.s.now {
			n.step(Tick{})
		}
		n.tickLater()
	})
}

// step steps the member; a paused one gets the events when it goes on.
func (n *simNode) step(events ...Event) {
	if n.member == nil || n.s.failure != "" {
		return
	}
	if n.paused > n.s.now {
		n.deferred = append(n.deferred, events...)
		return
	}
	defer func() {
		if r := recover(); r != nil {
			n.s.errorf("node %d panics: %v", n.index, r)
			n.s.counts.add("panic")
			if simVerbose() {
				fmt.Printf("%s\n", debug.Stack())
			}
		}
	}()
	n.s.checker.before(n)
	effects := n.member.Step(n.clock(), events...)
	n.s.checker.after(n, &effects)
	if n.s.failure != "" {
		return
	}
	if watch := n.s.watch; watch != nil {
		watch(n)
	}
	if effects.Append != nil {
		n.write(effects.Append)
	}
	if effects.Install != nil {
		n.install(effects.Install)
	}
	n.performCheckpoints(&effects)
	for _, f := range effects.Frames {
		n.s.send(n, f)
	}
	n.s.membersAnswered(n, &effects)
}

// pause stops the process for a while; its disk goes on.
func (n *simNode) pause(d time.Duration) {
	if n.member == nil || n.paused > n.s.now {
		return
	}
	n.s.counts.add("pause")
	n.paused = n.s.now + d
	life := n.life
	n.s.after(d, func() {
		if n.life == life {
			n.resume()
		}
	})
}

func (n *simNode) resume() {
	n.paused = 0
	events := n.deferred
	n.deferred = nil
	for _, e := range events {
		n.step(e)
	}
}

// write finishes after a while, unless the node crashes before: then the write happened or did not.
func (n *simNode) write(g *Group) {
	s, life := n.s, n.life
	delay := s.between(0, 3*time.Millisecond)
	if !s.quiet {
		switch {
		case s.one(s.slow):
			delay = s.between(0, 400*time.Millisecond)
			s.counts.add("slow write")
		case n.noSpace && s.one(3):
			n.noSpace = false
			s.after(delay, func() {
				if n.life == life {
					s.counts.add("no space")
					n.step(StorageDone{fmt.Errorf("simulated: %w", ErrNoSpace)})
				}
			})
			return
		}
	}
	n.writing = g
	s.after(delay, func() {
		if n.life == life {
			n.writing = nil
			n.store(*g)
			n.step(StorageDone{})
		}
	})
}

// store makes a group durable.
func (n *simNode) store(g Group) {
	n.s.checker.overwrites(n, g)
	if err := n.storage.write(g); err != nil {
		n.s.errorf("node %d: %v", n.index, err)
	}
}

func (s *simulation) send(from *simNode, f OutgoingFrame) {
	to := s.node(f.To)
	if to == nil {
		return
	}
	if s.cut[from.index][to.index] || s.loss > 0 && s.random.Float64() < s.loss {
		if f.Frame.GetProposal() != nil && s.one(2) {
			// A stream that breaks gives proposals back.
			s.counts.add("unsent")
			life := from.life
			s.after(0, func() {
				if from.life == life {
					from.step(Unsent{To: f.To, Frames: []*logv1.PeerFrame{f.Frame}})
				}
			})
		}
		s.counts.add("lost frame")
		return
	}
	copies := 1
	if !s.quiet && f.Frame.GetProposal() == nil && s.one(50) {
		// Not proposals: a rejection speaks of one copy, and the check of rejections is exact where there is only one.
		copies = 2
		s.counts.add("repeated frame")
	}
	for range copies {
		at := s.now + s.delay[from.index][to.index] + s.between(0, 4*time.Millisecond)
		if last := &s.arrival[from.index][to.index]; at < *last {
			if s.quiet || !s.one(s.reorder) {
				at = *last
			} else {
				s.counts.add("reordered frame")
			}
		} else {
			*last = at
		}
		life := to.life
		s.after(at-s.now, func() {
			if to.life == life {
				to.step(Received{From: from.id, Frame: f.Frame})
			}
		})
	}
}

// crash ends the process. The group that was being written is lost or not.
func (n *simNode) crash() {
	if n.member == nil {
		return
	}
	if n.leads() {
		n.s.counts.add("crash of a leader")
	}
	n.s.counts.add("crash")
	n.member, n.deferred, n.paused = nil, nil, 0
	n.life++
	if n.writing != nil {
		if n.s.one(2) {
			n.s.counts.add("crash after the write")
			n.store(*n.writing)
		} else {
			n.s.counts.add("crash that loses a write")
		}
	}
	if n.installing != nil {
		n.s.counts.add("crash in an install")
		if n.s.one(2) {
			n.installing()
		}
	}
	n.writing, n.noSpace, n.installing, n.staged = nil, false, nil, nil
}

// crashFor restarts the process after a while.
func (n *simNode) crashFor(d time.Duration) {
	if n.member == nil {
		return
	}
	n.crash()
	life := n.life
	n.s.after(d, func() {
		if n.life == life && n.member == nil && n.s.failure == "" {
			n.s.counts.add("restart")
			n.start()
		}
	})
}

// heal makes everything well.
func (s *simulation) heal() {
	s.loss = 0
	for _, row := range s.cut {
		clear(row)
	}
	for _, n := range s.nodes {
		n.setClock(0, 1)
		n.noSpace = false
		if n.paused != 0 {
			n.resume()
		}
		if n.member == nil && s.failure == "" {
			n.start()
		}
	}
}

// isolate cuts the links between members of a side and all others.
func (s *simulation) isolate(side []*simNode) {
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			if slices.Contains(side, a) != slices.Contains(side, b) {
				s.cut[a.index][b.index] = true
			}
		}
	}
}
