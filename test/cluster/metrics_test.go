package cluster

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/internal/observe"
	"github.com/logmirror/logmirror/internal/observe/tracing/export"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/playground"
)

var updateReference = flag.Bool("metrics.update", false, "write docs/metrics.md anew")

const referencePath = "../../docs/metrics.md"

// still are the metrics that nothing moves in the run below, or, of gauges, that may be zero at its end.
var still = map[string]string{
	"logmirror_degraded":                             "all is well at the end",
	"logmirror_frontend_bootstrap_received_bytes":    "no bootstrap",
	"logmirror_frontend_bootstrap_size_bytes":        "no bootstrap",
	"logmirror_frontend_bootstrapping":               "no bootstrap",
	"logmirror_frontend_bootstraps_total":            "no bootstrap",
	"logmirror_lease_adoptions_total":                "leases are renewed where they were granted",
	"logmirror_lease_expirations_total":              "no lease ends by itself",
	"logmirror_lease_refused_renewals_total":         "no owner is cut off for long enough",
	"logmirror_lease_undecided_expirations":          "no lease ends by itself",
	"logmirror_logservice_checkpoint_age_seconds":    "no checkpoint",
	"logmirror_logservice_checkpoint_bytes":          "no checkpoint",
	"logmirror_logservice_checkpoint_held":           "no checkpoint",
	"logmirror_logservice_checkpoint_index":          "no checkpoint",
	"logmirror_logservice_disk_stalled":              "the disk is well",
	"logmirror_logservice_in_flight_bytes":           "nothing is under way at the end",
	"logmirror_logservice_mirrors_disagree":          "mirrors agree",
	"logmirror_logservice_no_space":                  "there is room",
	"logmirror_logservice_peer_lag_entries":          "followers have all at the end",
	"logmirror_logservice_peer_queued_bytes":         "nothing is under way at the end",
	"logmirror_logservice_slow_batches_total":        "nothing is slow",
	"logmirror_logservice_snapshots_installed_total": "no snapshot",
	"logmirror_logservice_snapshots_sent_total":      "no snapshot",
	"logmirror_mirror_checkpoint_building_bytes":     "no checkpoint",
	"logmirror_mirror_checkpoint_bytes":              "no checkpoint",
	"logmirror_mirror_checkpoint_seconds":            "no checkpoint",
	"logmirror_mirror_checkpoint_pin_seconds":        "no checkpoint",
	"logmirror_mirror_checkpoints_total":             "no checkpoint",
	"logmirror_mirror_compact_revision":              "nothing is an hour old",
	"logmirror_mirror_digest_verdicts_total":         "mirrors agree",
	"logmirror_mirror_image_abandoned":               "the disk is well",
	"logmirror_mirror_image_rebuild_bytes":           "the disk is well",
	"logmirror_mirror_image_rebuilds_total":          "the disk is well",
	"logmirror_mirror_no_space":                      "there is room",
	"logmirror_mirror_quarantines_total":             "nothing is damaged",
	"logmirror_mirror_queue_commands":                "nothing waits at the end",
	"logmirror_mirror_scrub_seconds":                 "the run is shorter than the interval of scrubs",
	"logmirror_mirror_slow_writes_total":             "nothing is slow",
	"logmirror_mirror_scrubs_total":                  "the run is shorter than the interval of scrubs",
	"logmirror_trace_spans_total":                    "nothing is traced",
	"logmirror_trace_waiting_spans":                  "nothing is traced",
	"logmirror_watch_compacted_total":                "nothing is compacted",
	"logmirror_watch_fallbacks_total":                "no reader is slow",
	"logmirror_watch_lagging_watches":                "no reader is slow",
	"logmirror_watch_progress_total":                 "nobody asks for progress",
	"logmirror_watch_streams":                        "none is open at the end",
	"logmirror_watch_watches":                        "none is open at the end",
	"logmirror_watch_slow_watches":                   "no reader is slow",
}

// observed keeps the registries of a cluster's processes.
type observed struct {
	members, frontends map[string]*prometheus.Registry
}

func (o *observed) registry(of map[string]*prometheus.Registry, name string) *prometheus.Registry {
	r := observe.NewRegistry()
	if err := observe.RegisterHealth(r, observe.Health{Ready: func() []observe.Check { return nil }}); err != nil {
		panic(err) // two metrics of one name: a mistake in the code
	}
	if err := (*export.Exporter)(nil).Register(r); err != nil {
		panic(err)
	}
	of[name] = r
	return r
}

// Every metric follows Prometheus' conventions, has a sample in a running cluster, and moves when what it measures happens;
// docs/metrics.md lists them all.
func TestMetrics(t *testing.T) {
	o := &observed{members: map[string]*prometheus.Registry{}, frontends: map[string]*prometheus.Registry{}}
	bubbleWith(t, func(config *playground.Config) {
		config.Member = func(c *logservice.Config) { c.Registerer = o.registry(o.members, c.Name) }
		config.Frontend = func(c *frontend.Config) { c.Registerer = o.registry(o.frontends, c.Name) }
	}, func(t *testing.T, c *virtual) {
		moveMetrics(t, c)
		o.check(t)
	})
}

// moveMetrics does what the metrics count.
func moveMetrics(t *testing.T, c *virtual) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	us, ap := c.regions["us"], c.regions["ap"]
	for _, r := range c.regions {
		put := r.put(t, "away/"+r.name, "v")
		<-c.watchFrom(ctx, r, 1) // from history
		watched := c.watchFrom(ctx, r, put.GetRevision()+1)
		time.Sleep(time.Second) // until there is nothing to wait for but what comes
		r.put(t, "away/"+r.name, "w")
		<-watched
		granted, err := r.etcd.Grant(ctx, 600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.etcd.KeepAliveOnce(ctx, granted.ID); err != nil {
			t.Fatal(err)
		}
		if r.get(t, "away/"+r.name, linearizable) != "w" {
			t.Error("a read does not see the write before it")
		}
		if _, err := r.etcd.Compact(ctx, 1<<40); err == nil {
			t.Error("a revision of the future was compacted")
		}
	}
	connection := c.dial("us")
	for _, request := range []*kvv1.GenerateRequest{
		{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 1},
		{Kind: kvv1.GenerateRequest_KIND_RAINDROP, Count: 1},
		{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Count: 1, Name: "n"},
	} {
		if _, err := kvv1.NewIdServiceClient(connection).Generate(ctx, request); err != nil {
			t.Fatal(err)
		}
	}
	// ap is cut off until its session has to be told again what it asked for, and heals.
	c.Network().Cut("ap", "us")
	c.Network().Cut("ap", "eu")
	c.Network().Cut("us", "ap")
	c.Network().Cut("eu", "ap")
	time.Sleep(6 * time.Second)
	us.put(t, "m/meanwhile", "v")
	c.Network().HealAll()
	c.eventually("ap is whole again", func() error {
		if got := ap.get(t, "m/meanwhile", serializable); got != "v" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	time.Sleep(30 * time.Second) // everything is measured again
	ap.put(t, "m/last", "v")
}

// family is what is known of a metric, of all processes of a kind together.
type family struct {
	*dto.MetricFamily
	labels map[string]bool
	moved  bool
	series int
}

func (o *observed) check(t *testing.T) {
	var page bytes.Buffer
	page.WriteString(referenceHead)
	for _, kind := range []struct {
		title      string
		registries map[string]*prometheus.Registry
	}{{"Log members", o.members}, {"Frontends", o.frontends}} {
		families := make(map[string]*family)
		for _, registry := range kind.registries {
			gather(t, registry, families)
		}
		for _, registry := range kind.registries {
			for _, name := range described(registry) {
				if ours(name) && families[name] == nil {
					t.Errorf("%s: %s is registered and has no sample", kind.title, name)
				}
			}
		}
		fmt.Fprintf(&page, "\n## %s\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n", kind.title)
		for _, name := range slices.Sorted(maps.Keys(families)) {
			f := families[name]
			lint(t, f)
			_, known := still[name]
			if f.moved == known && (!known || f.GetType() != dto.MetricType_GAUGE) {
				t.Errorf("%s: %s moved: %v; its entry among those that stand still: %v", kind.title, name, f.moved, known)
			}
			if f.series > 400 {
				t.Errorf("%s: %s has %d series in a process", kind.title, name, f.series)
			}
			fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()),
				labelText(f.labels), strings.ReplaceAll(f.GetHelp(), "|", "\\|"))
		}
	}
	if *updateReference {
		if err := os.WriteFile(referencePath, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(referencePath); err != nil || !bytes.Equal(have, page.Bytes()) {
		t.Errorf("docs/metrics.md does not say what the processes export: run make metrics-reference (%v)", err)
	}
}

const referenceHead = `# Metrics

What the processes export on ` + "`/metrics`" + ` (` + "`--metrics-listen`" + `), beside ` + "`go_*` and `process_*`" + ` of Prometheus' client
library. This page is made by ` + "`make metrics-reference`" + ` from a running cluster; a test holds it to that.

Counters and histograms begin anew with each start of a process, and most of a frontend's when it builds its state anew. Labels
name methods, members of the log, frontends in session and fixed words, never what a client sends.
`

func labelText(labels map[string]bool) string {
	names := slices.Sorted(maps.Keys(labels))
	for i, name := range names {
		names[i] = "`" + name + "`"
	}
	return strings.Join(names, ", ")
}

// ours tells metrics of this project from those of libraries.
func ours(name string) bool {
	return strings.HasPrefix(name, "logmirror_") || strings.HasPrefix(name, "grpc_")
}

// described are the names of all that is registered, whether it has samples or not.
func described(registry *prometheus.Registry) (names []string) {
	descriptions := make(chan *prometheus.Desc)
	go func() { registry.Describe(descriptions); close(descriptions) }()
	for d := range descriptions {
		_, after, _ := strings.Cut(d.String(), `fqName: "`)
		name, _, found := strings.Cut(after, `"`)
		if !found {
			panic("a description has another form: " + d.String())
		}
		names = append(names, name)
	}
	return names
}

func gather(t *testing.T, registry *prometheus.Registry, into map[string]*family) {
	gathered, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gathered {
		if !ours(g.GetName()) {
			continue
		}
		f := into[g.GetName()]
		if f == nil {
			f = &family{MetricFamily: g, labels: make(map[string]bool)}
			into[g.GetName()] = f
		}
		f.series = max(f.series, len(g.GetMetric()))
		for _, m := range g.GetMetric() {
			for _, label := range m.GetLabel() {
				f.labels[label.GetName()] = true
			}
			f.moved = f.moved || m.GetCounter().GetValue() != 0 || m.GetGauge().GetValue() != 0 || m.GetHistogram().GetSampleCount() != 0
		}
	}
}

// lint holds a metric to Prometheus' conventions.
func lint(t *testing.T, f *family) {
	problems, err := promlint.NewWithMetricFamilies([]*dto.MetricFamily{f.MetricFamily}).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if help := f.GetHelp(); !strings.HasSuffix(help, ".") {
		t.Errorf("%s: the help is no sentence: %q", f.GetName(), help)
	}
}
