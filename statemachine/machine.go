package statemachine

import (
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// ApplyVersion is the highest apply version that this build understands. Each change of what apply does raises it and
// branches on Machine.applyVersion, so that a cluster changes over at one entry. Version 1 is what the first release will
// do: what is added before it branches on nothing.
const ApplyVersion = 1

const (
	// maxOrphansPerEntry bounds how many orphans one entry ends; the rest end at the entries after.
	maxOrphansPerEntry = 4096
	// maxScratch is how many elements a slice may have that is kept for the next entry.
	maxScratch = 4096
	// maxLogTime is the highest stamp that is taken, far beyond any clock: sums of times stay within an int64.
	maxLogTime = 1 << 62
)

// Options of a Machine. None of them may change what apply decides.
type Options struct {
	// Space holds the keys; nil for a new one. It must be empty.
	Space *keyspace.Space
	// CompactionBudget is how much physical work for compaction is done after each entry at most, in the units of
	// keyspace.Space.CompactSome; zero for 1,024.
	CompactionBudget int
	// ApplyVersion is the highest apply version that this machine understands; zero for the constant, which is what this
	// build does. Another one lets a test run processes of several builds: it decides where apply stops, and nothing else.
	ApplyVersion uint32
}

// Machine is the state of one mirror. See the package comment for who may call what.
type Machine struct {
	space            *keyspace.Space
	compactionBudget int
	// understands is the highest apply version that Apply goes on at.
	understands uint32

	// mu is held while an entry is applied, and shared by those who read the tables below.
	mu           sync.RWMutex
	failed       error
	index, term  uint64
	logTime      int64
	clusterID    uint64
	revision     int64
	compacted    int64
	applyVersion uint32
	settings     Settings
	sessions     sessionTable
	leases       *lease.Table
	requests     requestTable
	regions      map[string]RegionState
	noSpace      bool
	ids          idTables
	retention    retentionSamples
	// settingsSum and regionsSum: see seals.go.
	settingsSum, regionsSum uint64

	// Scratch of the apply goroutine.
	commands []command
	keys     [][]byte
	doomed   []keyspace.Version
}

// New returns the state before the first entry of a log.
func New(o Options) *Machine {
	if o.Space == nil {
		o.Space = keyspace.New(keyspace.Options{})
	}
	m := newMachine(o)
	m.space.Publish(0, m.revision)
	return m
}

// newMachine makes a machine whose key space shows nothing yet.
func newMachine(o Options) *Machine {
	if o.CompactionBudget <= 0 {
		o.CompactionBudget = 1024
	}
	if o.ApplyVersion == 0 {
		o.ApplyVersion = ApplyVersion
	}
	m := &Machine{
		space:            o.Space,
		understands:      o.ApplyVersion,
		compactionBudget: o.CompactionBudget,
		revision:         1,
		applyVersion:     1,
		settings:         DefaultSettings(),
		sessions:         newSessionTable(),
		leases:           lease.NewTable(),
		requests:         newRequestTable(),
		regions:          make(map[string]RegionState),
		ids:              newIDTables(),
	}
	m.sealSmall()
	return m
}

// SkipReason says why an entry was not applied. It is decided by the state, the same on every mirror.
type SkipReason uint8

const (
	// SkipNone: it was applied.
	SkipNone SkipReason = iota
	// SkipNoSession: a batch of a session that never was.
	SkipNoSession
	// SkipSessionEnded: a batch of a session that has ended.
	SkipSessionEnded
	// SkipSeq: a batch out of its place; Applied.ExpectedSeq tells which one would be taken. A lower seq is a copy of
	// a batch that was taken, a higher one comes after one that was lost.
	SkipSeq
	// SkipIncarnation: an Open that is not above the frontend's last incarnation.
	SkipIncarnation
	// SkipRegionFenced: an Open from a fenced region.
	SkipRegionFenced
	// SkipApplyVersion: an Open of a process that does not understand the apply version in force.
	SkipApplyVersion
	// SkipTooManySessions: an Open beyond the bound on frontends with an open session.
	SkipTooManySessions
	// SkipInvalid: an Open without a frontend id or incarnation, or with more text than is kept; a Genesis without a
	// cluster id.
	SkipInvalid
	// SkipGenesis: a Genesis after the first.
	SkipGenesis
	// SkipNoGenesis: an entry before the log was named.
	SkipNoGenesis
)

// String returns the reason as logs and transcripts show it.
func (r SkipReason) String() string {
	names := [...]string{
		"none", "no session", "session ended", "seq", "incarnation", "region fenced", "apply version",
		"too many sessions", "invalid", "genesis again", "no genesis",
	}
	if int(r) < len(names) {
		return names[r]
	}
	return "unknown"
}

// Applied is what one entry did. It and its slices are made for the entry: the receiver may keep them and nobody
// changes them. Key-values in them point into the key space's immutable memory (see keyspace.Version).
type Applied struct {
	Index, Term uint64
	Kind        logv1.EntryKind
	// LogTime is the log time from this entry on, in nanoseconds.
	LogTime int64
	// Session and Seq are the envelope's; of an applied OPEN_SESSION, Session is the one that it opened.
	Session, Seq uint64
	// Skipped says why the entry itself had no effect. What was due before it has happened all the same.
	Skipped SkipReason
	// ExpectedSeq is the session's last seq + 1, where Skipped is SkipSeq.
	ExpectedSeq uint64
	// Results has one for each command of an applied batch, where they were wanted.
	Results []Result
	// Events are the changes of keys, in order of (revision, sub-revision).
	Events []Event
	// Revision and CompactRevision are those after the entry.
	Revision, CompactRevision     int64
	LeaseChanges                  []lease.Change
	SessionsOpened, SessionsEnded []SessionChange
	SettingsChanged               bool
	RegionsChanged                bool
	AlarmsChanged                 bool
	// ReportApplied says that a command of the batch asks mirrors to report this index.
	ReportApplied bool
	// DigestDue says that mirrors compare their digests of the state after this entry: see Machine.Digest.
	DigestDue bool
}

// Event is one change of one key.
type Event struct {
	// Put is false for a delete, whose KV is the tombstone: key and mod_revision only.
	Put bool
	KV  keyspace.Version
	// Previous is the version that was replaced or deleted, where HasPrevious.
	Previous    keyspace.Version
	HasPrevious bool
}

// entry is the work on one entry.
type entry struct {
	applied *Applied
	session *session // of a batch
	wanted  bool
}

func (e *entry) addLeaseChanges(changes []lease.Change) {
	if len(e.applied.LeaseChanges) == 0 {
		e.applied.LeaseChanges = changes
		return
	}
	e.applied.LeaseChanges = append(e.applied.LeaseChanges, changes...)
}

// Apply takes the next entry. envelope is nil for the kinds that have none, and it and its payload are not kept.
// wanted asks for Results: the proposer's own mirror wants them.
//
// An error (ErrUnknown, ErrMalformed, ErrOutOfOrder) means that this mirror cannot go on: nothing of the entry becomes
// visible in the key space, and every later call returns the same error. A command that is refused is no error of
// Apply; its Result says so.
func (m *Machine) Apply(
	index, term uint64, kind logv1.EntryKind, envelope *logv1.Envelope, wanted bool,
) (*Applied, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return nil, m.failed
	}
	applied, err := m.applyEntry(index, term, kind, envelope, wanted)
	if err != nil {
		m.failed = fmt.Errorf("entry %d: %w", index, err)
		return nil, m.failed
	}
	return applied, nil
}

func (m *Machine) applyEntry(
	index, term uint64, kind logv1.EntryKind, envelope *logv1.Envelope, wanted bool,
) (*Applied, error) {
	if index != m.index+1 || term < m.term {
		return nil, fmt.Errorf("%w: (%d, term %d) after (%d, term %d)", ErrOutOfOrder, index, term, m.index, m.term)
	}
	if err := checkEnvelope(kind, envelope); err != nil {
		return nil, err
	}
	m.index, m.term = index, term
	before := m.logTime
	e := &entry{applied: &Applied{Index: index, Term: term, Kind: kind}, wanted: wanted}
	if envelope != nil {
		if stamp := envelope.LogTimeNanoseconds; stamp <= maxLogTime {
			m.logTime = max(m.logTime, int64(stamp))
		}
		e.applied.Session, e.applied.Seq = envelope.Session, envelope.Seq
		m.endDueSessions(e)
		m.endDueOrphans(e)
		m.requests.forgetOld(m.logTime, m.settings)
		if err := m.applyKind(e, kind, envelope); err != nil {
			return nil, err
		}
		m.compactAutomatically()
	}
	m.space.Publish(index, m.revision)
	m.space.CompactSome(m.compactionBudget)
	e.applied.LogTime, e.applied.Revision, e.applied.CompactRevision = m.logTime, m.revision, m.compacted
	e.applied.DigestDue = digestDue(before, m.logTime)
	return e.applied, nil
}

// checkEnvelope refuses an entry of an unknown kind and an envelope that does not fit it.
func checkEnvelope(kind logv1.EntryKind, envelope *logv1.Envelope) error {
	switch kind {
	case logv1.EntryKind_ENTRY_KIND_UNSPECIFIED, logv1.EntryKind_ENTRY_KIND_MEMBERSHIP:
		if envelope != nil {
			return fmt.Errorf("%w: an envelope in an entry of the log's own", ErrMalformed)
		}
		return nil
	case logv1.EntryKind_ENTRY_KIND_GENESIS,
		logv1.EntryKind_ENTRY_KIND_OPEN_SESSION,
		logv1.EntryKind_ENTRY_KIND_BATCH,
		logv1.EntryKind_ENTRY_KIND_TICK,
		logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST,
		logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED:
	default:
		return fmt.Errorf("%w: kind %d", ErrUnknown, kind)
	}
	switch {
	case envelope == nil:
		return fmt.Errorf("%w: no envelope", ErrMalformed)
	case envelope.Kind != kind:
		return fmt.Errorf("%w: envelope of kind %d in an entry of kind %d", ErrMalformed, envelope.Kind, kind)
	case len(envelope.ProtoReflect().GetUnknown()) > 0:
		return fmt.Errorf("%w: field of the envelope", ErrUnknown)
	}
	return nil
}

func (m *Machine) applyKind(e *entry, kind logv1.EntryKind, envelope *logv1.Envelope) error {
	if m.clusterID == 0 && kind != logv1.EntryKind_ENTRY_KIND_GENESIS {
		e.applied.Skipped = SkipNoGenesis
		return nil
	}
	switch kind {
	case logv1.EntryKind_ENTRY_KIND_GENESIS:
		genesis := new(logv1.Genesis)
		if err := decodePayload(envelope.Payload, genesis); err != nil {
			return err
		}
		switch {
		case m.clusterID != 0:
			e.applied.Skipped = SkipGenesis
		case genesis.ClusterId == 0:
			e.applied.Skipped = SkipInvalid
		default:
			m.clusterID = genesis.ClusterId
		}
	case logv1.EntryKind_ENTRY_KIND_OPEN_SESSION:
		open := new(logv1.OpenSession)
		if err := decodePayload(envelope.Payload, open); err != nil {
			return err
		}
		e.applied.Skipped = m.openSession(e, open)
	case logv1.EntryKind_ENTRY_KIND_BATCH:
		return m.applyBatch(e, envelope)
	default:
		// A tick is only its stamp. What is said about checkpoints concerns those who build and hold them.
	}
	return nil
}

func decodePayload(payload []byte, into proto.Message) error {
	if err := proto.Unmarshal(payload, into); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if len(into.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("%w: field of %s", ErrUnknown, into.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// applyBatch applies the commands of a batch in order, if the batch is the next of an open session.
func (m *Machine) applyBatch(e *entry, envelope *logv1.Envelope) error {
	s, skipped := m.sessionOf(e, envelope)
	if skipped != SkipNone {
		e.applied.Skipped = skipped
		return nil
	}
	commands, err := decodeBatch(envelope.Payload, m.commands[:0])
	if err != nil {
		return err
	}
	e.session = s
	s.LastSeq, s.LastEntryAt = envelope.Seq, m.logTime
	s.sum = s.seal()
	if e.wanted && len(commands) > 0 {
		e.applied.Results = make([]Result, 0, len(commands))
	}
	m.expect(commands)
	for i := range commands {
		result, err := m.applyCommand(e, &commands[i], len(commands)-i)
		if err != nil {
			return err
		}
		if e.wanted {
			e.applied.Results = append(e.applied.Results, result)
		}
	}
	if clear(commands); cap(commands) <= maxScratch { // they alias the payload, which is the caller's
		m.commands = commands[:0]
	}
	return nil
}

// expect tells the key space which keys the commands are likely to look at.
func (m *Machine) expect(commands []command) {
	keys := m.keys[:0]
	for i := range commands {
		switch c := &commands[i]; c.operation {
		case fieldCommandPut:
			keys = append(keys, c.put.key)
		case fieldCommandTxn:
			for _, o := range c.message.(*commandv1.Txn).Success {
				if put := o.GetPut(); put != nil {
					keys = append(keys, put.Key)
				}
			}
		}
	}
	if len(keys) > 1 { // one is not waited for any less
		m.space.Expect(keys)
	}
	if clear(keys); cap(keys) <= maxScratch {
		m.keys = keys[:0]
	}
}
