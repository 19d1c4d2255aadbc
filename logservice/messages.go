package logservice

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// send puts a frame at the end of what goes to a member.
func (m *Member) send(to uint64, frame *logv1.PeerFrame) {
	m.effects.Frames = append(m.effects.Frames, OutgoingFrame{To: to, Frame: frame})
}

// sendRaft encodes and sends a message of raft. An append response of our own also becomes an ack.
func (m *Member) sendRaft(message *raftpb.Message) {
	if message.GetType() == raftpb.MsgHeartbeat && m.resigning || m.tellsOnlyCommit(message) {
		return
	}
	if message.GetType() == raftpb.MsgSnap {
		m.snapshotSent(message)
	}
	data, err := proto.Marshal(message)
	if err != nil {
		panic(fmt.Sprintf("logservice: encode a raft message: %v", err))
	}
	m.send(message.GetTo(), &logv1.PeerFrame{Frame: &logv1.PeerFrame_RaftMessage{RaftMessage: data}})
}

// tellsOnlyCommit finds the append messages that raft sends for nothing but a new commit index. With PublicationQuorum
// nobody waits for it: the next entries or the next heartbeat carry it, and the message, its answer, the answer's sync and
// its acks are saved. Raft bears the loss of any message; what it would miss is kept: a message that probes (another
// state than replicating, or the answer to a heartbeat), and one that may commit a configuration change.
func (m *Member) tellsOnlyCommit(message *raftpb.Message) bool {
	if message.GetType() != raftpb.MsgApp || len(message.GetEntries()) > 0 || m.config.Publication != PublicationQuorum ||
		len(m.confChanges) > 0 || slices.Contains(m.heartbeatAnswers, message.GetTo()) {
		return false
	}
	replicating := false
	m.raft.WithProgress(func(id uint64, _ raft.ProgressType, progress tracker.Progress) {
		replicating = replicating || id == message.GetTo() && progress.State == tracker.StateReplicate
	})
	return replicating
}

// receive takes a frame of another member.
func (m *Member) receive(from uint64, frame *logv1.PeerFrame) {
	switch f := frame.GetFrame().(type) {
	case *logv1.PeerFrame_RaftMessage:
		message := &raftpb.Message{}
		if err := proto.Unmarshal(f.RaftMessage, message); err != nil {
			m.drop(from, "undecodable raft message", "error", err)
			return
		}
		m.receiveRaft(from, message)
	case *logv1.PeerFrame_Ack:
		if f.Ack.GetVoterId() == from {
			m.acks.add(from, f.Ack.GetTerm(), f.Ack.GetMatchIndex())
		}
	case *logv1.PeerFrame_Proposal:
		m.receiveProposal(from, f.Proposal)
	case *logv1.PeerFrame_Rejection:
		m.receiveRejection(f.Rejection)
	case *logv1.PeerFrame_Change:
		m.receiveChange(from, f.Change)
	case *logv1.PeerFrame_RoundTrips:
		m.keepRoundTrips(from, f.RoundTrips.GetRoundTrips())
	case *logv1.PeerFrame_ChangeRefusal:
		m.receiveRefusal(f.ChangeRefusal)
	case *logv1.PeerFrame_Question:
		m.send(from, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Answer{Answer: m.answerTo(f.Question.GetId())}})
	case *logv1.PeerFrame_Answer:
		m.answered(from, f.Answer)
	case *logv1.PeerFrame_CheckpointsHeld:
		m.receiveHeld(from, f.CheckpointsHeld)
	case *logv1.PeerFrame_CheckpointReport:
		m.receiveReport(from, f.CheckpointReport)
	case *logv1.PeerFrame_CheckpointWanted:
		m.receiveWanted(from, f.CheckpointWanted)
	case *logv1.PeerFrame_CheckpointAsked:
		m.receiveAsked(f.CheckpointAsked.GetAfterIndex())
	case *logv1.PeerFrame_SnapshotProgress:
		m.receiveProgress(from, f.SnapshotProgress)
	case *logv1.PeerFrame_DigestReport:
		m.receiveDigest(f.DigestReport)
	case *logv1.PeerFrame_TraceNotes:
		m.receiveTraces(f.TraceNotes.GetNotes())
	case *logv1.PeerFrame_DigestVerdict:
		m.effects.Verdicts = append(m.effects.Verdicts, f.DigestVerdict)
	}
}

// receiveRaft steps raft with a message of another member, if raft can bear it.
func (m *Member) receiveRaft(from uint64, message *raftpb.Message) {
	if reason := m.refuse(from, message); reason != "" {
		m.drop(from, reason, "type", message.GetType())
		return
	}
	kind := message.GetType()
	if kind == raftpb.MsgReadIndex && !m.knowsCommit() {
		return
	}
	if kind == raftpb.MsgSnap {
		if message = m.receiveSnapshot(from, message); message == nil {
			return
		}
	}
	if err := m.raft.Step(message); err != nil {
		// Raft refuses what it can't place: a response of a member it does not know, a proposal while it does not lead.
		m.config.Logger.Debug("raft refused a message", "from", memberName(from), "type", kind, "error", err)
		return
	}
	if message.GetTerm() != m.raft.BasicStatus().GetTerm() {
		return
	}
	m.elections.heard[from] = m.ticks
	switch kind {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		m.heardLeader()
	case raftpb.MsgHeartbeatResp:
		m.heartbeatAnswers = append(m.heartbeatAnswers, from)
	case raftpb.MsgAppResp:
		if !message.GetReject() {
			m.acks.add(from, message.GetTerm(), message.GetIndex())
		}
	}
}

// refuse says why a raft message can't be what a member of this log sends, empty where it can. Raft itself trusts its
// peers and panics on some of these.
func (m *Member) refuse(from uint64, message *raftpb.Message) string {
	switch message.GetType() {
	case raftpb.MsgApp:
		previous, term := message.GetIndex(), message.GetLogTerm()
		for _, e := range message.GetEntries() {
			if e.GetIndex() != previous+1 || e.GetTerm() < term || e.GetTerm() > message.GetTerm() {
				return "append with entries out of order"
			}
			previous, term = e.GetIndex(), e.GetTerm()
		}
	case raftpb.MsgHeartbeat:
		// A leader that thinks so knew another log of ours.
		if message.GetTerm() >= m.raft.BasicStatus().GetTerm() && message.GetCommit() > m.log.last {
			return "heartbeat commits beyond the end of this log"
		}
	case raftpb.MsgReadIndex:
		if len(message.GetEntries()) != 1 || m.config.Publication != PublicationLeader {
			return "unexpected read index"
		}
	case raftpb.MsgTransferLeader:
		// Forwarded: it names the transferee as its sender.
		if message.GetTo() != m.config.ID || !slices.Contains(m.voters, message.GetFrom()) {
			return "transfer to a member that does not vote"
		}
		return ""
	case raftpb.MsgAppResp, raftpb.MsgHeartbeatResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote,
		raftpb.MsgPreVoteResp, raftpb.MsgReadIndexResp, raftpb.MsgTimeoutNow, raftpb.MsgSnap:
	default:
		return "unexpected type of raft message"
	}
	if message.GetTo() != m.config.ID || message.GetFrom() != from {
		return "raft message with another sender or receiver"
	}
	return ""
}

func (m *Member) drop(from uint64, reason string, details ...any) {
	m.config.Logger.Warn("dropped a frame: "+reason, append([]any{"from", memberName(from)}, details...)...)
}

// readyMessages hands out what raft wants sent, written and applied.
func (m *Member) readyMessages(messages []*raftpb.Message) {
	for _, message := range messages {
		switch message.GetTo() {
		case raft.LocalAppendThread:
			if message.Snapshot != nil {
				m.restored(message.Snapshot)
			}
			m.log.append(message.GetEntries())
			m.noteConfChanges(message.GetEntries())
			m.enqueue(message)
		case raft.LocalApplyThread:
			m.applies = append(m.applies, pendingApply{message: message, after: m.groups.queued})
		default:
			if message.GetType() == raftpb.MsgVote {
				m.holdRequest(message)
				continue
			}
			m.sendRaft(message)
		}
	}
}

// memberName is how ids are written in logs.
func memberName(id uint64) string { return fmt.Sprintf("%016x", id) }
