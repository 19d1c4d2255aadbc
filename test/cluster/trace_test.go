package cluster

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
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

func (c collector) tracer(service, name, region string, more ...sdktrace.TracerProviderOption) trace.Tracer {
	return sdktrace.NewTracerProvider(append(more, sdktrace.WithSyncer(c), sdktrace.WithSampler(export.Sampler(0)),
		sdktrace.WithResource(export.Resource(service, name, region)))...).Tracer(tracing.Name)
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

// A put whose leader is cut off before it is answered is one trace all the same: the span of the proposal goes on until the next
// leader's entry is applied, nothing is told twice of an entry, and no span is left open.
func TestTraceOfAPutWhoseLeaderChanges(t *testing.T) {
	spans := collector{tracetest.NewInMemoryExporter()}
	open := &openSpans{open: map[trace.SpanID]string{}}
	bubbleWith(t, func(config *playground.Config) {
		config.Member = func(c *logservice.Config) {
			c.Tracer = spans.tracer("logsvc", c.Name, c.Region, sdktrace.WithSpanProcessor(open))
		}
		config.Frontend = func(c *frontend.Config) {
			c.Tracer = spans.tracer("frontend", c.Name, c.Region, sdktrace.WithSpanProcessor(open))
		}
	}, func(t *testing.T, c *virtual) {
		id := trace.TraceID{15: 1}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+id.String()+"-00f067aa0ba902b7-01")
		answered := make(chan error, 1)
		go func() {
			_, err := c.regions["eu"].kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v")})
			answered <- err
		}()
		time.Sleep(45 * ms) // the leader in us has it, and nobody else
		c.Network().Isolate("us")
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		c.Network().HealAll()
		time.Sleep(10 * time.Second) // virtual: all is well again
		count := map[string]int{}
		for _, s := range spans.ofTrace(id) {
			count[s]++
		}
		for span, want := range map[string]int{
			"frontend eu logmirror.kv.v1.KvService/Put 00f067aa0ba902b7": 1,
			"frontend eu propose logmirror.kv.v1.KvService/Put":          1,
			"frontend eu apply propose":                                  1,
		} {
			if count[span] != want {
				t.Errorf("%d spans %q, want %d", count[span], span, want)
			}
		}
		for span, n := range count {
			if strings.HasPrefix(span, "frontend") && n > 1 {
				t.Errorf("%d spans %q", n, span)
			}
		}
		appends := count["logsvc eu append propose"] + count["logsvc ap append propose"]
		if appends != 1 || count["logsvc us append propose"] != 0 {
			t.Errorf("%d appends are told by the leader that followed, %d by the one whose entry was lost; want 1 and 0",
				appends, count["logsvc us append propose"])
		}
		if left := open.names(); len(left) > 0 {
			t.Errorf("spans are left open: %v", left)
		}
	})
}

// openSpans knows the spans that have begun and not ended. It implements sdktrace.SpanProcessor.
type openSpans struct {
	mu   sync.Mutex
	open map[trace.SpanID]string
}

func (o *openSpans) OnStart(_ context.Context, s sdktrace.ReadWriteSpan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[s.SpanContext().SpanID()] = s.Name()
}

func (o *openSpans) OnEnd(s sdktrace.ReadOnlySpan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.open, s.SpanContext().SpanID())
}

func (o *openSpans) Shutdown(context.Context) error   { return nil }
func (o *openSpans) ForceFlush(context.Context) error { return nil }

func (o *openSpans) names() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Values(o.open))
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
			"frontend us apply propose",
			"logsvc ap sync propose", "logsvc eu sync propose", "logsvc us append propose", "logsvc us sync propose",
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
