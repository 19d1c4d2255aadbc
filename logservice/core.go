package logservice

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// MemberConfig is what a Member needs to know at its start. Durations are in ticks.
type MemberConfig struct {
	// ID is this member's raft id.
	ID uint64
	// Region is this member's own.
	Region string
	// Addresses replace, at this member, those that the log has of members. May be nil.
	Addresses map[uint64]string
	// Storage is read by the member; it is written by who drives it, as Effects.Append says.
	Storage Storage
	// Nonce is random: it begins the ids of read rounds, so that answers to an earlier life are not taken for ours.
	Nonce uint64
	// ClusterID is random and not zero: this member names the log so, if it is the first leader of an empty one.
	ClusterID uint64

	Publication  Publication
	LeaderPolicy LeaderPolicy
	Logger       *slog.Logger

	// HeartbeatTicks is the interval of the leader's heartbeats.
	HeartbeatTicks int
	// ElectionTicks is the silence of a leader after which others may be voted for.
	ElectionTicks int
	// StaggerTicks is the difference between the times that two voters wait before they campaign.
	StaggerTicks int
	// StallTicks is how long a leader's disk may take for one group before it hands leadership over; twice that, and it
	// resigns.
	StallTicks int
	// PolicyTicks is how long a voter in the preferred region must have been ready; PolicyLagEntries how far it may be
	// behind.
	PolicyTicks      int
	PolicyLagEntries uint64
	// ChangeTicks is how long a change of the membership may take. PromoteLagEntries is how far behind the leader a learner
	// may be that is promoted, MaxMembers the most members, learners among them, that the log may have.
	ChangeTicks       int
	PromoteLagEntries uint64
	MaxMembers        int
	// DigestTicks is how long the leader waits for the digests of all mirrors at one index before it compares them.
	DigestTicks int
	// The traffic policy looks at the proposals of the last TrafficWindowTicks, if there are TrafficMinProposals of them; it
	// moves leadership where that lowers their mean round trip by TrafficMinGain and by TrafficMinGainPercent, and has done so
	// for TrafficHoldTicks; whoever has come to lead stays for TrafficRestTicks.
	TrafficWindowTicks, TrafficHoldTicks, TrafficRestTicks int
	TrafficMinProposals                                    uint64
	TrafficMinGain                                         time.Duration
	TrafficMinGainPercent                                  int
	// NoSpaceRetryTicks is how long to wait before a group that found no room is tried again.
	NoSpaceRetryTicks int
	// RoundRetryTicks is how long to wait for the answers of a read round before it is asked again (twice as long each
	// time), RoundTimeoutTicks after which it fails.
	// After a near voter did not answer in time, all are asked for RoundAskAllTicks.
	RoundRetryTicks, RoundTimeoutTicks, RoundAskAllTicks int
	// TickInterval is the time between two ticks, to which round trips are compared; zero for 50 ms.
	TickInterval time.Duration
	// MaxRounds bounds the read rounds in flight, MaxWaitingReads the requests that wait for the next one.
	MaxRounds, MaxWaitingReads int
	// MaxPayloadBytes bounds one proposal.
	MaxPayloadBytes int
	// MaxStreamBytes and MaxForwardBytes bound the proposals in flight, of one stream and of all streams of this member.
	// MaxUncommittedBytes bounds those that a leader has appended and not yet committed.
	MaxStreamBytes, MaxForwardBytes, MaxUncommittedBytes int
	// MaxMessageBytes bounds the entries in one append message to another member, MaxInflightBytes those that are on
	// their way to it.
	MaxMessageBytes, MaxInflightBytes int
	// MaxGroupBytes bounds what is written with one sync, unless one message of raft is larger.
	MaxGroupBytes int
	// MaxMemoryBytes bounds the durable entries that are kept in memory.
	MaxMemoryBytes int
	// CheckpointLogBytes is how much log there may be above the newest sealed checkpoint before another one is asked for;
	// CheckpointAge how much log time. Zero for 256 MiB, and for no bound by age.
	CheckpointLogBytes int64
	CheckpointAge      time.Duration
	// CheckpointTicks is the interval of all that has to do with checkpoints, CheckpointTimeoutTicks the time to make and
	// copy one, CheckpointRestTicks the least time between two requests.
	CheckpointTicks, CheckpointTimeoutTicks, CheckpointRestTicks int
	// SlowBatchAfter is how long a batch of this member's streams may take to be published before Effects tell of it; zero
	// for never.
	SlowBatchAfter time.Duration
	// SessionSilence is the log time after which a silent session is not asked for a checkpoint; MaxSessions bounds those
	// that are known.
	SessionSilence time.Duration
	MaxSessions    int
	// TailBytes is how much log is kept for those who come late, above a sealed checkpoint or below; zero for 1 GiB.
	// TailAge is the log time after which what is below a sealed checkpoint is not kept any longer; zero for no such
	// bound. MaxPinBytes is how much more is kept for those who are reading; zero for as much as TailBytes.
	TailBytes, MaxPinBytes int64
	TailAge                time.Duration
	// RecordInterval is the number of applied entries after which the record is written again, so that a restart has
	// little to apply.
	RecordInterval uint64
}

// withDefaults fills in what is zero.
func (c MemberConfig) withDefaults() MemberConfig {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&c.HeartbeatTicks, 2}, {&c.ElectionTicks, 15}, {&c.StaggerTicks, 5}, {&c.StallTicks, 10},
		{&c.PolicyTicks, 20}, {&c.DigestTicks, 20}, {&c.MaxMembers, 16},
		{&c.TrafficWindowTicks, 1200}, {&c.TrafficHoldTicks, 200}, {&c.TrafficRestTicks, 1200}, {&c.TrafficMinGainPercent, 25},
		{&c.NoSpaceRetryTicks, 20}, {&c.RoundRetryTicks, 10}, {&c.RoundTimeoutTicks, 100}, {&c.RoundAskAllTicks, 40},
		{&c.MaxRounds, 32}, {&c.MaxWaitingReads, 65536}, {&c.MaxPayloadBytes, 4 << 20},
		{&c.MaxStreamBytes, 16 << 20}, {&c.MaxForwardBytes, 64 << 20}, {&c.MaxUncommittedBytes, 64 << 20},
		{&c.MaxMessageBytes, 1 << 20}, {&c.MaxInflightBytes, 32 << 20}, {&c.MaxGroupBytes, 8 << 20},
		{&c.MaxMemoryBytes, 32 << 20}, {&c.CheckpointTicks, 10}, {&c.CheckpointTimeoutTicks, 12_000},
		{&c.CheckpointRestTicks, 200}, {&c.MaxSessions, 1024},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.TickInterval == 0 {
		c.TickInterval = 50 * time.Millisecond
	}
	if c.CheckpointLogBytes == 0 {
		c.CheckpointLogBytes = 256 << 20
	}
	if c.TailBytes == 0 {
		c.TailBytes = 1 << 30
	}
	if c.MaxPinBytes == 0 {
		c.MaxPinBytes = c.TailBytes
	}
	if c.SessionSilence == 0 {
		c.SessionSilence = 30 * time.Second
	}
	if c.RecordInterval == 0 {
		c.RecordInterval = 10_000
	}
	if c.ChangeTicks == 0 {
		c.ChangeTicks = 10 * c.ElectionTicks
	}
	if c.TrafficMinProposals == 0 {
		c.TrafficMinProposals = 100
	}
	if c.TrafficMinGain == 0 {
		c.TrafficMinGain = 5 * time.Millisecond
	}
	if c.PromoteLagEntries == 0 {
		c.PromoteLagEntries = 100
	}
	if c.PolicyLagEntries == 0 {
		c.PolicyLagEntries = 1000
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Member is one log member without its clock, disk and network: a value that is stepped with events and says what is to
// be done. It is not safe for concurrent use and starts nothing. The same events at the same times lead to the same
// effects.
//
// Guarantees, beside raft's:
//
//  1. What Effects publishes is the same entry at the same index on every member, for ever.
//  2. Published never goes back, and no entry at or below it is ever replaced (checked: a violation panics).
//  3. A response that stands on something written leaves only after StorageDone for the group that holds it.
//  4. Log time never goes back from one index to the next, and advances by at most MaxLogTimeAdvance between two
//     entries.
//  5. A round is answered with an index at or above all that was published anywhere before the question.
type Member struct {
	config MemberConfig
	raft   *raft.RawNode
	log    *entryLog
	record *record
	// quorums, voters and others are derived of record: the majorities, all voters, all members but this one.
	quorums quorum.JointConfig
	voters  []uint64
	others  []uint64

	// ticks counts the Tick events since the start.
	ticks int
	now   time.Time
	state memberState
	// lastLeader is the latest leader that this member knew.
	lastLeader uint64
	// leading is set once the clock of this leader's term runs.
	leading bool
	clock   logClock

	groups      groups
	applies     []pendingApply
	applied     uint64
	confChanges []uint64
	acks        ackCount
	rounds      rounds
	elections   elections
	changes     changes
	digests     digests
	policy      policy
	// proposals wait for raft; proposalBytes is about their size.
	proposals     []queuedProposal
	proposalBytes int
	inFlight      *inFlight
	uncommitted   uncommitted
	noSpace       bool
	resigning     bool
	// heartbeatAnswers are the members that answered a heartbeat in this step.
	heartbeatAnswers []uint64
	sessions         *sessionTable
	traces           traces
	checkpoints      checkpoints
	snapshots        snapshots
	// changing is set while a configuration change is being applied.
	changing bool

	effects *Effects
}

// memberState is what others want to hear of when it changes.
type memberState struct {
	term, vote, lead uint64
	role             raft.StateType
}

// NewMember begins the life of a member on its storage, which holds at least the record of the first membership (see
// FirstRecord).
func NewMember(config MemberConfig) (*Member, error) {
	config = config.withDefaults()
	record, err := decodeRecord(config.Storage.Membership())
	if err != nil {
		return nil, err
	}
	hard := config.Storage.HardState()
	if record.applied > hard.Commit || hard.Commit > config.Storage.LastIndex() {
		return nil, fmt.Errorf("logservice: the log ends at %d, is committed to %d and applied to %d",
			config.Storage.LastIndex(), hard.Commit, record.applied)
	}
	m := &Member{config: config, record: record, applied: record.applied,
		log:      newEntryLog(config.Storage, record.conf, config.MaxMemoryBytes),
		acks:     ackCount{acks: map[uint64]voterAck{}},
		rounds:   rounds{nextID: config.Nonce},
		changes:  changes{nextRequest: config.Nonce},
		inFlight: newInFlight(config.MaxStreamBytes, config.MaxForwardBytes, 10*config.ElectionTicks),
		sessions: newSessionTable(config.MaxSessions), checkpoints: newCheckpoints(),
		digests:     digests{waitTicks: config.DigestTicks},
		uncommitted: uncommitted{share: newFairShare[proposalOrigin](config.MaxUncommittedBytes)},
		effects:     &Effects{}}
	m.elections.heard = map[uint64]int{}
	m.snapshots.sent = map[uint64]*sentSnapshot{}
	m.log.snapshot = m.makeSnapshot
	m.groups.commit, m.groups.term, m.groups.vote = hard.Commit, hard.Term, hard.Vote
	m.groups.recorded, m.sessions.latest = record.applied, record.stamp
	if err := m.loadConfChanges(); err != nil {
		return nil, err
	}
	if err := m.loadClusterID(); err != nil {
		return nil, err
	}
	m.raft, err = raft.NewRawNode(&raft.Config{
		ID: config.ID, ElectionTick: config.ElectionTicks, HeartbeatTick: config.HeartbeatTicks,
		Storage: m.log, Applied: record.applied, AsyncStorageWrites: true,
		MaxSizePerMsg: uint64(config.MaxMessageBytes), MaxCommittedSizePerReady: uint64(config.MaxMessageBytes),
		MaxUncommittedEntriesSize: uint64(config.MaxUncommittedBytes),
		MaxInflightMsgs:           4096, MaxInflightBytes: uint64(config.MaxInflightBytes),
		CheckQuorum: true, PreVote: true, DisableProposalForwarding: true, StepDownOnRemoval: true,
		Logger: raftLogger{config.Logger},
	})
	if err != nil {
		return nil, fmt.Errorf("logservice: start raft: %w", err)
	}
	if m.configurationChanged() {
		m.saveRecord()
	}
	m.effects = &Effects{}
	// A member that has just come looks for a leader sooner than one that has just lost its own; it disturbs none,
	// because others that hear their leader don't answer.
	m.elections.campaignAt = config.ElectionTicks/3 + m.rank()*config.StaggerTicks
	m.observe()
	return m, nil
}

// loadConfChanges finds the configuration changes above what was applied: none of them may be published early.
func (m *Member) loadConfChanges() error {
	for next := m.record.applied + 1; next <= m.log.last; {
		entries, err := m.log.Entries(next, m.log.last+1, uint64(m.config.MaxMessageBytes))
		if err != nil {
			return err
		}
		m.noteConfChanges(entries)
		next = entries[len(entries)-1].GetIndex() + 1
	}
	return nil
}

// loadClusterID reads the log's name out of it, where a crash came between the publication of GENESIS and the record.
func (m *Member) loadClusterID() error {
	// The log can't have been trimmed without its name: a checkpoint is above it.
	for index := m.log.storage.FirstIndex(); m.record.clusterID == 0 && index <= m.log.published; index++ {
		entries, err := m.log.Entries(index, index+1, 1)
		if err != nil {
			return err
		}
		if h, ok := parseEnvelope(entries[0].GetData()); ok && entries[0].GetType() == raftpb.EntryNormal {
			if h.kind == logv1.EntryKind_ENTRY_KIND_GENESIS {
				m.learnCluster(h)
			}
			break
		}
	}
	return nil
}

// Step lets events happen to the member, in this order and at this time, and returns what is to be done about them.
// now must not go back; only differences count, except for the first stamp of a new log.
func (m *Member) Step(now time.Time, events ...Event) (effects Effects) {
	m.now = now
	m.effects = &Effects{}
	defer func() {
		if m.log.failure == nil {
			return
		}
		// Raft panics where storage fails it; that is no bug of ours.
		_ = recover()
		effects = Effects{Failure: m.log.failure, Published: m.log.published}
	}()
	for _, event := range events {
		m.handle(event)
	}
	m.settle()
	return *m.effects
}

func (m *Member) handle(event Event) {
	switch e := event.(type) {
	case Tick:
		m.tick()
	case Received:
		m.receive(e.From, e.Frame)
	case StorageDone:
		m.storageDone(e.Err)
	case Propose:
		m.propose(e.Stream, e.Proposal)
	case StreamClosed:
		m.inFlight.closeStream(e.Stream)
	case AskRound:
		m.askRound(e.Token)
	case Transfer:
		m.transfer(e.Token, e.Target)
	case Measured:
		m.measured(e.RoundTrips)
		m.near(e.Near)
	case ChangeMembership:
		m.changeMembership(e.Token, e.Change)
	case Reconfigure:
		if err := m.raft.ProposeConfChange(e.Change); err != nil {
			m.config.Logger.Info("configuration change was not proposed", "error", err)
		}
	case Unreachable:
		m.raft.ReportUnreachable(e.Member)
		m.lost(e.Member)
	case Unsent:
		m.unsent(e.To, e.Frames)
	case Introduced:
		m.introduced(e.Member, e.Region)
	case OfferCheckpoint:
		m.offerCheckpoint(e)
	case HeldCheckpoints:
		m.heldCheckpoints(e.Names)
	case FetchedCheckpoint:
		m.fetchedCheckpoint(e.Name, e.Err)
	case AskCheckpoint:
		m.askCheckpoint(e.Token)
	case Pinned:
		m.checkpoints.pinned = e.Index
	case SnapshotStaged:
		m.snapshotStaged(e)
	case DigestReported:
		m.digestReported(e.Report)
	case Campaign:
		if err := m.raft.Campaign(); err != nil {
			m.config.Logger.Debug("raft did not campaign", "error", err)
		}
	}
}

func (m *Member) tick() {
	m.ticks++
	m.inFlight.tick(m.ticks)
	m.tickRounds()
	m.tickElections()
	m.tickChanges()
	m.tickCheckpoints()
	m.tickSnapshots()
	m.judgeDigests()
	if g := &m.groups; g.retryAt != 0 && m.ticks >= g.retryAt {
		g.retryAt, g.since = 0, m.ticks
		m.effects.Append, m.effects.Install = g.writing, g.install
		if g.install != nil {
			m.effects.Append = nil
		}
	}
}

// settle goes on until raft and what stands on it have nothing more to say.
func (m *Member) settle() {
	for again := true; again; {
		m.flushProposals()
		m.startRounds()
		for m.raft.HasReady() {
			ready := m.raft.Ready()
			m.readStates(ready.ReadStates)
			m.readyMessages(ready.Messages)
		}
		again = m.applyCommitted()
		again = m.observe() || again
		m.publish()
		m.finishChanges()
		again = m.finishRounds() || again || len(m.proposals) > 0 && !m.holdsProposals() || m.raft.HasReady()
	}
	m.resigning = false
	m.heartbeatAnswers = m.heartbeatAnswers[:0]
	m.startGroup()
}

// observe notices what raft has become, and does what belongs to it. It reports whether anything changed.
func (m *Member) observe() bool {
	status := m.raft.BasicStatus()
	now := memberState{term: status.GetTerm(), vote: status.GetVote(), lead: status.Lead, role: status.RaftState}
	before := m.state
	if now == before {
		return false
	}
	m.state = now
	if now.term != before.term {
		m.inFlight.reset()
		m.uncommitted.reset()
		m.digests.reset()
		m.leading = false
	}
	switch {
	case now.role == raft.StateLeader && before.role != raft.StateLeader:
		m.becameLeader()
	case now.role != raft.StateLeader && before.role == raft.StateLeader:
		m.leading = false
		if now.lead == 0 {
			m.putOff()
		}
	case now.vote != before.vote && now.vote != 0 && now.vote != m.config.ID:
		m.putOff()
	}
	if now.lead != before.lead {
		m.config.Logger.Info("leader changed", "term", now.term, "leader", m.leaderName(now.lead), "last_index", m.log.last)
	}
	if now.lead != 0 && now.lead != before.lead {
		m.lastLeader = now.lead
		m.checkpoints.tellAt = m.ticks
		m.heardLeader()
		m.repeatRounds()
		m.tickTransfers()
		m.askChanges(true)
		m.checkpoints.tellAt = m.ticks
	}
	return true
}

func (m *Member) leaderName(id uint64) string {
	if member := m.record.member(id); member != nil {
		return member.Name
	}
	if id == 0 {
		return "none"
	}
	return memberName(id)
}

// becameLeader starts log time for the term, and names the log if it has no name.
func (m *Member) becameLeader() {
	m.checkpoints.becameLeader(m.ticks)
	m.elections.leadingSince = m.ticks
	m.elections.ends = [2]uint64{}
	m.policy.becameLeader(m.policyRest())
	for _, id := range m.voters {
		m.elections.heard[id] = m.ticks
	}
	stamp, named := m.lastStamp()
	if m.log.failure != nil {
		return
	}
	if named {
		m.clock = startLogClock(stamp, m.now)
		m.leading = true
		return
	}
	m.clock = startLogClock(uint64(m.now.UnixNano()), m.now)
	m.leading = true
	payload, err := proto.Marshal(&logv1.Genesis{ClusterId: m.config.ClusterID, CreatedUnixNanoseconds: m.now.UnixNano()})
	if err != nil {
		panic(fmt.Sprintf("logservice: encode genesis: %v", err))
	}
	data := encodeEnvelope(envelopeHeader{kind: logv1.EntryKind_ENTRY_KIND_GENESIS, stamp: m.clock.next(m.now), payload: payload})
	if err := m.raft.Propose(data); err != nil {
		// The next leader does it; this one takes no proposals.
		m.leading = false
		m.config.Logger.Warn("could not propose the name of the log", "error", err)
	}
}

// lastStamp finds the stamp of the last envelope in the log; false where there is none. What is applied need not be there
// any more: it may have been trimmed, or never have been here.
func (m *Member) lastStamp() (uint64, bool) {
	if m.snapshots.installing != nil {
		return m.record.stamp, m.record.stamp != 0
	}
	for index := m.log.last; index > m.applied; index-- {
		entries, err := m.log.Entries(index, index+1, 1)
		if err != nil {
			return 0, false
		}
		if e := entries[0]; e.GetType() == raftpb.EntryNormal {
			if h, ok := parseEnvelope(e.GetData()); ok {
				return h.stamp, true
			}
		}
	}
	return m.record.stamp, m.record.stamp != 0
}

// learnCluster keeps the name of the log.
func (m *Member) learnCluster(h envelopeHeader) {
	genesis := &logv1.Genesis{}
	if err := proto.Unmarshal(h.payload, genesis); err != nil || genesis.GetClusterId() == 0 {
		m.config.Logger.Error("the log's first envelope does not name it", "error", err)
		return
	}
	m.record.clusterID = genesis.ClusterId
	m.saveRecord()
}

// configurationChanged derives what depends on the configuration. It reports whether a member has another address than
// the record had.
func (m *Member) configurationChanged() (moved bool) {
	m.quorums, m.voters = m.record.quorums(), m.record.voters()
	m.others = slices.DeleteFunc(m.record.all(), func(id uint64) bool { return id == m.config.ID })
	m.setRegion(m.config.ID, m.config.Region)
	for i, member := range m.record.members {
		if address := m.config.Addresses[member.Id]; address != "" && address != member.Address {
			m.record.members[i] = proto.CloneOf(member)
			m.record.members[i].Address = address
			moved = true
		}
	}
	m.effects.MembershipChanged = true
	return moved
}

// introduced learns the region of another member.
func (m *Member) introduced(id uint64, region string) {
	if region != "" && m.setRegion(id, region) {
		m.effects.MembershipChanged = true
	}
}

func (m *Member) setRegion(id uint64, region string) bool {
	for i, member := range m.record.members {
		if member.Id == id && member.Region != region {
			// Membership hands the old value out to others.
			m.record.members[i] = proto.CloneOf(member)
			m.record.members[i].Region = region
			return true
		}
	}
	return false
}

// Membership is the configuration that this member has applied. The caller owns it but for the members it points to,
// which nobody modifies.
func (m *Member) Membership() *logv1.Membership {
	return &logv1.Membership{Members: slices.Clone(m.record.members), Index: m.record.confIndex}
}

// ClusterID is the name of the log, zero while no GENESIS has been published here.
func (m *Member) ClusterID() uint64 { return m.record.clusterID }

// MemberState is what a Member tells of itself.
type MemberState struct {
	Term, Leader     uint64
	IsLeader         bool
	Commit           uint64
	Published        uint64
	First, Last      uint64
	LogTime          uint64
	Matches          map[uint64]uint64
	NoSpace, Stalled bool
	InFlightBytes    int
	Rounds           int
	Checkpoints      CheckpointState
	// Disagreement says which mirrors do not have the state of the others; empty for none. Only the leader knows.
	Disagreement string
}

// State describes the member as it is between two steps.
func (m *Member) State() MemberState {
	status := m.raft.BasicStatus()
	s := MemberState{Term: status.GetTerm(), Leader: status.Lead, IsLeader: status.RaftState == raft.StateLeader,
		Commit: status.GetCommit(), Published: m.log.published, First: m.log.storage.FirstIndex(), Last: m.log.last,
		NoSpace: m.noSpace, Stalled: m.stalledTicks() >= m.config.StallTicks,
		InFlightBytes: m.inFlight.bytes, Rounds: len(m.rounds.flying)}
	s.Checkpoints = m.checkpointState()
	if s.IsLeader {
		s.Disagreement = m.digests.alarm
		s.Matches = m.matches()
	}
	if m.log.failure == nil {
		s.LogTime, _ = m.lastStamp()
	}
	return s
}

// FirstRecord is what storage must hold as membership before the first start of a member of the first configuration.
func FirstRecord(members []InitialMember) (record []byte, id func(name string) uint64, err error) {
	c, err := newInitialCluster(members)
	if err != nil {
		return nil, nil, err
	}
	return c.record().encode(), c.id, nil
}
