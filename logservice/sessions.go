package logservice

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// sessionTable is what a member has seen of the sessions of frontends, so that a leader knows whom to ask for a checkpoint.
// It is made of the envelopes of published entries and of nothing else: a frontend renews its session every few seconds,
// so that a member that has just started knows all of them soon. Nothing but the choice of builders depends on it.
type sessionTable struct {
	maxSessions int
	byID        map[uint64]*seenSession
	// byFrontend is the newest session of each frontend whose Open was seen.
	byFrontend map[uint64]*seenSession
	// latest is the stamp of the newest envelope.
	latest uint64
}

type seenSession struct {
	id, frontend uint64
	// stamp is that of its last entry, bytes what it has proposed since the last request for a checkpoint.
	stamp, bytes uint64
	closed       bool
	// asked is the index of the last request that named it, failures how many it was to blame for since it last built a
	// checkpoint that was sealed, or may have been.
	asked    uint64
	failures int
}

func newSessionTable(maxSessions int) *sessionTable {
	return &sessionTable{maxSessions: maxSessions, byID: map[uint64]*seenSession{}, byFrontend: map[uint64]*seenSession{}}
}

// note takes the envelope of a published entry.
func (t *sessionTable) note(index uint64, h envelopeHeader) {
	t.latest = max(t.latest, h.stamp)
	switch h.kind {
	case logv1.EntryKind_ENTRY_KIND_OPEN_SESSION:
		open := &logv1.OpenSession{}
		if proto.Unmarshal(h.payload, open) != nil {
			return
		}
		if before := t.byFrontend[open.FrontendId]; before != nil {
			before.closed = true
		}
		t.byFrontend[open.FrontendId] = t.add(index, open.FrontendId, h.stamp)
	case logv1.EntryKind_ENTRY_KIND_BATCH:
		s := t.byID[h.session]
		if s == nil {
			s = t.add(h.session, 0, h.stamp)
		}
		s.stamp = h.stamp
		s.bytes += uint64(len(h.payload))
	}
}

func (t *sessionTable) add(id, frontend, stamp uint64) *seenSession {
	if len(t.byID) >= t.maxSessions {
		t.forgetOldest()
	}
	s := &seenSession{id: id, frontend: frontend, stamp: stamp}
	t.byID[id] = s
	return s
}

// forgetOldest makes room: the session that was silent for longest goes.
func (t *sessionTable) forgetOldest() {
	var oldest *seenSession
	for _, s := range t.byID {
		if oldest == nil || s.stamp < oldest.stamp || s.stamp == oldest.stamp && s.id < oldest.id {
			oldest = s
		}
	}
	delete(t.byID, oldest.id)
	if t.byFrontend[oldest.frontend] == oldest {
		delete(t.byFrontend, oldest.frontend)
	}
}

// alive tells whether a session has had an entry lately and was not replaced by another one of its frontend.
func (t *sessionTable) alive(id uint64, silence time.Duration) bool {
	s := t.byID[id]
	return s != nil && !s.closed && s.stamp+uint64(silence) > t.latest
}

// builders chooses up to n sessions to build a checkpoint: those with the fewest failures first, then those that were asked
// longest ago, then those that propose least.
func (t *sessionTable) builders(n int, silence time.Duration) []uint64 {
	var found []*seenSession
	for id, s := range t.byID {
		if t.alive(id, silence) {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b *seenSession) int {
		return cmp.Or(cmp.Compare(a.failures, b.failures), cmp.Compare(a.asked, b.asked), cmp.Compare(a.bytes, b.bytes),
			cmp.Compare(a.id, b.id))
	})
	ids := make([]uint64, 0, n)
	for _, s := range found[:min(n, len(found))] {
		ids = append(ids, s.id)
	}
	return ids
}

// requested notes whom a request names, and begins the account of bytes anew.
func (t *sessionTable) requested(index uint64, builders []uint64) {
	for _, s := range t.byID {
		s.bytes = 0
	}
	for _, id := range builders {
		if s := t.byID[id]; s != nil {
			s.asked = index
		}
	}
}

// failed blames sessions for a request that will not be sealed; sealed takes the blame from those of one that is.
func (t *sessionTable) failed(ids []uint64) {
	for _, id := range ids {
		if s := t.byID[id]; s != nil {
			s.failures++
		}
	}
}

func (t *sessionTable) sealed(ids []uint64) {
	for _, id := range ids {
		if s := t.byID[id]; s != nil {
			s.failures = 0
		}
	}
}
