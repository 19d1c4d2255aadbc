package logservice

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// simProfile is what a schedule is mostly about: a seed draws from the faults of its profile, which come at random times.
type simProfile struct {
	name string
	// every is the longest time between two faults.
	every  time.Duration
	faults []simFault
	// checkpoints says that logs are kept so short that checkpoints and snapshots come all the time.
	checkpoints bool
	// members says that the members change only as operators change them, with members that join and never come back; half of
	// the schedules have checkpoints too.
	members bool
	// near says that the members are told how far they are from each other, wrongly mostly, and ask the nearest first.
	near bool
}

type simFault struct {
	weight int
	do     func(s *simulation)
}

// simProfiles are taken in turn: seed n has profile n modulo their number.
var simProfiles = []simProfile{
	{name: "everything", every: 250 * time.Millisecond, faults: []simFault{
		{4, crashOne}, {3, cutSome}, {2, healLinks}, {2, pauseOne}, {2, transferLeadership}, {1, campaignOne},
		{2, skewClock}, {2, reconfigure}, {1, fillDisk}, {2, dropFrames}}},
	{name: "configurations", every: 200 * time.Millisecond, faults: []simFault{
		{8, reconfigure}, {2, crashOne}, {2, cutSome}, {2, healLinks}, {1, pauseOne}, {1, transferLeadership}, {1, dropFrames}}},
	{name: "halves", every: 400 * time.Millisecond, faults: []simFault{
		{6, partHalves}, {1, reconfigure}, {1, crashOne}, {1, healLinks}}},
	{name: "two leaders", every: 400 * time.Millisecond, faults: []simFault{
		{6, twoLeaders}, {1, crashOne}, {1, reconfigure}, {1, skewClock}, {1, healLinks}}},
	{name: "crashes", every: 120 * time.Millisecond, faults: []simFault{
		{6, crashOne}, {3, crashBriefly}, {2, crashAll}, {2, fillDisk}, {2, cutSome}, {3, healLinks}, {1, reconfigure}, {1, dropFrames}}},
	{name: "laggards", every: 300 * time.Millisecond, faults: []simFault{
		{5, leaveBehind}, {2, reconfigure}, {1, crashOne}, {1, healLinks}}},
	{name: "split votes", every: 250 * time.Millisecond, faults: []simFault{
		{5, orphans}, {3, leftovers}, {2, cutSome}, {2, healLinks}, {2, crashOne}, {1, reconfigure}, {1, transferLeadership}}},
	{name: "checkpoints", every: 350 * time.Millisecond, checkpoints: true, faults: []simFault{
		{6, keepAway}, {3, crashOne}, {2, reconfigure}, {1, crashBriefly}, {1, crashAll}, {2, healLinks},
		{1, cutSome}, {1, transferLeadership}, {1, fillDisk}, {1, dropFrames}, {1, askForCheckpoint}, {1, pauseOne}}},
	{name: "membership", every: 120 * time.Millisecond, members: true, faults: []simFault{
		{4, addMember}, {2, comeAndGo}, {8, promoteMember}, {6, removeMember}, {3, crashOne}, {1, crashBriefly}, {2, cutSome}, {3, healLinks},
		{1, pauseOne}, {1, transferLeadership}, {1, dropFrames}}},
}

func profileOf(seed uint64) simProfile {
	n := uint64(len(simProfiles))
	profile := simProfiles[seed%n]
	profile.checkpoints = profile.checkpoints || profile.members && seed/n%2 == 1
	profile.near = seed/n%4 >= 2
	return profile
}

// simulate runs the schedule of a seed. Most seeds publish by quorum; one in ten is stock Raft's.
func simulate(seed uint64, checks simChecks) *simulation {
	publication := PublicationQuorum
	if seed/uint64(len(simProfiles))%10 == 9 {
		publication = PublicationLeader
	}
	return runSchedule(newSimulation(seed, publication, profileOf(seed), checks))
}

func runSchedule(s *simulation) *simulation {
	s.after(0, s.work)
	if s.profile.near {
		s.measure(rand.New(rand.NewPCG(s.seed, 7)))
	}
	s.after(s.between(200*time.Millisecond, 500*time.Millisecond), s.trouble)
	s.run(simTroubled)
	if s.profile.checkpoints {
		s.run(simTroubled) // there is more to do
	}
	s.settle()
	if s.profile.members && !s.stranded() {
		s.replaceLeader()
	}
	return s
}

// work proposes and asks at random members, more often at those that a fault is about.
func (s *simulation) work() {
	askers, proposers, asks := s.nodes, s.nodes, 3
	if len(s.askFrom) > 0 {
		askers, asks = s.askFrom, 2
	}
	if len(s.proposeFrom) > 0 {
		proposers = s.proposeFrom
	}
	if s.hushed || s.one(asks) {
		s.ask(askers[s.random.IntN(len(askers))])
	} else {
		n := proposers[s.random.IntN(len(proposers))]
		s.propose(n)
		// Bursts keep disks busy, so that a group waits for the one before.
		for s.one(3) {
			s.after(s.between(0, 4*time.Millisecond), func() { s.propose(n) })
		}
	}
	s.after(s.between(0, 24*time.Millisecond), s.work)
}

// measure tells members how far others are, of whom some are left out. It draws from a source of its own, so that what else happens
// is the seed's.
func (s *simulation) measure(random *rand.Rand) {
	n := s.nodes[random.IntN(len(s.nodes))]
	var told []*logv1.RoundTrip
	for _, other := range s.nodes {
		if other != n && random.IntN(4) > 0 {
			told = append(told, &logv1.RoundTrip{MemberId: other.id, Microseconds: random.Uint64N(100_000)})
		}
	}
	if n.member != nil {
		n.step(Measured{RoundTrips: told, Near: told})
	}
	s.after(time.Duration(random.Int64N(int64(60*time.Millisecond))), func() { s.measure(random) })
}

func (s *simulation) ask(n *simNode) {
	if n.member != nil {
		s.nextWork++
		s.checker.asks(s.nextWork)
		n.step(AskRound{Token: s.nextWork})
	}
}

func (s *simulation) propose(n *simNode) {
	n.seq++
	n.step(Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: uint64(n.index + 1),
		Seq: n.seq, Payload: fmt.Appendf(nil, "%d", s.random.IntN(1000))}})
}

// trouble does one bad thing at a time.
func (s *simulation) trouble() {
	if s.quiet {
		return
	}
	total := 0
	for _, f := range s.profile.faults {
		total += f.weight
	}
	pick := s.random.IntN(total)
	for _, f := range s.profile.faults {
		if pick -= f.weight; pick < 0 {
			f.do(s)
			break
		}
	}
	s.after(s.between(0, s.profile.every), s.trouble)
}

// settle heals everything, and checks that the log goes on, that all voters come to publish the same and that questions
// are answered.
func (s *simulation) settle() {
	s.quiet, s.hushed, s.askFrom, s.proposeFrom, s.watch = true, false, nil, nil, nil
	s.checker.quietSince = s.now
	s.heal()
	goal := s.checker.highest() + 10
	for end := s.now + simSettle; s.failure == ""; {
		s.run(100 * time.Millisecond)
		if s.settled(goal) {
			return
		}
		if s.now >= end {
			if s.stranded() {
				s.counts.add("removal of one of two voters that strands the other")
				return
			}
			for _, n := range s.nodes {
				if n.member != nil { // else it was removed
					fmt.Printf("node %d: %+v %v\n", n.index, n.member.State(), n.member.record.conf)
				}
			}
			s.errorf("the log does not go on: %d entries, want %d everywhere", s.checker.highest(), goal)
		}
	}
}

func (s *simulation) settled(goal uint64) bool {
	leader := s.leader()
	if leader == nil || s.now-s.checker.quietSince < simRoundTimeoutTicks*simTick && len(s.checker.asked) > 0 && s.oldQuestions() {
		return false
	}
	for _, n := range s.nodes {
		if slices.Contains(leader.member.voters, n.id) && n.published < goal {
			return false
		}
	}
	return true
}

// oldQuestions tells whether a member of the log still waits for the answer to a question from before all was healed.
func (s *simulation) oldQuestions() bool {
	leader := s.leader().member.record.all()
	for _, n := range s.nodes {
		if n.member == nil || !slices.Contains(leader, n.id) {
			continue
		}
		for _, r := range n.member.rounds.flying {
			if s.checker.asked[r.tokens[0]].at < s.checker.quietSince {
				return true
			}
		}
	}
	return false
}

// later does a part of a fault, unless all is healed by then.
func (s *simulation) later(d time.Duration, do func()) {
	s.after(d, func() {
		if !s.quiet {
			do()
		}
	})
}

// any draws a node.
func (s *simulation) any() *simNode { return s.nodes[s.random.IntN(len(s.nodes))] }

// leaderOrAny draws the leader half of the time.
func (s *simulation) leaderOrAny() *simNode {
	if leader := s.leader(); leader != nil && s.one(2) {
		return leader
	}
	return s.any()
}

func crashOne(s *simulation) {
	s.leaderOrAny().crashFor(s.between(0, 600*time.Millisecond))
}

// crashBriefly restarts a process twice within the time that answers to its questions take, so that each life hears those
// that an earlier one asked for, while the others write.
func crashBriefly(s *simulation) {
	n := s.any()
	again := func() {
		for range 3 {
			s.ask(n)
		}
		if leader := s.leader(); leader != nil {
			s.propose(leader)
		}
	}
	s.counts.add("crash for a moment")
	n.crashFor(time.Millisecond)
	s.later(2*time.Millisecond, again)
	s.later(s.between(3*time.Millisecond, 20*time.Millisecond), func() {
		n.crashFor(time.Millisecond)
		s.later(s.between(2*time.Millisecond, 30*time.Millisecond), again)
	})
}

func crashAll(s *simulation) {
	s.counts.add("crash of all")
	for _, n := range s.nodes {
		n.crashFor(s.between(0, 200*time.Millisecond))
	}
}

func cutSome(s *simulation) {
	n := s.leaderOrAny()
	s.counts.add("cut")
	for i := range s.nodes {
		if s.one(2) {
			s.cut[n.index][i] = true
		}
		if s.one(2) {
			s.cut[i][n.index] = true
		}
	}
}

func healLinks(s *simulation) {
	s.counts.add("heal")
	s.hushed, s.askFrom, s.proposeFrom, s.watch = false, nil, nil, nil
	for _, row := range s.cut {
		clear(row)
	}
}

func pauseOne(s *simulation) { s.leaderOrAny().pause(s.between(0, 600*time.Millisecond)) }

func transferLeadership(s *simulation) {
	s.counts.add("transfer")
	s.any().step(Transfer{Token: 1, Target: s.any().id})
}

func campaignOne(s *simulation) {
	s.counts.add("campaign")
	s.any().step(Campaign{})
}

// skewClock lets a clock run at another rate, or jump as after the suspension of a machine.
func skewClock(s *simulation) {
	n := s.leaderOrAny()
	jump := time.Duration(0)
	if s.one(3) {
		s.counts.add("clock jump")
		jump = s.between(0, 30*time.Second)
	}
	s.counts.add("clock rate")
	n.setClock(jump, []float64{0.1, 0.3, 1, 1, 3}[s.random.IntN(5)])
}

func fillDisk(s *simulation) { s.any().noSpace = true }

func dropFrames(s *simulation) { s.loss = float64(s.random.IntN(4)) / 20 }

// change is a configuration change that makes one or two nodes voters, learners or neither. keep is the least number of
// voters to keep. At most one voter is removed in a change: of two removed ones, each may hold entries that keep the
// others, which do not know of the change's commit yet, from being elected.
func (s *simulation) change(leader *simNode, nodes int, keep int) *raftpb.ConfChangeV2 {
	change, removes := &raftpb.ConfChangeV2{}, false
	for range nodes {
		target := s.any()
		kind := raftpb.ConfChangeAddNode
		switch voters := leader.member.voters; {
		case slices.Contains(voters, target.id) && len(voters) > keep && !removes:
			kind, removes = raftpb.ConfChangeRemoveNode, true
		case s.one(3) && !slices.Contains(voters, target.id):
			kind = raftpb.ConfChangeAddLearnerNode
		}
		if slices.ContainsFunc(change.Changes, func(c *raftpb.ConfChangeSingle) bool { return c.GetNodeId() == target.id }) {
			continue
		}
		change.Changes = append(change.Changes, &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: &target.id})
	}
	return change
}

// reconfigure changes the role of one or two nodes, where there is a leader.
func reconfigure(s *simulation) {
	if leader := s.leader(); leader != nil {
		s.counts.add("configuration change")
		leader.step(Reconfigure{Change: s.change(leader, 1+s.random.IntN(2), 3)})
	}
}

// partHalves replaces a voter by one or two others in a joint change and parts the two halves at the moment when the leader
// has committed it, so that nobody else knows, or has applied it. On the leader's side is a majority of the new voters, on the
// other one of the old. Then the leader's side goes down or stays. Half of the time the new voters hold the log already.
func partHalves(s *simulation) {
	healLinks(s)
	leader := s.leader()
	if leader == nil {
		return
	}
	voters := slices.Clone(leader.member.voters)
	removed := voters[s.random.IntN(len(voters))]
	var added []*simNode
	for _, n := range s.nodes {
		if !slices.Contains(voters, n.id) {
			added = append(added, n)
		}
	}
	if removed == leader.id || len(added) == 0 {
		return
	}
	added = added[:1+s.random.IntN(len(added))]
	begin := func() {
		change := changeTo(raftpb.ConfChangeAddNode, added)
		change.Changes = append(change.Changes, &raftpb.ConfChangeSingle{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: &removed})
		if s.hushed = s.one(3); s.hushed || s.one(2) {
			change.Transition = raftpb.ConfChangeTransitionJointExplicit.Enum()
		}
		s.counts.add("configuration change")
		incoming := slices.DeleteFunc(slices.Clone(voters), func(id uint64) bool { return id == removed })
		for _, n := range added {
			incoming = append(incoming, n.id)
		}
		committed := s.one(2)
		s.watch = func(n *simNode) {
			m := n.member
			if n == leader && (len(m.record.conf.VotersOutgoing) > 0 ||
				committed && len(m.confChanges) > 0 && m.confChanges[0] <= m.raft.BasicStatus().GetCommit()) {
				s.watch = nil
				s.part(leader, voters, incoming)
			}
		}
		leader.step(Reconfigure{Change: change})
	}
	if s.one(2) {
		begin()
		return
	}
	leader.step(Reconfigure{Change: changeTo(raftpb.ConfChangeAddLearnerNode, added)})
	s.later(s.between(50*time.Millisecond, 250*time.Millisecond), func() {
		if leader.leads() {
			begin()
		}
	})
}

func changeTo(kind raftpb.ConfChangeType, nodes []*simNode) *raftpb.ConfChangeV2 {
	change := &raftpb.ConfChangeV2{}
	for _, n := range nodes {
		change.Changes = append(change.Changes, &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: &n.id})
	}
	return change
}

// part draws a side for the leader of a joint configuration with a majority of the incoming half and without one of the
// outgoing half.
func (s *simulation) part(leader *simNode, outgoing, incoming []uint64) {
	side, other := []*simNode{leader}, []*simNode(nil)
	for _, i := range s.random.Perm(len(s.nodes)) {
		n := s.nodes[i]
		voted, votes := slices.Contains(outgoing, n.id), slices.Contains(incoming, n.id)
		switch {
		case n == leader:
		case votes && !voted || votes && 2*count(side, incoming) <= len(incoming) &&
			2*(count(side, outgoing)+1) < len(outgoing) || !votes && !voted && s.one(2):
			side = append(side, n)
		default:
			other = append(other, n)
		}
	}
	s.counts.add("halves parted")
	s.isolate(side)
	s.askFrom = side
	if s.hushed || s.one(2) {
		leader.setClock(0, 0.1)
	}
	switch {
	case s.hushed: // The leader's log ends with the change.
	case s.one(2):
		s.proposeFrom = other
	default:
		s.later(0, func() {
			for range 4 {
				s.propose(leader)
			}
		})
	}
	// Not all of them hold the change: who does not may not be elected.
	s.later(s.between(0, 60*time.Millisecond), func() { s.elect(other) })
	s.later(s.between(60*time.Millisecond, 150*time.Millisecond), func() {
		if !slices.ContainsFunc(other, (*simNode).leads) {
			s.elect(other)
		}
	})
	s.later(s.between(20*time.Millisecond, 300*time.Millisecond), func() {
		switch s.random.IntN(4) {
		case 0:
			leader.crashFor(s.between(100*time.Millisecond, 800*time.Millisecond))
		case 1:
			for _, n := range side {
				n.crashFor(s.between(100*time.Millisecond, 800*time.Millisecond))
			}
		}
	})
	s.later(s.between(200*time.Millisecond, 900*time.Millisecond), func() { healLinks(s) })
}

// elect lets members forget their leader, as if they had not heard it for long enough, and one of them campaign.
func (s *simulation) elect(members []*simNode) {
	var candidate *simNode
	for _, n := range members {
		if n.member == nil || n.paused > s.now || s.failure != "" {
			continue
		}
		if err := n.member.raft.ForgetLeader(); err != nil {
			s.errorf("node %d forgets its leader: %v", n.index, err)
			return
		}
		if slices.Contains(n.member.voters, n.id) && (candidate == nil || s.one(2)) {
			candidate = n
		}
	}
	if candidate != nil {
		candidate.step(Campaign{})
	}
}

func count(nodes []*simNode, ids []uint64) (found int) {
	for _, n := range nodes {
		if slices.Contains(ids, n.id) {
			found++
		}
	}
	return found
}

// twoLeaders cuts a leader off with a minority, whose clocks are slow, so that it goes on believing that it leads while the
// others elect another one. Those with it, and some that reach both sides in one direction or both, ask.
func twoLeaders(s *simulation) {
	healLinks(s)
	leader := s.leader()
	if leader == nil || leader.paused > s.now {
		return
	}
	voters := leader.member.voters
	side, others := []*simNode{leader}, []*simNode{}
	for _, i := range s.random.Perm(len(s.nodes)) {
		switch n := s.nodes[i]; {
		case n == leader:
		case s.one(2) && (!slices.Contains(voters, n.id) || 2*(count(side, voters)+1) < len(voters)):
			side = append(side, n)
		default:
			others = append(others, n)
		}
	}
	s.counts.add("two leaders")
	s.isolate(side)
	s.askFrom = slices.Clone(side)
	for _, n := range side {
		n.setClock(0, 0.1)
		if s.one(3) && n != leader {
			n.setClock(0, 1)
		}
	}
	// One that reaches both sides.
	asker := s.any()
	if asker != leader && s.one(2) {
		for _, n := range s.nodes {
			if s.one(2) {
				s.cut[n.index][asker.index] = false
			}
			if s.one(2) {
				s.cut[asker.index][n.index] = false
			}
		}
		s.askFrom = append(s.askFrom, asker)
	}
	s.later(s.between(0, 50*time.Millisecond), func() {
		s.elect(others)
	})
	s.later(s.between(200*time.Millisecond, 600*time.Millisecond), func() {
		s.askFrom = nil
		for _, n := range side {
			n.setClock(0, 1)
		}
	})
}

// leaveBehind lets one member hear nothing of the leader while configurations change without it; it can still ask others,
// and hears of all at the end.
func leaveBehind(s *simulation) {
	healLinks(s)
	leader, behind := s.leader(), s.any()
	if leader == nil || behind == leader {
		return
	}
	s.counts.add("left behind")
	for i := range s.nodes {
		s.cut[i][behind.index] = s.one(2)
	}
	s.cut[leader.index][behind.index] = true
	if s.one(2) {
		behind.pause(s.between(50*time.Millisecond, 300*time.Millisecond))
	}
	for i := range 2 + s.random.IntN(3) {
		s.later(time.Duration(i)*s.between(30*time.Millisecond, 120*time.Millisecond), func() { reconfigure(s) })
	}
	s.later(s.between(100*time.Millisecond, 400*time.Millisecond), func() {
		s.askFrom = []*simNode{behind}
		for range 3 {
			s.ask(behind)
		}
	})
	s.later(s.between(200*time.Millisecond, 700*time.Millisecond), func() { healLinks(s) })
}

// orphans lets a leader append what nobody else gets, more than once, so that logs end with entries of several terms.
func orphans(s *simulation) {
	leader := s.leader()
	if leader == nil {
		return
	}
	s.counts.add("orphans")
	for i := range s.nodes {
		if i != leader.index && !s.one(4) {
			s.cut[leader.index][i] = true
		}
	}
	for range 1 + s.random.IntN(6) {
		s.propose(leader)
	}
	s.later(s.between(5*time.Millisecond, 60*time.Millisecond), func() {
		switch s.random.IntN(3) {
		case 0:
			leader.crashFor(s.between(0, 400*time.Millisecond))
		case 1:
			s.isolate([]*simNode{leader})
			leader.setClock(0, 0.2)
		}
		s.elect(slices.DeleteFunc(slices.Clone(s.nodes), func(n *simNode) bool { return n == leader || s.one(4) }))
	})
	s.later(s.between(200*time.Millisecond, 500*time.Millisecond), func() { healLinks(s) })
}

// leftovers lets a deposed leader come back with the durable end of its log, which nobody else has, to a leader that has
// meanwhile appended as much, and whom hardly anybody else hears. As soon as that one publishes, it is cut off, and the
// others elect.
func leftovers(s *simulation) {
	healLinks(s)
	old := s.leader()
	if old == nil {
		return
	}
	s.counts.add("leftovers")
	for i := range s.nodes {
		s.cut[old.index][i] = true
	}
	entries := 2 + s.random.IntN(6)
	for range entries {
		s.propose(old)
	}
	s.later(s.between(5*time.Millisecond, 40*time.Millisecond), func() {
		s.isolate([]*simNode{old})
		s.elect(slices.DeleteFunc(slices.Clone(s.nodes), func(n *simNode) bool { return n == old }))
	})
	s.later(s.between(60*time.Millisecond, 200*time.Millisecond), func() {
		leader := s.leader()
		if leader == nil || leader == old {
			return
		}
		voters := leader.member.voters
		// With the old leader, a majority hears this one.
		hearing := []*simNode{leader, old}
		for _, i := range s.random.Perm(len(s.nodes)) {
			if n := s.nodes[i]; n != leader && n != old && slices.Contains(voters, n.id) && 2*len(hearing) <= len(voters) {
				hearing = append(hearing, n)
			}
		}
		for i, n := range s.nodes {
			s.cut[leader.index][i] = !slices.Contains(hearing, n)
			s.cut[old.index][i], s.cut[i][old.index] = n != leader, n != leader
		}
		for range 1 + s.random.IntN(2*entries) {
			s.propose(leader)
		}
		before := leader.member.log.published
		s.watch = func(n *simNode) {
			if n == leader && n.member.log.published > before {
				s.watch = nil
				s.counts.add("published beside leftovers")
				s.isolate([]*simNode{leader})
				others := slices.DeleteFunc(slices.Clone(s.nodes), func(n *simNode) bool { return n == leader })
				for _, a := range others {
					for _, b := range others {
						s.cut[a.index][b.index] = false
					}
				}
				s.later(s.between(0, 40*time.Millisecond), func() { s.elect(others) })
			}
		}
	})
	s.later(s.between(400*time.Millisecond, 700*time.Millisecond), func() { healLinks(s) })
}
