package sim

import (
	"flag"
	"maps"
	"slices"
	"testing"
	"time"
)

var (
	seeds = flag.Uint64("sim.seeds", 28, "how many seeds TestSeeds runs")
	from  = flag.Uint64("sim.from", 0, "the first seed that TestSeeds runs")
	only  = flag.String("sim.profile", "", "the only profile whose seeds TestSeeds runs, of those it would run; then no floors count")
)

func report(t *testing.T, r Result) {
	t.Helper()
	t.Errorf("seed %d (%s): %s\nwhat happened before:\n%s\nrun it again with: go test ./test/sim -run 'TestSeeds$' -sim.from=%d -sim.seeds=1",
		r.Seed, r.Profile, r.Failure, r.Story, r.Seed)
}

// floorSeeds is from how many seeds on the floors count: each profile must have had its turn a few times.
const floorSeeds = 24

// Whatever happens, nothing that was acknowledged is lost, repeated or reordered.
func TestSeeds(t *testing.T) {
	total, virtual, entries, operations := Counts{}, time.Duration(0), 0, 0
	began := time.Now()
	for seed := *from; seed < *from+*seeds && !t.Failed(); seed++ {
		if *only != "" && profileOf(seed).name != *only {
			continue
		}
		r := Run(seed)
		if r.Failure != "" {
			report(t, r)
		}
		for kind, n := range r.Counts {
			total[kind] += n
		}
		virtual, entries, operations = virtual+r.Virtual, entries+r.Entries, operations+r.Operations
		total["history undecided"] += r.Undecided
	}
	t.Logf("%d seeds in %v, %v of virtual time, %d entries, %d operations: %s", *seeds, time.Since(began).Round(time.Second), virtual, entries, operations, total)
	if !t.Failed() && *only == "" {
		total.belowFloors(t, int(*seeds))
	}
}

// belowFloors tells what came too seldom for this many seeds.
func (c Counts) belowFloors(t *testing.T, seeds int) {
	if seeds < floorSeeds {
		return
	}
	for _, kind := range slices.Sorted(maps.Keys(floors)) {
		if floor := floors[kind] * seeds / 100; c[kind] < floor {
			t.Errorf("%q came %d times in %d seeds, want %d at least", kind, c[kind], seeds, floor)
		}
	}
}

// The same seed gives the same run.
func TestSameSeedSameRun(t *testing.T) {
	for _, seed := range []uint64{0, 3, 4, 8} { // those whose profiles have most in them
		if a, b := Run(seed), Run(seed); a.Trace != b.Trace {
			t.Errorf("seed %d: two runs differ: %x, %x", seed, a.Trace, b.Trace)
		}
	}
}
