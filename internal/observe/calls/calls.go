// Package calls observes the calls that gRPC servers take: how many, how they ended, how long they took, under which id.
//
// # What it promises
//
// Services that are registered through Registrar are observed; what a server refuses before it finds a method is not. So
// the labels of the metrics are the methods of registered services and gRPC's codes, and nothing that a caller sends. The
// names are those of go-grpc-prometheus, which etcd exports too: dashboards and rules for the one work for the other.
//
// Every call has a request id: the one that the caller sent as metadata, if it is at most 128 printable characters of
// ASCII, and one of our own making otherwise. RequestID finds it in the context of the call; a failed call tells it in its
// trailer; Propagate hands it on. An id is made only where somebody looks for it. It has no meaning beyond logs: what makes
// a repeated write safe is another id.
//
// Observing a unary call costs one allocation, that of the context.
package calls

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Config of an Observer. Zero values do without.
type Config struct {
	// Logger is told of each call at level debug, and at level warn of those that failed for a reason of ours.
	Logger *slog.Logger
	// Registerer takes the metrics.
	Registerer prometheus.Registerer
}

// Observer observes the calls of a process's servers. Its methods may be called from any goroutine.
type Observer struct {
	logger *slog.Logger

	started, handled, received, sent *prometheus.CounterVec
	seconds                          *prometheus.HistogramVec
}

// New returns an Observer whose metrics are registered.
func New(config Config) (*Observer, error) {
	method := []string{"grpc_type", "grpc_service", "grpc_method"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "grpc_server_" + name, Help: help}, append(method, labels...))
	}
	o := &Observer{
		logger:   config.Logger,
		started:  counter("started_total", "Calls begun."),
		handled:  counter("handled_total", "Calls ended, by their code.", "grpc_code"),
		received: counter("msg_received_total", "Messages received on streams."),
		sent:     counter("msg_sent_total", "Messages sent on streams."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "Duration of unary calls.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}, method),
	}
	if o.logger == nil {
		o.logger = slog.New(slog.DiscardHandler)
	}
	if config.Registerer == nil {
		return o, nil
	}
	for i, c := range o.collectors() {
		if err := config.Registerer.Register(c); err != nil {
			for _, registered := range o.collectors()[:i] {
				config.Registerer.Unregister(registered)
			}
			return nil, err
		}
	}
	return o, nil
}

func (o *Observer) collectors() []prometheus.Collector {
	return []prometheus.Collector{o.started, o.handled, o.received, o.sent, o.seconds}
}

// Close takes the metrics back.
func (o *Observer) Close(from prometheus.Registerer) {
	if from == nil {
		return
	}
	for _, c := range o.collectors() {
		from.Unregister(c)
	}
}

// Registrar returns a registrar that registers services with to, observed. The same service may be registered with several
// servers.
func (o *Observer) Registrar(to grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{o, to} }

type registrar struct {
	observer *Observer
	to       grpc.ServiceRegistrar
}

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	observed := *desc
	observed.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		observed.Methods[i] = grpc.MethodDesc{
			MethodName: m.MethodName,
			Handler:    r.observer.method("unary", desc.ServiceName, m.MethodName).unary(m.Handler),
		}
	}
	observed.Streams = make([]grpc.StreamDesc, len(desc.Streams))
	for i, s := range desc.Streams {
		kind := "bidi_stream"
		switch {
		case !s.ClientStreams:
			kind = "server_stream"
		case !s.ServerStreams:
			kind = "client_stream"
		}
		observed.Streams[i] = s
		observed.Streams[i].Handler = r.observer.method(kind, desc.ServiceName, s.StreamName).stream(s.Handler)
	}
	r.to.RegisterService(&observed, service)
}

// method is what is known of a method beforehand.
type method struct {
	observer                    *Observer
	name                        string
	labels                      []string
	started, ok, received, sent prometheus.Counter
	seconds                     prometheus.Observer
}

func (o *Observer) method(kind, service, name string) *method {
	m := &method{
		observer: o, name: service + "/" + name, labels: []string{kind, service, name},
		started: o.started.WithLabelValues(kind, service, name),
		ok:      o.handled.WithLabelValues(kind, service, name, codes.OK.String()),
	}
	if kind == "unary" {
		m.seconds = o.seconds.WithLabelValues(kind, service, name)
	} else {
		m.received, m.sent = o.received.WithLabelValues(kind, service, name), o.sent.WithLabelValues(kind, service, name)
	}
	return m
}

func (m *method) unary(handle grpc.MethodHandler) grpc.MethodHandler {
	return func(service any, parent context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		c := m.begin(parent)
		answer, err := handle(service, c, decode, interceptor)
		took := c.end(err)
		m.seconds.Observe(took.Seconds())
		return answer, err
	}
}

func (m *method) stream(handle grpc.StreamHandler) grpc.StreamHandler {
	return func(service any, stream grpc.ServerStream) error {
		s := &observedStream{ServerStream: stream, call: m.begin(stream.Context())}
		err := handle(service, s)
		s.call.end(err)
		return err
	}
}

// observedStream counts messages, and has the context of the call.
type observedStream struct {
	grpc.ServerStream
	call *call
}

// Context implements grpc.ServerStream.
func (s *observedStream) Context() context.Context { return s.call }

// SendMsg implements grpc.ServerStream.
func (s *observedStream) SendMsg(message any) error {
	err := s.ServerStream.SendMsg(message)
	if err == nil {
		s.call.method.sent.Inc()
	}
	return err
}

// RecvMsg implements grpc.ServerStream.
func (s *observedStream) RecvMsg(message any) error {
	err := s.ServerStream.RecvMsg(message)
	if err == nil {
		s.call.method.received.Inc()
	}
	return err
}

func (m *method) begin(parent context.Context) *call {
	m.started.Inc()
	return &call{Context: parent, method: m, began: time.Now()}
}

// end counts, logs and returns how long the call took.
func (c *call) end(err error) time.Duration {
	m, took := c.method, time.Since(c.began)
	code := codeOf(err)
	if code == codes.OK {
		m.ok.Inc()
	} else {
		m.observer.handled.WithLabelValues(append(m.labels, code.String())...).Inc()
		// The one error there can be says that the call has ended for the caller.
		_ = grpc.SetTrailer(c, metadata.Pairs(RequestIDKey, c.requestID()))
	}
	if level := levelOf(code); m.observer.logger.Enabled(c, level) {
		m.observer.log(c, level, code, took, err)
	}
	return took
}

// codeOf is the code that the server sends for an error.
func codeOf(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
}

// levelOf is warn for what a caller cannot be blamed for, and no outage explains.
func levelOf(code codes.Code) slog.Level {
	switch code {
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (o *Observer) log(c *call, level slog.Level, code codes.Code, took time.Duration, err error) {
	attributes := []slog.Attr{slog.String("method", c.method.name), slog.String("code", code.String()), slog.Duration("took", took)}
	if p, ok := peer.FromContext(c); ok && p.Addr != nil {
		attributes = append(attributes, slog.String("peer", p.Addr.String()))
	}
	if err != nil {
		attributes = append(attributes, slog.String("error", status.Convert(err).Message()))
	}
	o.logger.LogAttrs(c, level, "call", attributes...)
}
