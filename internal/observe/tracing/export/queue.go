package export

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// queue lets spans into a processor of batches as long as there is room, and counts what becomes of each: whoever ends a span
// never waits. It implements sdktrace.SpanProcessor.
type queue struct {
	sdktrace.SpanProcessor // of batches; it has room for whatever is let in
	counts                 counts
}

// counts tell what became of spans.
type counts struct{ waiting, sent, failed, dropped atomic.Int64 }

func newQueue(exporter sdktrace.SpanExporter) *queue {
	q := &queue{}
	q.SpanProcessor = sdktrace.NewBatchSpanProcessor(sender{exporter, &q.counts}, sdktrace.WithMaxQueueSize(queueSpans))
	return q
}

// OnEnd implements sdktrace.SpanProcessor.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if q.counts.waiting.Add(1) > queueSpans {
		q.counts.waiting.Add(-1)
		q.counts.dropped.Add(1)
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// sender is the way out of the queue.
type sender struct {
	sdktrace.SpanExporter
	counts *counts
}

// ExportSpans implements sdktrace.SpanExporter.
func (s sender) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, spans)
	s.counts.waiting.Add(-int64(len(spans)))
	if err != nil {
		s.counts.failed.Add(int64(len(spans)))
	} else {
		s.counts.sent.Add(int64(len(spans)))
	}
	return err
}

// Register registers the metrics of the export. It may be called on nil, where nothing is exported: they stay zero then.
func (e *Exporter) Register(registerer prometheus.Registerer) error {
	c := &counts{}
	if e != nil {
		c = &e.queue.counts
	}
	err := registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "logmirror_trace_waiting_spans", Help: "Spans that wait to be sent to the collector, those under way included.",
	}, func() float64 { return float64(c.waiting.Load()) }))
	for outcome, count := range map[string]*atomic.Int64{"sent": &c.sent, "failed": &c.failed, "dropped": &c.dropped} {
		err = errors.Join(err, registerer.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "logmirror_trace_spans_total", ConstLabels: prometheus.Labels{"outcome": outcome},
			Help: "Spans by what became of them: sent, failed where the collector did not take them, dropped where too many waited.",
		}, func() float64 { return float64(count.Load()) })))
	}
	return err
}
