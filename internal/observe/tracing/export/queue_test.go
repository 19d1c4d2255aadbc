package export

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unwilling is a collector that does with what it is sent what a test wants.
type unwilling struct {
	collector.UnimplementedTraceServiceServer
	take func(ctx context.Context) error
}

// Export implements collector.TraceServiceServer.
func (u unwilling) Export(ctx context.Context, _ *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	return &collector.ExportTraceServiceResponse{}, u.take(ctx)
}

// serve starts a collector.
func serve(t *testing.T, take func(ctx context.Context) error) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, unwilling{take: take})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// flood ends so many spans, and returns the exporter.
func flood(t *testing.T, address string, spans int) *Exporter {
	t.Helper()
	e, err := Flags{Endpoint: address, SampleRatio: 1}.Start("frontend", "f1", "eu", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tracer := e.Tracer()
	for range spans {
		_, span := tracer.Start(context.Background(), "propose")
		span.End()
	}
	return e
}

// eventually waits for a condition of which nobody tells.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for again := time.NewTicker(10 * time.Millisecond); !holds(); <-again.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// A collector that holds every request: whoever ends spans does not wait for it, what waits is bounded, and every span is
// accounted for, also once the collector goes on.
func TestSlowCollector(t *testing.T) {
	release := make(chan struct{})
	address := serve(t, func(ctx context.Context) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	const total = 3 * queueSpans
	e := flood(t, address, total) // returns although nothing was taken yet
	c := &e.queue.counts
	// None has failed yet, unless this machine stood still for as long as one attempt to send may take.
	waiting, failed, dropped := c.waiting.Load(), c.failed.Load(), c.dropped.Load()
	if waiting > queueSpans || waiting+failed+dropped != total || dropped < queueSpans {
		t.Errorf("%d spans wait, %d failed and %d were dropped of %d; %d may wait", waiting, failed, dropped, total, queueSpans)
	}
	registry := prometheus.NewRegistry()
	if err := e.Register(registry); err != nil {
		t.Fatal(err)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(registry, "logmirror_trace_spans_total", "logmirror_trace_waiting_spans"); err != nil || n != 4 {
		t.Errorf("%d samples, %v; want three outcomes and what waits", n, err)
	}
	close(release)
	eventually(t, "what waited is sent", func() bool {
		return c.waiting.Load() == 0 && c.sent.Load() > 0 && c.sent.Load()+c.failed.Load()+c.dropped.Load() == total
	})
	e.Stop()
}

// A collector that refuses: what it was sent is counted as failed, and later spans find room.
func TestRefusingCollector(t *testing.T) {
	e := flood(t, serve(t, func(context.Context) error { return status.Error(codes.PermissionDenied, "not you") }), 100)
	c := &e.queue.counts
	_ = e.provider.ForceFlush(t.Context()) // what it says is what is counted
	eventually(t, "all are counted as failed", func() bool { return c.failed.Load() == 100 && c.waiting.Load() == 0 })
	if c.sent.Load() != 0 || c.dropped.Load() != 0 {
		t.Errorf("%d sent, %d dropped", c.sent.Load(), c.dropped.Load())
	}
	e.Stop()
}

// A collector that is away: the same bound, and the process ends without waiting for it.
func TestNoCollector(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	e := flood(t, listener.Addr().String(), 2*queueSpans)
	if c := &e.queue.counts; c.waiting.Load() > queueSpans || c.dropped.Load()+c.failed.Load() < queueSpans || c.sent.Load() != 0 {
		t.Errorf("%d wait, %d dropped, %d sent", c.waiting.Load(), c.dropped.Load(), c.sent.Load())
	}
	began := time.Now()
	e.Stop()
	if took := time.Since(began); took > sendTimeout {
		t.Errorf("the end took %v; one attempt to send takes up to %v, and the end is bounded by %v", took, sendTimeout, stopTimeout)
	}
}
