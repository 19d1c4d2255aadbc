package mirror

import (
	"fmt"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

// applier is the state of the one goroutine that applies.
type applier struct {
	*Mirror
	translator translator
	logTime    int64
}

// run tails the log and applies what comes until the mirror ends.
func (m *Mirror) run() {
	a := &applier{Mirror: m, translator: translator{frontendID: m.client.FrontendID()}, logTime: m.machine.LogTime()}
	tail := m.client.Tail(m.machine.Index()+1, m.machine.Term())
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
	applied, err := a.machine.Apply(entry.Index, entry.Term, entry.Kind, entry.Envelope, a.translator.owns(entry))
	if err != nil {
		return fmt.Errorf("entry %d cannot be applied: %w", entry.Index, err)
	}
	if entry.Kind == logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST {
		a.checkpoints.requested(entry, applied)
	}
	a.logTime = applied.LogTime
	for _, observer := range a.observers {
		observer.Applied(applied)
	}
	a.indexes.reach(applied.Index)
	a.revisions.reach(uint64(applied.Revision))
	gathered := a.syncs.applied(applied, a.translator.owns(entry) && applied.Skipped == statemachine.SkipNone)
	if applied.RegionsChanged {
		a.lookAtRegion()
	}
	a.translator.events(entry, applied, func(event sessionEvent) {
		event.sync = gathered
		if event.kind == eventEnded {
			a.config.Logger.Warn("the session of this frontend has ended", "session", event.session, "index", applied.Index)
		}
		a.session.step(event)
	})
	a.image.Applied(applied) // last: nobody waits for it
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
	if !a.caughtUp.Load() && a.AppliedIndex() >= batch.PublishedIndex && a.machine.ClusterID() != 0 {
		a.caughtUp.Store(true)
		a.lookAtRegion()
		a.session.step(sessionEvent{kind: eventCaughtUp, number: a.directory.record.Incarnation})
	}
	if a.caughtUp.Load() && len(batch.Entries) > 0 {
		a.ticks.applied(a.logTime)
	}
}

// lookAtRegion tells the session whether this frontend's region is fenced.
func (a *applier) lookAtRegion() {
	event := sessionEvent{kind: eventUnfenced}
	if a.machine.Region(a.config.Region) == statemachine.RegionFenced {
		event.kind = eventFenced
	}
	a.session.step(event)
}
