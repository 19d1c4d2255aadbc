package logservice

import (
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// activeMutants are the mistakes that this process makes.
var activeMutants = strings.Split(os.Getenv("LOGMIRROR_MUTANTS"), ",")

func mutant(name string) bool { return slices.Contains(activeMutants, name) }

// mutantDurable replaces rule 3: index is what the rule gives.
func mutantDurable(m *Member, index, term uint64) uint64 {
	need := func(conf quorum.MajorityConfig) int { return len(conf)/2 + 1 }
	learners := []uint64(nil)
	conf := m.quorums
	switch {
	case mutant("entry-not-held"):
		return m.acks.durable(m.quorums, term)
	case mutant("one-half"):
		conf = quorum.JointConfig{conf[0]}
	case mutant("quorum-minus-one"):
		need = func(conf quorum.MajorityConfig) int { return max(1, len(conf)/2) }
	case mutant("learners-count"):
		learners = m.record.conf.Learners
	default:
		return index
	}
	index = math.MaxUint64
	for _, half := range conf {
		if len(half) == 0 {
			continue
		}
		voters := map[uint64]bool{}
		for id := range half {
			voters[id] = true
		}
		for _, id := range learners {
			voters[id] = true
		}
		var matches []uint64
		for id := range voters {
			if ack := m.acks.acks[id]; ack.term == term {
				matches = append(matches, ack.match)
			}
		}
		slices.Sort(matches)
		if len(matches) < need(half) {
			return 0
		}
		index = min(index, matches[len(matches)-need(half)])
	}
	return min(index, m.log.last)
}

// mutantQueued says at once what is to be said when it is durable.
func mutantQueued(m *Member, message *raftpb.Message) {
	for _, response := range message.GetResponses() {
		switch response.GetType() {
		case raftpb.MsgAppResp:
			if mutant("ack-before-sync") && !response.GetReject() {
				m.acknowledge(response, response.GetTo())
			}
		case raftpb.MsgVoteResp:
			if mutant("vote-before-sync") && response.GetTo() != m.config.ID {
				m.sendRaft(response)
			}
		}
	}
}

// mutantWon replaces the majority of answers.
func mutantWon(r *round, votes map[uint64]bool, kind string) bool {
	switch {
	case mutant(kind + "-one-half"):
		return quorum.JointConfig{r.quorums[0]}.VoteResult(votes) == quorum.VoteWon
	case mutant(kind + "-minus-one"):
		for _, half := range r.quorums {
			won := 0
			for id := range half {
				if votes[id] {
					won++
				}
			}
			if len(half) > 0 && won < max(1, len(half)/2) {
				return false
			}
		}
		return true
	}
	return r.quorums.VoteResult(votes) == quorum.VoteWon
}

// mutantLeader takes anybody's answer for the leader's.
func mutantLeader(r *round, leader *logv1.RoundAnswer) *logv1.RoundAnswer {
	if leader != nil || !mutant("barrier-without-leader") {
		return leader
	}
	least := uint64(math.MaxUint64)
	for id, answer := range r.answers {
		if leader == nil || answer.Term > leader.Term || answer.Term == leader.Term && id < least {
			leader, least = answer, id
		}
	}
	return leader
}

func mutantFinish(m *Member, r *round) {
	if mutant("configuration-of-the-answer") && r.answers != nil {
		r.quorums, r.confIndex = m.quorums, m.record.confIndex
		r.index, r.known = r.outcome()
	}
}

// mutantIndex is other where a mistake is made, else index.
func mutantIndex(name string, index, other uint64) uint64 {
	if mutant(name) {
		return other
	}
	return index
}

func mutantClock(stamp uint64, now time.Time) logClock {
	return startLogClock(mutantIndex("log-time-by-wall-clock", stamp, uint64(now.UnixNano())), now)
}

func mutantElapsed(elapsed time.Duration) time.Duration {
	if mutant("log-time-unbounded") {
		return elapsed
	}
	return min(elapsed, MaxLogTimeAdvance)
}

func mutantClone(copied, shared []*raftpb.Entry) []*raftpb.Entry {
	if mutant("entries-shared") {
		return shared
	}
	return copied
}

// mutantProbe empties the appends with which a leader looks for the end of what a member's log has in common with its own: as
// right as what raft does, which is to send entries with them.
func mutantProbe(m *Member, message *raftpb.Message) *raftpb.Message {
	if message.GetType() != raftpb.MsgApp || !mutant("probes-are-empty") {
		return message
	}
	probing := false
	m.raft.WithProgress(func(id uint64, _ raft.ProgressType, progress tracker.Progress) {
		probing = probing || id == message.GetTo() && progress.State == tracker.StateProbe
	})
	if !probing {
		return message
	}
	message = proto.CloneOf(message)
	message.Entries = nil
	return message
}
