package mirror

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

// translator says what an applied entry means for the sessions of one frontend. It is passive and belongs to the
// goroutine that applies.
type translator struct {
	frontendID uint64
	// session is the frontend's present session or, after its end, its last one.
	session uint64
	term    uint64
	// understands is the highest apply version that this mirror goes on at.
	understands uint32
}

// owns tells whether an entry is a batch of the frontend's present session, whose results are wanted.
func (t *translator) owns(entry *logclient.Entry) bool {
	return entry.Kind == logv1.EntryKind_ENTRY_KIND_BATCH && t.session != 0 && entry.Envelope.GetSession() == t.session
}

// events gives what an entry means to take, in the order in which it happened within the entry.
func (t *translator) events(entry *logclient.Entry, applied *statemachine.Applied, take func(sessionEvent)) {
	own := t.owns(entry)
	if own && applied.Skipped == statemachine.SkipNone {
		// A batch may end its own session, by fencing its region: it was applied before.
		take(sessionEvent{kind: eventApplied, session: applied.Session, seq: applied.Seq, results: applied.Results})
	}
	for _, ended := range applied.SessionsEnded {
		if ended.ID == t.session {
			take(sessionEvent{kind: eventEnded, session: ended.ID})
		}
	}
	switch {
	case own && applied.Skipped == statemachine.SkipSeq && applied.Seq > applied.ExpectedSeq:
		take(sessionEvent{kind: eventGap, session: applied.Session, seq: applied.Seq})
	case own && applied.Skipped == statemachine.SkipSessionEnded:
		take(sessionEvent{kind: eventEnded, session: applied.Session})
	case entry.Kind == logv1.EntryKind_ENTRY_KIND_OPEN_SESSION:
		t.opens(entry, applied, take)
	}
	if entry.Term > t.term {
		t.term = entry.Term
		take(sessionEvent{kind: eventTerm, number: entry.Term})
	}
}

// opens looks whether an Open is the frontend's own.
func (t *translator) opens(entry *logclient.Entry, applied *statemachine.Applied, take func(sessionEvent)) {
	for _, opened := range applied.SessionsOpened {
		if opened.FrontendID == t.frontendID {
			t.session = opened.ID
			take(sessionEvent{
				kind: eventOpened, number: opened.Incarnation, session: opened.ID, sessionTime: opened.SessionTime,
			})
		}
	}
	if applied.Skipped == statemachine.SkipNone {
		return
	}
	open := &logv1.OpenSession{}
	if proto.Unmarshal(entry.Envelope.GetPayload(), open) != nil || open.GetFrontendId() != t.frontendID {
		return
	}
	event := sessionEvent{kind: eventOpenRefused, number: open.GetIncarnation(), reason: applied.Skipped.String()}
	switch applied.Skipped {
	case statemachine.SkipIncarnation:
		event.err = fmt.Errorf("%w: %d is not above it; the data directory is an old copy, or used elsewhere",
			ErrIncarnationTaken, open.GetIncarnation())
	case statemachine.SkipApplyVersion:
		event.err = fmt.Errorf("the cluster's apply version is not one that this build understands (%d to %d)",
			applyVersionMin, t.understands)
	case statemachine.SkipInvalid:
		event.err = errors.New("the log refuses the name, region or client URLs of this frontend")
	}
	take(event)
}
