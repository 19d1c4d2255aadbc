package logservice

import (
	"fmt"
	"slices"
	"strings"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// LeaderPolicy says where leadership is moved to. The zero value leaves it where elections put it.
type LeaderPolicy struct {
	// Region is where the leader is to be while it can be; empty for anywhere.
	Region string
	// Traffic moves leadership to the voter that is nearest to those who write: the one with the lowest mean round trip to
	// the members that proposals come through, each counted as often as it forwards one. Region must be empty.
	Traffic bool
}

func (p LeaderPolicy) String() string {
	switch {
	case p.Traffic:
		return "traffic"
	case p.Region == "":
		return "none"
	}
	return "fixed=" + p.Region
}

// ParseLeaderPolicy reads none, traffic or fixed=REGION.
func ParseLeaderPolicy(text string) (LeaderPolicy, error) {
	switch text {
	case "", "none":
		return LeaderPolicy{}, nil
	case "traffic":
		return LeaderPolicy{Traffic: true}, nil
	}
	if region, ok := strings.CutPrefix(text, "fixed="); ok && region != "" {
		return LeaderPolicy{Region: region}, nil
	}
	return LeaderPolicy{}, fmt.Errorf("leader policy %q: want none, traffic or fixed=REGION", text)
}

// policy is what a member remembers for its LeaderPolicy.
type policy struct {
	// target is a voter that leadership should be moved to, and has been since the tick targetSince; zero for none.
	target      uint64
	targetSince int
	// restUntil is the tick before which leadership is not moved again.
	restUntil int
	// proposals counts what came through each member, in slots of time that follow one another in a ring.
	proposals [trafficSlots]map[uint64]uint64
	// slot is the number of the present slot since the start.
	slot int
	// roundTrips[a][b] is how far b is, as a has measured it.
	roundTrips map[uint64]map[uint64]time.Duration
}

// trafficSlots are the pieces of TrafficWindowTicks.
const trafficSlots = 12

// becameLeader begins to count anew. A leader by traffic stays for the rest, however it came to lead: so leadership does
// not go to and fro faster than that, whoever has it.
func (p *policy) becameLeader(restUntil int) {
	p.target, p.restUntil = 0, restUntil
	clear(p.proposals[:])
}

// policyRest is the tick until which one that has just come to lead keeps leadership.
func (m *Member) policyRest() int {
	if m.config.LeaderPolicy.Traffic {
		return m.ticks + m.config.TrafficRestTicks
	}
	return 0
}

// preferred tells whether the policy wants leadership at a member, whatever the traffic.
func (m *Member) preferred(id uint64) bool {
	return m.config.LeaderPolicy.Region != "" && m.region(id) == m.config.LeaderPolicy.Region
}

// followPolicy is the leader's: it moves leadership to where the policy wants it, once it has wanted the same for some time
// without a break.
func (m *Member) followPolicy() {
	p := &m.policy
	target, hold, rest, why := uint64(0), m.config.PolicyTicks, 5*m.config.PolicyTicks, []any(nil)
	switch {
	case m.ticks < p.restUntil || m.raft.BasicStatus().LeadTransferee != 0 || len(m.confChanges) > 0:
	case m.config.LeaderPolicy.Traffic:
		target, why = m.nearestToTraffic()
		hold, rest = m.config.TrafficHoldTicks, m.config.TrafficRestTicks
	case m.config.LeaderPolicy.Region != "" && !m.preferred(m.config.ID):
		target = m.successor(m.preferred)
	}
	// Of two voters in the wanted region it may be now the one and now the other.
	if (target == 0) != (p.target == 0) || m.config.LeaderPolicy.Traffic && target != p.target {
		p.targetSince = m.ticks
	}
	p.target = target
	if target == 0 || m.ticks-p.targetSince < hold {
		return
	}
	m.config.Logger.Info("handing leadership over by policy", append([]any{"policy", m.config.LeaderPolicy.String(), "to",
		m.leaderName(target), "region", m.region(target)}, why...)...)
	p.restUntil = m.ticks + rest
	m.raft.TransferLeader(target)
}

// noteTraffic counts proposals that this leader has put into the log.
func (m *Member) noteTraffic(queued []queuedProposal) {
	if !m.config.LeaderPolicy.Traffic {
		return
	}
	p := &m.policy
	now := m.ticks / max(m.config.TrafficWindowTicks/trafficSlots, 1)
	for ; p.slot < now; p.slot++ {
		if now-p.slot > trafficSlots {
			p.slot = now - trafficSlots
		}
		p.proposals[(p.slot+1)%trafficSlots] = nil
	}
	counts := p.proposals[p.slot%trafficSlots]
	if counts == nil {
		counts = map[uint64]uint64{}
		p.proposals[p.slot%trafficSlots] = counts
	}
	for _, q := range queued {
		counts[q.origin.member]++
	}
}

// nearestToTraffic is the voter to which leadership should be moved: its mean round trip to those who write is the lowest of
// all, and lower than this leader's by enough. Zero for none.
func (m *Member) nearestToTraffic() (target uint64, why []any) {
	m.noteTraffic(nil)
	writers := map[uint64]uint64{}
	for _, counts := range m.policy.proposals {
		for id, n := range counts {
			writers[id] += n
		}
	}
	mine, proposals, known := m.meanRoundTrip(m.config.ID, writers)
	if !known || proposals < m.config.TrafficMinProposals {
		return 0, nil
	}
	best := mine
	for _, id := range m.voters {
		if mean, _, known := m.meanRoundTrip(id, writers); known && mean < best {
			target, best = id, mean
		}
	}
	if target == 0 || mine-best < max(m.config.TrafficMinGain, mine*time.Duration(m.config.TrafficMinGainPercent)/100) ||
		m.successor(func(id uint64) bool { return id == target }) == 0 {
		return 0, nil
	}
	return target, []any{"proposals", proposals, "mean_round_trip", mine, "mean_round_trip_there", best}
}

// meanRoundTrip is how far a member is from those who write; false where a distance that counts is not known.
func (m *Member) meanRoundTrip(from uint64, writers map[uint64]uint64) (mean time.Duration, proposals uint64, known bool) {
	var total time.Duration
	for _, id := range m.record.all() {
		n := writers[id]
		if n == 0 {
			continue
		}
		distance, known := m.roundTrip(from, id)
		if !known {
			return 0, 0, false
		}
		total += distance * time.Duration(n)
		proposals += n
	}
	if proposals == 0 {
		return 0, 0, false
	}
	return total / time.Duration(proposals), proposals, true
}

// roundTrip is the lower of what two members have measured: queues only ever add.
func (m *Member) roundTrip(a, b uint64) (time.Duration, bool) {
	if a == b {
		return 0, true
	}
	there, ok := m.policy.roundTrips[a][b]
	back, also := m.policy.roundTrips[b][a]
	switch {
	case ok && also:
		return min(there, back), true
	case also:
		return back, true
	}
	return there, ok
}

// measured takes this member's own round trips, and tells the leader, who needs those of all.
func (m *Member) measured(roundTrips []*logv1.RoundTrip) {
	if !m.config.LeaderPolicy.Traffic {
		return
	}
	m.keepRoundTrips(m.config.ID, roundTrips)
	if lead := m.state.lead; lead != 0 && lead != m.config.ID {
		m.send(lead, &logv1.PeerFrame{Frame: &logv1.PeerFrame_RoundTrips{RoundTrips: &logv1.RoundTrips{RoundTrips: roundTrips}}})
	}
}

// keepRoundTrips replaces what a member has measured, and forgets members that are gone.
func (m *Member) keepRoundTrips(from uint64, roundTrips []*logv1.RoundTrip) {
	p := &m.policy
	if m.record.member(from) == nil || len(roundTrips) > 2*m.config.MaxMembers {
		return
	}
	if p.roundTrips == nil {
		p.roundTrips = map[uint64]map[uint64]time.Duration{}
	}
	all := m.record.all()
	for id := range p.roundTrips {
		if !slices.Contains(all, id) {
			delete(p.roundTrips, id)
		}
	}
	row := map[uint64]time.Duration{}
	for _, r := range roundTrips {
		if us := r.GetMicroseconds(); us <= uint64(maxRoundTrip/time.Microsecond) {
			row[r.GetMemberId()] = time.Duration(us) * time.Microsecond
		}
	}
	p.roundTrips[from] = row
}

// maxRoundTrip bounds what is believed of a measurement.
const maxRoundTrip = time.Minute
