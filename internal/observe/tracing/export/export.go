// Package export sends the spans of a process to a collector by OTLP over gRPC.
//
// Spans wait in a bounded queue and are sent in batches; while no collector answers the newest are dropped and counted, and no
// request waits for any of this. A request whose caller sends a traceparent is sampled as that says; of the others the ratio is.
package export

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"

	"github.com/logmirror/logmirror/internal/observe/tracing"
	"github.com/logmirror/logmirror/internal/tlsfiles"
)

const (
	// queueSpans bounds the spans that wait to be sent, sendTimeout one attempt to send some, stopTimeout the last ones.
	queueSpans  = 4096
	sendTimeout = 10 * time.Second
	stopTimeout = time.Second
)

// Flags say where spans go. The zero value means nowhere.
type Flags struct {
	Endpoint    string
	SampleRatio float64
	Authority   string
	Insecure    bool
}

// AddFlags adds --trace-endpoint, --trace-sample-ratio, --trace-ca and --trace-insecure.
func (f *Flags) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.Endpoint, "trace-endpoint", "", "`address` of a collector that takes traces by OTLP over gRPC (default: no traces)")
	flags.Float64Var(&f.SampleRatio, "trace-sample-ratio", 0.01,
		"share of requests to trace, from 0 to 1, of those whose caller does not say by a traceparent whether to")
	flags.StringVar(&f.Authority, "trace-ca", "", "`file` of the authorities that sign the collector's certificate (default: those of the system)")
	flags.BoolVar(&f.Insecure, "trace-insecure", false, "send traces to a collector on another machine without encryption")
}

// Validate checks the flags.
func (f Flags) Validate() error {
	if !(f.SampleRatio >= 0 && f.SampleRatio <= 1) {
		return fmt.Errorf("--trace-sample-ratio %v: must be from 0 to 1", f.SampleRatio)
	}
	if f.Insecure && f.Authority != "" {
		return fmt.Errorf("--trace-insecure and --trace-ca: without encryption there is no certificate to check")
	}
	if f.Endpoint == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(f.Endpoint); err != nil {
		return fmt.Errorf("--trace-endpoint: %w", err)
	}
	return nil
}

// Exporter makes the spans of a process and sends them.
type Exporter struct {
	provider *sdktrace.TracerProvider
	queue    *queue
}

// Start begins to export for a process of a service ("logsvc", "frontend"). Nil where the flags name no endpoint. It does not
// wait for the collector.
func (f Flags) Start(service, name, region string, logger *slog.Logger) (*Exporter, error) {
	if f.Endpoint == "" {
		return nil, nil
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(f.Endpoint), otlptracegrpc.WithTimeout(sendTimeout)}
	transport, err := f.credentials(logger)
	if err != nil {
		return nil, fmt.Errorf("--trace-endpoint: %w", err)
	}
	if transport == nil {
		options = append(options, otlptracegrpc.WithInsecure())
	} else {
		options = append(options, otlptracegrpc.WithTLSCredentials(transport))
	}
	exporter, err := otlptracegrpc.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("--trace-endpoint: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("traces are lost", "error", err) }))
	waiting := newQueue(exporter)
	return &Exporter{queue: waiting, provider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(waiting),
		sdktrace.WithSampler(Sampler(f.SampleRatio)), sdktrace.WithResource(Resource(service, name, region)))}, nil
}

// credentials are nil for none: by the flag, or on this machine where no authority is named.
func (f Flags) credentials(logger *slog.Logger) (credentials.TransportCredentials, error) {
	if f.Authority != "" {
		return tlsfiles.Files{Authority: f.Authority}.Client(logger)
	}
	if local, err := tlsfiles.Loopback(f.Endpoint); err != nil || local || f.Insecure {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), nil
}

// Sampler does as the caller says, and otherwise takes a share of the traces.
func Sampler(ratio float64) sdktrace.Sampler {
	return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))
}

// Resource says whose spans they are.
func Resource(service, name, region string) *resource.Resource {
	return resource.NewSchemaless(attribute.String("service.namespace", "logmirror"), attribute.String("service.name", service),
		attribute.String("service.instance.id", name), attribute.String("cloud.region", region))
}

// Tracer returns what makes spans; nil for a nil Exporter.
func (e *Exporter) Tracer() trace.Tracer {
	if e == nil {
		return nil
	}
	return e.provider.Tracer(tracing.Name)
}

// Stop sends what waits, for a bounded time. It may be called on nil.
func (e *Exporter) Stop() {
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	// What could not be sent was told to the error handler.
	_ = e.provider.Shutdown(ctx)
}
