package observability

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"go.yaml.in/yaml/v3"
)

// ruleTests is a file of rule tests as promtool reads them, as far as it is used here.
type ruleTests struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []ruleTest     `yaml:"tests"`
}

type ruleTest struct {
	Name        string         `yaml:"name"`
	Interval    model.Duration `yaml:"interval"`
	InputSeries []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	AlertRuleTests []struct {
		EvalTime model.Duration `yaml:"eval_time"`
		Alert    string         `yaml:"alertname"`
		Expected []struct {
			Labels      map[string]string `yaml:"exp_labels"`
			Annotations map[string]string `yaml:"exp_annotations"`
		} `yaml:"exp_alerts"`
	} `yaml:"alert_rule_test"`
}

func decode(t *testing.T, path string, into any) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	decoder := yaml.NewDecoder(file)
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// memory holds series for the engine of Prometheus.
type memory []storage.Series

func (m memory) Querier(_, _ int64) (storage.Querier, error) { return m, nil }
func (m memory) Close() error                                { return nil }

func (m memory) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (m memory) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (m memory) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for _, series := range m {
		if !slices.ContainsFunc(matchers, func(w *labels.Matcher) bool { return !w.Matches(series.Labels().Get(w.Name)) }) {
			found = append(found, series)
		}
	}
	return &seriesSet{series: found, at: -1}
}

type seriesSet struct {
	series []storage.Series
	at     int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// load makes the series of a test. Each must be one that a process exports: of its metric, with all labels of it and of its
// target, and with no other.
func load(metrics map[string]metric, test ruleTest) (memory, error) {
	var loaded memory
	for _, input := range test.InputSeries {
		set, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(input.Series + " " + input.Values)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", input.Series, input.Values, err)
		}
		has, err := lookUp(metrics, set.Get(labels.MetricName))
		if err != nil {
			return nil, err
		}
		var given []string
		set.Range(func(l labels.Label) {
			if l.Name != labels.MetricName {
				given = append(given, l.Name)
			}
		})
		slices.Sort(has)
		if has = slices.Compact(has); !slices.Equal(given, has) {
			return nil, fmt.Errorf("%s has the labels %v; a process exports it with %v", input.Series, given, has)
		}
		var samples []chunks.Sample
		for i, v := range values {
			if !v.Omitted {
				samples = append(samples, sample{int64(i) * time.Duration(test.Interval).Milliseconds(), v.Value})
			}
		}
		loaded = append(loaded, storage.NewListSeries(set, samples))
	}
	return loaded, nil
}

// firing is an alert as it is sent.
type firing struct{ labels, annotations map[string]string }

// evaluate follows one rule from the beginning to the last step not after end, and returns what fires then.
func evaluate(engine *promql.Engine, series memory, r rule, step, end time.Duration) (fires []firing, err error) {
	hold, err := model.ParseDuration(cmp.Or(r.For, "0s"))
	if err != nil {
		return nil, err
	}
	since := map[string]time.Duration{} // by labels: when what has been true ever since became true
	var last promql.Vector
	for at := time.Duration(0); at <= end; at += step {
		query, err := engine.NewInstantQuery(context.Background(), series, nil, r.Expr, time.UnixMilli(at.Milliseconds()))
		if err != nil {
			return nil, err
		}
		result := query.Exec(context.Background())
		if last, err = result.Vector(); err != nil {
			return nil, err
		}
		last = slices.Clone(last)
		query.Close()
		now := map[string]time.Duration{}
		for _, s := range last {
			now[s.Metric.String()] = at
			if began, ok := since[s.Metric.String()]; ok {
				now[s.Metric.String()] = began
			}
		}
		since = now
	}
	evaluated := end - end%step
	for _, s := range last {
		if evaluated-since[s.Metric.String()] < time.Duration(hold) {
			continue
		}
		f, err := expand(r, s)
		if err != nil {
			return nil, err
		}
		fires = append(fires, f)
	}
	return fires, nil
}

// expand writes the annotations of an alert. A label that it has not is an error, where Prometheus would write nothing.
func expand(r rule, s promql.Sample) (firing, error) {
	has := s.Metric.Map()
	delete(has, labels.MetricName)
	f := firing{labels: maps.Clone(has), annotations: map[string]string{}}
	maps.Copy(f.labels, r.Labels)
	data := template.AlertTemplateData(has, nil, "", s)
	for name, text := range r.Annotations {
		text = "{{$labels := .Labels}}{{$value := .Value}}" + text
		expanded, err := template.NewTemplateExpander(context.Background(), text, r.Alert, data, 0, nil, nil,
			[]string{"missingkey=error"}).Expand()
		if err != nil {
			return f, fmt.Errorf("annotation %s: %w", name, err)
		}
		f.annotations[name] = expanded
	}
	return f, nil
}

func newEngine(t *testing.T) *promql.Engine {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples: 1 << 20, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: parser.NewParser(parser.Options{}),
	})
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return engine
}

// describe is a set of alerts, in an order of its own.
func describe(alerts []firing) string {
	var lines []string
	for _, a := range alerts {
		lines = append(lines, fmt.Sprintf("%v %v", a.labels, a.annotations))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Every alert fires for series that it is there for, with the words that are expected, and is silent beside them: for series
// just below its bound, or that have not been above it for long enough.
func TestAlertsFire(t *testing.T) {
	metrics := exported(t)
	const directory = "../../deploy/prometheus/"
	var tests ruleTests
	decode(t, directory+"alerts_test.yaml", &tests)
	rules := map[string]rule{}
	for _, name := range tests.RuleFiles {
		var file ruleFile
		decode(t, directory+name, &file)
		for _, group := range file.Groups {
			for _, r := range group.Rules {
				rules[r.Alert] = r
			}
		}
	}
	fired, silent := map[string]bool{}, map[string]bool{}
	engine := newEngine(t)
	for _, test := range tests.Tests {
		series, err := load(metrics, test)
		if err != nil {
			t.Errorf("%s: %v", test.Name, err)
			continue
		}
		for _, want := range test.AlertRuleTests {
			r, ok := rules[want.Alert]
			if !ok {
				t.Errorf("%s: no rule %s", test.Name, want.Alert)
				continue
			}
			got, err := evaluate(engine, series, r, time.Duration(tests.EvaluationInterval), time.Duration(want.EvalTime))
			if err != nil {
				t.Errorf("%s: %s: %v", test.Name, want.Alert, err)
			}
			var expected []firing
			for _, e := range want.Expected {
				expected = append(expected, firing{e.Labels, e.Annotations})
			}
			if describe(got) != describe(expected) {
				t.Errorf("%s: %s after %v:\n%s\nwant\n%s", test.Name, want.Alert, want.EvalTime, describe(got), describe(expected))
			}
			fired[want.Alert] = fired[want.Alert] || len(expected) > 0
			silent[want.Alert] = silent[want.Alert] || len(expected) == 0 && readsSomething(series, r)
		}
	}
	for name := range rules {
		if !fired[name] {
			t.Errorf("no test lets %s fire", name)
		}
		if !silent[name] {
			t.Errorf("no test keeps %s silent beside series that it reads", name)
		}
	}
}

// readsSomething says whether every metric that a rule names is among the series: an alert without series is silent, and
// shows nothing by that.
func readsSomething(series memory, r rule) bool {
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr)
	if err != nil {
		return false
	}
	all := true
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			all = all && series.Select(context.Background(), false, nil, selector.LabelMatchers...).Next()
		}
		return nil
	})
	return all
}

// The evaluation above takes a rule's hold time from the first step at which it is true, and finds wrong words.
func TestTheEvaluationFindsMistakes(t *testing.T) {
	engine := newEngine(t)
	series := memory{storage.NewListSeries(labels.FromStrings(labels.MetricName, "m", "instance", "a"),
		[]chunks.Sample{sample{0, 0}, sample{60_000, 7}, sample{240_000, math.NaN()}})}
	r := rule{Alert: "A", Expr: "m > 5", For: "1m", Annotations: map[string]string{"summary": "{{ $labels.instance }} {{ $value }}"}}
	for _, c := range []struct {
		end   time.Duration
		fires int
	}{{45 * time.Second, 0}, {time.Minute, 0}, {119 * time.Second, 0}, {2 * time.Minute, 1}, {4 * time.Minute, 0}} {
		got, err := evaluate(engine, series, r, 15*time.Second, c.end)
		if err != nil || len(got) != c.fires || c.fires == 1 && got[0].annotations["summary"] != "a 7" {
			t.Errorf("after %v: %v, %v; want %d", c.end, got, err, c.fires)
		}
	}
	r.Annotations["summary"] = "{{ $labels.member }}"
	if _, err := evaluate(engine, series, r, 15*time.Second, 2*time.Minute); err == nil || !strings.Contains(err.Error(), "member") {
		t.Errorf("a label that the alert has not: %v", err)
	}
	unknown := ruleTest{Interval: model.Duration(time.Second)}
	unknown.InputSeries = append(unknown.InputSeries, struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	}{`up{job="a"}`, "1x3"})
	if _, err := load(exported(t), unknown); err == nil || !strings.Contains(err.Error(), "a process exports it with [instance job site]") {
		t.Errorf("a series without its labels: %v", err)
	}
}
