package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what a system's processes have used since they began, and hold now.
type usage struct {
	cpu time.Duration // in user and kernel mode
	// switches are the voluntary context switches of all threads.
	switches int64
	// resident and anonymous are bytes of memory; the second without mapped files.
	resident, anonymous int64
	// machineDisk is what the whole machine has written to its disks. What processes count for themselves misleads on files
	// of zeros that are overwritten.
	machineDisk int64
	// counters are logmirror's own, summed over its processes: those in countedMetrics.
	counters map[string]float64
}

// countedMetrics are the counters of logmirror that tell how a load was packed, by the name that the report gives them.
var countedMetrics = map[string]string{
	"logmirror_mirror_proposals_total":               "batches",
	"logmirror_logservice_group_write_seconds_count": "log_groups",
	"logmirror_mirror_read_round_readers_count":      "read_rounds",
	"logmirror_logservice_written_bytes_total":       logWritten,
	"logmirror_logservice_reserved_bytes_total":      logReserved,
}

// What log members write to their disks, by their own count: entries in whole blocks, and zeros ahead of them.
const logWritten, logReserved = "log_written_bytes", "log_reserved_bytes"

// clockTicks is how many units of /proc/PID/stat make a second: fixed at 100 by Linux for every architecture Go runs on.
const clockTicks = 100

func (s *system) usage() (total usage, err error) {
	total.counters = map[string]float64{}
	for _, p := range s.processes {
		if err := p.count(total.counters); err != nil {
			return total, fmt.Errorf("metrics of %s: %w", p.name, err)
		}
		one, err := p.usage()
		if err != nil {
			return total, fmt.Errorf("%s: %w\n%s", p.name, err, s.lastOutput())
		}
		total.cpu += one.cpu
		total.switches += one.switches
		total.resident += one.resident
		total.anonymous += one.anonymous
	}
	total.machineDisk, err = machineDiskBytes()
	return total, err
}

func (p *process) usage() (u usage, err error) {
	directory := fmt.Sprintf("/proc/%d", p.command.Process.Pid)
	stat, err := os.ReadFile(directory + "/stat")
	if err != nil {
		return u, fmt.Errorf("has ended: %w", err)
	}
	// The second field, the program's name in parentheses, may hold anything; utime and stime are fields 14 and 15.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 || string(fields[0]) == "Z" {
		return u, fmt.Errorf("has ended")
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * time.Second / clockTicks
	}
	status, err := statusFields(directory + "/status")
	if err != nil {
		return u, err
	}
	u.resident, u.anonymous = status["VmRSS"]<<10, status["RssAnon"]<<10
	threads, err := filepath.Glob(directory + "/task/*/status")
	if err != nil {
		return u, err
	}
	for _, thread := range threads {
		if status, err := statusFields(thread); err == nil { // a thread may have ended meanwhile
			u.switches += status["voluntary_ctxt_switches"]
		}
	}
	return u, nil
}

// How servers come to rest before their memory is looked at: whatever they write behind or collect when nobody asks for anything
// takes a while, ours 10 s until they give back what is free.
const (
	restfulShare = 0.1 // of one processor, all of a system's processes together
	memorySettle = 13 * time.Second
	settleMost   = 2 * time.Minute
)

// settle returns when the system has been at rest for memorySettle, or nearly so for settleMost.
func (s *system) settle(ctx context.Context) error {
	const interval = time.Second
	var before time.Duration
	rested := time.Duration(0)
	for waited := time.Duration(0); rested < memorySettle && waited < settleMost; waited += interval {
		var used time.Duration
		for _, p := range s.processes {
			one, err := p.usage()
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", p.name, err, s.lastOutput())
			}
			used += one.cpu
		}
		if rested += interval; used-before > time.Duration(restfulShare*float64(interval)) {
			rested = 0
		}
		before = used
		if err := pause(ctx, interval); err != nil {
			return err
		}
	}
	return nil
}

// count adds the process's counters.
func (p *process) count(counters map[string]float64) error {
	return p.figures(func(name string, value float64) {
		if counted := countedMetrics[name]; counted != "" {
			counters[counted] += value
		}
	})
}

// figures visits every metric that the process exports, whatever its labels.
func (p *process) figures(visit func(name string, value float64)) error {
	if p.metrics == "" {
		return nil
	}
	response, err := http.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 2 {
			continue
		}
		name, _, _ := strings.Cut(words[0], "{")
		value, err := strconv.ParseFloat(words[1], 64)
		if err != nil {
			return err
		}
		visit(name, value)
	}
	return nil
}

// statusFields are the numbers in a file like /proc/PID/status, whatever their units.
func statusFields(path string) (map[string]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		if len(words) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			fields[name] = n
		}
	}
	return fields, nil
}

// machineDiskBytes sums over the disks that are not made of other ones.
func machineDiskBytes() (total int64, err error) {
	text, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return 0, err
	}
	const sectorBytes = 512 // of diskstats, whatever the disk's own are
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}
		if _, err := os.Stat("/sys/block/" + fields[2] + "/device"); err != nil {
			continue // a partition, or a device in memory or over others
		}
		sectors, err := strconv.ParseInt(fields[9], 10, 64)
		if err != nil {
			return 0, err
		}
		total += sectors * sectorBytes
	}
	return total, nil
}
