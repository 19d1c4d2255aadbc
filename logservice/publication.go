package logservice

import (
	"fmt"
	"strings"

	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Publication is the rule by which a member learns that an entry is committed, and the kind of read round that is
// right with it. All members of a log must run the same one.
type Publication int

const (
	// PublicationQuorum: every voter tells every member what it holds durably, and each member counts for itself.
	PublicationQuorum Publication = iota
	// PublicationLeader: raft's own commit index and ReadIndex.
	PublicationLeader
)

func (p Publication) String() string {
	if p == PublicationLeader {
		return "leader"
	}
	return "quorum"
}

// ParsePublication reads what String writes.
func ParsePublication(text string) (Publication, error) {
	switch strings.ToLower(text) {
	case "", "quorum":
		return PublicationQuorum, nil
	case "leader":
		return PublicationLeader, nil
	}
	return 0, fmt.Errorf("publication %q: want quorum or leader", text)
}

// voterAck is the newest that is known of what one voter holds durably: its log matches the leader's of term up to
// match.
type voterAck struct{ term, match uint64 }

// ackCount counts acks for the four rules of publication. Acks of several terms are kept apart by keeping, of each
// voter, only those of its latest term: a change of this member's own term needs no reset, because only acks of that
// very term are counted.
type ackCount struct {
	acks map[uint64]voterAck
}

func (c *ackCount) add(voter, term, match uint64) {
	known := c.acks[voter]
	switch {
	case term > known.term:
		c.acks[voter] = voterAck{term, match}
	case term == known.term && match > known.match:
		c.acks[voter] = voterAck{term, match}
	}
}

// inTerm looks only at acks of one term. It implements quorum.AckedIndexer.
type acksInTerm struct {
	acks map[uint64]voterAck
	term uint64
}

func (a acksInTerm) AckedIndex(voter uint64) (quorum.Index, bool) {
	ack := a.acks[voter]
	return quorum.Index(ack.match), ack.term == a.term
}

// durable returns the highest index that majorities of the configuration hold durably in the given term.
func (c *ackCount) durable(conf quorum.JointConfig, term uint64) uint64 {
	return uint64(conf.CommittedIndex(acksInTerm{c.acks, term}))
}

// publishable applies the rules of PublicationQuorum: the highest index that this member may publish by its own count,
// zero for none.
func (m *Member) publishable() uint64 {
	if m.log.last == m.log.published {
		return 0
	}
	term := m.state.term
	index := min(m.acks.durable(m.quorums, term), m.log.last)
	// A configuration change that is not applied yet decides which majorities count above it.
	if len(m.confChanges) > 0 && m.confChanges[0] <= index {
		index = m.confChanges[0] - 1
	}
	if index <= m.log.published {
		return 0
	}
	// Entries of older terms are published only beneath one of this term.
	if entryTerm, err := m.log.Term(index); err != nil || entryTerm != term {
		return 0
	}
	return index
}

// publish raises the published index as far as the rules allow, and says so.
func (m *Member) publish() {
	if m.snapshots.installing != nil {
		// Neither the log nor the configuration is known before storage has both.
		m.effects.Published, m.effects.Durable = m.log.published, m.log.stable
		return
	}
	index := m.applied
	if m.config.Publication == PublicationQuorum {
		index = max(index, m.publishable())
	}
	if index > m.log.published {
		entries := m.log.memory(m.log.published+1, index+1)
		m.log.published = index
		m.effects.Entries = append(m.effects.Entries, entries...)
		for _, e := range entries {
			m.notePublished(e)
		}
	}
	m.effects.Published, m.effects.Durable = m.log.published, m.log.stable
}

// notePublished reads of a published entry what the member itself needs to know.
func (m *Member) notePublished(e *raftpb.Entry) {
	if e.GetType() != raftpb.EntryNormal || len(e.GetData()) == 0 {
		return
	}
	h, ok := parseEnvelope(e.GetData())
	if !ok {
		return
	}
	m.noteSlow(e.GetIndex(), m.inFlight.published(h))
	m.tracePublished(e.GetIndex(), h)
	m.sessions.note(e.GetIndex(), h)
	if h.kind == logv1.EntryKind_ENTRY_KIND_GENESIS && m.record.clusterID == 0 {
		m.learnCluster(h)
	}
}

// acknowledge takes an append response of this member, released after the sync of what it stands on: it counts here
// and goes to all other members. target is the leader that gets the response itself.
func (m *Member) acknowledge(response *raftpb.Message, target uint64) {
	if response.GetReject() || response.GetIndex() == 0 {
		return
	}
	ack := &logv1.VoterAck{VoterId: m.config.ID, Term: response.GetTerm(), MatchIndex: response.GetIndex()}
	m.acks.add(ack.VoterId, ack.Term, ack.MatchIndex)
	if m.config.Publication != PublicationQuorum {
		return
	}
	for _, id := range m.others {
		if id != target {
			m.send(id, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Ack{Ack: ack}})
		}
	}
}
