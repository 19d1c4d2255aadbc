package logservice

import (
	"time"

	"go.opentelemetry.io/otel/attribute"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/observe/tracing"
)

// maxTraces bounds the batches whose traces a member remembers until it publishes them. It forgets the oldest beyond.
const maxTraces = 1024

// batchID names a BATCH, in whatever copy.
type batchID struct{ session, seq uint64 }

// traces remembers of which traces batches are that are not published yet: what the leader was told with the proposal, and
// the others by the leader ahead of the entry. None of it is in the log, and none of it decides anything.
type traces struct {
	known map[batchID]tracedBatch
	// order is that of arrival; what was taken from known is in it until its turn comes.
	order []batchID
}

// tracedBatch is what a member knows of a batch's traces. appended is when it put the batch into the log as leader; zero at
// the others.
type tracedBatch struct {
	contexts []*logv1.TraceContext
	appended time.Time
}

// TracedEntry says which traces a published entry is part of.
type TracedEntry struct {
	Index    uint64
	Contexts []*logv1.TraceContext
	// Appended is when this member put the entry into the log, as leader; zero where another did. Published is the time of
	// this step.
	Appended, Published time.Time
}

func (t *traces) add(id batchID, batch tracedBatch) {
	if batch.contexts = tracing.Bounded(batch.contexts); len(batch.contexts) == 0 {
		return
	}
	if t.known == nil {
		t.known = map[batchID]tracedBatch{}
	}
	if len(t.order) == maxTraces {
		delete(t.known, t.order[0])
		t.order = append(t.order[:0], t.order[1:]...)
	}
	t.known[id] = batch
	t.order = append(t.order, id)
}

// take returns what is known of a batch that is published now, and forgets it.
func (t *traces) take(id batchID) (tracedBatch, bool) {
	batch, ok := t.known[id]
	if !ok {
		return batch, false
	}
	delete(t.known, id)
	if len(t.known) == 0 {
		t.order = t.order[:0]
	}
	return batch, true
}

// noteTraces remembers the traces of what this leader has just put into the log, and tells the others, ahead of the entries
// that raft has yet to hand out.
func (m *Member) noteTraces(queued []queuedProposal) {
	var notes []*logv1.TraceNote
	for _, q := range queued {
		p := q.proposal
		if contexts := tracing.Bounded(p.GetTraces()); len(contexts) > 0 && p.GetKind() == logv1.EntryKind_ENTRY_KIND_BATCH {
			m.traces.add(batchID{p.GetSession(), p.GetSeq()}, tracedBatch{contexts, m.now})
			if len(notes) < maxTraces {
				notes = append(notes, &logv1.TraceNote{Session: p.GetSession(), Seq: p.GetSeq(), Traces: contexts})
			}
		}
	}
	if len(notes) == 0 {
		return
	}
	for _, id := range m.others {
		m.send(id, &logv1.PeerFrame{Frame: &logv1.PeerFrame_TraceNotes{TraceNotes: &logv1.TraceNotes{Notes: notes}}})
	}
}

// receiveTraces takes a leader's notes.
func (m *Member) receiveTraces(notes []*logv1.TraceNote) {
	for _, n := range notes[:min(len(notes), maxTraces)] {
		m.traces.add(batchID{n.GetSession(), n.GetSeq()}, tracedBatch{contexts: n.GetTraces()})
	}
}

// tracePublished puts the traces of a published entry beside it.
func (m *Member) tracePublished(index uint64, h envelopeHeader) {
	if len(m.traces.known) == 0 || h.kind != logv1.EntryKind_ENTRY_KIND_BATCH {
		return
	}
	if batch, ok := m.traces.take(batchID{h.session, h.seq}); ok {
		m.effects.Traced = append(m.effects.Traced,
			TracedEntry{Index: index, Contexts: batch.contexts, Appended: batch.appended, Published: m.now})
	}
}

// maxTracesOfGroup bounds the batches of one group whose sync is traced.
const maxTracesOfGroup = 64

// tracesOf returns what is known of the batches in a group that is to be written.
func (m *Member) tracesOf(group *Group) (found [][]*logv1.TraceContext) {
	if len(m.traces.known) == 0 {
		return nil
	}
	for _, e := range group.Entries {
		if h, ok := parseEnvelope(e.Data); ok && h.kind == logv1.EntryKind_ENTRY_KIND_BATCH && len(found) < maxTracesOfGroup {
			if batch, known := m.traces.known[batchID{h.session, h.seq}]; known {
				found = append(found, batch.contexts)
			}
		}
	}
	return found
}

// traceSync makes the spans of a group that was written and synced, or was not.
func (s *Server) traceSync(write groupWrite, began time.Time, err error) {
	if s.config.Tracer == nil || err != nil {
		return
	}
	ended := time.Now()
	for _, contexts := range write.traces {
		tracing.Record(s.config.Tracer, contexts, "sync", began, ended, attribute.Int("logmirror.entries", len(write.group.Entries)))
	}
}

// trace makes the leader's spans.
func (s *Server) trace(traced []TracedEntry) {
	if s.config.Tracer == nil {
		return
	}
	for _, t := range traced {
		if !t.Appended.IsZero() {
			tracing.Record(s.config.Tracer, t.Contexts, "append", t.Appended, t.Published,
				attribute.Int64("logmirror.index", int64(t.Index)))
		}
	}
}
