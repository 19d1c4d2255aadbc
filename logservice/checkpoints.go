package logservice

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// checkpoints is what a member knows of the making of checkpoints beyond its record: what its own store holds, what
// builders and callers have come to it with, and, while it leads, what the others have told it. All of it is lost with the
// process and told again.
type checkpoints struct {
	// held are the checkpoints in this member's store.
	held map[CheckpointName]bool
	// fetching is the one that the shell was asked to fetch; zero for none.
	fetching CheckpointName
	// reports are those that builders gave to this member, for reportsOf, the index of the request.
	reports   map[uint64]CheckpointName
	reportsOf uint64
	offers    []pendingOffer
	asks      []pendingAsk
	// tellAt is the tick at which the leader is told again.
	tellAt int
	pinned uint64
	// trimmed is the last index that Effects.Trim said.
	trimmed uint64

	making making
}

// making is the leader's.
type making struct {
	// holders is what each other member said it holds.
	holders map[uint64]map[CheckpointName]bool
	// collected are the reports by session, for request, the index of the request that was applied at the tick since.
	collected map[uint64]CheckpointName
	request   uint64
	since     int
	// failed says that the request will never be sealed; failure why, for people.
	failed  bool
	failure string
	// proposedAt is the tick of the latest proposal, requestedAt of the latest request, zero for none in this term.
	proposedAt, requestedAt int
	// asked says that somebody wants a checkpoint above askedAfter.
	asked      bool
	askedAfter uint64
	wantAt     int
}

type pendingOffer struct {
	OfferCheckpoint
	deadline int
}

type pendingAsk struct {
	token, after uint64
	deadline     int
}

var (
	// ErrCheckpointOffer says that a checkpoint is not being made, or not by the session that offers it.
	ErrCheckpointOffer = errors.New("logservice: this checkpoint is not wanted of this session")
	// ErrCheckpointTimeout says that no checkpoint was sealed in time.
	ErrCheckpointTimeout = errors.New("logservice: no checkpoint was sealed in time")
	// ErrTooManyCheckpointCalls says that too many wait.
	ErrTooManyCheckpointCalls = errors.New("logservice: too many calls about checkpoints are waiting")
)

const (
	// checkpointFormat is the version that builders are asked for.
	checkpointFormat = 1
	// buildersWanted is how many sessions build each checkpoint, where there are so many.
	buildersWanted = 2
	// maxHeldTold bounds what one member believes of another.
	maxHeldTold = 64
	// maxCheckpointCalls bounds the offers and questions that wait.
	maxCheckpointCalls = 256
	// tellEvery and wantEvery are how many intervals pass between two tellings of the same.
	tellEvery = 4
	// askTimeouts is how many attempts at a checkpoint one who asked for it waits for.
	askTimeouts = 3
	wantEvery   = 4
)

func newCheckpoints() checkpoints {
	c := checkpoints{held: map[CheckpointName]bool{}, reports: map[uint64]CheckpointName{}}
	c.becameLeader(0)
	return c
}

func (c *checkpoints) becameLeader(tick int) {
	c.making = making{holders: map[uint64]map[CheckpointName]bool{}, collected: map[uint64]CheckpointName{}, since: tick}
}

// applyEnvelope takes an applied entry with an envelope.
func (m *Member) applyEnvelope(e *raftpb.Entry, h envelopeHeader) {
	m.record.stamp = max(m.record.stamp, h.stamp)
	var digest uint64
	switch h.kind {
	case logv1.EntryKind_ENTRY_KIND_GENESIS:
		// A member that starts between its publication and its application may publish it from the disk, unread.
		if m.record.clusterID == 0 {
			m.applied = max(m.applied, e.GetIndex())
			m.learnCluster(h)
		}
		return
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST:
		var err error
		if digest, err = m.log.storage.Digest(e.GetIndex()); err != nil {
			_ = m.log.fail(fmt.Errorf("digest of the log at %d: %w", e.GetIndex(), err))
			return
		}
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED:
		if m.record.request != nil {
			m.sessions.sealed(m.record.request.builders)
		}
	default:
		return
	}
	before := m.record.request
	if m.record.noteCheckpoint(e, h, digest, m.checkpoints.held) {
		m.applied = max(m.applied, e.GetIndex())
		m.saveRecord()
		m.config.Logger.Info("checkpoint sealed", "checkpoint", m.record.sealed[0].name.String(), "at", e.GetIndex(),
			"held", m.checkpoints.held[m.record.sealed[0].name])
	} else if request := m.record.request; request != before {
		m.sessions.requested(request.point.index, request.builders)
	}
	m.settleCheckpointCalls()
}

// heldCheckpoints takes the list of the store.
func (m *Member) heldCheckpoints(names []CheckpointName) {
	c := &m.checkpoints
	clear(c.held)
	for _, name := range names {
		c.held[name] = true
	}
	c.tellAt = m.ticks
	m.removeCheckpoints()
}

// removeCheckpoints gives up what is neither sealed and kept, nor being made or fetched, nor of a request that this member
// has not applied yet. Nothing is given up before the record is durable that says what is sealed.
func (m *Member) removeCheckpoints() {
	c := &m.checkpoints
	if len(m.record.sealed) > 0 && m.groups.recorded < m.record.sealed[0].sealedIndex {
		return
	}
	var gone []CheckpointName
	for name := range c.held {
		making := m.record.request != nil && m.record.request.point.index == name.Index
		staged := m.snapshots.underWay() != nil && m.snapshots.underWay().checkpoint.name == name
		if m.record.findSealed(name) == nil && !making && !staged && name.Index <= m.applied && name != c.fetching {
			gone = append(gone, name)
		}
	}
	for _, name := range sortedNames(gone) {
		delete(c.held, name)
		m.effects.Remove = append(m.effects.Remove, name)
	}
}

// sortedNames sorts names, newest first, so that no order follows from a map.
func sortedNames(names []CheckpointName) []CheckpointName {
	slices.SortFunc(names, func(a, b CheckpointName) int {
		if a.Index != b.Index {
			if a.Index > b.Index {
				return -1
			}
			return 1
		}
		return slices.Compare(a.SHA256[:], b.SHA256[:])
	})
	return names
}

// offerCheckpoint takes a builder's word. Where this member has published the request but not applied it, or not even
// published it, the offer waits.
func (m *Member) offerCheckpoint(e OfferCheckpoint) {
	c := &m.checkpoints
	if len(c.offers) >= maxCheckpointCalls {
		m.effects.Offers = append(m.effects.Offers, OfferResult{Token: e.Token, Err: ErrTooManyCheckpointCalls})
		return
	}
	c.offers = append(c.offers, pendingOffer{OfferCheckpoint: e, deadline: m.ticks + 2*m.config.ElectionTicks})
	m.settleCheckpointCalls()
}

// askCheckpoint begins to wait for a checkpoint of the log as it is now.
func (m *Member) askCheckpoint(token uint64) {
	c := &m.checkpoints
	if len(c.asks) >= maxCheckpointCalls {
		m.effects.Checkpoints = append(m.effects.Checkpoints, CheckpointResult{Token: token, Err: ErrTooManyCheckpointCalls})
		return
	}
	c.asks = append(c.asks, pendingAsk{token: token, after: m.log.published, deadline: m.ticks + askTimeouts*m.config.CheckpointTimeoutTicks})
	c.tellAt = m.ticks
}

// settleCheckpointCalls answers the offers and questions that can be answered.
func (m *Member) settleCheckpointCalls() {
	c := &m.checkpoints
	c.offers = slices.DeleteFunc(c.offers, func(o pendingOffer) bool {
		if o.Name.Index > m.applied && m.ticks < o.deadline {
			request := m.record.request
			if request == nil || request.point.index != o.Name.Index {
				return false
			}
		}
		m.effects.Offers = append(m.effects.Offers, OfferResult{Token: o.Token, Held: c.held[o.Name], Err: m.takeReport(o)})
		return true
	})
	c.asks = slices.DeleteFunc(c.asks, func(a pendingAsk) bool {
		switch {
		case len(m.record.sealed) > 0 && m.record.sealed[0].name.Index > a.after:
			m.effects.Checkpoints = append(m.effects.Checkpoints, CheckpointResult{Token: a.token, Name: m.record.sealed[0].name})
		case m.ticks >= a.deadline:
			m.effects.Checkpoints = append(m.effects.Checkpoints, CheckpointResult{Token: a.token, Err: ErrCheckpointTimeout})
		default:
			return false
		}
		return true
	})
}

// takeReport keeps what a builder says, if it was asked.
func (m *Member) takeReport(o pendingOffer) error {
	c, request := &m.checkpoints, m.record.request
	switch {
	case request == nil || request.point.index != o.Name.Index:
		return fmt.Errorf("%w: no checkpoint of index %d is being made", ErrCheckpointOffer, o.Name.Index)
	case !slices.Contains(request.builders, o.Session):
		return fmt.Errorf("%w: session %d was not asked for checkpoint %d", ErrCheckpointOffer, o.Session, o.Name.Index)
	case o.Name.FormatVersion != request.formatVersion:
		return fmt.Errorf("%w: it has format version %d, %d was asked for", ErrCheckpointOffer, o.Name.FormatVersion,
			request.formatVersion)
	}
	if c.reportsOf != request.point.index {
		c.reportsOf = request.point.index
		clear(c.reports)
	}
	c.reports[o.Session] = o.Name
	c.tellAt = m.ticks
	return nil
}

// tickCheckpoints does, once in an interval, all that nothing else triggers.
func (m *Member) tickCheckpoints() {
	c := &m.checkpoints
	if m.ticks%m.config.CheckpointTicks != 0 {
		return
	}
	m.settleCheckpointCalls()
	if m.leading {
		m.leadCheckpoints()
	} else if m.ticks >= c.tellAt && m.state.lead != 0 {
		c.tellAt = m.ticks + tellEvery*m.config.CheckpointTicks
		m.tellLeader(m.state.lead)
	}
	m.removeCheckpoints()
	m.trim()
}

// tellLeader says what this member holds and what it was told.
func (m *Member) tellLeader(leader uint64) {
	c := &m.checkpoints
	held := &logv1.CheckpointsHeld{}
	for _, name := range sortedNames(slices.Collect(maps.Keys(c.held))) {
		held.Checkpoints = append(held.Checkpoints, wireName(name))
	}
	m.send(leader, &logv1.PeerFrame{Frame: &logv1.PeerFrame_CheckpointsHeld{CheckpointsHeld: held}})
	if request := m.record.request; request != nil && c.reportsOf == request.point.index {
		for _, session := range slices.Sorted(maps.Keys(c.reports)) {
			m.send(leader, &logv1.PeerFrame{Frame: &logv1.PeerFrame_CheckpointReport{
				CheckpointReport: &logv1.CheckpointReport{Session: session, Name: wireName(c.reports[session])}}})
		}
	}
	if len(c.asks) > 0 {
		m.send(leader, &logv1.PeerFrame{Frame: &logv1.PeerFrame_CheckpointAsked{
			CheckpointAsked: &logv1.CheckpointAsked{AfterIndex: c.asks[len(c.asks)-1].after}}})
	}
}

// receiveHeld takes what another member says it holds.
func (m *Member) receiveHeld(from uint64, told *logv1.CheckpointsHeld) {
	if m.record.member(from) == nil || len(told.GetCheckpoints()) > maxHeldTold {
		return
	}
	held := map[CheckpointName]bool{}
	for _, n := range told.GetCheckpoints() {
		if name, err := checkpointName(n); err == nil {
			held[name] = true
		}
	}
	m.checkpoints.making.holders[from] = held
}

// receiveReport takes a builder's report that another member passes on.
func (m *Member) receiveReport(from uint64, report *logv1.CheckpointReport) {
	name, err := checkpointName(report.GetName())
	if err != nil {
		m.drop(from, "report of a checkpoint", "error", err)
		return
	}
	m.collect(report.GetSession(), name)
}

// receiveAsked notes that somebody wants a checkpoint.
func (m *Member) receiveAsked(after uint64) {
	making := &m.checkpoints.making
	making.asked, making.askedAfter = true, max(making.askedAfter, min(after, m.log.last))
}

// receiveWanted begins to fetch a checkpoint that the leader wants here: one that is sealed or being made.
func (m *Member) receiveWanted(from uint64, wanted *logv1.CheckpointWanted) {
	name, err := checkpointName(wanted.GetCheckpoint())
	if err != nil {
		m.drop(from, "wanted checkpoint", "error", err)
		return
	}
	c := &m.checkpoints
	making := m.record.request != nil && m.record.request.point.index == name.Index
	if c.held[name] || c.fetching != (CheckpointName{}) || !making && m.record.findSealed(name) == nil {
		return
	}
	holders := slices.DeleteFunc(slices.Clone(wanted.GetHolders()), func(id uint64) bool {
		return id == m.config.ID || m.record.member(id) == nil
	})
	if len(holders) > 0 {
		c.fetching = name
		m.effects.Fetch = &FetchCheckpoint{Name: name, Holders: holders}
	}
}

// fetchedCheckpoint ends a fetch; where it failed, the leader asks again.
func (m *Member) fetchedCheckpoint(name CheckpointName, err error) {
	if err != nil {
		m.config.Logger.Warn("checkpoint could not be fetched", "checkpoint", name.String(), "error", err)
	}
	if m.checkpoints.fetching == name {
		m.checkpoints.fetching = CheckpointName{}
	}
}

// CheckpointState is what a member tells of checkpoints.
type CheckpointState struct {
	// Sealed are the sealed checkpoints that this member knows of, newest first.
	Sealed []SealedState
	// RequestIndex is the checkpoint that is being made, zero for none.
	RequestIndex    uint64
	RequestBuilders []uint64
	Reports         map[uint64]CheckpointName
	// Holders of what is being made; only the leader knows.
	Holders []uint64
	// LogBytes is the size of the log above the newest sealed checkpoint.
	LogBytes int64
	// Age is the log time since the newest sealed checkpoint, in nanoseconds.
	Age uint64
	// Failure is why the last attempt failed, for people; empty for nothing. Only the leader knows.
	Failure string
}

// SealedState tells of one sealed checkpoint.
type SealedState struct {
	Name        CheckpointName
	SealedIndex uint64
	Term        uint64
	Digest      uint64
	Held        bool
	// Holders are the members that hold it; only the leader knows of all.
	Holders []uint64
}

// newest is the newest sealed checkpoint, zero for none.
func (s *CheckpointState) newest() (newest SealedState) {
	if len(s.Sealed) > 0 {
		newest = s.Sealed[0]
	}
	return newest
}

func (m *Member) checkpointState() CheckpointState {
	c := &m.checkpoints
	s := CheckpointState{LogBytes: m.logBytesAbove(m.newestSealed()), Failure: c.making.failure}
	for i := range m.record.sealed {
		sealed := &m.record.sealed[i]
		s.Sealed = append(s.Sealed, SealedState{Name: sealed.name, SealedIndex: sealed.sealedIndex, Term: sealed.point.term,
			Digest: sealed.point.digest, Held: c.held[sealed.name], Holders: m.holders(sealed.name)})
		if i == 0 && m.record.stamp > sealed.point.stamp {
			s.Age = m.record.stamp - sealed.point.stamp
		}
	}
	if request := m.record.request; request != nil {
		s.RequestIndex, s.RequestBuilders = request.point.index, slices.Clone(request.builders)
		s.Reports = maps.Clone(c.reports)
		if m.leading && c.making.request == request.point.index {
			s.Reports = maps.Clone(c.making.collected)
			if name, ok := m.agreed(); ok {
				s.Holders = m.holders(name)
			}
		}
	}
	return s
}

// holders returns the members that hold a checkpoint as far as this member knows: itself, and the others while it leads.
func (m *Member) holders(name CheckpointName) (ids []uint64) {
	for _, id := range m.record.all() {
		if m.holds(id, name) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *Member) holds(id uint64, name CheckpointName) bool {
	if id == m.config.ID {
		return m.checkpoints.held[name]
	}
	return m.leading && m.checkpoints.making.holders[id][name]
}

// NewestCheckpoint returns the index of the newest sealed checkpoint and the members that hold it, as far as this member
// knows: only the leader, some time after its election, knows of all. An index of zero stands for none.
func (m *Member) NewestCheckpoint() (index uint64, holders []uint64) {
	if len(m.record.sealed) == 0 {
		return 0, nil
	}
	return m.record.sealed[0].name.Index, m.holders(m.record.sealed[0].name)
}
