package export

import (
	"context"
	"log/slog"
	"math"
	"net"
	"strings"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// sink is a collector.
type sink struct {
	collector.UnimplementedTraceServiceServer
	requests chan *collector.ExportTraceServiceRequest
}

// Export implements collector.TraceServiceServer.
func (s sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.requests <- r
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachTheCollector(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, s := grpc.NewServer(), sink{requests: make(chan *collector.ExportTraceServiceRequest, 1)}
	collector.RegisterTraceServiceServer(server, s)
	go server.Serve(listener)
	defer server.Stop()

	e, err := Flags{Endpoint: listener.Addr().String(), SampleRatio: 1}.Start("frontend", "f1", "eu", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := e.Tracer().Start(t.Context(), "propose")
	span.End()
	if err := e.provider.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer e.Stop()
	spans := (<-s.requests).GetResourceSpans()
	if len(spans) != 1 || spans[0].GetScopeSpans()[0].GetSpans()[0].GetName() != "propose" {
		t.Errorf("the collector got %v", spans)
	}
	if resource := spans[0].GetResource().String(); !strings.Contains(resource, `"f1"`) || !strings.Contains(resource, `"eu"`) {
		t.Errorf("the spans do not say whose they are: %v", resource)
	}
}

func TestFlags(t *testing.T) {
	off, err := Flags{}.Start("frontend", "f1", "eu", nil)
	if err != nil || off.Tracer() != nil {
		t.Errorf("without an endpoint there is a tracer: %v, %v", off.Tracer(), err)
	}
	off.Stop()
	for _, c := range []struct {
		flags Flags
		want  string
	}{
		{Flags{Endpoint: "collector"}, "--trace-endpoint"},
		{Flags{SampleRatio: 1.5}, "--trace-sample-ratio"},
		{Flags{SampleRatio: -1}, "--trace-sample-ratio"},
		{Flags{SampleRatio: math.NaN()}, "--trace-sample-ratio"},
		{Flags{Insecure: true, Authority: "ca.pem"}, "--trace-insecure"},
	} {
		if err := c.flags.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error that names %s", c.flags, err, c.want)
		}
	}
	for _, c := range []struct {
		flags     Flags
		encrypted bool
	}{
		{Flags{Endpoint: "127.0.0.1:4317"}, false},
		{Flags{Endpoint: "192.0.2.1:4317"}, true},
		{Flags{Endpoint: "192.0.2.1:4317", Insecure: true}, false},
	} {
		if credentials, err := c.flags.credentials(nil); err != nil || (credentials != nil) != c.encrypted {
			t.Errorf("%+v: %v, %v; want encryption %v", c.flags, credentials, err, c.encrypted)
		}
	}
}
