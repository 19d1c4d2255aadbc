package logservice

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// round is one read round: one question on behalf of all requests that were waiting when it was asked, to as many of the nearest
// voters as a majority takes, and to the others if those do not do.
type round struct {
	tokens []uint64
	// started is the tick at which the first of its requests came.
	started int
	// id is fresh for each attempt, and across restarts.
	id      uint64
	attempt int
	askedAt int
	// confIndex and quorums are the configuration that this member had applied when it asked.
	confIndex uint64
	quorums   quorum.JointConfig
	answers   map[uint64]*logv1.RoundAnswer
	// reserve are the voters that were not asked because nearer ones are enough; they are asked at askReserveAt.
	reserve      []uint64
	askReserveAt int
	// index is the answer as soon as it is known; the round is over when this member has published it.
	index uint64
	known bool
}

const (
	failureTooMany = "too many read rounds are under way"
	failureTimeout = "no leader or no majority answered in time"
)

// rounds holds the rounds of one member.
type rounds struct {
	flying  []*round
	waiting []uint64
	nextID  uint64
	// distances are the round trips to those who were heard of late; askAllUntil is when one that did not answer in time is
	// relied upon again.
	distances   map[uint64]time.Duration
	askAllUntil int
}

// askRound notes a request; it joins the next round that is asked.
func (m *Member) askRound(token uint64) {
	if len(m.rounds.waiting) >= m.config.MaxWaitingReads {
		m.effects.Rounds = append(m.effects.Rounds, RoundResult{Token: token, Failure: failureTooMany})
		return
	}
	m.rounds.waiting = append(m.rounds.waiting, token)
}

// startRounds asks a question for all that wait, unless the bound on rounds in flight is reached.
func (m *Member) startRounds() {
	if len(m.rounds.waiting) == 0 || len(m.rounds.flying) >= m.config.MaxRounds {
		return
	}
	r := &round{tokens: m.rounds.waiting, started: m.ticks}
	m.rounds.waiting = nil
	m.rounds.flying = append(m.rounds.flying, r)
	m.ask(r)
}

// ask begins an attempt at a round. Answers to an earlier one don't count any more.
func (m *Member) ask(r *round) {
	m.rounds.nextID++
	r.id, r.askedAt = m.rounds.nextID, m.ticks
	r.attempt++
	r.index, r.known = 0, false
	r.confIndex, r.quorums = m.record.confIndex, m.quorums
	if m.config.Publication == PublicationLeader {
		if m.knowsCommit() {
			m.raft.ReadIndex(binary.BigEndian.AppendUint64(nil, r.id))
		} // else it is asked again
		return
	}
	r.answers = make(map[uint64]*logv1.RoundAnswer, len(m.voters))
	asked := m.voters
	r.reserve = nil
	if r.attempt == 1 && m.ticks >= m.rounds.askAllUntil {
		asked, r.reserve, r.askReserveAt = m.nearestVoters()
	}
	m.question(r, asked)
}

// question asks voters, this member among them or not.
func (m *Member) question(r *round, voters []uint64) {
	for _, id := range voters {
		if id == m.config.ID {
			r.add(id, m.answerTo(r.id))
			continue
		}
		m.send(id, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Question{Question: &logv1.RoundQuestion{Id: r.id}}})
	}
}

// nearestVoters divides the voters into as many of the nearest as are majorities, with this member, and the others; those are to
// be asked at a tick when the near ones should have answered long ago. Where too few are known to be near, all are.
func (m *Member) nearestVoters() (near, others []uint64, askOthersAt int) {
	sorted := make([]uint64, 0, len(m.voters))
	for _, id := range m.voters {
		if _, known := m.rounds.distances[id]; known || id == m.config.ID {
			sorted = append(sorted, id)
		}
	}
	distance := func(id uint64) time.Duration {
		if id == m.config.ID {
			return -1
		}
		return m.rounds.distances[id]
	}
	slices.SortFunc(sorted, func(a, b uint64) int { return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a, b)) })
	votes := make(map[uint64]bool, len(sorted))
	for i, id := range sorted {
		votes[id] = true
		if m.quorums.VoteResult(votes) != quorum.VoteWon {
			continue
		}
		for _, other := range m.voters {
			if !slices.Contains(sorted[:i+1], other) {
				others = append(others, other)
			}
		}
		patience := 3 * max(distance(id), 0) / 2
		return sorted[:i+1], others, m.ticks + 2 + int((patience+m.config.TickInterval-1)/m.config.TickInterval)
	}
	return m.voters, nil, 0
}

// lost says that frames to a member are being lost: it is not near any more, and nobody waits for its answers.
func (m *Member) lost(member uint64) {
	if _, known := m.rounds.distances[member]; !known {
		return
	}
	delete(m.rounds.distances, member)
	for _, r := range m.rounds.flying {
		r.askReserveAt = 0
	}
}

// near takes the round trips to others that were heard of late, of all of them.
func (m *Member) near(roundTrips []*logv1.RoundTrip) {
	m.rounds.distances = make(map[uint64]time.Duration, len(roundTrips))
	for _, r := range roundTrips {
		if m.record.member(r.GetMemberId()) != nil {
			m.rounds.distances[r.GetMemberId()] = time.Duration(r.GetMicroseconds()) * time.Microsecond
		}
	}
}

// answerTo tells the term and the end of this member's log: all of it, which counts where this member leads, because
// others may hold durably what it has only appended; and what is on its disk, which covers all that it has acked.
func (m *Member) answerTo(id uint64) *logv1.RoundAnswer {
	status := m.raft.BasicStatus()
	return &logv1.RoundAnswer{Id: id, Term: status.GetTerm(), LastIndex: m.log.last, DurableIndex: m.log.stable,
		Leader: status.RaftState == raft.StateLeader}
}

// answered takes the answer of a voter.
func (m *Member) answered(from uint64, answer *logv1.RoundAnswer) {
	for _, r := range m.rounds.flying {
		if r.id == answer.Id && r.answers != nil {
			r.add(from, answer)
			return
		}
	}
}

// knowsCommit tells whether raft's commit index covers what was published before, as far as raft would answer with it at once: a
// leader that is the only voter does so before an entry of its term is committed, and after a restart its commit index may
// lie below what it had published. (Where there are more voters raft waits for that entry.)
func (m *Member) knowsCommit() bool {
	status := m.raft.BasicStatus()
	if status.RaftState != raft.StateLeader || len(m.voters) > 1 {
		return true
	}
	term, err := m.log.Term(status.GetCommit())
	return err == nil && term == status.GetTerm()
}

// readStates takes raft's own answers (PublicationLeader).
func (m *Member) readStates(states []raft.ReadState) {
	for _, s := range states {
		if len(s.RequestCtx) != 8 {
			continue
		}
		id := binary.BigEndian.Uint64(s.RequestCtx)
		for _, r := range m.rounds.flying {
			if r.id == id {
				r.index, r.known = s.Index, true
			}
		}
	}
}

// finishRounds answers the rounds whose index this member has published, and repeats those that were asked under another
// configuration. It reports whether there is something new to ask or to wait for.
func (m *Member) finishRounds() (progress bool) {
	for _, r := range m.rounds.flying {
		if !r.known || r.index > m.log.published {
			continue
		}
		progress = true
		if r.confIndex != m.record.confIndex {
			m.ask(r)
			continue
		}
		for _, token := range r.tokens {
			m.effects.Rounds = append(m.effects.Rounds, RoundResult{Token: token, Index: r.index})
		}
		r.tokens = nil
	}
	if progress {
		m.rounds.flying = slices.DeleteFunc(m.rounds.flying, func(r *round) bool { return len(r.tokens) == 0 })
	}
	return progress
}

// tickRounds repeats questions that got no answer and gives up rounds that took too long.
func (m *Member) tickRounds() {
	for _, r := range m.rounds.flying {
		switch {
		case m.ticks-r.started >= m.config.RoundTimeoutTicks:
			for _, token := range r.tokens {
				m.effects.Rounds = append(m.effects.Rounds, RoundResult{Token: token, Failure: failureTimeout})
			}
			r.tokens = nil
		case m.ticks-r.askedAt >= m.config.RoundRetryTicks<<min(r.attempt-1, 3):
			m.ask(r)
		case len(r.reserve) > 0 && m.ticks >= r.askReserveAt:
			// Either somebody near does not answer, and for a while nobody shall wait for that again; or what the near ones hold can't
			// be published, as the end of a deposed leader's log can't.
			if !r.known {
				m.rounds.askAllUntil = m.ticks + m.config.RoundAskAllTicks
			}
			m.question(r, r.reserve)
			r.reserve = nil
		}
	}
	m.rounds.flying = slices.DeleteFunc(m.rounds.flying, func(r *round) bool { return len(r.tokens) == 0 })
}

// repeatRounds asks all open questions again at once: there is a leader again.
func (m *Member) repeatRounds() {
	for _, r := range m.rounds.flying {
		if !r.known {
			m.ask(r)
		}
	}
}

// add takes the first answer of a voter.
func (r *round) add(voter uint64, answer *logv1.RoundAnswer) {
	if r.answers[voter] == nil {
		r.answers[voter] = answer
		r.index, r.known = r.outcome()
	}
}

// outcome is the lower of what the two kinds of round give, of those that are complete.
func (r *round) outcome() (index uint64, ok bool) {
	barrier, haveBarrier := r.barrier()
	nearest, haveNearest := r.nearestMajority()
	switch {
	case haveBarrier && haveNearest:
		return min(barrier, nearest), true
	case haveBarrier:
		return barrier, true
	}
	return nearest, haveNearest
}

// barrier is the last index that the leader has appended, provided that majorities are in the leader's term and
// that nobody is in a later one.
func (r *round) barrier() (uint64, bool) {
	var leader *logv1.RoundAnswer
	for _, answer := range r.answers {
		if answer.Leader && (leader == nil || answer.Term > leader.Term) {
			leader = answer
		}
	}
	if leader == nil {
		return 0, false
	}
	votes := make(map[uint64]bool, len(r.answers))
	for id, answer := range r.answers {
		if answer.Term > leader.Term {
			return 0, false
		}
		if answer.Term == leader.Term {
			votes[id] = true
		}
	}
	return leader.LastIndex, r.quorums.VoteResult(votes) == quorum.VoteWon
}

// nearestMajority is the smallest index such that majorities have answered with logs that are durable up to it or
// less: the largest durable index within the majority that makes it smallest.
func (r *round) nearestMajority() (uint64, bool) {
	ends := make([]uint64, 0, len(r.answers))
	for _, answer := range r.answers {
		ends = append(ends, answer.DurableIndex)
	}
	slices.Sort(ends)
	for _, end := range slices.Compact(ends) {
		votes := make(map[uint64]bool, len(r.answers))
		for id, answer := range r.answers {
			if answer.DurableIndex <= end {
				votes[id] = true
			}
		}
		if r.quorums.VoteResult(votes) == quorum.VoteWon {
			return end, true
		}
	}
	return 0, false
}
