// Command bench measures logmirror beside etcd: it starts three members of etcd and three log members with three
// frontends as processes of their own on fresh data directories, drives both with the same load through etcd's own
// client, in rounds that alternate between them, and prints a table. All traffic stays on 127.0.0.1, every row is
// bounded in clients and time, and every process is killed at the end, however it comes about.
//
// Read the CPU time per operation first: the load and the servers share the machine's cores, so operations per second
// say as much about what else runs there.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	source, binaries, against, rows, markdown, json, perf, plot string
	scale, scaleInto, memberFlags                               string
	rounds, keys, largeKeys                                     int
	duration                                                    time.Duration
	small                                                       bool
}

// loadGarbagePercent lets the load collect less often than Go does by itself. What it takes of the processors, the servers that are
// measured do not get.
const loadGarbagePercent = 800

func main() {
	runtime.LockOSThread() // the servers die with this thread: see startProcess
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(loadGarbagePercent)
	}
	var o options
	flag.StringVar(&o.source, "source", "../..", "checkout of logmirror whose binaries are built and measured")
	flag.StringVar(&o.binaries, "binaries", "", "directory of logsvc, frontend, kvctl and etcdmember built before (default: build them)")
	flag.StringVar(&o.against, "against", "", "directory of another build's logsvc and frontend, to measure against those instead of etcd")
	flag.StringVar(&o.rows, "rows", "", "names of the rows to run, with commas between; * at the end of one stands for anything (default: all)")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each row")
	flag.IntVar(&o.keys, "keys", 100000, "keys loaded before the first row; at least 1,000")
	flag.IntVar(&o.largeKeys, "large-keys", 1000000, "keys in the row about a server that holds many; at least 1,000")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "time that each system is driven in a round")
	flag.StringVar(&o.markdown, "markdown", "", "file for the table, beside standard output")
	flag.StringVar(&o.json, "json", "", "file for every round's figures")
	flag.StringVar(&o.perf, "perf", "", "directory for a profile by perf of each process of logmirror in the last round of each row")
	flag.StringVar(&o.memberFlags, "member-flags", "", "flags for the log members of the rows that share their servers, with spaces between")
	flag.StringVar(&o.plot, "plot", "", "directory for pictures of latency against load, measured with 1 to 1,000 clients after the rows")
	flag.StringVar(&o.scale, "scale", "", "names of scaling curves to measure instead of rows, with commas between, or all")
	flag.StringVar(&o.scaleInto, "scale-into", "", "directory for their figures, tables and pictures")
	flag.BoolVar(&o.small, "scale-small", false, "measure each curve over a hundredth of its range, to see that it works")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.rounds < 1 || min(o.keys, o.largeKeys) < rangeKeys || o.duration <= 0 {
		return errors.New("rounds, keys or duration is too small")
	}
	chosen, err := chooseRows(o.rows)
	if err != nil {
		return err
	}
	directory, err := os.MkdirTemp("", "logmirror-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()
	source := "of binaries built before"
	if o.binaries == "" {
		source = describe(ctx, o.source)
		o.binaries = filepath.Join(directory, "bin")
		if err := build(ctx, o.source, o.binaries); err != nil {
			return err
		}
	}
	if o.scale != "" {
		if o.scaleInto == "" {
			return errors.New("-scale needs -scale-into")
		}
		return runScale(ctx, o, directory)
	}
	base, err := startBase(o, filepath.Join(directory, "shared"))
	if err != nil {
		return err
	}
	defer base.stop()
	logmirror, err := startSystem("logmirror", o.binaries, filepath.Join(directory, "shared"), nil, strings.Fields(o.memberFlags)...)
	if err != nil {
		return err
	}
	defer logmirror.stop()
	for _, s := range []*system{base, logmirror} {
		if err := s.awaitReady(ctx); err != nil {
			return err
		}
		if err := preload(ctx, s, o.keys); err != nil {
			return fmt.Errorf("%w\n%s", err, s.lastOutput())
		}
	}
	document := &report{Machine: machine(), Source: source, Began: time.Now().UTC(), Base: base.name,
		Rounds: o.rounds, Duration: o.duration.String(), Keys: o.keys}
	failed := 0
	for _, r := range chosen {
		if r.name == largeRow {
			document.LargeKeys = o.largeKeys
			if document.Large, err = runLarge(ctx, o, directory); err != nil {
				return errors.Join(err, publish(document, o))
			}
			continue
		}
		if r.name == bootstrapRow {
			document.LargeKeys = o.largeKeys
			if document.Bootstrap, err = runBootstrap(ctx, o, directory); err != nil {
				return errors.Join(err, publish(document, o))
			}
			continue
		}
		if r.name == wanRow {
			if document.WAN, err = runWAN(ctx, o, directory); err != nil {
				return errors.Join(err, publish(document, o))
			}
			continue
		}
		var measured *result
		if r.worker == nil && watchLoads[r.name].load.kind == idleMemory {
			measured, err = runMemoryRow(ctx, r, o, directory)
		} else {
			measured, err = runRow(ctx, r, base, logmirror, o)
		}
		if err != nil {
			return errors.Join(err, publish(document, o)) // what was measured before is worth having
		}
		document.Rows = append(document.Rows, measured)
		n, first := measured.failures()
		fmt.Fprintf(os.Stderr, "%s: ratios of ops/s %v, CPU %v, memory added %v; %d failed %s\n",
			r.name, measured.OperationsRatio, measured.CPURatio, measured.AddedRatio, n, first)
		failed += n
	}
	if o.plot != "" {
		if document.Curves, err = runPlots(ctx, o, base, logmirror); err != nil {
			return errors.Join(err, publish(document, o))
		}
		if err := writePlots(o.plot, document.Base, document.Curves); err != nil {
			return err
		}
	}
	if err := publish(document, o); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d operations failed", failed)
	}
	return nil
}

// startBase starts what logmirror is measured against.
func startBase(o options, directory string) (*system, error) {
	if o.against == "" {
		return startSystem("etcd", o.binaries, directory, nil)
	}
	base, err := startSystem("logmirror", o.against, directory+"-against", nil, strings.Fields(o.memberFlags)...)
	if err == nil {
		base.name = "other build"
	}
	return base, err
}

// runRow drives both systems in every round, each first in every other round.
func runRow(ctx context.Context, r row, base, logmirror *system, o options) (*result, error) {
	measured := &result{Name: r.name, Title: r.title, Connections: r.connections, Clients: r.clients}
	for round := range o.rounds {
		order := []*system{base, logmirror}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			var profile *profiler
			if s == logmirror && o.perf != "" && round == o.rounds-1 {
				var err error
				if profile, err = startProfiler(s, o.perf, r.name, o.duration); err != nil {
					return nil, err
				}
			}
			one, err := drive(ctx, s, r, o.keys, o.duration)
			err = errors.Join(err, profile.wait())
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return nil, fmt.Errorf("%s on %s: %w\n%s", r.name, s.name, err, s.lastOutput())
			}
			if s == base {
				measured.Base = append(measured.Base, one)
			} else {
				measured.Logmirror = append(measured.Logmirror, one)
			}
		}
	}
	measured.finish()
	return measured, nil
}

func chooseRows(names string) ([]row, error) {
	all := rows()
	if names == "" {
		return all, nil
	}
	var chosen []row
	for name := range strings.SplitSeq(names, ",") {
		before := len(chosen)
		prefix, isPrefix := strings.CutSuffix(name, "*")
		for _, r := range all {
			if r.name == name || isPrefix && strings.HasPrefix(r.name, prefix) {
				chosen = append(chosen, r)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("no row is named %q", name)
		}
	}
	return chosen, nil
}

// build makes the servers: ours from the checkout, etcd's from the module that go.mod names. The working directory must be
// this module's.
func build(ctx context.Context, source, into string) error {
	into, err := filepath.Abs(into)
	if err != nil {
		return err
	}
	for _, one := range []struct {
		directory string
		packages  []string
	}{{source, []string{"./cmd/logsvc", "./cmd/frontend", "./cmd/kvctl"}}, {".", []string{"./etcdmember"}}} {
		command := exec.CommandContext(ctx, "go", append([]string{"build", "-o", into + "/"}, one.packages...)...)
		command.Dir = one.directory
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build %v in %s: %w\n%s", one.packages, one.directory, err, output)
		}
	}
	return nil
}

// describe names the commit that is measured, as far as git knows it.
func describe(ctx context.Context, source string) string {
	output, err := exec.CommandContext(ctx, "git", "-C", source, "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(output))
}

func publish(document *report, o options) error {
	var table strings.Builder
	if err := document.markdown(&table); err != nil {
		return err
	}
	fmt.Print(table.String())
	if o.markdown != "" {
		if err := os.WriteFile(o.markdown, []byte(table.String()), 0o644); err != nil {
			return err
		}
	}
	if o.json == "" {
		return nil
	}
	encoded, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(encoded, '\n'), 0o644)
}
