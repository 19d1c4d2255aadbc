package mirror

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

// applier is the state of the one goroutine that applies.
type applier struct {
	*Mirror
	// session is the id of this mirror's present session, or of its last one; a later one is larger.
	session uint64
	term    uint64
	logTime int64
}

// run tails the log and applies what comes until the mirror ends.
func (m *Mirror) run() {
	a := &applier{Mirror: m}
	tail := m.client.Tail(1, 0)
	defer tail.Close()
	for {
		batch, err := a.next(tail)
		if err != nil {
			m.fail(err)
			return
		}
		for i := range batch.Entries {
			if err := a.apply(&batch.Entries[i]); err != nil {
				m.fail(err)
				return
			}
		}
		a.after(&batch)
	}
}

// next returns the next batch. While none is there it lets the machine do what can wait, a slice at a time.
func (a *applier) next(tail *logclient.Tail) (logclient.Batch, error) {
	for {
		batch, ok, err := tail.TryNext()
		if ok || err != nil {
			return batch, err
		}
		if !a.machine.Maintain() {
			return tail.Next(a.ctx)
		}
	}
}

// apply applies one entry and tells everyone who has to know, in this order: observers, proposers, waiters.
func (a *applier) apply(entry *logclient.Entry) error {
	own := entry.Kind == logv1.EntryKind_ENTRY_KIND_BATCH && a.session != 0 && entry.Envelope.GetSession() == a.session
	applied, err := a.machine.Apply(entry.Index, entry.Term, entry.Kind, entry.Envelope, own)
	if err != nil {
		return fmt.Errorf("entry %d cannot be applied: %w", entry.Index, err)
	}
	a.logTime = applied.LogTime
	for _, observer := range a.observers {
		observer.Applied(applied)
	}
	a.indexes.reach(applied.Index)
	a.revisions.reach(uint64(applied.Revision))
	return a.tellSession(entry, applied, own)
}

// tellSession translates what an entry means for this mirror's session into events of its core.
func (a *applier) tellSession(entry *logclient.Entry, applied *statemachine.Applied, own bool) error {
	if own && applied.Skipped == statemachine.SkipNone {
		if err := a.Mirror.session.applied(applied); err != nil {
			return err
		}
	}
	for _, ended := range applied.SessionsEnded {
		if ended.ID == a.session {
			a.config.Logger.Warn("the session of this frontend has ended", "session", ended.ID, "reason", ended.Reason.String(), "index", applied.Index)
			a.Mirror.session.step(sessionEvent{kind: eventEnded, session: ended.ID})
		}
	}
	switch {
	case own && applied.Skipped == statemachine.SkipSeq && applied.Seq > applied.ExpectedSeq:
		a.Mirror.session.step(sessionEvent{kind: eventGap, session: applied.Session, seq: applied.Seq})
	case own && applied.Skipped == statemachine.SkipSessionEnded:
		a.Mirror.session.step(sessionEvent{kind: eventEnded, session: applied.Session})
	case entry.Kind == logv1.EntryKind_ENTRY_KIND_OPEN_SESSION:
		a.sawOpen(entry, applied)
	}
	if entry.Term > a.term {
		a.term = entry.Term
		a.Mirror.session.step(sessionEvent{kind: eventTerm, number: entry.Term})
	}
	return nil
}

// sawOpen looks whether an Open is this frontend's own.
func (a *applier) sawOpen(entry *logclient.Entry, applied *statemachine.Applied) {
	for _, opened := range applied.SessionsOpened {
		if opened.FrontendID == a.client.FrontendID() {
			a.session = opened.ID
			a.Mirror.session.step(sessionEvent{
				kind: eventOpened, number: opened.Incarnation, session: opened.ID, sessionTime: opened.SessionTime,
			})
		}
	}
	if applied.Skipped == statemachine.SkipNone {
		return
	}
	open := &logv1.OpenSession{}
	if proto.Unmarshal(entry.Envelope.GetPayload(), open) != nil || open.GetFrontendId() != a.client.FrontendID() {
		return
	}
	event := sessionEvent{kind: eventOpenRefused, number: open.GetIncarnation()}
	switch applied.Skipped {
	case statemachine.SkipIncarnation:
		event.err = fmt.Errorf("%w: incarnation %d is not above it; the data directory %s is an old copy, or in use elsewhere",
			ErrIncarnationTaken, open.GetIncarnation(), a.config.DataDir)
	case statemachine.SkipApplyVersion:
		event.err = fmt.Errorf("the cluster's apply version is not one that this build understands (%d to %d)", applyVersionMin, applyVersionMax)
	case statemachine.SkipInvalid:
		event.err = fmt.Errorf("the log refuses the name, region or client URLs of this frontend")
	}
	a.Mirror.session.refused(event, applied.Skipped)
}

// after does what is needed once per batch, not per entry.
func (a *applier) after(batch *logclient.Batch) {
	if batch.PublishedIndex > a.published.Load() {
		a.published.Store(batch.PublishedIndex)
	}
	if len(batch.Entries) > 0 {
		a.rounds.applied(batch.Entries[len(batch.Entries)-1].Index)
	}
	if !a.caughtUp.Load() && a.AppliedIndex() >= batch.PublishedIndex && a.machine.ClusterID() != 0 {
		a.caughtUp.Store(true)
		a.Mirror.session.step(sessionEvent{kind: eventCaughtUp, number: a.directory.record.Incarnation})
	}
	if a.caughtUp.Load() && len(batch.Entries) > 0 {
		a.ticks.applied(a.logTime)
	}
}
