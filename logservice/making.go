package logservice

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// leadCheckpoints is the leader's part: it asks for a checkpoint when one is due, has what the builders agree on copied to
// all members, and seals it once majorities hold it.
func (m *Member) leadCheckpoints() {
	making := &m.checkpoints.making
	// What the log of earlier terms asks for is known once an entry of this term is applied.
	if term, err := m.log.Term(m.applied); err != nil || term != m.state.term {
		return
	}
	m.followRequest()
	if len(m.checkpoints.asks) > 0 {
		m.receiveAsked(m.checkpoints.asks[len(m.checkpoints.asks)-1].after)
	}
	if making.asked && m.newestSealed() > making.askedAfter {
		making.asked = false
	}
	// A proposal may be lost, but not before a change of term or of raft's mind; nothing is proposed twice in haste.
	quiet := making.proposedAt == 0 || m.ticks-making.proposedAt >= 2*m.config.ElectionTicks
	if m.ticks >= making.wantAt {
		making.wantAt = m.ticks + wantEvery*m.config.CheckpointTicks
		if len(m.record.sealed) > 0 {
			m.wantEverywhere(m.record.sealed[0].name)
		}
		if name, ok := m.agreed(); ok {
			m.wantEverywhere(name)
		}
	}
	if m.record.request != nil && !making.failed {
		if name, ok := m.agreed(); ok && m.majorityHolds(name) && quiet {
			if m.proposeCheckpoint(logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED,
				&logv1.CheckpointSealed{Checkpoint: wireName(name)}) {
				making.failure = ""
			}
			return
		}
		m.expireRequest()
	}
	if quiet && m.checkpointDue() {
		m.requestCheckpoint()
	}
}

// followRequest takes up the request that is under way.
func (m *Member) followRequest() {
	c := &m.checkpoints
	making, request := &c.making, m.record.request
	if request == nil {
		making.request, making.failed = 0, false
		clear(making.collected)
		return
	}
	if making.request != request.point.index {
		making.request, making.since, making.failed, making.proposedAt = request.point.index, m.ticks, false, 0
		clear(making.collected)
	}
	if c.reportsOf == request.point.index {
		for session, name := range c.reports {
			m.collect(session, name)
		}
	}
}

// collect takes a report to the request that is under way.
func (m *Member) collect(session uint64, name CheckpointName) {
	making, request := &m.checkpoints.making, m.record.request
	if !m.leading || request == nil || making.request != request.point.index || name.Index != request.point.index ||
		!slices.Contains(request.builders, session) || name.FormatVersion != request.formatVersion {
		return
	}
	making.collected[session] = name
	for _, other := range request.builders {
		if known, ok := making.collected[other]; ok && known != name && !making.failed {
			m.failRequest(fmt.Sprintf("builders differ about checkpoint %d: session %d made %x, session %d made %x",
				name.Index, session, name.SHA256[:6], other, known.SHA256[:6]), []uint64{session, other})
		}
	}
}

// failRequest gives a request up; another one follows, of others than those who are to blame if it can be.
func (m *Member) failRequest(why string, blamed []uint64) {
	making := &m.checkpoints.making
	m.sessions.failed(blamed)
	making.failed, making.failure = true, why
	m.config.Logger.Error("checkpoint will not be sealed: "+why, "request", making.request)
}

// agreed returns what all builders of the request have reported alike.
func (m *Member) agreed() (name CheckpointName, ok bool) {
	making, request := &m.checkpoints.making, m.record.request
	if request == nil || making.request != request.point.index || making.failed || len(request.builders) == 0 {
		return name, false
	}
	name = making.collected[request.builders[0]]
	for _, session := range request.builders {
		if reported, ok := making.collected[session]; !ok || reported != name {
			return name, false
		}
	}
	return name, true
}

// majorityHolds tells whether majorities of the voters hold a checkpoint durably.
func (m *Member) majorityHolds(name CheckpointName) bool {
	votes := make(map[uint64]bool, len(m.voters))
	for _, id := range m.voters {
		if m.holds(id, name) {
			votes[id] = true
		}
	}
	return m.quorums.VoteResult(votes) == quorum.VoteWon
}

// wantEverywhere asks all members that do not hold a checkpoint to fetch it from those that do.
func (m *Member) wantEverywhere(name CheckpointName) {
	holders := m.holders(name)
	if len(holders) == 0 {
		return
	}
	wanted := &logv1.CheckpointWanted{Checkpoint: wireName(name), Holders: holders}
	for _, id := range m.others {
		if !slices.Contains(holders, id) {
			m.send(id, &logv1.PeerFrame{Frame: &logv1.PeerFrame_CheckpointWanted{CheckpointWanted: wanted}})
		}
	}
	if !slices.Contains(holders, m.config.ID) {
		m.receiveWanted(m.config.ID, wanted)
	}
}

// expireRequest gives up a request whose builders are gone or too slow.
func (m *Member) expireRequest() {
	making, request := &m.checkpoints.making, m.record.request
	missing := slices.DeleteFunc(slices.Clone(request.builders), func(session uint64) bool {
		_, reported := making.collected[session]
		return reported
	})
	if m.ticks-making.since >= m.config.CheckpointTimeoutTicks {
		m.failRequest(fmt.Sprintf("checkpoint %d was not made and copied in time: %d of %d builders have reported",
			request.point.index, len(making.collected), len(request.builders)), missing)
		return
	}
	// A leader that has just come does not know the sessions yet.
	if m.ticks-making.since < m.config.CheckpointRestTicks {
		return
	}
	for _, session := range missing {
		if !m.sessions.alive(session, m.config.SessionSilence) {
			m.failRequest(fmt.Sprintf("session %d has ended before it made checkpoint %d", session, request.point.index), missing)
			return
		}
	}
}

// checkpointDue tells whether it is time for another request.
func (m *Member) checkpointDue() bool {
	making := &m.checkpoints.making
	if making.failed && making.requestedAt != 0 && m.ticks-making.requestedAt < m.config.CheckpointRestTicks {
		return false
	}
	if request := m.record.request; request != nil && !making.failed {
		return making.asked && request.point.index <= making.askedAfter
	}
	newest := m.newestSealed()
	if newest == m.applied {
		return false
	}
	if making.asked || making.failed || m.logBytesAbove(newest) >= m.config.CheckpointLogBytes {
		return true
	}
	since := uint64(0)
	if len(m.record.sealed) > 0 {
		since = m.record.sealed[0].point.stamp
	}
	return m.config.CheckpointAge > 0 && since > 0 && m.record.stamp >= since+uint64(m.config.CheckpointAge)
}

// requestCheckpoint asks the sessions that are alive.
func (m *Member) requestCheckpoint() {
	builders := m.sessions.builders(buildersWanted, m.config.SessionSilence)
	if len(builders) == 0 {
		m.checkpoints.making.failure = "no frontend has a session to build a checkpoint"
		return
	}
	if m.proposeCheckpoint(logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST,
		&logv1.CheckpointRequest{BuilderSessions: builders, FormatVersion: checkpointFormat}) {
		m.checkpoints.making.requestedAt = m.ticks
	}
}

// proposeCheckpoint stamps and proposes an entry of the log service's own.
func (m *Member) proposeCheckpoint(kind logv1.EntryKind, message proto.Message) bool {
	status := m.raft.BasicStatus()
	if m.noSpace || status.RaftState != raft.StateLeader || status.LeadTransferee != 0 {
		return false
	}
	payload, err := proto.Marshal(message)
	if err != nil {
		panic(fmt.Sprintf("logservice: encode %v: %v", kind, err))
	}
	if err := m.raft.Propose(encodeEnvelope(envelopeHeader{kind: kind, stamp: m.clock.next(m.now), payload: payload})); err != nil {
		m.config.Logger.Info("could not propose", "kind", kind.String(), "error", err)
		return false
	}
	m.checkpoints.making.proposedAt = m.ticks
	return true
}
