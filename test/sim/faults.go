package sim

import (
	"slices"
	"strings"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice"
)

// profile is what a run is mostly about: a seed draws from the faults of its profile, which come at random times.
type profile struct {
	name string
	// every is the longest time between two faults, think the time between two calls of a client.
	every, think    time.Duration
	checkpointBytes int64
	publication     logservice.Publication
	faults          []fault
	// jumps: clocks that must never step do. Then no promise holds that rests on them: leases and the hold on sessions.
	jumps bool
	// versions: frontends are upgraded to a build of the next apply version, and rolled back.
	versions bool
}

type fault struct {
	weight int
	do     func(*Simulation)
}

const (
	shortLog = 6 << 10
	longLog  = 1 << 30
)

// profiles are taken in turn: seed n has profile n modulo their number. One seed in eleven publishes as stock Raft does.
var profiles = []profile{
	{name: "everything", every: 2500 * time.Millisecond, think: 150 * time.Millisecond, checkpointBytes: 20 << 10, faults: []fault{
		{3, killMember}, {3, crashMember}, {3, killFrontend}, {2, crashFrontend}, {2, pauseMember}, {2, pauseFrontend},
		{3, partition}, {2, partitionOneWay}, {2, delaySpike}, {2, loseFrames}, {1, jumpWall}, {2, slowDisk}, {1, fillDisk},
		{1, failDisk}, {1, shortReads}, {1, rotDisk}, {2, transferLeadership}, {1, replaceMember}, {1, compact}, {1, askCheckpoint},
		{1, fenceRegion}, {1, rollingRestart}, {3, heal}}},
	{name: "processes", every: 1200 * time.Millisecond, think: 120 * time.Millisecond, checkpointBytes: longLog, faults: []fault{
		{3, killMember}, {3, crashMember}, {5, killFrontend}, {3, crashFrontend}, {2, pauseMember}, {4, pauseFrontend}, {1, rollingRestart}, {1, compact}}},
	{name: "network", every: 1500 * time.Millisecond, think: 120 * time.Millisecond, checkpointBytes: longLog, faults: []fault{
		{4, partition}, {4, partitionOneWay}, {3, delaySpike}, {3, loseFrames}, {2, transferLeadership}, {1, killMember}, {4, heal}, {1, compact}}},
	{name: "disks", every: 1500 * time.Millisecond, think: 150 * time.Millisecond, checkpointBytes: 12 << 10, faults: []fault{
		{4, crashMember}, {3, slowDisk}, {3, fillDisk}, {3, failDisk}, {2, shortReads}, {3, rotDisk}, {2, crashFrontend}, {1, rotImage}, {2, wrongDigest}}},
	{name: "checkpoints", every: 1800 * time.Millisecond, think: 120 * time.Millisecond, checkpointBytes: shortLog, faults: []fault{
		{4, leaveBehind}, {2, leaveFrontendBehind}, {2, crashMember}, {2, killFrontend}, {2, replaceMember}, {2, askCheckpoint}, {1, transferLeadership},
		{1, fillDisk}, {2, compact}, {1, loseFrames}, {2, heal}}},
	{name: "sessions", every: 2500 * time.Millisecond, think: 200 * time.Millisecond, checkpointBytes: longLog, faults: []fault{
		{4, freezeFrontend}, {3, isolateFrontend}, {3, killFrontend}, {4, fenceRegion}, {2, partition}, {2, pauseMember}, {2, crashMember}, {2, jumpWall}, {3, heal}}},
	{name: "members", every: 2 * time.Second, think: 150 * time.Millisecond, checkpointBytes: 16 << 10, faults: []fault{
		{5, replaceMember}, {2, crashMember}, {2, transferLeadership}, {1, partition}, {2, heal}, {1, pauseMember}, {1, killFrontend}}},
	{name: "clocks", every: 1500 * time.Millisecond, think: 150 * time.Millisecond, checkpointBytes: longLog, jumps: true, faults: []fault{
		{5, jumpWall}, {4, jumpMember}, {2, killFrontend}, {2, transferLeadership}, {1, pauseFrontend}, {1, crashMember}}},
	{name: "versions", every: 1200 * time.Millisecond, think: 150 * time.Millisecond, checkpointBytes: 24 << 10, versions: true, faults: []fault{
		{8, upgradeFrontend}, {2, rollBackFrontend}, {4, raiseVersion}, {2, killFrontend}, {2, isolateFrontend}, {1, leaveFrontendBehind},
		{1, crashMember}, {1, partition}, {1, transferLeadership}, {1, askCheckpoint}, {1, wrongDigest}, {1, heal}}},
}

func profileOf(seed uint64) profile {
	p := profiles[seed%uint64(len(profiles))]
	p.publication = logservice.PublicationQuorum
	if seed%11 == 10 {
		p.publication = logservice.PublicationLeader
	}
	return p
}

// floors is how often, in a hundred seeds, each fault and each thing that must come of them has to happen at least.
var floors = map[string]int{
	"kill of a member": 30, "power loss of a member": 30, "power loss in a write": 5, "kill of a frontend": 30, "power loss of a frontend": 20,
	"pause of a member": 20, "pause of a frontend": 20, "partition": 30, "partition one way": 20, "delay spike": 20, "frame lost": 200,
	"frame repeated": 200, "frame reordered": 100, "answer to a client lost": 50, "wall clock jump": 20, "member's clock jump": 10,
	"slow fsync": 50, "disk full": 10, "write without room": 3, "disk error": 10, "short reads": 5, "bit rot": 5, "image rot": 2, "leadership transfer": 20,
	"member replaced": 10, "compaction": 20, "checkpoint asked": 5, "checkpoint built": 30, "trim": 20, "crash after a trim": 2,
	"snapshot installed": 2, "bootstrap from a checkpoint": 1, "region fenced": 10, "session ended: expired": 5, "session ended: fenced": 5,
	"session ended: replaced": 30, "rolling restart": 3, "election": 100, "resend": 100, "lease ended": 30, "lease adopted": 30, "lease orphaned": 10,
	"write under a lock": 50, "write fenced off": 3, "request answered again": 20, "watch compacted": 1, "fragment seen": 5, "slow watcher": 20,
	"start from an image": 20, "operation unknown": 30, "operation not applied": 30, "frontend isolated": 4, "call ended before its outcome": 1000,
	"bit rot in the newest segment": 1, "bad memory": 15, "verdict on a wrong digest": 20, "frontend upgraded": 20, "frontend rolled back": 4,
	"frontend rolled back too late": 1, "frontend left behind": 1, "gate passed": 6, "command of the next version": 50, "transfer broken": 2, "damaged log refused": 1,
}

// trouble does one thing after another until all is healed.
func (s *Simulation) trouble() {
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
	s.after(s.between(s.profile.every/10, s.profile.every), s.trouble)
}

func (s *Simulation) fault(kind, format string, args ...any) {
	s.counts.add(kind)
	s.tell(format, args...)
}

// anyMember draws one that is up; nil for none.
func (s *Simulation) anyMember() *member {
	up := slices.DeleteFunc(slices.Clone(s.members), func(m *member) bool { return !m.up })
	if len(up) == 0 {
		return nil
	}
	if leader := s.leader(); leader != nil && s.one(3) {
		return leader
	}
	return up[s.random.IntN(len(up))]
}

func (s *Simulation) anyFrontend() *frontend { return s.frontends[s.random.IntN(len(s.frontends))] }

func killMember(s *Simulation) {
	m := s.anyMember()
	if m == nil {
		return
	}
	down := s.between(50*time.Millisecond, 3*time.Second)
	s.fault("kill of a member", "kill %s for %v", m.name, down)
	m.end(m.disk.Kill)
	s.after(down, m.start)
}

func crashMember(s *Simulation) {
	if m := s.anyMember(); m != nil {
		s.crashMember(m, s.between(50*time.Millisecond, 3*time.Second))
	}
}

// crashMember cuts the power of a member's machine, in the middle of the write under way where there is one.
func (s *Simulation) crashMember(m *member, down time.Duration) {
	if !m.up || s.quiet {
		return
	}
	s.fault("power loss of a member", "power loss at %s for %v", m.name, down)
	m.end(func() {
		if m.writing != nil && s.one(2) {
			s.counts.add("power loss in a write")
			m.disk.CrashAt(m.disk.Operations() + 1 + s.random.Uint64N(3))
			_ = m.log.Append(*m.writing) // it crashes, or is durable and was not answered
			m.disk.CrashAt(0)
		}
		m.disk.Crash()
	})
	s.after(down, m.start)
}

func killFrontend(s *Simulation) { s.endFrontend(s.anyFrontend(), false) }

func crashFrontend(s *Simulation) { s.endFrontend(s.anyFrontend(), true) }

func (s *Simulation) endFrontend(f *frontend, power bool) {
	if !f.up {
		return
	}
	down := s.between(50*time.Millisecond, 3*time.Second)
	if power {
		s.fault("power loss of a frontend", "power loss at %s for %v", f.name, down)
		f.crash(f.disk.Crash)
	} else {
		s.fault("kill of a frontend", "kill %s for %v", f.name, down)
		f.crash(f.disk.Kill)
	}
	s.after(down, f.start)
}

func (s *Simulation) pauseProcess(p *process, kind string, d time.Duration) {
	if p.running() {
		s.fault(kind, "pause %s for %v", p.name, d)
		p.pause(d)
	}
}

func pauseMember(s *Simulation) {
	if m := s.anyMember(); m != nil {
		s.pauseProcess(m.process, "pause of a member", s.between(100*time.Millisecond, 4*time.Second))
	}
}

func pauseFrontend(s *Simulation) {
	s.pauseProcess(s.anyFrontend().process, "pause of a frontend", s.between(100*time.Millisecond, 4*time.Second))
}

// freezeFrontend pauses one for longer than its session lasts.
func freezeFrontend(s *Simulation) {
	s.pauseProcess(s.anyFrontend().process, "pause of a frontend", s.between(8*time.Second, 16*time.Second))
}

// isolateFrontend cuts one off from all members for longer than its session lasts, and whatever it owns. Its clients still
// reach it.
func isolateFrontend(s *Simulation) {
	f, until := s.anyFrontend(), s.now+s.between(12*time.Second, 20*time.Second)
	s.fault("frontend isolated", "%s reaches no member for %v", f.name, until-s.now)
	for _, m := range s.members {
		s.link(f.process, m.process).isolatedUntil, s.link(m.process, f.process).isolatedUntil = until, until
	}
}

// side draws some processes: one, all of a region, or any.
func (s *Simulation) side() (side, others []*process, name string) {
	var names []string
	region, kind := s.random.IntN(len(s.frontends)), s.random.IntN(3)
	lone := s.processes[s.random.IntN(len(s.processes))]
	for _, p := range s.processes {
		if kind == 0 && p == lone || kind == 1 && p.region == region || kind == 2 && s.one(2) {
			side = append(side, p)
			names = append(names, p.name)
		} else {
			others = append(others, p)
		}
	}
	return side, others, strings.Join(names, " ")
}

func partition(s *Simulation) {
	side, others, name := s.side()
	s.fault("partition", "cut off both ways: %s", name)
	s.cutBetween(side, others, true)
	s.after(s.between(500*time.Millisecond, 8*time.Second), s.healLinks)
}

func partitionOneWay(s *Simulation) {
	side, others, name := s.side()
	s.fault("partition one way", "nothing comes from: %s", name)
	s.cutBetween(side, others, false)
	s.after(s.between(500*time.Millisecond, 6*time.Second), s.healLinks)
}

func heal(s *Simulation) { s.healLinks() }

func delaySpike(s *Simulation) {
	side, others, name := s.side()
	until := s.now + s.between(200*time.Millisecond, 3*time.Second)
	s.fault("delay spike", "slow links from: %s", name)
	for _, a := range side {
		for _, b := range others {
			s.link(a, b).slowUntil = until
		}
	}
}

func loseFrames(s *Simulation) {
	s.loss = 0.02 + 0.2*s.random.Float64()
	s.fault("message loss", "members lose %.0f %% of their messages", 100*s.loss)
	s.after(s.between(500*time.Millisecond, 4*time.Second), func() { s.loss = 0 })
}

func jumpWall(s *Simulation) {
	f := s.anyFrontend()
	jump := s.between(-time.Hour, time.Hour)
	if s.one(2) {
		jump = s.between(-2*time.Second, 2*time.Second)
	}
	s.fault("wall clock jump", "wall clock of %s steps by %v", f.name, jump)
	f.wallJump += jump
}

// jumpMember lets the clock of a member step forward, which a clock that never steps does not do: log time must keep its laws.
func jumpMember(s *Simulation) {
	if m := s.anyMember(); m != nil {
		jump := s.between(time.Second, time.Hour)
		s.fault("member's clock jump", "clock of %s steps by %v", m.name, jump)
		m.wallJump += jump
	}
}

func slowDisk(s *Simulation) {
	if m := s.anyMember(); m != nil {
		m.slowSync, m.slowUntil = s.between(50*time.Millisecond, 1500*time.Millisecond), s.now+s.between(500*time.Millisecond, 4*time.Second)
		s.fault("slow disk", "the disk of %s takes %v for a sync", m.name, m.slowSync)
	}
}

func fillDisk(s *Simulation) {
	if m := s.anyMember(); m != nil {
		s.fault("disk full", "the disk of %s is full", m.name)
		m.disk.SetCapacity(m.disk.Used() + int64(s.random.IntN(segmentBytes)))
		s.after(s.between(500*time.Millisecond, 4*time.Second), func() { m.disk.SetCapacity(0) })
	}
}

// failDisk lets one write or sync fail, a write sometimes after some of its bytes.
func failDisk(s *Simulation) {
	m := s.anyMember()
	if m == nil {
		return
	}
	left, part := s.random.IntN(8), s.random.IntN(600)
	s.fault("disk error", "the disk of %s fails a write or a sync", m.name)
	m.disk.SetHook(func(op disk.Operation) error {
		if op.Kind != disk.OpWrite && op.Kind != disk.OpSync {
			return nil
		}
		if left--; left >= 0 {
			return nil
		}
		m.disk.SetHook(nil)
		if op.Kind == disk.OpWrite && part%2 == 0 && int64(part) < op.Length {
			return &disk.PartialWrite{Bytes: part, Err: errInjected}
		}
		return errInjected
	})
}

func shortReads(s *Simulation) {
	if m := s.anyMember(); m != nil {
		s.fault("short reads", "the disk of %s reads short", m.name)
		m.shortUntil = s.now + s.between(100*time.Millisecond, 2*time.Second)
		m.disk.SetShortReads(true)
		s.after(m.shortUntil-s.now, func() { m.disk.SetShortReads(false) })
	}
}

// shortReads tells whether a member's disk reads short, or did a moment ago.
func (s *Simulation) shortReads(m *member) bool { return m.shortUntil+time.Second > s.now }

// rotDisk flips a bit in a segment of one member, the one that is being written to as well, while all others are well enough
// to do without it.
func rotDisk(s *Simulation) {
	m := s.anyMember()
	if m == nil || !s.admin.idle() || slices.ContainsFunc(s.members, func(m *member) bool { return m.rotten && !m.retired }) {
		return
	}
	segments := slices.DeleteFunc(m.disk.Files("data/log"), func(name string) bool { return !strings.HasSuffix(name, ".segment") })
	if len(segments) < 2 {
		return
	}
	which := s.random.IntN(len(segments))
	name := segments[which]
	offset, err := m.disk.FlipBit(name)
	if err != nil || offset < 0 {
		return
	}
	if which == len(segments)-1 {
		s.counts.add("bit rot in the newest segment")
	}
	s.fault("bit rot", "a bit of %s at %s rots, at %d", name, m.name, offset)
	m.rotten = true
}

// rotImage flips a bit in the image of a frontend, which is then restarted.
func rotImage(s *Simulation) {
	f := s.anyFrontend()
	if _, err := f.disk.FlipBit(imageFile); err == nil {
		s.fault("image rot", "a bit of the image of %s rots", f.name)
		s.endFrontend(f, false)
	}
}

func transferLeadership(s *Simulation) {
	leader, target := s.leader(), s.anyMember()
	if leader == nil || target == nil || !leader.running() {
		return
	}
	s.fault("leadership transfer", "%s is to hand leadership to %s", leader.name, target.name)
	leader.tokens++
	leader.step(logservice.Transfer{Token: leader.tokens, Target: target.id})
}

func replaceMember(s *Simulation) {
	if m := s.anyMember(); m != nil && s.admin.idle() {
		s.fault("replacement asked", "%s is to be replaced", m.name)
		s.admin.replace(m)
	}
}

func compact(s *Simulation) {
	revision := s.truth.machine.Space().Acquire()
	defer revision.Release()
	if at := revision.Revision() - int64(s.random.IntN(100)); at > 1 {
		s.fault("compaction", "compact at %d", at)
		s.admin.command(&commandv1.Command{Operation: &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: at}}})
	}
}

func askCheckpoint(s *Simulation) {
	if m := s.anyMember(); m != nil && m.running() {
		s.fault("checkpoint asked", "%s is asked for a checkpoint", m.name)
		m.tokens++
		m.step(logservice.AskCheckpoint{Token: m.tokens})
	}
}

func fenceRegion(s *Simulation) {
	if s.admin.fenced != "" {
		return
	}
	region := regionName(s.random.IntN(len(s.frontends)))
	state, kind := commandv1.SetRegionState_STATE_FENCED, "region fenced"
	if s.one(4) {
		state, kind = commandv1.SetRegionState_STATE_DRAINED, "region drained"
	}
	s.fault(kind, "%s: %s", kind, region)
	s.admin.fenced, s.admin.openAt = region, s.now+s.between(2*time.Second, 12*time.Second)
	s.admin.region(region, state)
}

// rollingRestart restarts every process in turn.
func rollingRestart(s *Simulation) {
	s.fault("rolling restart", "every process is restarted in turn")
	at := time.Duration(0)
	for _, m := range s.members {
		at += s.between(200*time.Millisecond, 800*time.Millisecond)
		s.after(at, func() {
			if !s.quiet && m.up {
				m.end(m.disk.Kill)
				s.after(s.between(20*time.Millisecond, 100*time.Millisecond), m.start)
			}
		})
	}
	for _, f := range s.frontends {
		at += s.between(200*time.Millisecond, 800*time.Millisecond)
		s.after(at, func() {
			if !s.quiet && f.up {
				f.crash(f.disk.Kill)
				s.after(s.between(20*time.Millisecond, 100*time.Millisecond), f.start)
			}
		})
	}
}

// leaveBehind keeps a member away for long enough that the log is trimmed above it.
func leaveBehind(s *Simulation) {
	m := s.anyMember()
	if m == nil {
		return
	}
	down := s.between(3*time.Second, 9*time.Second)
	s.fault("kill of a member", "kill %s for %v", m.name, down)
	m.end(m.disk.Kill)
	s.after(down, m.start)
}

// leaveFrontendBehind keeps a frontend away for as long, without its image.
func leaveFrontendBehind(s *Simulation) {
	f := s.anyFrontend()
	if !f.up {
		return
	}
	down := s.between(4*time.Second, 9*time.Second)
	s.fault("kill of a frontend", "kill %s for %v, which loses its image", f.name, down)
	f.crash(f.disk.Kill)
	_ = f.disk.Remove(imageFile) // it may have none
	s.after(down, f.start)
}
