package tracing

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// A proposal costs no allocation where nothing is traced: without a tracer whatever the caller sends, and with one for a
// caller that is not sampled.
func TestOffIsFree(t *testing.T) {
	tracer := sdktrace.NewTracerProvider().Tracer(Name)
	sampled := trace.ContextWithRemoteSpanContext(context.Background(), parent(&logv1.TraceContext{TraceIdLow: 1, SpanId: 1}))
	for _, c := range []struct {
		name   string
		ctx    context.Context
		tracer trace.Tracer
	}{{"no tracer", sampled, nil}, {"not sampled", context.Background(), tracer}} {
		if n := testing.AllocsPerRun(1000, func() {
			p := Propose(c.ctx, c.tracer)
			if p.Context() != nil {
				t.Fatal("something is carried")
			}
			p.End(nil)
		}); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
	if p := Propose(sampled, tracer); p.Context() == nil {
		t.Error("nothing is carried of a sampled span")
	}
}

func TestContextsKeepTheirIDs(t *testing.T) {
	want := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1, 2, 3, 7: 8, 8: 9, 15: 16},
		SpanID: trace.SpanID{1, 7: 8}, TraceFlags: trace.FlagsSampled, Remote: true})
	if got := parent(carried(want)); !got.Equal(want) {
		t.Errorf("%v came back as %v", want, got)
	}
	for _, nonsense := range []*logv1.TraceContext{nil, {}, {SpanId: 1}, {TraceIdLow: 1}} {
		if parent(nonsense).IsValid() {
			t.Errorf("%v is taken for a span", nonsense)
		}
	}
	if n := len(Bounded(make([]*logv1.TraceContext, 100))); n != ContextsMax {
		t.Errorf("%d contexts, limit %d", n, ContextsMax)
	}
}
