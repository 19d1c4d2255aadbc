package logservice

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	simulateSeeds    = flag.Uint64("simulate.seeds", simSeeds(), "the number of schedules of TestSimulation")
	simulateFrom     = flag.Uint64("simulate.from", 0, "the first seed of TestSimulation")
	simulateProfile  = flag.String("simulate.profile", "", "only the seeds of this profile")
	simulateOutcomes = flag.Bool("simulate.outcomes", false, "check only outcomes, not the facts within that lead to them")
)

// simSeeds is the number of schedules by default. The race detector finds nothing new in a single-threaded schedule, only what
// schedules of different goroutines share.
func simSeeds() uint64 {
	if raceEnabled {
		return 9 // each profile once
	}
	return simFloorsFrom
}

func simVerbose() bool { return testing.Verbose() && *simulateSeeds == 1 }

// simCounts counts what happened, by kind.
type simCounts map[string]int

func (c simCounts) add(kind string) { c[kind]++ }

// simFloors are what a thousand seeds must come to at the least, of faults and of what they lead to: a schedule that
// reaches nothing proves nothing.
var simFloors = map[string]int{
	"campaign":                       40,
	"change made":                    300,
	"change refused":                 200,
	"checkpoint fetched":             200,
	"checkpoint request":             300,
	"checkpoint sealed":              100,
	"clock jump":                     50,
	"clock rate":                     100,
	"configuration applied":          5000,
	"configuration change":           1000,
	"configuration with learners":    400,
	"crash":                          2000,
	"crash after the write":          100,
	"crash for a moment":             300,
	"crash in a snapshot":            5,
	"crash in an install":            1,
	"crash of a leader":              600,
	"crash of all":                   100,
	"crash that loses a write":       100,
	"cut":                            600,
	"early publication":              80000,
	"election":                       2000,
	"entry":                          30000,
	"halves parted":                  100,
	"heal":                           3000,
	"joint configuration":            400,
	"left behind":                    300,
	"leftovers":                      80,
	"member joined":                  100,
	"member that comes and goes":     50,
	"lost frame":                     90000,
	"no space":                       100,
	"orphans":                        200,
	"pause":                          300,
	"published beside leftovers":     15,
	"removal of the leader asked":    60,
	"removed member that noticed":    300,
	"rejection":                      50000,
	"reordered frame":                10000,
	"repeated frame":                 20000,
	"replaced entry":                 1000,
	"restart":                        2000,
	"round asked again":              10000,
	"round by the barrier":           100,
	"round by the nearest majority":  20000,
	"round in a joint configuration": 2000,
	"round of a member behind by configurations": 300,
	"snapshot installed":                         15,
	"staging that failed":                        1,
	"trim":                                       200,
	"upload":                                     300,
	"wrong checkpoint":                           30,
	"slow write":                                 3000,
	"transfer":                                   200,
	"two leaders":                                300,
	"vote":                                       2000,
	"unsent":                                     700,
}

// simFloorsFrom is how many schedules it takes at the least for the floors to be asked for: fewer are run to see one again.
const simFloorsFrom = 70

// TestSimulation runs -simulate.seeds schedules from -simulate.from on, on all processors.
func TestSimulation(t *testing.T) {
	// Most of what a schedule allocates lives for one step.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	checks := checkAll
	if *simulateOutcomes {
		checks = checkOutcomes
	}
	var (
		next, done atomic.Uint64
		mu         sync.Mutex
		total      = simCounts{}
		workers    sync.WaitGroup
		began      = time.Now()
	)
	end := *simulateFrom + *simulateSeeds
	next.Store(*simulateFrom)
	report := func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprintf("%d schedules, %.0f a second; %s", done.Load(), float64(done.Load())/time.Since(began).Seconds(), total)
	}
	stop := make(chan struct{})
	go func() {
		progress := time.NewTicker(30 * time.Second)
		defer progress.Stop()
		for {
			select {
			case <-progress.C:
				fmt.Fprintln(os.Stderr, report())
			case <-stop:
				return
			}
		}
	}()
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for !t.Failed() {
				seed := next.Add(1) - 1
				if seed >= end {
					return
				}
				if *simulateProfile != "" && profileOf(seed).name != *simulateProfile {
					continue
				}
				s := simulate(seed, checks)
				done.Add(1)
				mu.Lock()
				for kind, n := range s.counts {
					total[kind] += n
				}
				total["entry"] += int(s.checker.highest())
				mu.Unlock()
				if s.failure != "" {
					t.Errorf("seed %d (%s, publication by %v) after %d schedules: %s\nrun it again with: make simulate FROM=%d SEEDS=1",
						seed, s.profile.name, s.publication, done.Load(), s.failure, seed)
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	t.Log(report())
	if t.Failed() || *simulateProfile != "" || done.Load() < simFloorsFrom {
		return
	}
	for _, kind := range slices.Sorted(maps.Keys(simFloors)) {
		if want := simFloors[kind] * int(done.Load()) / 1000; total[kind] < want {
			t.Errorf("%s: only %d in %d schedules, want at least %d", kind, total[kind], done.Load(), want)
		}
	}
}

// String lists the kinds in order.
func (c simCounts) String() string {
	var b strings.Builder
	for i, kind := range slices.Sorted(maps.Keys(c)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", kind, c[kind])
	}
	return b.String()
}

// The same seed leads to the same history.
func TestSimulationIsReproducible(t *testing.T) {
	seeds := len(simProfiles)
	if raceEnabled {
		seeds = 2
	}
	for seed := range uint64(seeds) {
		a, b := simulate(seed, checkAll), simulate(seed, checkAll)
		if a.checker.highest() != b.checker.highest() || a.order != b.order || a.checker.answered != b.checker.answered {
			t.Fatalf("seed %d: %d entries and %d events, then %d and %d", seed, a.checker.highest(), a.order, b.checker.highest(), b.order)
		}
		for i := range a.checker.agreed {
			if x, y := a.checker.agreed[i], b.checker.agreed[i]; x.term != y.term || !bytes.Equal(x.data, y.data) {
				t.Fatalf("seed %d: entry %d differs", seed, i+1)
			}
		}
	}
}

// Schedules that once failed.
func TestSimulationOfKnownSeeds(t *testing.T) {
	for _, known := range []struct {
		seed        uint64
		profile     string
		publication Publication
	}{
		// A log that holds an orphan replaces it while others publish it in a later term.
		{14715, "two leaders", PublicationLeader},
		// Two checkpoints are sealed by others while a member cannot fetch them, and it gives up the only one it holds.
		{36631, "checkpoints", PublicationQuorum},
		// The others elect a candidate whose disk does not know of the term, and after a crash elect it again.
		{44289, "configurations", PublicationQuorum},
		// A leader trims the entries that a snapshot under way needs, and sends others while the receiver rests.
		{57005, "membership", PublicationQuorum},
	} {
		i := slices.IndexFunc(simProfiles, func(p simProfile) bool { return p.name == known.profile })
		if s := runSchedule(newSimulation(known.seed, known.publication, simProfiles[i], checkAll)); s.failure != "" {
			t.Errorf("seed %d (%s): %s", known.seed, known.profile, s.failure)
		}
	}
}
