package statemachine

import (
	"slices"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Bounds on the session table. Part of what every mirror must agree on.
const (
	// maxFrontends is how many frontends are remembered, with their last incarnation.
	maxFrontends = 16_384
	// maxSessionTextBytes bounds name, region and client URLs of a frontend together.
	maxSessionTextBytes = 8 << 10
)

// SessionInfo is what is known of one session.
type SessionInfo struct {
	// ID is the index of the entry that opened it.
	ID          uint64
	FrontendID  uint64
	Incarnation uint64
	Name        string
	Region      string
	// ClientURLs is shared and never modified.
	ClientURLs []string
	// SessionTime is S: what was in force when the session was opened.
	SessionTime time.Duration
	// OpenedAt and LastEntryAt are log times in nanoseconds.
	OpenedAt, LastEntryAt int64
	// LastSeq is the seq of the last batch that was taken; zero before the first.
	LastSeq uint64
	// Leases is how many leases it owns. Filled in by Machine.Sessions only.
	Leases int
	// Lowest and highest apply version that the process understands.
	ApplyVersionMin, ApplyVersionMax uint32
}

// EndReason says why a session ended.
type EndReason uint8

const (
	// EndNone: it has not ended.
	EndNone EndReason = iota
	// EndExpired: no entry for the session time.
	EndExpired
	// EndReplaced: the frontend opened its next incarnation, which took the leases over.
	EndReplaced
	// EndFenced: its region was fenced.
	EndFenced
)

// String returns the reason as logs and transcripts show it.
func (r EndReason) String() string {
	switch r {
	case EndNone:
		return "none"
	case EndExpired:
		return "expired"
	case EndReplaced:
		return "replaced"
	case EndFenced:
		return "fenced"
	default:
		return "unknown"
	}
}

// SessionChange is a session that an entry opened or ended.
type SessionChange struct {
	SessionInfo
	// Reason is EndNone for a session that was opened.
	Reason EndReason
	// ReplacedBy is the session that took the leases over, with EndReplaced.
	ReplacedBy uint64
}

// session is one open session.
type session struct {
	SessionInfo
	// dueBound is at or below the log time at which the session ends unless it gets another entry. It is set right only
	// when the session comes to the top of the heap, so that an entry does not move it.
	dueBound int64
	ended    bool
	sum      uint64 // see seal
}

// dueAt returns when the session ends unless it gets another entry.
func (s *session) dueAt() int64 { return s.LastEntryAt + int64(s.SessionTime) }

// frontend is what is remembered of a frontend after its session has ended: enough to skip a late Open.
type frontend struct {
	incarnation uint64
	lastSession uint64
	open        *session
	sum         uint64 // see seal
}

// sessionTable holds the open sessions and the last incarnation of each frontend.
//
// Invariant: open, heap and the `open` fields of frontends hold the same sessions; at most one per frontend.
type sessionTable struct {
	open      map[uint64]*session
	frontends map[uint64]*frontend
	heap      []*session
}

func newSessionTable() sessionTable {
	return sessionTable{open: make(map[uint64]*session), frontends: make(map[uint64]*frontend)}
}

// nextDue returns the session that ends first, if any is due at the log time now. Sessions due at the same time come
// by id.
func (t *sessionTable) nextDue(now int64) *session {
	for len(t.heap) > 0 {
		top := t.heap[0]
		if top.dueBound > now {
			return nil
		}
		if due := top.dueAt(); due != top.dueBound {
			top.dueBound = due
			t.down(0)
			continue
		}
		return top
	}
	return nil
}

// earliestDue returns the log time at which the first session ends unless it gets another entry.
func (t *sessionTable) earliestDue() (due int64, ok bool) {
	for _, s := range t.heap {
		if at := s.dueAt(); !ok || at < due {
			due, ok = at, true
		}
	}
	return due, ok
}

func (t *sessionTable) add(s *session) {
	s.dueBound, s.sum = s.dueAt(), s.seal()
	t.open[s.ID] = s
	t.frontends[s.FrontendID].open = s
	t.heap = append(t.heap, s)
	t.up(len(t.heap) - 1)
}

func (t *sessionTable) remove(s *session) {
	s.ended = true
	delete(t.open, s.ID)
	t.frontends[s.FrontendID].open = nil
	// Sessions are few and end rarely; a search is cheaper than keeping every position.
	position, last := slices.Index(t.heap, s), len(t.heap)-1
	t.heap[position] = t.heap[last]
	t.heap[last] = nil
	t.heap = t.heap[:last]
	if position < last {
		t.down(position)
		t.up(position)
	}
}

// ids returns the ids of the open sessions, in order.
func (t *sessionTable) ids() []uint64 {
	ids := make([]uint64, 0, len(t.open))
	for id := range t.open {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// remember returns the row of a frontend, made where there is none. To make room it forgets the frontend without an
// open session whose last session is the oldest; it returns nil if every one has an open session.
func (t *sessionTable) remember(id uint64) *frontend {
	if f, ok := t.frontends[id]; ok {
		return f
	}
	if len(t.frontends) >= maxFrontends && !t.forgetOldest() {
		return nil
	}
	f := &frontend{}
	t.frontends[id] = f
	return f
}

func (t *sessionTable) forgetOldest() bool {
	var oldest uint64
	var found *frontend
	for id, f := range t.frontends {
		// Session ids are unique, so the order of the map does not show.
		if f.open == nil && (found == nil || f.lastSession < found.lastSession) {
			oldest, found = id, f
		}
	}
	if found != nil {
		delete(t.frontends, oldest)
	}
	return found != nil
}

func (t *sessionTable) before(a, b int) bool {
	if t.heap[a].dueBound != t.heap[b].dueBound {
		return t.heap[a].dueBound < t.heap[b].dueBound
	}
	return t.heap[a].ID < t.heap[b].ID
}

func (t *sessionTable) up(child int) {
	for child > 0 {
		parent := (child - 1) / 2
		if !t.before(child, parent) {
			return
		}
		t.heap[child], t.heap[parent] = t.heap[parent], t.heap[child]
		child = parent
	}
}

func (t *sessionTable) down(parent int) {
	for {
		child := 2*parent + 1
		if child >= len(t.heap) {
			return
		}
		if right := child + 1; right < len(t.heap) && t.before(right, child) {
			child = right
		}
		if !t.before(child, parent) {
			return
		}
		t.heap[child], t.heap[parent] = t.heap[parent], t.heap[child]
		parent = child
	}
}

// endDueSessions ends the sessions whose last entry is at least their session time ago.
func (m *Machine) endDueSessions(e *entry) {
	for {
		s := m.sessions.nextDue(m.logTime)
		if s == nil {
			return
		}
		m.endSession(e, s, EndExpired)
	}
}

// endSession ends a session and orphans its leases. An orphan has its TTL left from the stamp of the ending entry or
// from when the session could last have been held, whichever is later: until then its frontend may have confirmed a
// renewal.
func (m *Machine) endSession(e *entry, s *session, reason EndReason) {
	m.sessions.remove(s)
	e.applied.SessionsEnded = append(e.applied.SessionsEnded, SessionChange{SessionInfo: s.SessionInfo, Reason: reason})
	e.addLeaseChanges(m.leases.Orphan(s.ID, max(m.logTime, s.dueAt()), s.SessionTime))
}

// openSession applies an OPEN_SESSION entry.
func (m *Machine) openSession(e *entry, open *logv1.OpenSession) SkipReason {
	if open.FrontendId == 0 || open.Incarnation == 0 || sessionTextBytes(open) > maxSessionTextBytes {
		return SkipInvalid
	}
	lowest, highest := max(open.ApplyVersionMin, 1), max(open.ApplyVersionMax, 1)
	if m.applyVersion < lowest || m.applyVersion > highest {
		return SkipApplyVersion
	}
	if m.regions[open.Region] == RegionFenced {
		return SkipRegionFenced
	}
	if f, ok := m.sessions.frontends[open.FrontendId]; ok && open.Incarnation <= f.incarnation {
		return SkipIncarnation
	}
	f := m.sessions.remember(open.FrontendId)
	if f == nil {
		return SkipTooManySessions
	}
	previous := f.open
	if previous != nil {
		m.sessions.remove(previous)
		e.applied.SessionsEnded = append(e.applied.SessionsEnded,
			SessionChange{SessionInfo: previous.SessionInfo, Reason: EndReplaced, ReplacedBy: e.applied.Index})
		e.addLeaseChanges(m.leases.Move(previous.ID, e.applied.Index, e.applied.Index, previous.SessionTime))
	}
	f.incarnation, f.lastSession = open.Incarnation, e.applied.Index
	f.sum = f.seal(open.FrontendId)
	s := &session{SessionInfo: SessionInfo{
		ID:              e.applied.Index,
		FrontendID:      open.FrontendId,
		Incarnation:     open.Incarnation,
		Name:            open.FrontendName,
		Region:          open.Region,
		ClientURLs:      open.ClientUrls,
		SessionTime:     m.settings.SessionTime,
		OpenedAt:        m.logTime,
		LastEntryAt:     m.logTime,
		ApplyVersionMin: lowest,
		ApplyVersionMax: highest,
	}}
	m.sessions.add(s)
	e.applied.Session = s.ID
	e.applied.SessionsOpened = append(e.applied.SessionsOpened, SessionChange{SessionInfo: s.SessionInfo})
	return SkipNone
}

func sessionTextBytes(open *logv1.OpenSession) int {
	n := len(open.FrontendName) + len(open.Region)
	for _, url := range open.ClientUrls {
		n += len(url) + 1
	}
	return n
}

// sessionOf returns the open session that a batch belongs to and checks its place in it.
func (m *Machine) sessionOf(e *entry, envelope *logv1.Envelope) (*session, SkipReason) {
	s, ok := m.sessions.open[envelope.Session]
	if !ok {
		if envelope.Session == 0 || envelope.Session >= e.applied.Index {
			return nil, SkipNoSession
		}
		return nil, SkipSessionEnded
	}
	if envelope.Seq != s.LastSeq+1 {
		e.applied.ExpectedSeq = s.LastSeq + 1
		return nil, SkipSeq
	}
	return s, SkipNone
}
