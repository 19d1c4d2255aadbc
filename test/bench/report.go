package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"
)

// sample is what one system did and used in one round of one row.
type sample struct {
	OperationsPerSecond float64 `json:"operations_per_second"`
	P50Milliseconds     float64 `json:"p50_milliseconds"`
	P99Milliseconds     float64 `json:"p99_milliseconds"`
	CPUMicrosPerOp      float64 `json:"server_cpu_microseconds_per_operation"`
	ResidentMegabytes   float64 `json:"server_resident_megabytes"`
	// AnonymousMegabytes is the resident memory without mapped files, which the kernel takes back when it needs them.
	AnonymousMegabytes float64 `json:"server_anonymous_megabytes"`
	// SwitchesPerOp are voluntary context switches of the servers' threads: waits for something, counted exactly.
	SwitchesPerOp float64 `json:"server_context_switches_per_operation"`
	// DiskBytesPerOp are those that the whole machine wrote to its disks meanwhile: read it on a machine without other work.
	DiskBytesPerOp float64 `json:"machine_disk_bytes_per_operation"`
	// CountedPerOp are logmirror's own counters: batches that frontends handed over, groups that log members synced, read
	// rounds.
	CountedPerOp         map[string]float64 `json:"counted_per_operation,omitempty"`
	AddedMegabytes       float64            `json:"added_megabytes,omitempty"` // rows about memory have this and the line before only
	Operations           int                `json:"operations"`
	Failures             int                `json:"failures"`
	FirstFailure         string             `json:"first_failure,omitempty"`
	MeasuredMilliseconds float64            `json:"measured_milliseconds"`
}

type meter struct {
	system *system
	began  time.Time
	used   usage
}

func startMeter(s *system) (*meter, error) {
	used, err := s.usage()
	return &meter{system: s, began: time.Now(), used: used}, err
}

// stop ends the measurement and makes a sample of what every client saw.
func (m *meter) stop(latencies [][]time.Duration, failures []failure) (sample, error) {
	elapsed := time.Since(m.began)
	used, err := m.system.usage()
	if err != nil {
		return sample{}, err
	}
	result := sample{ResidentMegabytes: float64(used.resident) / 1e6, AnonymousMegabytes: float64(used.anonymous) / 1e6,
		MeasuredMilliseconds: float64(elapsed) / 1e6}
	for _, failed := range failures {
		result.Failures += failed.count
		if failed.first != nil && result.FirstFailure == "" {
			result.FirstFailure = failed.first.Error()
		}
	}
	all := slices.Concat(latencies...)
	if len(all) == 0 {
		return result, fmt.Errorf("no operation of %s succeeded: %s", m.system.name, result.FirstFailure)
	}
	slices.Sort(all)
	result.Operations = len(all)
	result.OperationsPerSecond = float64(len(all)) / elapsed.Seconds()
	result.P50Milliseconds = float64(all[len(all)/2]) / 1e6
	result.P99Milliseconds = float64(all[len(all)*99/100]) / 1e6
	perOp := 1 / float64(len(all))
	result.CPUMicrosPerOp = float64((used.cpu - m.used.cpu).Microseconds()) * perOp
	result.SwitchesPerOp = float64(used.switches-m.used.switches) * perOp
	result.DiskBytesPerOp = float64(used.machineDisk-m.used.machineDisk) * perOp
	result.CountedPerOp = map[string]float64{}
	for name, count := range used.counters {
		result.CountedPerOp[name] = (count - m.used.counters[name]) * perOp
	}
	return result, nil
}

// spread is a figure over the rounds.
type spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

// spreadOf takes the mean of the two in the middle of an even number of values.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	middle := (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
	return spread{Median: middle, Least: sorted[0], Most: sorted[len(sorted)-1]}
}

// result is one row of the table: both systems, round by round.
type result struct {
	Name        string   `json:"name"`
	Title       string   `json:"title"`
	Connections int      `json:"connections"`
	Clients     int      `json:"clients"`
	Base        []sample `json:"base"`
	Logmirror   []sample `json:"logmirror"`
	// The ratios are logmirror's figure to the base's of the same round, so that what else the machine did in it cancels out.
	OperationsRatio spread `json:"operations_ratio"`
	CPURatio        spread `json:"cpu_ratio"`
	AddedRatio      spread `json:"added_memory_ratio,omitzero"`
}

// aboutMemory tells the rows that measure memory and nothing else.
func (r *result) aboutMemory() bool { return len(r.Base) > 0 && r.Base[0].AddedMegabytes != 0 }

// finish computes the ratios; both systems have as many samples.
func (r *result) finish() {
	var operations, cpu, added []float64
	for i := range r.Base {
		if r.aboutMemory() {
			added = append(added, r.Logmirror[i].AddedMegabytes/r.Base[i].AddedMegabytes)
			continue
		}
		operations = append(operations, r.Logmirror[i].OperationsPerSecond/r.Base[i].OperationsPerSecond)
		cpu = append(cpu, r.Logmirror[i].CPUMicrosPerOp/max(r.Base[i].CPUMicrosPerOp, 1e-3))
	}
	if r.aboutMemory() {
		r.AddedRatio = spreadOf(added)
		return
	}
	r.OperationsRatio, r.CPURatio = spreadOf(operations), spreadOf(cpu)
}

func (r *result) failures() (n int, first string) {
	for _, s := range slices.Concat(r.Base, r.Logmirror) {
		if n += s.Failures; first == "" {
			first = s.FirstFailure
		}
	}
	return n, first
}

func median(samples []sample, figure func(sample) float64) float64 {
	var values []float64
	for _, s := range samples {
		values = append(values, figure(s))
	}
	return spreadOf(values).Median
}

// report is the JSON document.
type report struct {
	Machine  string    `json:"machine"`
	Source   string    `json:"source"`
	Base     string    `json:"base"` // what logmirror is measured against
	Began    time.Time `json:"began"`
	Rounds   int       `json:"rounds"`
	Duration string    `json:"duration_of_a_round"`
	Keys     int       `json:"keys"`
	Rows     []*result `json:"rows"`
	// Large is the row about servers that hold LargeKeys keys.
	LargeKeys int       `json:"large_keys,omitempty"`
	Large     []holding `json:"large,omitempty"`
	// Bootstrap is the row about a frontend that joins LargeKeys keys.
	Bootstrap *bootstrapped `json:"bootstrap,omitempty"`
	// Curves are latency against load.
	Curves []curve `json:"latency_against_load,omitempty"`
	// WAN is the row across regions.
	WAN []wanResult `json:"across_regions,omitempty"`
}

func machine() string {
	return fmt.Sprintf("%d cores, %s, %s/%s", runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func (r *report) markdown(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s; source %s; %d rounds of %s a row and system, medians; ratios logmirror / %s, median (least–most)\n\n"+
		"| operation | system | ops/s | p50 ms | p99 ms | server CPU µs/op | switches/op | disk B/op (log members) | RSS MB (anonymous) "+
		"| ops/s ratio | CPU ratio | failed |\n"+
		"|---|---|---|---|---|---|---|---|---|---|---|---|\n", r.Machine, r.Source, r.Rounds, r.Duration, r.Base)
	if err != nil {
		return err
	}
	for _, row := range r.Rows {
		if row.aboutMemory() {
			continue
		}
		line := func(title, name string, samples []sample, ratios string) error {
			failed := 0
			for _, s := range samples {
				failed += s.Failures
			}
			_, err := fmt.Fprintf(w, "| %s | %s | %.0f | %.2f | %.2f | %.1f | %.1f | %s | %.0f (%.0f) | %s | %d |\n", title, name,
				median(samples, func(s sample) float64 { return s.OperationsPerSecond }),
				median(samples, func(s sample) float64 { return s.P50Milliseconds }),
				median(samples, func(s sample) float64 { return s.P99Milliseconds }),
				median(samples, func(s sample) float64 { return s.CPUMicrosPerOp }),
				median(samples, func(s sample) float64 { return s.SwitchesPerOp }),
				diskBytes(samples),
				median(samples, func(s sample) float64 { return s.ResidentMegabytes }),
				median(samples, func(s sample) float64 { return s.AnonymousMegabytes }), ratios, failed)
			return err
		}
		if err := line(row.Title, r.Base, row.Base, " | "); err != nil {
			return err
		}
		ratios := fmt.Sprintf("%v | %v", row.OperationsRatio, row.CPURatio)
		if err := line("", "logmirror", row.Logmirror, ratios); err != nil {
			return err
		}
	}
	if err := r.memoryMarkdown(w); err != nil {
		return err
	}
	if err := plotMarkdown(w, r.Base, r.Curves); err != nil {
		return err
	}
	if err := largeMarkdown(w, r.LargeKeys, r.Large); err != nil {
		return err
	}
	if err := bootstrapMarkdown(w, r.LargeKeys, r.Bootstrap); err != nil {
		return err
	}
	return wanMarkdown(w, r.WAN)
}

// diskBytes is what the machine wrote, and of it what log members say that they did.
func diskBytes(samples []sample) string {
	text := fmt.Sprintf("%.0f", median(samples, func(s sample) float64 { return s.DiskBytesPerOp }))
	if log := median(samples, func(s sample) float64 { return s.CountedPerOp[logWritten] + s.CountedPerOp[logReserved] }); log > 0 {
		text += fmt.Sprintf(" (%.0f)", log)
	}
	return text
}

// memoryMarkdown is the table of the rows about memory, if there are any.
func (r *report) memoryMarkdown(w io.Writer) error {
	heading := fmt.Sprintf("\n| memory of idle servers, fresh in each round | %s MB | logmirror MB | ratio |\n|---|---|---|---|\n", r.Base)
	for _, row := range r.Rows {
		if !row.aboutMemory() {
			continue
		}
		added := func(s sample) float64 { return s.AddedMegabytes }
		_, err := fmt.Fprintf(w, "%s| %s | %.1f | %.1f | %v |\n",
			heading, row.Title, median(row.Base, added), median(row.Logmirror, added), row.AddedRatio)
		if err != nil {
			return err
		}
		heading = ""
	}
	return nil
}

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f–%.2f)", s.Median, s.Least, s.Most) }
