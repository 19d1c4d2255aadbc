package calls

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// service answers Status with what it is told to, and Report by as many answers as questions.
type service struct {
	logv1.UnimplementedLogServiceServer
	status func(ctx context.Context) error
}

func (s *service) Status(ctx context.Context, _ *logv1.StatusRequest) (*logv1.StatusResponse, error) {
	if err := s.status(ctx); err != nil {
		return nil, err
	}
	return &logv1.StatusResponse{}, nil
}

func (s *service) Report(stream logv1.LogService_ReportServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return status.Error(codes.Aborted, RequestID(stream.Context()))
		}
		if err := stream.Send(&logv1.ReportResponse{}); err != nil {
			return err
		}
	}
}

type fixture struct {
	service  *service
	client   logv1.LogServiceClient
	registry *prometheus.Registry
	log      *bytes.Buffer
	observer *Observer
}

func newFixture(t *testing.T, level slog.Level) *fixture {
	t.Helper()
	f := &fixture{service: &service{}, registry: prometheus.NewRegistry(), log: new(bytes.Buffer)}
	var err error
	if f.observer, err = New(Config{
		Registerer: f.registry, Logger: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: level})),
	}); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	logv1.RegisterLogServiceServer(f.observer.Registrar(server), f.service)
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	connection, err := grpc.NewClient("passthrough:///", grpc.WithTransportCredentials(insecure.NewCredentials()), Propagate(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return listener.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	f.client = logv1.NewLogServiceClient(connection)
	t.Cleanup(func() { connection.Close(); server.Stop() })
	return f
}

func TestCallsAreCountedByTheCodeThatTheCallerSees(t *testing.T) {
	f := newFixture(t, slog.LevelError)
	failure := error(nil)
	f.service.status = func(context.Context) error { return failure }
	for _, failure = range []error{
		nil, nil, status.Error(codes.NotFound, "x"), errors.New("plain"), context.DeadlineExceeded,
	} {
		_, err := f.client.Status(t.Context(), &logv1.StatusRequest{})
		if got := status.Code(err); testutil.ToFloat64(f.observer.handled.WithLabelValues("unary", "logmirror.log.v1.LogService", "Status", got.String())) == 0 {
			t.Errorf("%v came as %v and was counted as something else", failure, got)
		}
	}
	if n := testutil.ToFloat64(f.observer.started.WithLabelValues("unary", "logmirror.log.v1.LogService", "Status")); n != 5 {
		t.Errorf("%v calls begun", n)
	}
	for code, want := range map[codes.Code]float64{codes.OK: 2, codes.NotFound: 1, codes.Unknown: 1, codes.DeadlineExceeded: 1} {
		if n := testutil.ToFloat64(f.observer.handled.WithLabelValues("unary", "logmirror.log.v1.LogService", "Status", code.String())); n != want {
			t.Errorf("%v calls that ended with %v, want %v", n, code, want)
		}
	}
	if problems, err := testutil.GatherAndLint(f.registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestStreamsCountTheirMessages(t *testing.T) {
	f := newFixture(t, slog.LevelError)
	stream, err := f.client.Report(metadata.AppendToOutgoingContext(t.Context(), RequestIDKey, "mine"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(&logv1.ReportRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Convert(err).Message() != "mine" {
		t.Errorf("ended with %v", err)
	}
	if ids := stream.Trailer()[RequestIDKey]; len(ids) != 1 || ids[0] != "mine" {
		t.Errorf("trailer %v", stream.Trailer())
	}
	labels := []string{"bidi_stream", "logmirror.log.v1.LogService", "Report"}
	if in, out := testutil.ToFloat64(f.observer.received.WithLabelValues(labels...)), testutil.ToFloat64(f.observer.sent.WithLabelValues(labels...)); in != 3 || out != 3 {
		t.Errorf("%v received, %v sent", in, out)
	}
}

func TestRequestIDs(t *testing.T) {
	f := newFixture(t, slog.LevelDebug)
	seen := ""
	f.service.status = func(ctx context.Context) error {
		if seen = RequestID(ctx); seen != RequestID(ctx) {
			t.Error("one call has two ids")
		}
		return status.Error(codes.Internal, "broken")
	}
	call := func(sent string) (trailer metadata.MD) {
		ctx := t.Context()
		if sent != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, RequestIDKey, sent)
		}
		if _, err := f.client.Status(ctx, &logv1.StatusRequest{}, grpc.Trailer(&trailer)); status.Code(err) != codes.Internal {
			t.Fatal(err)
		}
		return trailer
	}
	for _, sent := range []string{"order-17", strings.Repeat("x", maxRequestIDBytes)} {
		if trailer := call(sent); seen != sent || trailer[RequestIDKey][0] != sent {
			t.Errorf("sent %q, the handler saw %q, the caller was told %v", sent, seen, trailer)
		}
	}
	for _, sent := range []string{"", strings.Repeat("x", maxRequestIDBytes+1), "with blank"} {
		if trailer := call(sent); seen == "" || seen == sent || trailer[RequestIDKey][0] != seen {
			t.Errorf("sent %q, the handler saw %q, the caller was told %v", sent, seen, trailer)
		}
	}
	for _, part := range []string{"level=WARN", "method=logmirror.log.v1.LogService/Status", "code=Internal", "error=broken"} {
		if !strings.Contains(f.log.String(), part) {
			t.Errorf("%q is not in the log:\n%s", part, f.log)
		}
	}
	if RequestID(t.Context()) != "" {
		t.Error("a context of no call has an id")
	}
}

// A call that is made within another one carries its id.
func TestRequestIDsArePropagated(t *testing.T) {
	f := newFixture(t, slog.LevelError)
	outer, inner := "", ""
	f.service.status = func(ctx context.Context) error {
		if outer == "" {
			outer = RequestID(ctx)
			_, err := f.client.Status(ctx, &logv1.StatusRequest{})
			return err
		}
		inner = RequestID(ctx)
		return nil
	}
	if _, err := f.client.Status(t.Context(), &logv1.StatusRequest{}); err != nil || outer == "" || outer != inner {
		t.Errorf("%v: outer %q, inner %q", err, outer, inner)
	}
}

func handle(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
	return nil, nil
}

// What observing costs a call: one allocation, the context.
func TestObservingAllocatesOnce(t *testing.T) {
	o, err := New(Config{Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	observed := o.method("unary", "s", "m").unary(handle)
	ctx := t.Context()
	if allocations := testing.AllocsPerRun(1000, func() {
		if _, err := observed(nil, ctx, nil, nil); err != nil {
			t.Fatal(err)
		}
	}); allocations > 1 {
		t.Errorf("%v allocations", allocations)
	}
}

func BenchmarkObservedCall(b *testing.B) {
	o, err := New(Config{Registerer: prometheus.NewRegistry()})
	if err != nil {
		b.Fatal(err)
	}
	observed := o.method("unary", "s", "m").unary(handle)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = observed(nil, b.Context(), nil, nil)
	}
}
