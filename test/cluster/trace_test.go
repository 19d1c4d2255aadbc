package cluster

import (
	"slices"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/internal/observe/tracing"
	"github.com/logmirror/logmirror/internal/observe/tracing/export"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/playground"
)

// collector takes the spans of all parts of a cluster, none of which traces what its caller does not ask for.
type collector struct{ *tracetest.InMemoryExporter }

func (c collector) tracer(service, name, region string) trace.Tracer {
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(c), sdktrace.WithSampler(export.Sampler(0)),
		sdktrace.WithResource(export.Resource(service, name, region))).Tracer(tracing.Name)
}

// ofTrace are the spans of one trace, as "service region name parent", sorted.
func (c collector) ofTrace(id trace.TraceID) (spans []string) {
	names := map[trace.SpanID]string{}
	for _, s := range c.GetSpans() {
		names[s.SpanContext.SpanID()] = s.Name
	}
	for _, s := range c.GetSpans() {
		if s.SpanContext.TraceID() != id {
			continue
		}
		service, _ := s.Resource.Set().Value("service.name")
		region, _ := s.Resource.Set().Value("cloud.region")
		above := names[s.Parent.SpanID()]
		if above == "" {
			above = s.Parent.SpanID().String()
		}
		spans = append(spans, strings.Join([]string{service.AsString(), region.AsString(), s.Name, above}, " "))
	}
	slices.Sort(spans)
	return spans
}

// One put is one trace: from the client's span to the call and the proposal in its region, the leader's append, and apply in
// every region. Puts that nobody asks to trace leave nothing, and their entries carry nothing.
func TestTraceOfAPut(t *testing.T) {
	for _, publication := range []logservice.Publication{logservice.PublicationLeader, logservice.PublicationQuorum} {
		t.Run(publication.String(), func(t *testing.T) {
			spans := collector{tracetest.NewInMemoryExporter()}
			bubbleWith(t, func(config *playground.Config) {
				config.Publication = publication
				config.Member = func(c *logservice.Config) { c.Tracer = spans.tracer("logsvc", c.Name, c.Region) }
				config.Frontend = func(c *frontend.Config) { c.Tracer = spans.tracer("frontend", c.Name, c.Region) }
			}, func(t *testing.T, c *virtual) {
				if stray := spans.GetSpans(); len(stray) > 0 {
					t.Fatalf("%d spans although nothing is sampled; the first is %s", len(stray), stray[0].Name)
				}
				tracePuts(t, c, spans)
			})
		})
	}
}

func tracePuts(t *testing.T, c *virtual, spans collector) {
	eu := c.regions["eu"]
	for i, api := range []struct {
		method string
		put    func(traceparent string) error
	}{
		{"logmirror.kv.v1.KvService/Put", func(traceparent string) error {
			_, err := eu.kv.Put(metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent), &kvv1.PutRequest{Key: []byte("native"), Value: []byte("v")})
			return err
		}},
		{"etcdserverpb.KV/Put", func(traceparent string) error {
			_, err := eu.etcd.Put(metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent), "etcd", "v")
			return err
		}},
	} {
		id := trace.TraceID{15: byte(i + 1)}
		const client = "00f067aa0ba902b7"
		if err := api.put("00-" + id.String() + "-" + client + "-01"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // virtual: every region has it
		want := []string{
			"frontend ap apply propose", "frontend eu apply propose",
			"frontend eu " + api.method + " " + client,
			"frontend eu propose " + api.method,
			"frontend us apply propose", "logsvc us append propose",
		}
		if got := spans.ofTrace(id); !slices.Equal(got, want) {
			t.Errorf("spans of a put:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		checkTimes(t, spans.GetSpans())
		total := len(spans.GetSpans())
		if err := api.put("00-" + id.String() + "-" + client + "-00"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := len(spans.GetSpans()); n != total {
			t.Errorf("%d spans of a put that its caller does not sample", n-total)
		}
	}
}

// checkTimes: what the leader and the proposing region do lies within the proposal.
func checkTimes(t *testing.T, spans tracetest.SpanStubs) {
	t.Helper()
	byID := map[trace.SpanID]tracetest.SpanStub{}
	for _, s := range spans {
		byID[s.SpanContext.SpanID()] = s
	}
	for _, s := range spans {
		if above, ok := byID[s.Parent.SpanID()]; ok && s.StartTime.Before(above.StartTime) {
			t.Errorf("%s begins before %s", s.Name, above.Name)
		}
		if s.Name == "append" && s.EndTime.Sub(s.StartTime) != 80*ms {
			t.Errorf("the leader publishes after %v, want its round trip to the nearest majority", s.EndTime.Sub(s.StartTime))
		}
	}
}
