package logservice

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// snapshots is what a member has under way of raft's snapshots. A snapshot at r names a sealed checkpoint i at or below r.
// Its receiver first stages the checkpoint and the entries i+1 to r, then hands the snapshot to raft, then has storage begin
// the log anew after i, with the entries, raft's hard state and the record in one step.
type snapshots struct {
	// sent are those that this leader has sent and of which it has not seen the end.
	sent map[uint64]*sentSnapshot
	// staging is the one that is being staged or is ready; installing the one that raft has taken and storage has not yet.
	staging, installing *staging
	// restAt is the tick before which no other one is staged, after a failure. gaveUp is the index of the one that failed
	// until its sender is told of it, zero for none: that is when another one is welcome, and not before.
	restAt int
	gaveUp uint64
}

// sentSnapshot is one at index, whose receiver needs the entries after its checkpoint too.
type sentSnapshot struct {
	index, checkpoint uint64
	heardAt           int
}

// staging is a snapshot on its way into this member.
type staging struct {
	message    *raftpb.Message
	data       *logv1.SnapshotData
	index      uint64
	checkpoint sealedCheckpoint
	ready      bool
	// stamp is the log time at index, and noted are the staged entries about checkpoints, once it is ready.
	stamp uint64
	noted []StagedEntry
}

// snapshotTellTicks is how often a receiver says that it is still at it. A leader that has not heard of it for
// snapshotSilence times as long tries again.
const (
	snapshotTellTicks = 10
	snapshotSilence   = 4
	snapshotRestTicks = 20
)

// makeSnapshot is raft's snapshot at the index that this member has applied.
func (m *Member) makeSnapshot() (*raftpb.Snapshot, error) {
	sealed := m.newestHeld()
	// While a configuration change is being applied, the record does not tell the configuration of any index.
	if sealed == nil || m.changing || sealed.name.Index+1 < m.log.storage.FirstIndex() {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	term, err := m.log.Term(m.applied)
	if err != nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	digest, err := m.log.storage.Digest(m.applied)
	if err != nil {
		return nil, m.log.fail(fmt.Errorf("digest of the log at %d: %w", m.applied, err))
	}
	data, err := proto.Marshal(&logv1.SnapshotData{Checkpoint: wireName(sealed.name), CheckpointTerm: sealed.point.term,
		CheckpointDigest: sealed.point.digest, LogTimeNanoseconds: sealed.point.stamp, Digest: digest,
		ClusterId: m.record.clusterID, Membership: m.Membership(), SenderId: m.config.ID,
		Checkpoints: []*logv1.CheckpointStatus{{Name: wireName(sealed.name), SealedIndex: sealed.sealedIndex}}})
	if err != nil {
		return nil, fmt.Errorf("logservice: encode a snapshot: %w", err)
	}
	index := m.applied
	return &raftpb.Snapshot{Data: data, Metadata: &raftpb.SnapshotMetadata{
		ConfState: proto.CloneOf(m.record.conf), Index: &index, Term: &term}}, nil
}

// newestHeld is the newest sealed checkpoint that this member holds; nil for none.
func (m *Member) newestHeld() *sealedCheckpoint {
	for i := range m.record.sealed {
		if m.checkpoints.held[m.record.sealed[i].name] {
			return &m.record.sealed[i]
		}
	}
	return nil
}

// snapshotSent notes a snapshot that goes out.
func (m *Member) snapshotSent(message *raftpb.Message) {
	index := message.GetSnapshot().GetMetadata().GetIndex()
	sent := &sentSnapshot{index: index, checkpoint: index, heardAt: m.ticks}
	data := &logv1.SnapshotData{}
	if err := proto.Unmarshal(message.GetSnapshot().GetData(), data); err == nil { // this member made it
		sent.checkpoint = data.GetCheckpoint().GetIndex()
	}
	m.snapshots.sent[message.GetTo()] = sent
	m.config.Logger.Info("sending a snapshot", "to", m.leaderName(message.GetTo()), "index", index)
	m.effects.SnapshotsSent++
}

// receiveProgress takes what a receiver says of a snapshot.
func (m *Member) receiveProgress(from uint64, progress *logv1.SnapshotProgress) {
	sent := m.snapshots.sent[from]
	switch {
	case sent == nil || progress.GetIndex() > sent.index:
	case progress.GetFailed():
		m.snapshotFailed(from, "the receiver gave up")
	default:
		sent.heardAt = m.ticks
	}
}

// snapshotFailed lets raft go on with a member: with entries if it can, or with another snapshot.
func (m *Member) snapshotFailed(to uint64, why string) {
	m.config.Logger.Info("snapshot was not installed: "+why, "to", m.leaderName(to), "index", m.snapshots.sent[to].index)
	delete(m.snapshots.sent, to)
	m.raft.ReportSnapshot(to, raft.SnapshotFailure)
}

// tickSnapshots does what nothing else triggers.
func (m *Member) tickSnapshots() {
	s := &m.snapshots
	if m.ticks%snapshotTellTicks == 0 {
		if under := s.underWay(); under != nil {
			m.tellProgress(under.index, false)
		}
	}
	if s.gaveUp != 0 && m.ticks >= s.restAt {
		m.tellProgress(s.gaveUp, true)
		s.gaveUp = 0
	}
	m.installStaged()
	if len(s.sent) == 0 {
		return
	}
	if m.state.role != raft.StateLeader {
		clear(s.sent)
		return
	}
	pending := map[uint64]bool{}
	m.raft.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		pending[id] = p.State == tracker.StateSnapshot
	})
	for _, id := range m.others {
		switch sent := s.sent[id]; {
		case sent == nil:
		case !pending[id]:
			delete(s.sent, id)
		case m.ticks-sent.heardAt >= snapshotSilence*snapshotTellTicks:
			m.snapshotFailed(id, "nothing was heard of it")
		}
	}
}

// underWay is the snapshot on its way into this member; nil for none.
func (s *snapshots) underWay() *staging {
	if s.installing != nil {
		return s.installing
	}
	return s.staging
}

func (m *Member) tellProgress(index uint64, failed bool) {
	if m.state.lead != 0 && m.state.lead != m.config.ID {
		m.send(m.state.lead, &logv1.PeerFrame{Frame: &logv1.PeerFrame_SnapshotProgress{
			SnapshotProgress: &logv1.SnapshotProgress{Index: index, Failed: failed}}})
	}
}

var errSnapshot = errors.New("logservice: not a snapshot of this log")

// readSnapshot checks what raft and this member need of a snapshot that came in a message.
func (m *Member) readSnapshot(message *raftpb.Message) (*staging, error) {
	metadata := message.GetSnapshot().GetMetadata()
	data := &logv1.SnapshotData{}
	if err := proto.Unmarshal(message.GetSnapshot().GetData(), data); err != nil {
		return nil, fmt.Errorf("%w: %w", errSnapshot, err)
	}
	name, err := checkpointName(data.GetCheckpoint())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSnapshot, err)
	}
	conf := metadata.GetConfState()
	switch {
	case metadata.GetIndex() < name.Index || metadata.GetTerm() < data.GetCheckpointTerm():
		return nil, fmt.Errorf("%w: it is at %d, its checkpoint at %d", errSnapshot, metadata.GetIndex(), name.Index)
	case data.GetMembership().GetIndex() < m.record.confIndex:
		// A member that joins may know a later configuration than a leader that has just come. The next one is newer.
		return nil, fmt.Errorf("%w: its configuration is of %d, this member's of %d", errSnapshot, data.GetMembership().GetIndex(),
			m.record.confIndex)
	case len(conf.GetVoters()) == 0:
		return nil, fmt.Errorf("%w: it has no voters", errSnapshot)
	case !slices.Contains(slices.Concat(conf.Voters, conf.Learners, conf.VotersOutgoing), m.config.ID):
		return nil, fmt.Errorf("%w: this member is not in its configuration", errSnapshot)
	case data.GetClusterId() == 0 || m.record.clusterID != 0 && m.record.clusterID != data.GetClusterId():
		return nil, fmt.Errorf("%w: it is of log %016x", errSnapshot, data.GetClusterId())
	}
	s := &staging{message: message, data: data, index: metadata.GetIndex(), checkpoint: sealedCheckpoint{name: name,
		point: logPoint{index: name.Index, term: data.GetCheckpointTerm(), digest: data.GetCheckpointDigest(),
			stamp: data.GetLogTimeNanoseconds()}, sealedIndex: metadata.GetIndex()}}
	for _, c := range data.GetCheckpoints() {
		if sealed, err := checkpointName(c.GetName()); err == nil && sealed == name {
			s.checkpoint.sealedIndex = min(c.GetSealedIndex(), s.index)
		}
	}
	return s, nil
}

// receiveSnapshot takes raft's snapshot message. It returns the message that raft is to be stepped with now, nil for none:
// a snapshot that is needed is staged first.
func (m *Member) receiveSnapshot(from uint64, message *raftpb.Message) *raftpb.Message {
	s, err := m.readSnapshot(message)
	if err != nil {
		m.drop(from, "snapshot", "error", err)
		return nil
	}
	committed := m.raft.BasicStatus().GetCommit()
	switch {
	case message.GetTerm() < m.state.term || !m.needs(s):
		return message
	case s.checkpoint.name.Index < committed:
		// This log reaches beyond the checkpoint: entries are what is missing. Raft says so in its answer to a snapshot
		// that it has no use for.
		useless := proto.CloneOf(message)
		useless.Snapshot.Metadata.Index = &committed
		return useless
	case m.snapshots.underWay() != nil || m.ticks < m.snapshots.restAt:
		return nil
	}
	m.snapshots.staging = s
	sources := []uint64{from}
	for _, id := range slices.Concat(m.others, s.message.GetSnapshot().GetMetadata().GetConfState().GetVoters()) {
		if id != m.config.ID && !slices.Contains(sources, id) {
			sources = append(sources, id)
		}
	}
	m.config.Logger.Info("staging a snapshot", "index", s.index, "checkpoint", s.checkpoint.name.String(), "from", m.leaderName(from))
	metadata := message.GetSnapshot().GetMetadata()
	m.effects.Stage = &StageSnapshot{Index: s.index, Term: metadata.GetTerm(), Digest: s.data.GetDigest(),
		Checkpoint: s.checkpoint.name, CheckpointTerm: s.checkpoint.point.term, CheckpointDigest: s.checkpoint.point.digest,
		CheckpointStamp: s.checkpoint.point.stamp, Sources: sources}
	m.tellProgress(s.index, false)
	return nil
}

// needs tells whether raft would take a snapshot in place of the log: one above its commit index whose last entry the log
// does not have. What this member has published is never replaced by one: see SAFETY.md.
func (m *Member) needs(s *staging) bool {
	if s.index <= m.raft.BasicStatus().GetCommit() {
		return false
	}
	term, err := m.log.Term(s.index)
	return err != nil || term != s.message.GetSnapshot().GetMetadata().GetTerm()
}

// snapshotStaged takes the outcome of Effects.Stage.
func (m *Member) snapshotStaged(e SnapshotStaged) {
	s := m.snapshots.staging
	if s == nil || s.index != e.Index {
		return
	}
	if e.Err != nil {
		m.config.Logger.Warn("snapshot could not be staged", "index", s.index, "error", e.Err)
		m.snapshots.staging, m.snapshots.gaveUp, m.snapshots.restAt = nil, s.index, m.ticks+snapshotRestTicks
		return
	}
	s.ready, s.stamp, s.noted = true, e.Stamp, e.Entries
	m.installStaged()
}

// installStaged hands a staged snapshot to raft, as one of the leader that is known now: what it stands for is committed,
// whoever leads. Without a leader it waits.
func (m *Member) installStaged() {
	s := m.snapshots.staging
	status := m.raft.BasicStatus()
	if s == nil || !s.ready || status.Lead == 0 || status.RaftState != raft.StateFollower {
		return
	}
	m.snapshots.staging = nil
	message := proto.CloneOf(s.message)
	lead, term := status.Lead, status.GetTerm()
	message.From, message.Term = &lead, &term
	if m.needs(s) && s.checkpoint.name.Index >= status.GetCommit() {
		m.snapshots.installing = s
	} else {
		m.effects.Unstage = s.index
		if m.needs(s) {
			return // entries came in the meantime, and more will come
		}
	}
	if err := m.raft.Step(message); err != nil {
		m.config.Logger.Debug("raft refused a snapshot", "error", err)
	}
}

// restored takes raft's word that its log begins anew after a snapshot.
func (m *Member) restored(snapshot *raftpb.Snapshot) {
	index := snapshot.GetMetadata().GetIndex()
	if s := m.snapshots.installing; s == nil || s.index != index {
		panic(fmt.Sprintf("logservice: raft takes a snapshot at %d that is not staged", index))
	}
	m.log.restore(index)
	m.confChanges = nil
}

// install is what storage is to do for the snapshot that raft has taken.
func (m *Member) install(group *Group) *InstallSnapshot {
	s := m.snapshots.installing
	group.Membership = s.record().encode()
	m.groups.record, m.groups.recordWriting = nil, s.index
	return &InstallSnapshot{Base: s.checkpoint.point.index, BaseTerm: s.checkpoint.point.term, BaseDigest: s.checkpoint.point.digest,
		Index: s.index, Group: *group}
}

// record is the receiver's as of the snapshot.
func (s *staging) record() *record {
	r := &record{conf: raftpb.EnsureConfState(proto.CloneOf(s.message.GetSnapshot().GetMetadata().GetConfState())),
		members: s.data.GetMembership().GetMembers(), confIndex: s.data.GetMembership().GetIndex(),
		applied: s.index, clusterID: s.data.GetClusterId(), stamp: s.stamp, sealed: []sealedCheckpoint{s.checkpoint}}
	held := map[CheckpointName]bool{s.checkpoint.name: true}
	for _, e := range s.noted {
		if h, ok := parseEnvelope(e.Entry.Data); ok {
			r.noteCheckpoint(raftEntry(e.Entry), h, e.Digest, held)
		}
	}
	return r
}

// installed takes up what storage has now: the log after the checkpoint, applied up to the snapshot.
func (m *Member) installed() {
	s := m.snapshots.installing
	m.snapshots.installing = nil
	m.record = s.record()
	m.applied = s.index
	m.confChanges = nil
	m.noteConfChanges(m.log.memory(s.index+1, m.log.last+1))
	m.log.installed(s.index)
	m.checkpoints.trimmed = 0
	m.configurationChanged()
	m.forgetAdditions()
	m.effects.SnapshotsInstalled++
	m.config.Logger.Info("installed a snapshot", "index", s.index, "checkpoint", s.checkpoint.name.String())
}
