package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	minutes = flag.Float64("sim.minutes", 0, "how long TestTorture runs new seeds, on all processors; zero for not at all")
	record  = flag.String("sim.record", "", "the file in which TestTorture keeps its figures, and goes on where it ended")
)

// figures are what torture has come to, over all its runs.
type figures struct {
	// Next is the first seed that was not run.
	Next uint64 `json:"next_seed"`
	// Seeds were run to their end, in Minutes of wall time.
	Seeds        int      `json:"seeds"`
	Minutes      float64  `json:"minutes"`
	VirtualHours float64  `json:"virtual_hours"`
	Entries      int      `json:"entries"`
	Operations   int      `json:"operations"`
	Events       int      `json:"events"`
	Undecided    int      `json:"undecided_histories"`
	Counts       Counts   `json:"counts"`
	Failures     []string `json:"failures"`
}

func (f *figures) add(r Result) {
	f.Seeds++
	f.VirtualHours += r.Virtual.Hours()
	f.Entries, f.Operations, f.Events, f.Undecided = f.Entries+r.Entries, f.Operations+r.Operations, f.Events+r.Events, f.Undecided+r.Undecided
	for kind, n := range r.Counts {
		f.Counts[kind] += n
	}
	if r.Failure != "" {
		first, _, _ := strings.Cut(r.Failure, "\n")
		f.Failures = append(f.Failures, fmt.Sprintf("seed %d (%s): %s", r.Seed, r.Profile, first))
	}
}

func (f *figures) save(name string) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil || name == "" {
		return err
	}
	if err := os.WriteFile(name+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func loadFigures(name string) (*figures, error) {
	f := &figures{Counts: Counts{}, Next: 1_000_000}
	data, err := os.ReadFile(name)
	if name == "" || errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	return f, json.Unmarshal(data, f)
}

// TestTorture runs new seeds for as long as it is told to, and keeps a record. It goes on after a failure, so that a night
// finds more than one; any fails it.
func TestTorture(t *testing.T) {
	if *minutes == 0 {
		t.Skip("-sim.minutes says for how long")
	}
	f, err := loadFigures(*record)
	if err != nil {
		t.Fatal(err)
	}
	before, began := f.Minutes, time.Now()
	end := began.Add(time.Duration(*minutes * float64(time.Minute)))
	results, seeds := make(chan Result), make(chan uint64)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := range seeds {
				results <- Run(seed)
			}
		})
	}
	go func() {
		// The seeds under way at the end are run to theirs.
		next := f.Next
		for ; time.Now().Before(end); next++ {
			seeds <- next
		}
		close(seeds)
		workers.Wait()
		close(results)
	}()
	saved, session := began, figures{Counts: Counts{}}
	for r := range results {
		f.add(r)
		session.add(r)
		if r.Failure != "" {
			report(t, r)
		}
		f.Next, f.Minutes = max(f.Next, r.Seed+1), before+time.Since(began).Minutes()
		if time.Since(saved) > 10*time.Second {
			saved = time.Now()
			if err := f.save(*record); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.save(*record); err != nil {
		t.Fatal(err)
	}
	t.Logf("this time: %d seeds, %.1f virtual hours in %.1f minutes (%.2f an hour of wall time to one)", session.Seeds, session.VirtualHours,
		time.Since(began).Minutes(), session.VirtualHours/time.Since(began).Hours())
	t.Logf("in all: %d seeds, %.1f virtual hours, %d entries, %d operations, %d changes of keys, %d histories undecided, %d failures",
		f.Seeds, f.VirtualHours, f.Entries, f.Operations, f.Events, f.Undecided, len(f.Failures))
	for _, kind := range slices.Sorted(maps.Keys(f.Counts)) {
		t.Logf("%9d  %s", f.Counts[kind], kind)
	}
	session.Counts.belowFloors(t, session.Seeds)
}
