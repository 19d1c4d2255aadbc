package logservice

import (
	"testing"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/observe/tracing"
)

// Whatever is noted and never published, a member remembers so many batches, the newest, and so many traces of each.
func TestTracesAreBounded(t *testing.T) {
	var m Member
	contexts := make([]*logv1.TraceContext, 3*tracing.ContextsMax)
	for i := range contexts {
		contexts[i] = &logv1.TraceContext{TraceIdLow: uint64(i + 1), SpanId: 1}
	}
	var notes []*logv1.TraceNote
	for seq := range uint64(3 * maxTraces) {
		notes = append(notes, &logv1.TraceNote{Session: 7, Seq: seq + 1, Traces: contexts})
		if len(notes) == maxTraces {
			m.receiveTraces(notes)
			notes = nil
		}
	}
	if len(m.traces.known) != maxTraces || len(m.traces.order) != maxTraces {
		t.Errorf("%d batches are known in an order of %d, limit %d", len(m.traces.known), len(m.traces.order), maxTraces)
	}
	if _, ok := m.traces.take(batchID{7, 1}); ok {
		t.Error("the oldest batch is still known")
	}
	newest := batchID{7, 3 * maxTraces}
	if batch, ok := m.traces.take(newest); !ok || len(batch.contexts) != tracing.ContextsMax {
		t.Errorf("of the newest batch %d traces are known, limit %d", len(batch.contexts), tracing.ContextsMax)
	}
	if _, ok := m.traces.take(newest); ok {
		t.Error("a batch that was published is still known")
	}
	m.receiveTraces([]*logv1.TraceNote{{Session: 8, Seq: 1}, nil})
	if _, ok := m.traces.take(batchID{8, 1}); ok {
		t.Error("a batch without traces is remembered")
	}
	// A flood that is longer than one note may be is cut.
	var flooded Member
	flooded.receiveTraces(append(make([]*logv1.TraceNote, maxTraces), &logv1.TraceNote{Session: 9, Seq: 1, Traces: contexts}))
	if len(flooded.traces.known) != 0 {
		t.Error("what is beyond the bound of a note was read")
	}
}
