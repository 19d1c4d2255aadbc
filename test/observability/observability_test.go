package observability

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// metric is one line of docs/metrics.md.
type metric struct {
	kind   string
	labels []string
}

// targetLabels are those that scraping adds.
var targetLabels = []string{"job", "instance", "site"}

// others are metrics that are not ours.
var others = map[string]metric{"up": {kind: "gauge"}, "process_resident_memory_bytes": {kind: "gauge"}}

// exported reads docs/metrics.md.
func exported(t *testing.T) map[string]metric {
	t.Helper()
	file, err := os.Open("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	metrics := make(map[string]metric)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		cells := strings.Split(lines.Text(), "|")
		if len(cells) < 6 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		m := metric{kind: strings.TrimSpace(cells[2])}
		for label := range strings.SplitSeq(cells[3], ",") {
			if label = strings.Trim(label, " `"); label != "" {
				m.labels = append(m.labels, label)
			}
		}
		name := strings.Trim(cells[1], " `")
		m.labels = append(m.labels, metrics[name].labels...) // of both kinds of process
		metrics[name] = m
	}
	if len(metrics) < 80 {
		t.Fatalf("docs/metrics.md lists only %d metrics", len(metrics))
	}
	for name, m := range others {
		metrics[name] = m
	}
	return metrics
}

// lookUp finds the metric that a series is of, and the labels that the series has.
func lookUp(metrics map[string]metric, series string) (labels []string, err error) {
	if m, ok := metrics[series]; ok {
		if m.kind == "histogram" {
			return nil, fmt.Errorf("%s is a histogram: take its _bucket, _sum or _count", series)
		}
		return append(slices.Clone(m.labels), targetLabels...), nil
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		base, found := strings.CutSuffix(series, suffix)
		if m, ok := metrics[base]; found && ok && m.kind == "histogram" {
			labels := append(slices.Clone(m.labels), targetLabels...)
			if suffix == "_bucket" {
				labels = append(labels, "le")
			}
			return labels, nil
		}
	}
	return nil, fmt.Errorf("no process exports %s", series)
}

// check parses an expression and looks up all that it names. It returns the labels that its result has.
func check(metrics map[string]metric, expression string) (result []string, err error) {
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		return nil, err
	}
	counters := 0
	parser.Inspect(parsed, func(node parser.Node, path []parser.Node) error {
		if err != nil {
			return err
		}
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		counters++
		var of []string
		if of, err = lookUp(metrics, selector.Name); err != nil {
			return err
		}
		err = checkSelector(metrics, selector, of, path)
		return err
	})
	if err == nil && counters == 0 {
		err = fmt.Errorf("%q names no metric", expression)
	}
	if err != nil {
		return nil, err
	}
	return resultLabels(metrics, parsed)
}

// resultLabels are those that what an expression results in has, as far as they are known beforehand.
func resultLabels(metrics map[string]metric, expression parser.Expr) ([]string, error) {
	switch e := expression.(type) {
	case *parser.VectorSelector:
		return lookUp(metrics, e.Name)
	case *parser.MatrixSelector:
		return resultLabels(metrics, e.VectorSelector)
	case *parser.ParenExpr:
		return resultLabels(metrics, e.Expr)
	case *parser.NumberLiteral:
		return nil, nil
	case *parser.AggregateExpr:
		if e.Without {
			return nil, fmt.Errorf("%s: name what remains by 'by', which is known beforehand", e)
		}
		return e.Grouping, nil
	case *parser.BinaryExpr:
		left, err := resultLabels(metrics, e.LHS)
		if err != nil || e.RHS.Type() == parser.ValueTypeScalar {
			return left, err
		}
		right, err := resultLabels(metrics, e.RHS)
		if err != nil || e.LHS.Type() == parser.ValueTypeScalar {
			return right, err
		}
		return slices.DeleteFunc(slices.Clone(left), func(l string) bool { return !slices.Contains(right, l) }), nil
	case *parser.Call:
		inner, err := resultLabels(metrics, e.Args[len(e.Args)-1])
		if e.Func.Name == "histogram_quantile" {
			inner = slices.DeleteFunc(slices.Clone(inner), func(l string) bool { return l == "le" })
		}
		return inner, err
	}
	return nil, fmt.Errorf("%s: the labels of a %T are not known here", expression, expression)
}

func checkSelector(metrics map[string]metric, selector *parser.VectorSelector, of []string, path []parser.Node) error {
	for _, matcher := range selector.LabelMatchers {
		if matcher.Name != labels.MetricName && !slices.Contains(of, matcher.Name) {
			return fmt.Errorf("%s has no label %q", selector.Name, matcher.Name)
		}
	}
	rated := false
	for _, above := range path {
		switch n := above.(type) {
		case *parser.AggregateExpr:
			for _, label := range n.Grouping {
				if !slices.Contains(of, label) {
					return fmt.Errorf("%s is grouped by %q, which it has not", selector.Name, label)
				}
			}
		case *parser.Call:
			rated = rated || n.Func.Name == "rate" || n.Func.Name == "increase"
		}
	}
	counts := metrics[selector.Name].kind == "counter" || metrics[selector.Name].kind == ""
	if counts != rated {
		return fmt.Errorf("%s: a counter is to be rated, and nothing else is", selector.Name)
	}
	return nil
}

// Mistakes are found: else the tests below would show nothing.
func TestTheCheckFindsMistakes(t *testing.T) {
	metrics := exported(t)
	for expression, want := range map[string]string{
		`logmirror_mirror_age_second > 1`:                               "no process exports",
		`logmirror_mirror_age_seconds{state="old"}`:                     `no label "state"`,
		`sum by (region) (logmirror_mirror_age_seconds)`:                `grouped by "region"`,
		`grpc_server_handled_total > 1`:                                 "a counter is to be rated",
		`rate(logmirror_mirror_age_seconds[5m])`:                        "a counter is to be rated",
		`logmirror_mirror_commit_seconds`:                               "is a histogram",
		`sum by (le) (rate(logmirror_mirror_commit_seconds_count[5m]))`: `grouped by "le"`,
		`rate(grpc_server_handled_total[5m]`:                            "parse error",
		`vector(1) > 0`:                                                 "names no metric",
		`sum without (kind) (logmirror_ids_granted_seconds)`:            "name what remains",
	} {
		if _, err := check(metrics, expression); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", expression, err, want)
		}
	}
}

func TestLegendsAreOfTheResult(t *testing.T) {
	metrics := exported(t)
	for expression, legend := range map[string]string{
		`max(logmirror_mirror_age_seconds)`: "{{instance}}",
		`histogram_quantile(0.9, sum by (instance, le) (rate(logmirror_mirror_commit_seconds_bucket[5m])))`:  "{{le}}",
		`sum by (member) (logmirror_logservice_term) / sum by (instance) (logmirror_mirror_age_seconds) > 1`: "{{member}}",
		`logmirror_mirror_age_seconds`: "{{member}}",
	} {
		if err := checkLegend(metrics, expression, legend); err == nil || !strings.Contains(err.Error(), "the legend names") {
			t.Errorf("%s by %s: %v", expression, legend, err)
		}
	}
}

type ruleFile struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	} `yaml:"groups"`
}

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

var (
	duration      = regexp.MustCompile(`^([0-9]+[smhd])?$`)
	templateLabel = regexp.MustCompile(`\$labels\.([a-z_]+)`)
)

func TestAlerts(t *testing.T) {
	metrics := exported(t)
	var rules ruleFile
	decode(t, "../../deploy/prometheus/alerts.yaml", &rules)
	entries := runbook(t)
	seen := make(map[string]bool)
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if seen[rule.Alert] {
				t.Errorf("%s comes twice", rule.Alert)
			}
			seen[rule.Alert] = true
			known, err := check(metrics, rule.Expr)
			if err != nil {
				t.Errorf("%s: %v", rule.Alert, err)
			}
			if !duration.MatchString(rule.For) {
				t.Errorf("%s: for %q", rule.Alert, rule.For)
			}
			if severity := rule.Labels["severity"]; severity != "page" && severity != "ticket" {
				t.Errorf("%s: severity %q", rule.Alert, severity)
			}
			for _, used := range templateLabel.FindAllStringSubmatch(rule.Annotations["summary"], -1) {
				if !slices.Contains(known, used[1]) {
					t.Errorf("%s: the summary names label %q, which the expression has not", rule.Alert, used[1])
				}
			}
			if rule.Annotations["summary"] == "" || rule.Annotations["runbook"] != "docs/operations.md#"+strings.ToLower(rule.Alert) {
				t.Errorf("%s: annotations %v", rule.Alert, rule.Annotations)
			}
			if !slices.Contains(entries, rule.Alert) {
				t.Errorf("%s has no entry in docs/operations.md", rule.Alert)
			}
		}
	}
	for _, entry := range entries {
		if !seen[entry] {
			t.Errorf("docs/operations.md has an entry for %s, which is no alert", entry)
		}
	}
}

// runbook are the headings of the alerts' entries in docs/operations.md. Their anchors are their names in small letters.
func runbook(t *testing.T) (entries []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "### Logmirror"); found {
			entries = append(entries, "Logmirror"+name)
		}
	}
	return entries
}

type dashboard struct {
	Panels []struct {
		Title   string
		Type    string
		Targets []struct{ Expr, LegendFormat string }
	}
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
}

var (
	legendLabel = regexp.MustCompile(`{{ *([a-z_]+) *}}`)
	labelValues = regexp.MustCompile(`^label_values\(([a-z_]+), ([a-z_]+)\)$`)
)

// checkLegend holds the labels that a legend names to those that its expression results in.
func checkLegend(metrics map[string]metric, expression, legend string) error {
	has, err := check(metrics, strings.ReplaceAll(expression, "$__rate_interval", "5m"))
	if err != nil {
		return err
	}
	for _, used := range legendLabel.FindAllStringSubmatch(legend, -1) {
		if !slices.Contains(has, used[1]) {
			return fmt.Errorf("the legend names label %q; %s results in %v", used[1], expression, has)
		}
	}
	return nil
}

func TestDashboard(t *testing.T) {
	metrics := exported(t)
	text, err := os.ReadFile("../../deploy/grafana/logmirror.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	expressions := 0
	for _, panel := range d.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("%s shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			expressions++
			if err := checkLegend(metrics, target.Expr, target.LegendFormat); err != nil {
				t.Errorf("%s: %v", panel.Title, err)
			}
		}
	}
	for _, variable := range d.Templating.List {
		if variable.Type != "query" {
			continue
		}
		parts := labelValues.FindStringSubmatch(variable.Query)
		if parts == nil {
			t.Fatalf("variable %s: %q", variable.Name, variable.Query)
		}
		if has, err := lookUp(metrics, parts[1]); err != nil || !slices.Contains(has, parts[2]) {
			t.Errorf("variable %s: label %s of %s: %v", variable.Name, parts[2], parts[1], err)
		}
	}
	if expressions < 30 {
		t.Errorf("only %d expressions were found", expressions)
	}
}

// The ready-made configuration names the rules that there are and the labels that the checks above count on.
func TestScrapeConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../deploy/prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			StaticConfigs []struct {
				Targets []string          `yaml:"targets"`
				Labels  map[string]string `yaml:"labels"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	for _, name := range config.RuleFiles {
		if _, err := os.Stat("../../deploy/prometheus/" + name); err != nil {
			t.Error(err)
		}
	}
	for _, job := range config.ScrapeConfigs {
		if !strings.HasPrefix(job.JobName, "logmirror-") {
			t.Errorf("job %q: alerts look for logmirror-…", job.JobName)
		}
		for _, target := range job.StaticConfigs {
			for label := range target.Labels {
				if !slices.Contains(targetLabels, label) {
					t.Errorf("job %s adds a label %q", job.JobName, label)
				}
			}
		}
	}
	if len(config.ScrapeConfigs) != 2 {
		t.Errorf("%d jobs", len(config.ScrapeConfigs))
	}
}
