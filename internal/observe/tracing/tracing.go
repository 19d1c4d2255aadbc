// Package tracing follows one request through all parts, as spans of OpenTelemetry.
//
// # What it promises
//
// A request is sampled or not where it enters a frontend: as its W3C traceparent says, or by the frontend's ratio. Only of
// those that are sampled anything is carried on, as a TraceContext of fixed size beside a proposal and beside the published
// entry, at most ContextsMax to a batch. It never goes into the log, whose bytes are the same with tracing and without, and
// no part waits for it: what is lost on the way, with a stream, a restart or a leader, is a span.
//
// Without a tracer nothing is made: the functions here cost no allocation then.
//
// # The spans of a write
//
//	logmirror.kv.v1.KvService/Put   the call, at the frontend; its parent is the client's span
//	└ propose                       until the frontend has applied it, or given up
//	  ├ append                      at the log's leader: from the stamp to the publication there
//	  ├ sync                        at each member that is told in time: the write and sync of the group with its batch
//	  └ apply                       at every frontend, one in each region
package tracing

import (
	"context"
	"encoding/binary"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// ContextsMax bounds the traces of one batch; the traces of further commands end with their proposal.
const ContextsMax = 8

// Name is that of the tracers.
const Name = "github.com/logmirror/logmirror"

// Bounded returns the first ContextsMax.
func Bounded(contexts []*logv1.TraceContext) []*logv1.TraceContext {
	return contexts[:min(len(contexts), ContextsMax)]
}

// carried is what other parts are told of a span.
func carried(span trace.SpanContext) *logv1.TraceContext {
	traceID, spanID := span.TraceID(), span.SpanID()
	return &logv1.TraceContext{
		TraceIdHigh: binary.BigEndian.Uint64(traceID[:8]), TraceIdLow: binary.BigEndian.Uint64(traceID[8:]),
		SpanId: binary.BigEndian.Uint64(spanID[:]),
	}
}

// parent is the span that another part told of; not valid where that told nonsense.
func parent(c *logv1.TraceContext) trace.SpanContext {
	var config trace.SpanContextConfig
	binary.BigEndian.PutUint64(config.TraceID[:8], c.GetTraceIdHigh())
	binary.BigEndian.PutUint64(config.TraceID[8:], c.GetTraceIdLow())
	binary.BigEndian.PutUint64(config.SpanID[:], c.GetSpanId())
	config.TraceFlags, config.Remote = trace.FlagsSampled, true
	return trace.NewSpanContext(config)
}

// Propose begins the span of a proposal that is made for ctx. Nil where ctx is of no sampled span, or tracer is nil.
func Propose(ctx context.Context, tracer trace.Tracer) *Proposal {
	if tracer == nil || !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	_, span := tracer.Start(ctx, "propose")
	return &Proposal{span: span, carried: carried(span.SpanContext())}
}

// Proposal is the span of a proposal. Its methods may be called on nil.
type Proposal struct {
	span    trace.Span
	carried *logv1.TraceContext
}

// Context is what goes with the proposal; nil for nothing.
func (p *Proposal) Context() *logv1.TraceContext {
	if p == nil {
		return nil
	}
	return p.carried
}

// End ends the span with the outcome.
func (p *Proposal) End(err error) {
	if p == nil {
		return
	}
	if err != nil {
		p.span.SetStatus(codes.Error, err.Error())
	}
	p.span.End()
}

// Record makes one span in each of the traces, of something that began and ended at these times.
func Record(tracer trace.Tracer, contexts []*logv1.TraceContext, name string, began, ended time.Time, attributes ...attribute.KeyValue) {
	for _, c := range Bounded(contexts) {
		from := parent(c)
		if !from.IsValid() {
			continue
		}
		_, span := tracer.Start(trace.ContextWithRemoteSpanContext(context.Background(), from), name,
			trace.WithTimestamp(began), trace.WithAttributes(attributes...))
		span.End(trace.WithTimestamp(ended))
	}
}

// UnaryServer makes a span of each unary call, as the child of the one that the caller's traceparent names.
func UnaryServer(tracer trace.Tracer) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		ctx = propagation.TraceContext{}.Extract(ctx, incoming{ctx})
		ctx, span := tracer.Start(ctx, info.FullMethod[min(1, len(info.FullMethod)):], trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		answer, err := handle(ctx, request)
		if err != nil {
			span.SetStatus(codes.Error, status.Convert(err).Message())
			span.SetAttributes(attribute.String("rpc.response.status_code", status.Code(err).String()))
		}
		return answer, err
	}
}

// incoming reads the metadata of a call. It implements propagation.TextMapCarrier.
type incoming struct{ ctx context.Context }

// Get implements propagation.TextMapCarrier.
func (c incoming) Get(key string) string {
	if values := metadata.ValueFromIncomingContext(c.ctx, key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier; nothing is written to what came in.
func (incoming) Set(string, string) {}

// Keys implements propagation.TextMapCarrier.
func (incoming) Keys() []string { return []string{"traceparent", "tracestate"} }
