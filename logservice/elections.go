package logservice

import (
	"errors"
	"hash/fnv"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/tracker"
)

// elections decides when this member campaigns and when it gives leadership up. Raft's own election timer is not used:
// raft is ticked only while it leads. Members wait for different times by their rank, so that two of them rarely
// campaign at once, and the same events make the same elections in every run of a simulation.
type elections struct {
	// campaignAt is the tick at which this member campaigns unless it hears of a leader before.
	campaignAt int
	// forgetAt is the tick from which a silent leader no longer keeps this member from voting for another one.
	forgetAt int
	attempts int
	// heard is the tick at which each member was last heard in the current term.
	heard map[uint64]int
	// leadingSince is the tick at which this member was last elected.
	leadingSince int
	transfers    []pendingTransfer
	// ends is where a leader's log ended when the span of ElectionTicks before the present one began, and when this one did.
	ends [2]uint64
	// roomRestUntil is the tick before which a leader without room does not hand leadership over again.
	roomRestUntil int
}

type pendingTransfer struct {
	token, target uint64
	deadline      int
}

// ErrTransfer is returned for a transfer of leadership that can't be done, or was not done in time.
var ErrTransfer = errors.New("logservice: leadership was not transferred")

// Campaigning two ticks after a leader went silent leaves the others time to notice the same: those that have not
// would not answer.
const campaignGraceTicks = 2

// rank is this member's place in the order in which voters campaign: those that the policy prefers first, then by id.
func (m *Member) rank() int {
	rank := 0
	for _, id := range m.voters {
		if id == m.config.ID || id == m.lastLeader {
			continue
		}
		mine, theirs := m.preferred(m.config.ID), m.preferred(id)
		if theirs && !mine || theirs == mine && id < m.config.ID {
			rank++
		}
	}
	return rank
}

func (m *Member) region(id uint64) string {
	if member := m.record.member(id); member != nil {
		return member.Region
	}
	return ""
}

// heardLeader puts the next election off.
func (m *Member) heardLeader() {
	e := &m.elections
	e.attempts = 0
	e.forgetAt = m.ticks + m.config.ElectionTicks
	e.campaignAt = e.forgetAt + campaignGraceTicks + m.rank()*m.config.StaggerTicks
}

// putOff leaves the election under way the time it needs.
func (m *Member) putOff() {
	e := &m.elections
	e.attempts++
	e.campaignAt = m.ticks + m.config.ElectionTicks + m.jitter(e.attempts)
}

// jitter is different for each member, term and attempt, and the same in every run.
func (m *Member) jitter(attempt int) int {
	h := fnv.New64a()
	for _, v := range []uint64{m.config.ID, m.state.term, uint64(attempt)} {
		for shift := 0; shift < 64; shift += 8 {
			_, _ = h.Write([]byte{byte(v >> shift)})
		}
	}
	return int(h.Sum64() >> 33 % uint64(m.config.ElectionTicks))
}

func (m *Member) tickElections() {
	e := &m.elections
	if m.state.role == raft.StateLeader {
		m.tickLeader()
	} else {
		if m.ticks >= e.forgetAt && m.state.lead != 0 {
			if err := m.raft.ForgetLeader(); err != nil {
				m.config.Logger.Debug("raft did not forget its leader", "error", err)
			}
		}
		if m.ticks >= e.campaignAt && slices.Contains(m.voters, m.config.ID) {
			m.campaign()
		}
	}
	m.tickTransfers()
}

// campaign starts an election, unless the disk could not take the vote.
func (m *Member) campaign() {
	m.putOff()
	if m.stalledTicks() >= m.config.StallTicks {
		return
	}
	if err := m.raft.Campaign(); err != nil {
		m.config.Logger.Debug("raft did not campaign", "error", err)
	}
}

// tickLeader keeps leadership where it works: with a majority in reach, a disk that takes writes, and where the
// policy wants it.
func (m *Member) tickLeader() {
	m.raft.Tick()
	if m.raft.BasicStatus().RaftState != raft.StateLeader {
		return
	}
	if !m.majorityHeard() {
		m.resign("a majority has not been heard in time")
		return
	}
	if e := &m.elections; m.ticks%m.config.ElectionTicks == 0 {
		e.ends = [2]uint64{e.ends[1], m.log.last}
	}
	switch stalled := m.stalledTicks(); {
	case m.noSpace:
		m.leaveForRoom()
	case stalled < m.config.StallTicks:
		m.followPolicy()
	case stalled >= 2*m.config.StallTicks:
		m.resign("the disk does not take writes")
	case stalled == m.config.StallTicks:
		if target := m.successor(func(uint64) bool { return true }); target != 0 {
			m.config.Logger.Warn("the disk does not take writes: handing leadership over", "to", memberName(target))
			m.raft.TransferLeader(target)
		}
	}
}

// leaveForRoom hands leadership over to a voter that has room: this one's disk has none, so it takes no appends.
func (m *Member) leaveForRoom() {
	e := &m.elections
	if m.ticks < e.roomRestUntil || m.raft.BasicStatus().LeadTransferee != 0 {
		return
	}
	target := m.successor(func(uint64) bool { return true })
	if target == 0 {
		return
	}
	m.config.Logger.Warn("the disk has no room: handing leadership over", "to", memberName(target))
	e.roomRestUntil = m.ticks + 5*m.config.PolicyTicks
	m.raft.TransferLeader(target)
}

// stalledTicks is for how long the disk has not answered.
func (m *Member) stalledTicks() int {
	if m.groups.writing == nil || m.groups.retryAt != 0 {
		return 0
	}
	return m.ticks - m.groups.since
}

// majorityHeard tells whether majorities have been heard in this term lately: sooner than raft's own check, which takes
// up to two election timeouts.
func (m *Member) majorityHeard() bool {
	limit := m.config.ElectionTicks - m.config.ElectionTicks/3
	votes := map[uint64]bool{m.config.ID: true}
	for _, id := range m.voters {
		if m.ticks-m.elections.heard[id] < limit {
			votes[id] = true
		}
	}
	return m.quorums.VoteResult(votes) == quorum.VoteWon
}

// resign makes raft step down now: ticked on without hearing anybody, its check of the quorum fails. The heartbeats
// that come of it are not sent.
func (m *Member) resign(why string) {
	if len(m.voters) == 1 {
		return
	}
	m.config.Logger.Warn("resigning as leader: "+why, "term", m.state.term)
	m.resigning = true
	for range 2 * m.config.ElectionTicks {
		if m.raft.BasicStatus().RaftState != raft.StateLeader {
			break
		}
		m.raft.Tick()
	}
	m.putOff()
}

// successor is the most up to date of the voters that were heard lately and are wanted; the lowest id among equals.
func (m *Member) successor(wanted func(id uint64) bool) uint64 {
	var best, bestMatch uint64
	matches := m.matches()
	for _, id := range m.voters {
		if id == m.config.ID || !wanted(id) || m.ticks-m.elections.heard[id] >= m.config.ElectionTicks/2 ||
			id == m.changes.leaving && m.ticks < m.changes.leavingUntil {
			continue
		}
		// Far behind, it would hold proposals up until it has caught up; and what it has not made durable for a while it may
		// have no room for.
		if match := matches[id]; match+m.config.PolicyLagEntries >= m.log.last && match >= m.elections.ends[0] && (best == 0 || match > bestMatch) {
			best, bestMatch = id, match
		}
	}
	return best
}

// matches is what raft's leader knows of each member's log.
func (m *Member) matches() map[uint64]uint64 {
	matches := map[uint64]uint64{}
	m.raft.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) { matches[id] = p.Match })
	return matches
}

// transfer begins to move leadership.
func (m *Member) transfer(token, target uint64) {
	status := m.raft.BasicStatus()
	switch {
	case !slices.Contains(m.voters, target):
		m.transferred(token, errors.Join(ErrTransfer, errors.New("the target is not a voter")))
	case status.Lead == 0:
		m.transferred(token, errors.Join(ErrTransfer, errors.New("there is no leader")))
	case status.Lead == target:
		m.transferred(token, nil)
	default:
		m.elections.transfers = append(m.elections.transfers,
			pendingTransfer{token, target, m.ticks + 2*m.config.ElectionTicks})
		m.raft.TransferLeader(target)
	}
}

func (m *Member) transferred(token uint64, err error) {
	m.effects.Transfers = append(m.effects.Transfers, TransferResult{Token: token, Leader: m.state.lead, Err: err})
}

func (m *Member) tickTransfers() {
	m.elections.transfers = slices.DeleteFunc(m.elections.transfers, func(t pendingTransfer) bool {
		switch {
		case m.state.lead == t.target:
			m.transferred(t.token, nil)
		case m.ticks >= t.deadline:
			m.transferred(t.token, ErrTransfer)
		default:
			return false
		}
		return true
	})
}
