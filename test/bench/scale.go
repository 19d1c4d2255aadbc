package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scaleCurve is one curve of logmirror alone: what an operation costs, or a unit takes of memory, against one quantity.
type scaleCurve struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	X      string `json:"x"` // what the points' X is
	Source string `json:"source"`
	// Machine and LoadAverages (of one minute, before and after) say what rates and latencies are worth.
	Machine      string       `json:"machine"`
	LoadAverages [2]float64   `json:"load_averages"`
	Began        time.Time    `json:"began"`
	Seconds      float64      `json:"seconds"`
	Points       []scalePoint `json:"points"`
}

// scalePoint is one measurement. What is per operation counts the operations of all clients.
type scalePoint struct {
	X      float64 `json:"x"`
	Series string  `json:"series,omitempty"`
	// The configuration: the first Driven frontends have clients.
	Members    int     `json:"members"`
	Frontends  int     `json:"frontends"`
	Driven     int     `json:"driven"`
	Clients    int     `json:"clients"`
	ValueBytes int     `json:"value_bytes,omitempty"`
	DuePerSec  float64 `json:"due_per_second,omitempty"` // zero: as fast as it goes

	OperationsPerSecond float64 `json:"operations_per_second"`
	P50Milliseconds     float64 `json:"p50_milliseconds"`
	P99Milliseconds     float64 `json:"p99_milliseconds"`
	Operations          int     `json:"operations"` // of an idle system: seconds
	Failures            int     `json:"failures"`
	FirstFailure        string  `json:"first_failure,omitempty"`
	Seconds             float64 `json:"seconds"`

	CPUMicrosPerOp float64        `json:"cpu_microseconds_per_operation"` // of all processes
	EntriesPerOp   float64        `json:"entries_per_operation"`
	LogBytesPerOp  float64        `json:"log_bytes_per_operation"` // of entries, once
	Log            []memberCost   `json:"log_members,omitempty"`
	Mirrors        []frontendCost `json:"mirrors,omitempty"`
	// Counted are figures that one curve alone has.
	Counted map[string]float64 `json:"counted,omitempty"`
}

// memberCost is what an operation took of one log member. Bytes are TCP's payload.
type memberCost struct {
	Leader         bool    `json:"leader"`
	Tails          float64 `json:"tails"`  // times each entry was sent to tails
	Intake         float64 `json:"intake"` // share of the proposals that came in here
	CPUMicrosPerOp float64 `json:"cpu_microseconds_per_operation"`
	SentToMembers  float64 `json:"sent_to_members_bytes_per_operation"`
	SentToMirrors  float64 `json:"sent_to_frontends_bytes_per_operation"`
	WrittenPerOp   float64 `json:"written_bytes_per_operation"` // to its log, in whole blocks
	GroupsPerOp    float64 `json:"synced_groups_per_operation"`
	AnonymousMB    float64 `json:"anonymous_megabytes"`
	ResidentMB     float64 `json:"resident_megabytes"`
}

// frontendCost is what an operation took of one frontend.
type frontendCost struct {
	Driven            bool    `json:"driven"`
	CPUMicrosPerOp    float64 `json:"cpu_microseconds_per_operation"`
	ReceivedPerOp     float64 `json:"received_from_log_bytes_per_operation"`
	SentPerOp         float64 `json:"sent_to_log_bytes_per_operation"`
	AllocatedPerOp    float64 `json:"allocated_bytes_per_operation"`
	CollectionsPerSec float64 `json:"collections_per_second"`
	AnonymousMB       float64 `json:"anonymous_megabytes"`
	ResidentMB        float64 `json:"resident_megabytes"`
}

// scaling is one run of some curves.
type scaling struct {
	options
	directory string
	systems   int // started so far, for directories of their own
}

// scaleKind is a curve that can be measured.
type scaleKind struct {
	name, title, x string
	run            func(*scaling, context.Context) ([]scalePoint, error)
}

// scaleCurves in the order in which they are run.
var scaleCurves = []scaleKind{
	{"clients", "puts against clients of one frontend", "clients", (*scaling).clientsCurve},
	{"value", "puts against the size of a value", "bytes of a value", (*scaling).valueCurve},
	{"frontends", "puts spread over all frontends, against their number", "frontends", (*scaling).frontendsCurve},
	{"regions", "puts through one frontend, against further regions", "regions beyond the first", (*scaling).regionsCurve},
	{"tails", "puts against the tails of one log member", "tails of one member", (*scaling).tailsCurve},
	{"watchers", "watchers of one frontend", "watchers", (*scaling).watchersCurve},
	{"keys", "keys held by a frontend", "keys", (*scaling).keysCurve},
	{"leases", "leases kept by a frontend", "leases", (*scaling).leasesCurve},
	{"check", "configurations that the model was not fitted to", "number", (*scaling).checkCurve},
}

// runScale runs the curves that are named, writes each as soon as it is measured, and keeps those of earlier runs that it
// does not measure again.
func runScale(ctx context.Context, o options, directory string) error {
	names := strings.Split(o.scale, ",")
	if o.scale == "all" {
		names = nil
		for _, c := range scaleCurves {
			names = append(names, c.name)
		}
	}
	run := &scaling{options: o, directory: directory}
	for _, name := range names {
		i := slices.IndexFunc(scaleCurves, func(c scaleKind) bool { return c.name == name })
		if i < 0 {
			return fmt.Errorf("no curve is named %q", name)
		}
		chosen := scaleCurves[i]
		before, err := loadAverage()
		if err != nil {
			return err
		}
		curve := &scaleCurve{Name: name, Title: chosen.title, X: chosen.x, Source: describe(ctx, o.source), Machine: machine(), Began: time.Now().UTC()}
		points, err := chosen.run(run, ctx)
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("curve %s: %w", name, err)
		}
		after, err := loadAverage()
		if err != nil {
			return err
		}
		curve.Points, curve.LoadAverages, curve.Seconds = points, [2]float64{before, after}, time.Since(curve.Began).Seconds()
		if err := publishScale(curve, o.scaleInto); err != nil {
			return err
		}
	}
	return nil
}

const scaleFile = "scaling.json"

// readScale returns the curves measured so far, by name.
func readScale(directory string) (map[string]*scaleCurve, error) {
	curves := map[string]*scaleCurve{}
	encoded, err := os.ReadFile(filepath.Join(directory, scaleFile))
	if errors.Is(err, os.ErrNotExist) {
		return curves, nil
	}
	if err != nil {
		return nil, err
	}
	return curves, json.Unmarshal(encoded, &curves)
}

// publishScale puts a curve beside the others, and draws it.
func publishScale(curve *scaleCurve, into string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	curves, err := readScale(into)
	if err != nil {
		return err
	}
	curves[curve.Name] = curve
	encoded, err := json.MarshalIndent(curves, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(into, scaleFile), append(encoded, '\n'), 0o644); err != nil {
		return err
	}
	for name, picture := range scalePictures(curve) {
		if err := os.WriteFile(filepath.Join(into, "scale-"+name+".svg"), []byte(picture), 0o644); err != nil {
			return err
		}
	}
	var tables strings.Builder
	for _, c := range scaleCurves {
		if measured := curves[c.name]; measured != nil {
			measured.markdown(&tables)
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %d points in %.0f s\n", curve.Name, len(curve.Points), curve.Seconds)
	return os.WriteFile(filepath.Join(into, "scaling.md"), []byte("# Scaling curves, as measured\n\nWritten by `make bench-scale`; "+
		"[capacity.md](../capacity.md) says what follows from them.\n"+tables.String()), 0o644)
}

func loadAverage() (one float64, err error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscan(string(text), &one)
	}
	return one, err
}

// start starts log members and frontends, and returns when the first member leads, each frontend answers and the keys are
// there.
func (run *scaling) start(ctx context.Context, of shape, keys int) (*system, error) {
	run.systems++
	of.memberFlags = append([]string{"--checkpoint-log-bytes", "68719476736"}, of.memberFlags...)
	s, err := startShape("logmirror", run.binaries, filepath.Join(run.directory, fmt.Sprintf("scale-%d", run.systems)), nil, of)
	if err != nil {
		return nil, err
	}
	err = s.awaitReady(ctx)
	if err == nil && of.tailed != nil {
		err = s.awaitLeader(ctx)
	}
	if err == nil {
		err = preload(ctx, s.only(0), keys)
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, s.lastOutput())
		s.stop()
		return nil, err
	}
	return s, nil
}

// finish ends a system and removes its data, which may be gigabytes.
func (run *scaling) finish(s *system) error {
	s.stop()
	return os.RemoveAll(filepath.Dir(s.processes[0].output))
}

// awaitLeader waits until the first member leads.
func (s *system) awaitLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	for {
		figures, err := s.processes[0].allFigures()
		if err != nil {
			return err
		}
		if figures["logmirror_logservice_is_leader"] == 1 {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait until the first member leads: %w", err)
		}
	}
}

func (p *process) allFigures() (map[string]float64, error) {
	figures := map[string]float64{}
	err := p.figures(func(name string, value float64) {
		if !strings.HasSuffix(name, "_bucket") {
			figures[name] += value
		}
	})
	return figures, err
}

// snapshot is what all processes have used and counted at one moment.
type snapshot struct {
	at      time.Time
	used    map[string]usage
	figures map[string]map[string]float64
	flows   flows
}

func (s *system) snapshot() (*snapshot, error) {
	now := &snapshot{used: map[string]usage{}, figures: map[string]map[string]float64{}}
	var err error
	for _, p := range s.processes {
		if now.figures[p.name], err = p.allFigures(); err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", p.name, err)
		}
		if now.used[p.name], err = p.usage(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", p.name, err, s.lastOutput())
		}
	}
	now.flows, err = s.flows()
	now.at = time.Now()
	return now, err
}

// point makes a measurement of two moments with so many operations between them.
func (s *system) point(before, after *snapshot, operations float64, driven int) scalePoint {
	p := scalePoint{Driven: driven, Operations: int(operations), Seconds: after.at.Sub(before.at).Seconds(), Counted: map[string]float64{}}
	p.OperationsPerSecond = operations / p.Seconds
	sent := after.flows.since(before.flows)
	grown := func(process, figure string) float64 {
		return after.figures[process][figure] - before.figures[process][figure]
	}
	cpu := func(process string) float64 {
		return float64((after.used[process].cpu - before.used[process].cpu).Nanoseconds()) / 1e3 / operations
	}
	var names struct{ members, frontends []string }
	for _, process := range s.processes {
		if strings.HasPrefix(process.name, "log-") {
			names.members = append(names.members, process.name)
		} else {
			names.frontends = append(names.frontends, process.name)
		}
	}
	p.Members, p.Frontends = len(names.members), len(names.frontends)
	total := func(senders, receivers []string) (bytes float64) {
		for _, from := range senders {
			for _, to := range receivers {
				bytes += float64(sent[[2]string{from, to}])
			}
		}
		return bytes
	}
	entries := grown(names.frontends[0], "logmirror_mirror_applied_entries_total")
	p.EntriesPerOp = entries / operations
	p.LogBytesPerOp = grown(names.members[0], "logmirror_logservice_group_bytes_sum") / operations
	intake := total(names.frontends, names.members)
	for _, name := range names.members {
		p.Log = append(p.Log, memberCost{
			Leader: after.figures[name]["logmirror_logservice_is_leader"] == 1,
			Tails:  grown(name, "logmirror_logservice_tail_entries_total") / max(entries, 1),
			Intake: total(names.frontends, []string{name}) / max(intake, 1), CPUMicrosPerOp: cpu(name),
			SentToMembers: total([]string{name}, names.members) / operations,
			SentToMirrors: total([]string{name}, append([]string{clientName}, names.frontends...)) / operations,
			WrittenPerOp:  grown(name, "logmirror_logservice_written_bytes_total") / operations,
			GroupsPerOp:   grown(name, "logmirror_logservice_group_write_seconds_count") / operations,
			AnonymousMB:   float64(after.used[name].anonymous) / 1e6, ResidentMB: float64(after.used[name].resident) / 1e6,
		})
		p.CPUMicrosPerOp += cpu(name)
	}
	for i, name := range names.frontends {
		p.Mirrors = append(p.Mirrors, frontendCost{
			Driven: i < driven, CPUMicrosPerOp: cpu(name),
			ReceivedPerOp:     total(names.members, []string{name}) / operations,
			SentPerOp:         total([]string{name}, names.members) / operations,
			AllocatedPerOp:    grown(name, "go_memstats_alloc_bytes_total") / operations,
			CollectionsPerSec: grown(name, "go_gc_duration_seconds_count") / p.Seconds,
			AnonymousMB:       float64(after.used[name].anonymous) / 1e6, ResidentMB: float64(after.used[name].resident) / 1e6,
		})
		p.CPUMicrosPerOp += cpu(name)
	}
	return p
}

// scaleLoad is what clients do to the first frontends of a system.
type scaleLoad struct {
	driven, connections, clients, keys, valueBytes int
	perSecond                                      float64 // zero: as fast as it goes
	worker                                         func(context.Context, workerOptions) (func(context.Context) error, error)
}

// measure drives a load for the duration of the options and makes a point of it.
func (run *scaling) measure(ctx context.Context, s *system, load scaleLoad) (scalePoint, error) {
	p, err := run.measureOnce(ctx, s, load)
	if err != nil {
		return p, fmt.Errorf("%d clients: %w\n%s", load.clients, err, s.lastOutput())
	}
	fmt.Fprintf(os.Stderr, "%d operations, %.0f a second, p50 %.1f ms, CPU %.1f µs\n", p.Operations, p.OperationsPerSecond, p.P50Milliseconds, p.CPUMicrosPerOp)
	if p.Failures > 0 {
		fmt.Fprintf(os.Stderr, "%d operations failed: %s\n", p.Failures, p.FirstFailure)
	}
	return p, nil
}

func (run *scaling) measureOnce(ctx context.Context, s *system, load scaleLoad) (p scalePoint, err error) {
	ctx, cancel := context.WithTimeout(ctx, run.duration+60*time.Second)
	defer cancel()
	reached := *s
	reached.endpoints = s.endpoints[:load.driven]
	clients, closeAll, err := connect(&reached, load.connections)
	if err != nil {
		return p, err
	}
	defer closeAll()
	r := row{name: "scale", connections: load.connections, clients: load.clients, worker: load.worker}
	if r.worker == nil {
		r.worker = sizedPutWorker(load.valueBytes)
	}
	operations, err := prepare(ctx, &reached, r, clients, load.keys)
	if err != nil {
		return p, err
	}
	if _, err := drivePaced(ctx, operations, load.perSecond, run.duration/4); err != nil { // grows stacks, buffers and batches
		return p, err
	}
	profile, err := run.profile(s, load)
	if err != nil {
		return p, err
	}
	before, err := s.snapshot()
	if err != nil {
		return p, err
	}
	stopWatching := s.watchFlows()
	done, err := drivePaced(ctx, operations, load.perSecond, run.duration)
	stopWatching()
	if err != nil {
		return p, err
	}
	after, err := s.snapshot()
	if err = errors.Join(err, profile.wait()); err != nil {
		return p, err
	}
	p = s.point(before, after, float64(len(done.latencies)), load.driven)
	p.Clients, p.ValueBytes, p.DuePerSec = load.clients, load.valueBytes, load.perSecond
	p.Failures, p.FirstFailure = done.failures, done.firstFailure
	slices.Sort(done.latencies)
	p.P50Milliseconds = float64(done.latencies[len(done.latencies)/2]) / 1e6
	p.P99Milliseconds = float64(done.latencies[len(done.latencies)*99/100]) / 1e6
	return p, nil
}

// profile starts perf where the options ask for it. Its files are named by the system and the load.
func (run *scaling) profile(s *system, load scaleLoad) (*profiler, error) {
	if run.perf == "" {
		return nil, nil
	}
	return startProfiler(s, run.perf, fmt.Sprintf("scale-%d.%d-clients.%d-bytes", run.systems, load.clients, load.valueBytes), run.duration)
}

// checkpoint has a checkpoint made now and returns how long that took.
func (run *scaling) checkpoint(ctx context.Context, s *system) (time.Duration, error) {
	began := time.Now()
	_, err := run.kvctl(ctx, s, "--timeout", "10m", "log", "checkpoint")
	return time.Since(began), err
}

func (run *scaling) kvctl(ctx context.Context, s *system, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, filepath.Join(run.binaries, "kvctl"), append([]string{"--endpoints", s.endpoints[0]}, arguments...)...)
	output, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("kvctl %s: %w\n%s", strings.Join(arguments, " "), err, output)
	}
	return string(output), nil
}
