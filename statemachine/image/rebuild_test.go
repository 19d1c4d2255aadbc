package image

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/machinetest"
)

var errDisk = errors.New("the disk of the test")

// rig applies a log to a machine with an image, on a disk that does what a test says, and remembers the state after each
// entry.
type rig struct {
	t      testing.TB
	config Config
	log    *machinetest.Log
	im     *Image
	m      *statemachine.Machine
	// applying guards what apply uses; entries are those there were.
	applying sync.Mutex
	entries  []*logv1.Envelope

	// before and after are told of each step on the disk, by name; an error of before is the disk's.
	before, after atomic.Pointer[func(step string) error]
}

const (
	stepCommit  = "commit"  // a transaction of the image
	stepStaging = "staging" // a transaction of the one that is being made
	stepRename  = "rename"
	stepSync    = "sync of the directory"
)

// newRig begins with pieces, windows and slices of compaction that are small. change may be nil.
func newRig(t testing.TB, seed uint64, change func(*Config)) *rig {
	r := &rig{t: t, config: testConfig(filepath.Join(t.TempDir(), "image")), log: machinetest.NewLog(testIdentity.ClusterID, seed)}
	r.config.CommitBytes, r.config.CompactRows, r.config.RebuildRows = 4<<10, 7, 5
	if change != nil {
		change(&r.config)
	}
	r.begin()
	t.Cleanup(func() {
		r.im.Close(false)
		r.mustHaveReleased()
	})
	return r
}

func (r *rig) begin() {
	r.t.Helper()
	im, m, err := Open(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	if m == nil {
		m = statemachine.New(statemachine.Options{})
	}
	r.im, r.m = im, m
	im.disk = disk{
		update: func(db *bbolt.DB, write func(*bbolt.Tx) error) error {
			step := stepCommit
			im.opening.Lock()
			if db != im.db {
				step = stepStaging
			}
			im.opening.Unlock()
			return r.step(step, func() error { return db.Update(write) })
		},
		rename:        func(from, to string) error { return r.step(stepRename, func() error { return os.Rename(from, to) }) },
		syncDirectory: func(path string) error { return r.step(stepSync, func() error { return syncDirectory(path) }) },
	}
	im.Start(m, known)
}

func (r *rig) mustHaveReleased() {
	if pins := r.m.Pins(); pins != 0 {
		r.t.Errorf("%d pins of the tables were never released", pins)
	}
}

func (r *rig) step(name string, do func() error) error {
	if before := r.before.Load(); before != nil {
		if err := (*before)(name); err != nil {
			return err
		}
	}
	err := do()
	if after := r.after.Load(); after != nil && err == nil {
		err = (*after)(name)
	}
	return err
}

func (r *rig) apply(entries int) {
	r.applying.Lock()
	defer r.applying.Unlock()
	for range entries {
		e := r.log.Next()
		r.entries = append(r.entries, e)
		r.im.Applied(machinetest.Apply(r.t, r.m, r.m.Index()+1, e))
	}
}

// state is that after an entry, by the log alone.
func (r *rig) state(index uint64) string {
	m := statemachine.New(statemachine.Options{})
	for i, e := range r.entries[:index] {
		machinetest.Apply(r.t, m, uint64(i+1), e)
	}
	return machinetest.Dump(r.t, m)
}

// comesBack waits, in the time of a bubble, until the image is written again.
func (r *rig) comesBack(within time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(within); r.im.Abandoned(); {
		if time.Now().After(end) {
			r.t.Fatalf("abandoned still after %s: %+v", within, r.im.Rebuilds())
		}
		time.Sleep(time.Second)
	}
}

// mustHold opens a file in place of a process that has ended, and looks for the state after one of the entries.
func (r *rig) mustHold(path string, low, high uint64) uint64 {
	r.t.Helper()
	c := r.config
	c.Path = path
	im, m, err := Open(c)
	if err != nil {
		r.t.Fatal(err)
	}
	defer im.Close(false)
	if m == nil {
		if low > 0 {
			r.t.Fatalf("there is no image, want one of entry %d to %d", low, high)
		}
		return 0
	}
	if m.Index() < low || m.Index() > high {
		r.t.Fatalf("an image of entry %d, want one of %d to %d", m.Index(), low, high)
	}
	if got, want := machinetest.Dump(r.t, m), r.state(m.Index()); got != want {
		r.t.Fatalf("the image of entry %d holds\n%s\nwant\n%s", m.Index(), got, want)
	}
	return m.Index()
}

// reopen ends the image with its last commit, and goes on from what it holds, which must be everything.
func (r *rig) reopen() {
	r.t.Helper()
	index := r.m.Index()
	r.im.Close(true)
	r.mustHold(r.config.Path, index, index)
	r.mustHaveReleased()
	r.begin()
}

func (r *rig) mustScrub() {
	r.t.Helper()
	if err := r.im.Scrub(func(int) error { return nil }); err != nil {
		r.t.Fatalf("scrub: %v", err)
	}
}

// TestRebuildAgainstMachine gives the image up at random places of a random log, also while it is made anew, with entries and
// compactions at every step of that, and ends and goes on at random. What comes back must be the machine's state, to the
// last row of it, and the compactions that follow must find the rows that they take away.
func TestRebuildAgainstMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		directory := t.TempDir()
		rebuilds := uint64(0)
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) { // a bubble has no deadline
			r := newRig(t, rapid.Uint64().Draw(rt, "seed"), func(c *Config) {
				c.Path = filepath.Join(directory, "image")
				_ = os.Remove(c.Path)
				c.CommitBytes = rapid.IntRange(500, 20_000).Draw(rt, "bytes of a commit")
				c.CompactRows = rapid.IntRange(1, 20).Draw(rt, "rows of a compaction")
				c.RebuildRows = rapid.IntRange(1, 30).Draw(rt, "rows of a window")
			})
			r.apply(1) // whose state it is: before that there is none to make an image of
			for range rapid.IntRange(1, 4).Draw(rt, "times") {
				r.apply(rapid.IntRange(0, 60).Draw(rt, "entries"))
				synctest.Wait()
				committed := r.im.CommittedIndex()
				r.im.abandon(errDisk)
				r.apply(rapid.IntRange(0, 60).Draw(rt, "entries meanwhile"))
				beside := rapid.IntRange(0, 5).Draw(rt, "entries at each step")
				again := rapid.IntRange(0, 6).Draw(rt, "given up again at step")
				steps := 0
				r.before.Store(new(func(step string) error {
					if steps++; steps == again {
						return errDisk
					}
					if step != stepCommit && steps < 20 { // or entries come too fast for ever
						r.apply(beside)
					}
					return nil
				}))
				if rapid.IntRange(0, 4).Draw(rt, "end before") == 0 {
					time.Sleep(time.Duration(rapid.IntRange(0, 12_000).Draw(rt, "ms")) * time.Millisecond)
					r.im.Close(rapid.Bool().Draw(rt, "flush"))
					r.mustHold(r.config.Path, committed, r.m.Index())
					return
				}
				r.comesBack(6 * time.Hour) // each attempt takes a step at least
				r.before.Store(nil)
				r.mustScrub()
				r.apply(rapid.IntRange(0, 60).Draw(rt, "entries after"))
				synctest.Wait()
				rebuilds += r.im.Rebuilds().Done
				r.comesBack(time.Hour)
				r.reopen()
			}
			r.im.Close(true)
		})
		t.Logf("%d images were made anew", rebuilds)
	})
}

// TestSlowDisk: a disk that hangs lets the image be given up; once it answers, a new one is made, and what is applied until
// then, whatever the step at which the disk hangs again, waits for none of it.
func TestSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, nil)
		r.apply(50)
		synctest.Wait()
		for _, hangs := range []string{stepCommit, stepStaging, stepRename, stepSync} {
			gate, reached := make(chan struct{}), make(chan struct{})
			once := sync.Once{}
			hang := func(step string) error {
				if step == hangs {
					once.Do(func() { close(reached) })
					<-gate
				}
				return nil
			}
			r.before.Store(&hang)
			if hangs == stepCommit {
				began := time.Now()
				r.apply(200)
				if !r.im.Abandoned() || time.Since(began) != 2*time.Second {
					t.Fatalf("abandoned %v after %s of waiting", r.im.Abandoned(), time.Since(began))
				}
			} else {
				r.im.abandon(errDisk)
			}
			<-reached
			began, index := time.Now(), r.m.Index()
			r.apply(500)
			if r.m.Index() != index+500 || time.Since(began) != 0 {
				t.Fatalf("%s: %d entries were applied, and waited %s", hangs, r.m.Index()-index, time.Since(began))
			}
			if pending := r.im.pending.bytes + len(r.im.work)*r.config.CommitBytes; pending > 8*r.config.CommitBytes {
				t.Errorf("%s: %d bytes wait", hangs, pending)
			}
			close(gate)
			r.before.Store(nil)
			r.comesBack(time.Hour)
			r.mustScrub()
			r.apply(10)
			r.reopen()
		}
		r.im.Close(true)
	})
}

// TestPinWithinAnEntry: the state is pinned when an entry was applied, and Applied not called for it yet.
func TestPinWithinAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 9, nil)
		r.apply(100)
		synctest.Wait()
		var told *statemachine.Applied
		r.before.Store(new(func(step string) error {
			switch {
			case step == stepStaging && told == nil:
				r.applying.Lock()
				e := r.log.Next()
				r.entries = append(r.entries, e)
				told = machinetest.Apply(t, r.m, r.m.Index()+1, e)
				r.applying.Unlock()
			case step == stepRename:
				r.im.Applied(told)
				r.apply(20)
			}
			return nil
		}))
		r.im.abandon(errDisk)
		r.comesBack(time.Hour)
		synctest.Wait()
		if got := r.im.Rebuilds(); told == nil || got != (Rebuilds{Done: 1}) || r.im.CommittedIndex() < told.Index {
			t.Errorf("%+v, image of %d, told %v", got, r.im.CommittedIndex(), told != nil)
		}
		r.before.Store(nil)
		r.apply(1)
		r.reopen()
	})
}

// TestCrashWhileRebuilding looks at what a crash would leave before and after each step: the old image until the new one is
// in its place, and never anything else.
func TestCrashWhileRebuilding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil)
		r.apply(150)
		synctest.Wait()
		old := r.im.CommittedIndex()
		if old == 0 {
			t.Fatal("nothing was committed")
		}
		crash := filepath.Join(t.TempDir(), "image")
		crashes, replaced := map[string]int{}, false
		look := func(step string) error {
			r.applying.Lock()
			defer r.applying.Unlock()
			for _, suffix := range []string{"", stagingSuffix} {
				content, err := os.ReadFile(r.config.Path + suffix)
				if errors.Is(err, os.ErrNotExist) {
					_ = os.Remove(crash + suffix)
					continue
				}
				if err := errors.Join(err, os.WriteFile(crash+suffix, content, 0o600)); err != nil {
					t.Error(err)
				}
			}
			low, high := old, old
			if replaced {
				low, high = old+1, r.m.Index()
			}
			r.mustHold(crash, low, high)
			for _, suffix := range []string{stagingSuffix, ".bad"} {
				if _, err := os.Stat(crash + suffix); err == nil {
					t.Errorf("%s: image%s was left", step, suffix)
				}
			}
			crashes[step]++
			return nil
		}
		r.before.Store(&look)
		r.after.Store(new(func(step string) error {
			replaced = replaced || step == stepRename
			return look(step)
		}))
		r.im.abandon(errDisk)
		r.apply(100)
		r.comesBack(time.Minute)
		synctest.Wait()
		r.before.Store(nil)
		r.after.Store(nil)
		if crashes[stepStaging] < 6 || crashes[stepRename] != 2 || crashes[stepSync] != 2 || !replaced {
			t.Errorf("looked at %v", crashes)
		}
		r.apply(10)
		r.reopen()
		// An end while one is being made leaves the image there is, and nothing beside it.
		old = r.im.CommittedIndex()
		r.before.Store(new(func(step string) error {
			if step == stepStaging {
				r.im.cancel()
			}
			return nil
		}))
		r.im.abandon(errDisk)
		r.apply(300)
		time.Sleep(time.Minute)
		r.im.Close(true)
		if _, err := os.Stat(r.config.Path + stagingSuffix); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file that was being made: %v", err)
		}
		r.mustHold(r.config.Path, old, old)
	})
}

// TestDiskWithoutRoom: while there is no room, or each attempt fails at its last steps, the pause grows to its bound, the old
// image stays, and memory holds no more than before. With room again the image comes back.
func TestDiskWithoutRoom(t *testing.T) {
	for _, fails := range []string{"", stepStaging, stepRename, stepSync} {
		synctest.Test(t, func(t *testing.T) {
			var full atomic.Bool
			full.Store(true)
			var mu sync.Mutex
			var attempts []time.Time
			r := newRig(t, 3, func(c *Config) {
				c.Room = func(path string, bytes uint64) error {
					mu.Lock()
					attempts = append(attempts, time.Now())
					mu.Unlock()
					if full.Load() && fails == "" {
						return fmt.Errorf("%s, %d bytes: %w", path, bytes, syscall.ENOSPC)
					}
					return nil
				}
			})
			r.apply(100)
			synctest.Wait()
			old := r.im.CommittedIndex()
			r.before.Store(new(func(step string) error {
				if step == fails {
					return syscall.ENOSPC
				}
				return nil
			}))
			abandoned := time.Now()
			r.im.abandon(syscall.ENOSPC)
			for range 60 {
				r.apply(3)
				time.Sleep(4 * time.Minute)
			}
			synctest.Wait()
			mu.Lock()
			began := append([]time.Time{abandoned}, attempts...)
			mu.Unlock()
			for i := range began[1:] {
				want := min(10*time.Second<<i, 10*time.Minute)
				if pause := began[i+1].Sub(began[i]); pause < want || pause > want+time.Second {
					t.Fatalf("%q: attempt %d after %s, want %s", fails, i, pause, want)
				}
			}
			if n := uint64(len(began) - 1); n < 20 || r.im.Rebuilds() != (Rebuilds{Failed: n}) || !r.im.Abandoned() {
				t.Fatalf("%q: %d attempts, %+v, abandoned %v", fails, n, r.im.Rebuilds(), r.im.Abandoned())
			}
			if r.im.pending.bytes > 0 || len(r.im.leases) > 0 {
				t.Errorf("%q: %d bytes are kept that nobody will write", fails, r.im.pending.bytes)
			}
			if fails != stepSync { // that one comes after the replacement
				if got := r.im.CommittedIndex(); got != old {
					t.Errorf("%q: the image is of entry %d, was of %d", fails, got, old)
				}
				if _, err := os.Stat(r.config.Path + stagingSuffix); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%q: the file that was being made: %v", fails, err)
				}
			}
			full.Store(false)
			r.before.Store(nil)
			r.comesBack(11 * time.Minute)
			r.apply(10)
			r.reopen()
			r.im.Close(true)
		})
	}
}

// TestFileSizeLimit is a real disk that takes no more, as far as a process can make one for itself.
func TestFileSizeLimit(t *testing.T) {
	limit := machinetest.LimitFileSize(t)
	if limit == nil {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 4, nil)
		r.apply(100)
		synctest.Wait()
		limit(20 << 10)
		for !r.im.Abandoned() && r.m.Index() < 3000 {
			r.apply(10)
			synctest.Wait()
		}
		old := r.im.CommittedIndex()
		time.Sleep(time.Minute)
		if got := r.im.Rebuilds(); !r.im.Abandoned() || got.Failed == 0 || got.Done > 0 || r.im.CommittedIndex() != old {
			t.Fatalf("abandoned %v, %+v, image of %d, was of %d", r.im.Abandoned(), got, r.im.CommittedIndex(), old)
		}
		limit(0)
		r.mustHold(copyOf(t, r.config.Path), old, old)
		r.comesBack(11 * time.Minute)
		r.apply(10)
		r.reopen()
		r.im.Close(true)
	})
}

func copyOf(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu      sync.Mutex
	content strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content.String()
}

func (l *logBuffer) Reset() {
	l.mu.Lock()
	l.content.Reset()
	l.mu.Unlock()
}

// TestRebuildUnderLoad: what is applied faster than it is written ends the attempt; what is applied faster than the disk
// finishes it leaves a newer image, and another attempt. Neither keeps more than its bound.
func TestRebuildUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged logBuffer
		r := newRig(t, 5, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
		failedBy := func(reason error, load func(step string) error) {
			t.Helper()
			before := r.im.Rebuilds()
			r.before.Store(&load)
			r.im.abandon(errDisk)
			r.apply(5)
			for r.im.Rebuilds() == before || r.im.Rebuilds().Bytes > 0 {
				time.Sleep(time.Second)
			}
			r.before.Store(nil)
			synctest.Wait()
			if got := r.im.Rebuilds(); got.Failed != before.Failed+1 || !strings.Contains(logged.String(), reason.Error()) {
				t.Fatalf("%v: %+v, was %+v\n%s", reason, got, before, &logged)
			}
			logged.Reset()
			r.comesBack(time.Hour)
			r.reopen()
		}
		r.apply(100)
		failedBy(errTooFast, func(step string) error {
			if step == stepStaging {
				r.apply(40)
			}
			return nil
		})
		old := r.im.CommittedIndex()
		failedBy(errFellBehind, func(step string) error {
			if step == stepRename {
				r.apply(300)
			}
			if step == stepSync && r.im.CommittedIndex() <= old {
				t.Error("the newer image was not kept")
			}
			return nil
		})
		failedBy(errStuck, func(step string) error {
			if step == stepStaging {
				time.Sleep(2 * time.Minute)
			}
			return nil
		})
		r.im.Close(true)
	})
}

// TestRebuildHoldsBoundedMemory: versions that compaction would free, and that the making of a new image holds, end it.
func TestRebuildHoldsBoundedMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged logBuffer
		r := newRig(t, 6, func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&logged, nil))
			c.RebuildHeldBytes = 100 << 10
		})
		r.apply(2500)
		loaded := false
		r.before.Store(new(func(step string) error {
			if step == stepStaging && !loaded {
				loaded = true
				r.apply(2500)
			}
			return nil
		}))
		r.im.abandon(errDisk)
		r.comesBack(time.Hour)
		synctest.Wait()
		if !strings.Contains(logged.String(), errHeld.Error()) {
			t.Errorf("it did not end:\n%s", &logged)
		}
		r.apply(1)
		r.reopen()
		r.im.Close(true)
	})
}

// TestDamageIsNotRebuilt: what is found damaged by a commit is told by the next scrub, as what a scrub finds itself.
func TestDamageIsNotRebuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 7, nil)
		r.apply(50)
		synctest.Wait()
		r.mustScrub()
		r.before.Store(new(func(string) error { panic("a page that is none") }))
		r.apply(100)
		time.Sleep(time.Hour)
		if err := r.im.Scrub(func(int) error { return nil }); !r.im.Abandoned() || !errors.Is(err, ErrCorrupt) {
			t.Errorf("abandoned %v, scrub: %v", r.im.Abandoned(), err)
		}
		if got := r.im.Rebuilds(); got != (Rebuilds{}) {
			t.Errorf("%+v", got)
		}
		r.im.Close(true)
	})
}

// TestScrubGivesWay: a scrub that reads the old image ends when that is abandoned, and holds up nothing.
func TestScrubGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 8, nil)
		r.apply(200)
		synctest.Wait()
		read := 0
		if err := r.im.Scrub(func(int) error {
			if read++; read == 2 {
				r.im.abandon(errDisk)
			}
			return nil
		}); err != nil || read != 2 {
			t.Errorf("%v after %d reads", err, read)
		}
		r.comesBack(time.Minute)
		r.mustScrub()
		r.im.Close(true)
	})
}
