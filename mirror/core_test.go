package mirror

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/logmirror/logmirror/internal/durable"
)

// Readers that come while a round is under way need a later one, share it, and wait only for the spacing.
func TestReadRoundsAreShared(t *testing.T) {
	core := roundsCore{max: 3, spacing: 2 * time.Millisecond, idleAfter: time.Second}
	start := func(now time.Duration, want int, wantOK bool) {
		t.Helper()
		readers, ok, _ := core.start(now)
		if readers.size() != want || ok != wantOK {
			t.Fatalf("at %v: round for %d readers, %v; want %d, %v", now, readers.size(), ok, want, wantOK)
		}
	}
	ms := time.Millisecond
	start(0, 0, true) // the first round needs no reader: it makes the mirror ready
	core.ended()
	start(999*ms, 0, false)
	core.join()
	start(999*ms, 1, true) // with none under way nothing waits
	core.join()
	core.join()
	start(1000*ms, 0, false)
	_, _, wake := core.start(1000 * ms)
	if wake != 1001*ms {
		t.Fatalf("asks to be woken at %v", wake)
	}
	start(1001*ms, 2, true)
	core.join()
	start(1003*ms, 1, true)
	gone := core.join()
	core.join()
	start(1010*ms, 0, false) // three are under way
	if !core.leave(gone) {
		t.Fatal("leave")
	}
	core.ended()
	start(1010*ms, 1, true)
	if core.leave(gone) {
		t.Fatal("left a round that is under way")
	}
	core.ended()
	if !core.leave(core.join()) {
		t.Fatal("leave alone")
	}
	start(1020*ms, 0, false) // nobody waits any more
	for range 2 {
		core.ended()
	}
	start(2009*ms, 0, false)
	start(2010*ms, 0, true) // nobody asks, but the age must be known
	start(9000*ms, 0, false)
}

func TestTicker(t *testing.T) {
	s := time.Second
	core := ticker{advanceMax: 5 * s, spread: func() time.Duration { return s / 10 }}
	next := func(now time.Duration, want bool, wantWake time.Duration) {
		t.Helper()
		if propose, wake := core.next(now); propose != want || wake != wantWake {
			t.Fatalf("at %v: %v, %v; want %v, %v", now, propose, wake, want, wantWake)
		}
	}
	next(0, false, 0)
	core.applied(100, 0, false, 0)
	next(9*s, false, 0) // nothing is due
	core.applied(int64(100*s), int64(102*s), true, 10*s)
	next(12*s, false, 12*s+s/10)
	next(12*s+s/10, true, 12*s+s/10+5*s/2+s/10)
	core.applied(int64(102*s), int64(200*s), true, 13*s)
	next(18*s, false, 18*s+s/10) // one entry advances log time by five seconds at most
	next(19*s, true, 19*s+5*s/2+s/10)
	core.applied(int64(300*s), int64(200*s), true, 20*s)
	next(20*s+s/10, true, 20*s+s/10+5*s/2+s/10) // overdue: more than one entry could do
}

func TestWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &waiters{max: 3}
		stopped := make(chan struct{})
		results := make(chan error, 10)
		wait := func(ctx context.Context, target uint64) { go func() { results <- w.wait(ctx, target, stopped) }() }
		if err := w.wait(t.Context(), 0, stopped); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait(t.Context(), 5)
		wait(ctx, 4)
		wait(t.Context(), 9)
		synctest.Wait()
		if err := w.wait(t.Context(), 1, stopped); !errors.Is(err, ErrOverloaded) {
			t.Fatalf("one waiter too many: %v", err)
		}
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w.reach(4)
		synctest.Wait()
		if len(results) != 0 {
			t.Fatal("woken too early")
		}
		w.reach(7)
		if err := <-results; err != nil {
			t.Fatal(err)
		}
		close(stopped)
		if err := <-results; !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		if len(w.heap) != 0 || w.waiting.Load() != 0 {
			t.Fatalf("%d waiters are left, counted as %d", len(w.heap), w.waiting.Load())
		}
	})
}

// No wake-up is lost between a waiter that registers and a number that is reached.
func TestWaitersRace(t *testing.T) {
	w := &waiters{max: 100}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for target := uint64(1); target <= 2000; target++ {
				if err := w.wait(t.Context(), target, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for number := uint64(1); number <= 2000; number++ {
		w.reach(number)
	}
	group.Wait()
}

func TestDataDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "frontend")
	first, err := openDataDirectory(path, "a")
	if err != nil {
		t.Fatal(err)
	}
	if first.record.FrontendID == 0 || first.record.Incarnation != 0 {
		t.Fatalf("new identity %+v", first.record)
	}
	if _, err := openDataDirectory(path, "a"); !errors.Is(err, ErrDirectoryInUse) {
		t.Fatalf("second opening: %v", err)
	}
	if err := first.begin(3, 77, 1); err != nil {
		t.Fatal(err)
	}
	if err := first.begin(4, 78, 1); err == nil {
		t.Fatal("an incarnation of another cluster was taken")
	}
	first.close()
	if _, err := openDataDirectory(path, "b"); !errors.Is(err, ErrOtherFrontend) {
		t.Fatalf("another name: %v", err)
	}
	second, err := openDataDirectory(path, "a")
	if err != nil {
		t.Fatal(err)
	}
	want := identityRecord{Name: "a", FrontendID: first.record.FrontendID, ClusterID: 77, Epoch: 1, Incarnation: 3}
	if second.record != want {
		t.Fatalf("reopened as %+v, want %+v", second.record, want)
	}
	second.close()
	if err := os.WriteFile(filepath.Join(path, identityFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openDataDirectory(path, "a"); !errors.Is(err, durable.ErrDamaged) || !strings.Contains(err.Error(), "remove the data directory") {
		t.Fatalf("damaged identity: %v", err)
	}
}
