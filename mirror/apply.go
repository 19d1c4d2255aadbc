package mirror

import (
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/observe/tracing"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

// applyCore applies entries and says what each means to whom, in the one order that everybody relies on. It is passive and
// belongs to the goroutine that applies.
type applyCore struct {
	machine    *statemachine.Machine
	translator translator
	observers  []Observer
	region     string
	logTime    int64
	caughtUp   bool
	tell       applySeam
}

// applySeam is whom an entry is told to, beside the observers.
type applySeam struct {
	// requested is a CHECKPOINT_REQUEST, before anything is applied after it.
	requested func(*logclient.Entry, *statemachine.Applied)
	// reached wakes those who wait for the entry or its revision.
	reached func(*statemachine.Applied)
	// gathered returns what gathers the reports of other mirrors on an entry; own where it is a batch of this frontend that
	// was applied. Nil for nothing.
	gathered func(applied *statemachine.Applied, own bool) *syncEntry
	// session takes what the entry means for the frontend's session: its callers learn of their results.
	session func(sessionEvent)
	// traced takes an entry that is part of traces, before anybody who waits for it learns of it; nil for nobody.
	traced func(*logclient.Entry, *statemachine.Applied, time.Time)
	// applied is told last: nobody waits for it.
	applied func(*statemachine.Applied) error
}

// apply applies one entry and tells everyone who has to know, in this order: observers, waiters, proposers.
func (a *applyCore) apply(entry *logclient.Entry) error {
	own := a.translator.owns(entry)
	var began time.Time
	if len(entry.Traces) > 0 {
		began = time.Now()
	}
	applied, err := a.machine.Apply(entry.Index, entry.Term, entry.Kind, entry.Envelope, own)
	if err != nil {
		return fmt.Errorf("entry %d cannot be applied: %w", entry.Index, err)
	}
	if entry.Kind == logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST {
		a.tell.requested(entry, applied)
	}
	a.logTime = applied.LogTime
	for _, observer := range a.observers {
		observer.Applied(applied)
	}
	if len(entry.Traces) > 0 && a.tell.traced != nil {
		a.tell.traced(entry, applied, began)
	}
	a.tell.reached(applied)
	gathered := a.tell.gathered(applied, own && applied.Skipped == statemachine.SkipNone)
	if applied.RegionsChanged {
		a.lookAtRegion()
	}
	a.translator.events(entry, applied, func(event sessionEvent) {
		event.sync = gathered
		a.tell.session(event)
	})
	return a.tell.applied(applied)
}

// catchUp looks whether all is applied that was published, for the first time in this life: then a session is wanted, the
// one after the incarnation that is durable.
func (a *applyCore) catchUp(published, incarnation uint64) {
	if a.caughtUp || a.machine.Index() < published || a.machine.ClusterID() == 0 {
		return
	}
	a.caughtUp = true
	a.lookAtRegion()
	a.tell.session(sessionEvent{kind: eventCaughtUp, number: incarnation})
}

// lookAtRegion tells the session whether this frontend's region is fenced.
func (a *applyCore) lookAtRegion() {
	event := sessionEvent{kind: eventUnfenced}
	if a.machine.Region(a.region) == statemachine.RegionFenced {
		event.kind = eventFenced
	}
	a.tell.session(event)
}

// applier is the shell around applyCore: the one goroutine that applies.
type applier struct {
	*Mirror
	core applyCore
	// began is when the entries at hand came, on Config.Clock.
	began time.Duration
}

// run tails the log and applies what comes until the mirror ends.
func (m *Mirror) run() {
	a := &applier{Mirror: m}
	a.core = applyCore{machine: m.machine, translator: translator{frontendID: m.client.FrontendID(), understands: m.machine.Understands()}, observers: m.observers,
		region: m.config.Region, logTime: m.machine.LogTime(), tell: applySeam{requested: m.checkpoints.requested, reached: a.reached,
			gathered: m.syncs.applied, session: a.tellSession, traced: a.traced, applied: a.applied}}
	tail := m.client.Tail(m.machine.Index()+1, m.machine.Term())
	defer tail.Close()
	for {
		batch, err := a.next(tail)
		if err != nil {
			m.fail(err)
			return
		}
		a.began = m.config.Clock()
		for i := range batch.Entries {
			if err := a.core.apply(&batch.Entries[i]); err != nil {
				m.fail(err)
				return
			}
		}
		if len(batch.Entries) > 0 {
			m.metrics.entries.Add(float64(len(batch.Entries)))
			m.metrics.applySeconds.Observe((m.config.Clock() - a.began).Seconds())
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

// traced makes the spans of an entry that was applied; a copy that was skipped is none's.
func (a *applier) traced(entry *logclient.Entry, applied *statemachine.Applied, began time.Time) {
	if a.config.Tracer != nil && applied.Skipped == statemachine.SkipNone {
		tracing.Record(a.config.Tracer, entry.Traces, "apply", began, time.Now(), attribute.Int64("logmirror.index", int64(entry.Index)))
	}
}

func (a *applier) reached(applied *statemachine.Applied) {
	a.indexes.reach(applied.Index)
	a.revisions.reach(uint64(applied.Revision))
}

func (a *applier) tellSession(event sessionEvent) {
	if event.kind == eventEnded {
		a.config.Logger.Warn("the session of this frontend has ended", "session", event.session, "index", a.machine.Index())
	}
	event.seenAt = a.began
	a.session.step(event)
}

func (a *applier) applied(applied *statemachine.Applied) error {
	a.image.Applied(applied)
	if applied.DigestDue {
		return a.digests.applied()
	}
	return nil
}

// after does what is needed once per batch, not per entry.
func (a *applier) after(batch *logclient.Batch) {
	if batch.PublishedIndex > a.published.Load() {
		a.published.Store(batch.PublishedIndex)
	}
	if len(batch.Entries) > 0 {
		a.rounds.applied(batch.Entries[len(batch.Entries)-1].Index)
	}
	if !a.core.caughtUp {
		a.core.catchUp(batch.PublishedIndex, a.directory.record.Incarnation)
	}
	if a.core.caughtUp && len(batch.Entries) > 0 {
		a.ticks.applied(a.core.logTime)
	}
}
