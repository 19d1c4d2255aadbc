// Command drills loses parts of a cluster on purpose and measures what its clients notice: real logsvc and frontend processes
// on this machine, in three regions whose links have the round trips of us, eu and ap (80, 150 and 100 ms).
//
//	go run ./test/drills lost-leader lost-region
//	go run ./test/drills -o json all
//	go run ./test/drills -repeat 3 lost-region
//
// Each drill prints numbers. A number with a goal that is missed, or a cluster that lost what it acknowledged, fails the
// drill. Between the drill's clients and the frontends of their region there is no delay.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// drill is one thing to practise.
type drill struct {
	name, what string
	run        func(ctx context.Context, e *environment, r *result) error
}

var drills = []drill{
	{"lost-member", "a log member that does not lead is killed, and starts again", lostMember},
	{"lost-leader", "the member that leads the log is killed, then one is paused", lostLeader},
	{"lost-region", "each region is cut off and healed, then killed and started again", lostRegion},
	{"one-way-cut", "the leader is not heard by the others, then does not hear them", oneWayCut},
	{"lagging-mirror", "a frontend sleeps under load, then misses so much that the log no longer holds it", laggingMirror},
	{"lost-quorum", "two of three members are lost for good, and the cluster is recovered", lostQuorum},
	{"restore", "everything is lost but a backup", restore},
	{"full-disk", "the disks of a follower, the leader and a frontend are full, and get room again", fullDisk},
	{"wrong-clock", "the wall clocks of the leader and of a frontend jump an hour ahead, then two hours back", wrongClock},
	{"rolling-restart", "every process is restarted, one after the other", rollingRestart},
}

// options are the flags.
type options struct {
	binaries, output string
	keep             bool
	repeat           int
}

// environment is what drills have in common.
type environment struct {
	binaries string
	// scratch is a directory of this drill alone.
	scratch string
	log     io.Writer
}

// errMissed says that a drill has failed and has told why.
var errMissed = errors.New("a drill has failed")

func main() {
	runtime.LockOSThread() // a process ends with the thread that started it
	var o options
	flag.StringVar(&o.binaries, "binaries", "", "`directory` of logsvc, frontend and kvctl; empty to build them")
	flag.StringVar(&o.output, "o", "text", "text, markdown or json")
	flag.IntVar(&o.repeat, "repeat", 1, "how often each drill is done, on a new cluster each time; from two on, medians and worst values are shown at the end")
	flag.BoolVar(&o.keep, "keep", false, "keep data and output of the processes, and say where they are")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: drills [flags] all | DRILL…\n\n")
		for _, d := range drills {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-16s %s\n", d.name, d.what)
		}
		fmt.Fprintln(flag.CommandLine.Output())
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, o, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "drills:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, names []string) error {
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"text", "markdown", "json"}, o.output) {
		return fmt.Errorf("-o %s: want text, markdown or json", o.output)
	}
	if o.repeat < 1 || o.repeat > repeatMax {
		return fmt.Errorf("-repeat %d: want 1 to %d", o.repeat, repeatMax)
	}
	directory, err := os.MkdirTemp("", "logmirror-drills-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "drills: everything is kept in", directory)
	} else {
		defer func() { _ = os.RemoveAll(directory) }() // a temporary one
	}
	if o.binaries == "" {
		o.binaries = filepath.Join(directory, "bin")
		if err := build(ctx, o.binaries); err != nil {
			return err
		}
	}
	if o.binaries, err = filepath.Abs(o.binaries); err != nil {
		return err
	}
	return runAll(ctx, o, chosen, directory)
}

// repeatMax bounds -repeat: a hundred times all drills is a day.
const repeatMax = 100

// runAll does each drill as often as it was asked to, in rounds, so that what the machine does otherwise at one time is not all
// in the numbers of one drill.
func runAll(ctx context.Context, o options, chosen []drill, directory string) error {
	failed := false
	runs := make([][]*result, len(chosen))
	for round := range o.repeat {
		for i, d := range chosen {
			scratch := filepath.Join(directory, fmt.Sprintf("%s-%d", d.name, round+1))
			e := &environment{binaries: o.binaries, scratch: scratch, log: os.Stderr}
			if err := os.MkdirAll(e.scratch, 0o700); err != nil {
				return err
			}
			r := perform(ctx, d, e)
			if !o.keep {
				_ = os.RemoveAll(scratch) // with the directory above it, at the latest
			}
			runs[i] = append(runs[i], r)
			if err := show(os.Stdout, o.output, r); err != nil {
				return err
			}
			failed = failed || r.failed()
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	if o.repeat > 1 {
		for _, of := range runs {
			if err := summarize(of).show(os.Stdout, o.output); err != nil {
				return err
			}
		}
	}
	if failed {
		return errMissed
	}
	return nil
}

func choose(names []string) (chosen []drill, err error) {
	if len(names) == 0 {
		return nil, errors.New("which drill? See -help; all stands for each of them")
	}
	if len(names) == 1 && names[0] == "all" {
		return drills, nil
	}
	for _, name := range names {
		i := slices.IndexFunc(drills, func(d drill) bool { return d.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no drill %q; see -help", name)
		}
		chosen = append(chosen, drills[i])
	}
	return chosen, nil
}

// build builds the processes of this checkout.
func build(ctx context.Context, into string, flags ...string) error {
	const module = "github.com/logmirror/logmirror/cmd/"
	arguments := append([]string{"build", "-o", into + string(filepath.Separator)}, flags...)
	command := exec.CommandContext(ctx, "go", append(arguments, module+"logsvc", module+"frontend", module+"kvctl")...)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, output)
	}
	return nil
}

func perform(ctx context.Context, d drill, e *environment) *result {
	const longest = 20 * time.Minute // most of it may go into the build with another clock
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	r := &result{Drill: d.name, What: d.what}
	began := time.Now()
	if err := d.run(ctx, e, r); err != nil {
		var skip skipped
		if errors.As(err, &skip) {
			r.Skipped = skip.Error()
		} else {
			r.Failures = append(r.Failures, err.Error())
		}
	}
	r.Seconds = time.Since(began).Seconds()
	return r
}

// skipped says why a drill cannot be done on this machine.
type skipped string

func (s skipped) Error() string { return string(s) }

// result is what a drill found.
type result struct {
	Drill    string   `json:"drill"`
	What     string   `json:"what"`
	Numbers  []number `json:"numbers"`
	Failures []string `json:"failures"`
	Skipped  string   `json:"skipped,omitempty"`
	Seconds  float64  `json:"seconds"`
}

// number is one that was measured.
type number struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// AtMost is the goal, nil for none.
	AtMost *float64 `json:"at_most,omitempty"`
}

func (n number) missed() bool { return n.AtMost != nil && n.Value > *n.AtMost }

// took records a duration without a goal.
func (r *result) took(name string, d time.Duration) {
	r.Numbers = append(r.Numbers, number{Name: name, Value: d.Seconds(), Unit: "s"})
}

// within records a duration with a goal.
func (r *result) within(name string, d, goal time.Duration) {
	atMost := goal.Seconds()
	r.Numbers = append(r.Numbers, number{Name: name, Value: d.Seconds(), Unit: "s", AtMost: &atMost})
}

// count records a number of things that nobody has set a goal for.
func (r *result) count(name string, n int) {
	r.Numbers = append(r.Numbers, number{Name: name, Value: float64(n)})
}

// none records a number of things that must not be.
func (r *result) none(name string, n int) {
	var zero float64
	r.Numbers = append(r.Numbers, number{Name: name, Value: float64(n), AtMost: &zero})
}

func (r *result) failed() bool {
	return len(r.Failures) > 0 || slices.ContainsFunc(r.Numbers, number.missed)
}

func show(w io.Writer, how string, r *result) error {
	if how == "json" {
		return json.NewEncoder(w).Encode(r)
	}
	var text strings.Builder
	verdict := "ok"
	switch {
	case r.Skipped != "":
		verdict = "skipped: " + r.Skipped
	case r.failed():
		verdict = "FAILED"
	}
	if how == "markdown" {
		fmt.Fprintf(&text, "\n**%s** (%s): %s\n\n| | measured | goal |\n|---|---|---|\n", r.Drill, r.What, verdict)
	} else {
		fmt.Fprintf(&text, "%s: %s\n", r.Drill, r.What)
	}
	for _, n := range r.Numbers {
		goal := ""
		if n.AtMost != nil {
			goal = "at most " + n.text(*n.AtMost)
			if n.missed() {
				goal += ", MISSED"
			}
		}
		if how == "markdown" {
			fmt.Fprintf(&text, "| %s | %s | %s |\n", n.Name, n.text(n.Value), goal)
		} else {
			fmt.Fprintf(&text, "  %-72s %10s  %s\n", n.Name, n.text(n.Value), goal)
		}
	}
	for _, failure := range r.Failures {
		fmt.Fprintf(&text, "  failed: %s\n", failure)
	}
	if how == "text" {
		fmt.Fprintf(&text, "  %s, after %.0f s\n", verdict, r.Seconds)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (n number) text(value float64) string {
	if n.Unit == "" {
		return fmt.Sprintf("%.0f", value)
	}
	return fmt.Sprintf("%.2f %s", value, n.Unit)
}
