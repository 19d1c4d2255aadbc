package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// column is one of a table: what stands above it, and what a point has there.
type column struct {
	heading string
	of      func(*scalePoint) string
}

func number(digits int, of func(*scalePoint) float64) func(*scalePoint) string {
	return func(p *scalePoint) string { return strconv.FormatFloat(of(p), 'f', digits, 64) }
}

// counted is a figure of one curve; empty where a point does not have it.
func counted(heading, name string, digits int) column {
	return column{heading, func(p *scalePoint) string {
		v, ok := p.Counted[name]
		if !ok {
			return ""
		}
		return strconv.FormatFloat(v, 'f', digits, 64)
	}}
}

// Means over processes of a role; zero without any.
func (p *scalePoint) ofLog(leader bool, figure func(memberCost) float64) float64 {
	return mean(p.Log, func(m memberCost) bool { return m.Leader == leader }, figure)
}

func (p *scalePoint) ofFrontends(driven bool, figure func(frontendCost) float64) float64 {
	return mean(p.Mirrors, func(f frontendCost) bool { return f.Driven == driven }, figure)
}

func mean[T any](all []T, chosen func(T) bool, figure func(T) float64) float64 {
	sum, n := 0.0, 0
	for _, one := range all {
		if chosen(one) {
			sum += figure(one)
			n++
		}
	}
	return sum / float64(max(n, 1))
}

// tailedMember is the follower that the curves about tails put them on.
func (p *scalePoint) tailedMember() memberCost {
	if len(p.Log) < membersEach {
		return memberCost{}
	}
	return p.Log[membersEach-1]
}

var (
	rateColumns = []column{
		{"ops/s", number(0, func(p *scalePoint) float64 { return p.OperationsPerSecond })},
		{"p50 ms", number(2, func(p *scalePoint) float64 { return p.P50Milliseconds })},
		{"p99 ms", number(1, func(p *scalePoint) float64 { return p.P99Milliseconds })},
	}
	cpuColumns = []column{
		{"CPU µs/op, all", number(1, func(p *scalePoint) float64 { return p.CPUMicrosPerOp })},
		{"leader", number(1, func(p *scalePoint) float64 {
			return p.ofLog(true, func(m memberCost) float64 { return m.CPUMicrosPerOp })
		})},
		{"a follower", number(1, func(p *scalePoint) float64 {
			return p.ofLog(false, func(m memberCost) float64 { return m.CPUMicrosPerOp })
		})},
		{"a frontend with clients", number(1, func(p *scalePoint) float64 {
			return p.ofFrontends(true, func(f frontendCost) float64 { return f.CPUMicrosPerOp })
		})},
		{"a mirror", number(1, func(p *scalePoint) float64 {
			return p.ofFrontends(false, func(f frontendCost) float64 { return f.CPUMicrosPerOp })
		})},
		{"commands/entry", number(1, func(p *scalePoint) float64 { return 1 / max(p.EntriesPerOp, 1e-9) })},
	}
	byteColumns = []column{
		{"log B/op", number(0, func(p *scalePoint) float64 { return p.LogBytesPerOp })},
		{"to a mirror B/op", number(0, func(p *scalePoint) float64 {
			return p.ofFrontends(p.Frontends == p.Driven, func(f frontendCost) float64 { return f.ReceivedPerOp })
		})},
		{"out of the leader B/op", number(0, func(p *scalePoint) float64 {
			return p.ofLog(true, func(m memberCost) float64 { return m.SentToMembers + m.SentToMirrors })
		})},
		{"written by a member B/op", number(0, func(p *scalePoint) float64 {
			return mean(p.Log, func(memberCost) bool { return true }, func(m memberCost) float64 { return m.WrittenPerOp })
		})},
	}
	tailColumns = []column{
		{"tails of a follower", number(0, func(p *scalePoint) float64 { return p.tailedMember().Tails })},
		{"its CPU µs/op", number(1, func(p *scalePoint) float64 { return p.tailedMember().CPUMicrosPerOp })},
		{"out of it B/op", number(0, func(p *scalePoint) float64 { return p.tailedMember().SentToMembers + p.tailedMember().SentToMirrors })},
		{"its RSS MB", number(0, func(p *scalePoint) float64 { return p.tailedMember().ResidentMB })},
	}
	holdColumns = []column{
		counted("anonymous MB", "held_anonymous_megabytes", 0), counted("RSS MB", "held_resident_megabytes", 0),
		counted("slabs MB", "slab_megabytes", 0), counted("logical MB", "logical_megabytes", 0), counted("image MB", "image_megabytes", 0),
	}
	checkpointColumns = []column{
		counted("checkpoint MB", "checkpoint_megabytes", 1), counted("sealed after s", "checkpoint_seconds", 1),
		counted("its CPU s", "checkpoint_frontend_cpu_seconds", 2), counted("apply held up ms", "pin_milliseconds", 2),
		counted("restart s", "restart_seconds", 2),
	}
	collectionColumns = []column{
		{"allocated B/op", number(0, func(p *scalePoint) float64 {
			return p.ofFrontends(true, func(f frontendCost) float64 { return f.AllocatedPerOp })
		})},
		{"collections/s", number(2, func(p *scalePoint) float64 {
			return p.ofFrontends(true, func(f frontendCost) float64 { return f.CollectionsPerSec })
		})},
	}
)

// columns of the tables, beside X and series.
var scaleColumns = map[string][]column{
	"clients":   slices.Concat(rateColumns, cpuColumns, byteColumns),
	"value":     slices.Concat(rateColumns, cpuColumns, byteColumns),
	"frontends": slices.Concat(rateColumns, cpuColumns, byteColumns),
	"regions":   slices.Concat(rateColumns, cpuColumns, byteColumns),
	"tails":     slices.Concat(rateColumns, tailColumns),
	"check":     slices.Concat(rateColumns, cpuColumns, byteColumns),
	"watchers": slices.Concat([]column{counted("anonymous MB", "held_anonymous_megabytes", 1)}, rateColumns, []column{
		cpuColumns[0], counted("CPU µs/event", "event_cpu_microseconds", 2),
		cpuColumns[3], counted("the same of watched keys", "watched_put_frontend_cpu_microseconds", 1)}),
	"keys": slices.Concat(holdColumns, rateColumns, cpuColumns[:1], cpuColumns[3:4], collectionColumns, []column{
		counted("serializable get CPU µs", "serializable_get_cpu_microseconds", 1), counted("loaded/s", "loaded_per_second", 0)}, checkpointColumns),
	"leases": slices.Concat(holdColumns, rateColumns[1:], cpuColumns[:1], collectionColumns, []column{
		counted("grant CPU µs", "grant_cpu_microseconds", 1), counted("grants/s", "grants_per_second", 0), counted("slowest grant s", "slowest_grant_seconds", 1),
		counted("renewal CPU µs", "renewal_cpu_microseconds", 1), counted("entries a renewal", "renewal_entries", 4)}, checkpointColumns),
}

func (c *scaleCurve) markdown(w io.StringWriter) {
	text := func(format string, a ...any) { _, _ = w.WriteString(fmt.Sprintf(format, a...)) } // to a strings.Builder
	text("\n## %s\n\nCommit %s; %s; load average %.1f before, %.1f after; %.0f s in all.\n\n",
		strings.ToUpper(c.Title[:1])+c.Title[1:], c.Source, c.Machine, c.LoadAverages[0], c.LoadAverages[1], c.Seconds)
	columns := append([]column{{c.X, number(0, func(p *scalePoint) float64 { return p.X })}}, scaleColumns[c.Name]...)
	if slices.ContainsFunc(c.Points, func(p scalePoint) bool { return p.Series != "" }) {
		columns = slices.Insert(columns, 1, column{"series", func(p *scalePoint) string { return p.Series }})
	}
	for _, one := range columns {
		text("| %s ", one.heading)
	}
	text("|\n%s|\n", strings.Repeat("|---", len(columns)))
	for i := range c.Points {
		for _, one := range columns {
			text("| %s ", one.of(&c.Points[i]))
		}
		text("|\n")
	}
}

// chart is a picture of lines.
type chart struct {
	name, title, y string
	evenX, evenY   bool
	lines          []chartLine
}

// chartLine is one line: a figure of the points of one series; ok says whether a point has it.
type chartLine struct {
	name, series string
	of           func(*scalePoint) (float64, bool)
}

func always(of func(*scalePoint) float64) func(*scalePoint) (float64, bool) {
	return func(p *scalePoint) (float64, bool) { return of(p), len(p.Log) > 0 }
}

func ofCounted(name string) func(*scalePoint) (float64, bool) {
	return func(p *scalePoint) (float64, bool) { v, ok := p.Counted[name]; return v, ok }
}

func cpuLines(series string) []chartLine {
	return []chartLine{
		{"all processes", series, always(func(p *scalePoint) float64 { return p.CPUMicrosPerOp })},
		{"leader", series, always(func(p *scalePoint) float64 {
			return p.ofLog(true, func(m memberCost) float64 { return m.CPUMicrosPerOp })
		})},
		{"a follower", series, always(func(p *scalePoint) float64 {
			return p.ofLog(false, func(m memberCost) float64 { return m.CPUMicrosPerOp })
		})},
		{"a frontend with clients", series, always(func(p *scalePoint) float64 {
			return p.ofFrontends(true, func(f frontendCost) float64 { return f.CPUMicrosPerOp })
		})},
		{"a mirror", series, func(p *scalePoint) (float64, bool) {
			return p.ofFrontends(false, func(f frontendCost) float64 { return f.CPUMicrosPerOp }), p.Frontends > p.Driven
		}},
	}
}

// scaleCharts are the pictures of each curve.
var scaleCharts = map[string][]chart{
	"clients":   {{"clients", "CPU time of a put", "µs", false, false, cpuLines("")}},
	"value":     {{"value", "CPU time of a put", "µs", false, false, cpuLines("")}},
	"frontends": {{"frontends", "CPU time of a put, load on all frontends", "µs", true, true, cpuLines("")}},
	"regions":   {{"regions", "CPU time of a put through one frontend, 1,000 a second", "µs", true, true, cpuLines("mirrors")}},
	"tails": {{"tails", "CPU time of a follower for a put, by its tails", "µs", true, true, []chartLine{
		{"1,000 puts/s", "1,000 puts/s", always(func(p *scalePoint) float64 { return p.tailedMember().CPUMicrosPerOp })},
		{"64 clients, as fast as it goes", "64 clients, as fast as it goes", always(func(p *scalePoint) float64 { return p.tailedMember().CPUMicrosPerOp })}}}},
	"watchers": {
		{"watchers", "memory of a frontend with watchers", "MB", false, false, []chartLine{
			{"100 streams", "a key each, 100 streams", ofCounted("held_anonymous_megabytes")},
			{"a stream each", "a stream each", ofCounted("held_anonymous_megabytes")}}},
		{"watch-last", "from a put to the last delivery, watchers of one key on 100 streams", "ms", false, false, []chartLine{
			{"median", "one key, 100 streams", func(p *scalePoint) (float64, bool) { return p.P50Milliseconds, true }}}}},
	"keys": {
		{"keys", "memory of a frontend", "MB", false, false, []chartLine{
			{"anonymous", "", ofCounted("held_anonymous_megabytes")}, {"image", "", ofCounted("image_megabytes")}}},
		{"keys-cpu", "CPU time of all processes for a put, and for a serializable get", "µs", false, true, []chartLine{
			{"put", "", always(func(p *scalePoint) float64 { return p.CPUMicrosPerOp })},
			{"get", "", ofCounted("serializable_get_cpu_microseconds")}}}},
	"leases": {{"leases", "memory of a frontend with leases", "MB", false, false, []chartLine{
		{"anonymous", "", ofCounted("held_anonymous_megabytes")}}}},
}

var lineColours = []string{ours, baseColour, "#3a7d44", "#8a2be2", "#c2185b"}

// scalePictures draws each chart of a curve that has points in it.
func scalePictures(c *scaleCurve) map[string]string {
	pictures := map[string]string{}
	for _, one := range scaleCharts[c.Name] {
		pictures[one.name] = one.svg(c)
	}
	return pictures
}

func (ch *chart) svg(c *scaleCurve) string {
	type xy struct{ x, y float64 }
	lines := make([][]xy, len(ch.lines))
	var xs, ys []float64
	for i, line := range ch.lines {
		for j := range c.Points {
			p := &c.Points[j]
			v, ok := line.of(p)
			if p.Series != line.series || !ok || !ch.evenX && p.X == 0 {
				continue
			}
			lines[i] = append(lines[i], xy{p.X, v})
			xs, ys = append(xs, p.X), append(ys, v)
		}
	}
	x, y := plotX(xs, ch.evenX), plotY(ys, ch.evenY)
	var b strings.Builder
	beginPicture(&b, x, y, ch.title, c.X, ch.y)
	at := plotLeft
	for i, line := range ch.lines {
		if len(lines[i]) == 0 {
			continue
		}
		colour := lineColours[i%len(lineColours)]
		fmt.Fprintf(&b, `<text x="%d" y="38" fill="%s">%s</text>`+"\n", at, colour, line.name)
		at += 20 + 7*len(line.name)
		var points []string
		for _, p := range lines[i] {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(p.x), y.at(p.y)))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x.at(p.x), y.at(p.y), colour)
		}
		drawLine(&b, points, colour, "")
	}
	return b.String() + "</svg>\n"
}
