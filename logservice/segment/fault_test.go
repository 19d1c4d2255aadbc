package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

// step is one call of a script, for the log and for the model.
type step struct {
	name  string
	log   func(*Log) error
	model func(*model)
}

func appendStep(g Group) step {
	return step{fmt.Sprintf("append %d entries", len(g.Entries)),
		func(l *Log) error { return l.Append(g) }, func(m *model) { m.append(g) }}
}

// script touches every kind of change: rolling, oversized groups, cuts within and across segments, trimming,
// reservation, and both ways to begin anew.
func script() []step {
	reserve := step{"reserve", (*Log).Reserve, func(*model) {}}
	trim := func(index uint64) step {
		return step{"trim", func(l *Log) error { return l.Trim(index) }, func(*model) {}}
	}
	steps := []step{
		appendStep(Group{HardState: HardState{Term: 1, Vote: 2}, Membership: []byte("three members")}), reserve,
	}
	for i := uint64(0); i < 6; i++ {
		steps = append(steps, appendStep(Group{HardState: HardState{Term: 1, Vote: 2, Commit: i * 3},
			Entries: entries(i*3+1, 3, 1, 250)}))
	}
	steps = append(steps, reserve,
		appendStep(Group{HardState: HardState{Term: 2, Commit: 15}, Entries: entries(16, 4, 2, 300)}), // cut within
		appendStep(Group{Entries: entries(20, 2, 2, 1000)}),
		appendStep(Group{HardState: HardState{Term: 3, Commit: 15}, Entries: entries(16, 1, 3, 10)}), // cut across
		trim(15),
		appendStep(Group{HardState: HardState{Term: 3, Commit: 17}, Entries: entries(17, 2, 3, 3000)}), // oversized
		appendStep(Group{Membership: []byte("four members")}),
		appendStep(Group{HardState: HardState{Term: 3, Commit: 19}, Entries: entries(19, 1, 3, 600)}),
		trim(18), reserve,
		appendStep(Group{HardState: HardState{Term: 3, Commit: 20}, Entries: entries(20, 3, 3, 1100)}), reserve,
		appendStep(Group{HardState: HardState{Term: 3, Commit: 24}, Entries: entries(23, 3, 3, 1100)}),
		trim(24), reserve,
		appendStep(Group{HardState: HardState{Term: 3, Commit: 25}, Entries: entries(26, 3, 3, 1100)}),
		step{"reset", func(l *Log) error { return l.Reset(30, 3, 0x30) },
			func(m *model) { m.reset(Base{Index: 30, Term: 3, Digest: 0x30}) }},
		appendStep(Group{HardState: HardState{Term: 4, Commit: 32}, Entries: entries(31, 3, 4, 200)}), reserve)
	installed := []Group{{Membership: []byte("new members"), Entries: entries(41, 5, 4, 500)},
		{HardState: HardState{Term: 5, Vote: 1, Commit: 47}, Entries: entries(46, 3, 5, 900)}}
	steps = append(steps, step{"install", func(l *Log) error {
		return l.Install(Base{Index: 40, Term: 4, Digest: 0x40}, func(yield func(Group, error) bool) {
			_ = yield(installed[0], nil) && yield(installed[1], nil)
		})
	}, func(m *model) {
		m.reset(Base{Index: 40, Term: 4, Digest: 0x40})
		m.append(installed[0])
		m.append(installed[1])
	}}, appendStep(Group{Entries: entries(49, 2, 5, 100)}))
	return steps
}

// TestCrashAtEveryOperation cuts the power in the middle of each operation of the script on the disk in turn, and again
// in the middle of the recovery, several times with other chances of what survives. The log must then be what it was
// before the call that was under way, or after it, and must go on.
func TestCrashAtEveryOperation(t *testing.T) {
	steps := script()
	run := func(fsys *disk.Memory) (before, after *model, err error) {
		before, after = &model{}, &model{}
		l, err := Open(fsys, testDir, testOptions())
		if err != nil {
			return before, after, err
		}
		for _, s := range steps {
			s.model(after)
			if err := s.log(l); err != nil {
				return before, after, fmt.Errorf("%s: %w", s.name, err)
			}
			after.trimmedTo(l.FirstIndex())
			before = after.clone()
		}
		return before, after, l.Close()
	}
	dry, recycled := disk.NewMemory(0), 0
	dry.SetHook(func(op disk.Operation) error {
		if op.Kind == disk.OpRename && isRecycledName(filepath.Base(op.Name)) {
			recycled++
		}
		return nil
	})
	if _, _, err := run(dry); err != nil {
		t.Fatal(err)
	}
	operations := dry.Operations()
	if operations < 100 || recycled < 4 {
		t.Fatalf("the script makes only %d operations, and %d of its segments of trimmed ones", operations, recycled)
	}
	outcomes, seeds := map[bool]int{}, uint64(stride(6))
	for at := uint64(1); at <= operations; at++ {
		for seed := at % seeds; seed < 12; seed += seeds {
			fsys := disk.NewMemory(seed)
			fsys.CrashAt(at)
			before, after, err := run(fsys)
			if !errors.Is(err, disk.ErrCrashed) {
				t.Fatalf("operation %d: %v", at, err)
			}
			fsys.Restart()
			l, err := openThroughCrash(fsys, seed)
			if err != nil {
				t.Fatalf("operation %d, seed %d: open: %v", at, seed, err)
			}
			isNew := outcome(t, l, before, after, fmt.Sprintf("operation %d, seed %d", at, seed))
			outcomes[isNew]++
			goOn(t, fsys, l)
		}
	}
	if floor := 50 / int(seeds); outcomes[true] < floor || outcomes[false] < floor {
		t.Errorf("interrupted calls that survived: %v", outcomes)
	}
}

// TestKillAtEveryOperation ends the process before each operation of the script in turn, with all that was written still in
// the system's memory; the next process opens the log and appends to it, and then the power is cut.
func TestKillAtEveryOperation(t *testing.T) {
	steps := script()
	for at := 1; ; at++ {
		fsys := disk.NewMemory(uint64(at))
		count, killed := 0, false
		fsys.SetHook(func(op disk.Operation) error {
			if count++; count == at {
				killed = true
				fsys.Kill()
			}
			return nil
		})
		before, after := &model{}, &model{}
		l, err := Open(fsys, testDir, testOptions())
		for i := 0; err == nil && i < len(steps); i++ {
			steps[i].model(after)
			if err = steps[i].log(l); err == nil {
				after.trimmedTo(l.FirstIndex())
				before = after.clone()
			}
		}
		if !killed {
			must(t, err)
			return
		}
		fsys.SetHook(nil)
		l = open(t, fsys, testOptions())
		outcome(t, l, before, after, fmt.Sprintf("operation %d", at))
		last, state := l.LastIndex(), l.HardState()
		must(t, l.Append(Group{HardState: HardState{Term: state.Term + 1, Commit: last}, Entries: entries(last+1, 1, 9, 9)}))
		fsys.Crash()
		fsys.Restart()
		l = open(t, fsys, testOptions())
		if l.LastIndex() != last+1 || l.HardState().Term != state.Term+1 {
			t.Fatalf("operation %d: what was acknowledged afterwards is gone: last %d, want %d", at, l.LastIndex(), last+1)
		}
		closeLog(t, l)
	}
}

// openThroughCrash opens the log after further crashes in the middle of opening it.
func openThroughCrash(fsys *disk.Memory, seed uint64) (*Log, error) {
	for next := 1 + seed%3; ; next++ {
		fsys.CrashAt(fsys.Operations() + next)
		l, err := Open(fsys, testDir, testOptions())
		if !errors.Is(err, disk.ErrCrashed) || next > 20 {
			fsys.CrashAt(0)
			return l, err
		}
		fsys.Restart()
	}
}

// outcome checks that the log is one of the two, but for segments that a trim has or has not removed yet.
func outcome(t *testing.T, l *Log, before, after *model, where string) (isNew bool) {
	t.Helper()
	var errs []error
	for i, m := range []*model{before, after} {
		m = m.clone()
		if first := l.FirstIndex(); first <= m.last()+1 {
			m.trimmedTo(first)
		}
		err := m.compare(l)
		if err == nil {
			return i == 1
		}
		errs = append(errs, err)
	}
	t.Fatalf("%s: the log is neither\n the one before: %v\n nor the one after: %v", where, errs[0], errs[1])
	return false
}

// goOn appends to a recovered log and opens it once more.
func goOn(t *testing.T, fsys *disk.Memory, l *Log) {
	t.Helper()
	last, state := l.LastIndex(), l.HardState()
	g := Group{HardState: HardState{Term: state.Term + 1, Commit: state.Commit}, Entries: entries(last+1, 2, 9, 700)}
	must(t, l.Append(g))
	fsys.Kill()
	l = open(t, fsys, testOptions())
	got, err := l.Entries(last+1, last+3, 0)
	if err != nil || len(got) != 2 || l.LastIndex() != last+2 || !bytes.Equal(got[1].Data, g.Entries[1].Data) {
		t.Fatalf("after going on: %d entries, %v", len(got), err)
	}
	closeLog(t, l)
}

// smallLog writes a log of a few segments and returns what it holds, and the place of its last frame.
func smallLog(t testing.TB, fsys disk.FS) (m *model, lastFile string, lastFrame DumpRecord) {
	t.Helper()
	return smallLogIn(t, fsys, 2048)
}

func smallLogIn(t testing.TB, fsys disk.FS, segmentBytes int64) (m *model, lastFile string, lastFrame DumpRecord) {
	t.Helper()
	o := testOptions()
	o.SegmentBytes = segmentBytes
	l := open(t, fsys, o)
	m = &model{}
	for i, g := range []Group{
		{HardState: HardState{Term: 1, Vote: 1}, Entries: entries(1, 3, 1, 200), Membership: []byte("members")},
		{HardState: HardState{Term: 1, Vote: 1, Commit: 2}, Entries: entries(4, 2, 1, 150)},
		{Entries: entries(6, 1, 1, 0)},
		{HardState: HardState{Term: 2, Vote: 3, Commit: 5}, Entries: entries(6, 2, 2, 400)},
		{Entries: entries(8, 2, 2, 100)},
		{HardState: HardState{Term: 2, Vote: 3, Commit: 9}, Entries: entries(10, 3, 2, 20)},
		{Membership: []byte("other members"), Entries: entries(13, 2, 2, 210)},
	} {
		if err := l.Append(g); err != nil {
			t.Fatalf("group %d: %v", i, err)
		}
		m.append(g)
	}
	closeLog(t, l)
	must(t, Dump(fsys, testDir, func(r DumpRecord) error {
		lastFile, lastFrame = r.File, DumpRecord{Offset: r.Offset, Length: r.Length}
		return nil
	}))
	return m, lastFile, lastFrame
}

func segmentPaths(fsys *disk.Memory) (paths []string) {
	for _, path := range fsys.Files(testDir) {
		if _, ok := parseSegmentName(filepath.Base(path)); ok {
			paths = append(paths, path)
		}
	}
	return paths
}

// TestRecoveredGroupIsDurable has a process die between the write and the sync of a group, by itself or because the sync
// failed. The log opens with that group; from then on no power cut may take it away.
func TestRecoveredGroupIsDurable(t *testing.T) {
	for _, syncFailed := range []bool{false, true} {
		for seed := range uint64(20) {
			fsys := disk.NewMemory(seed)
			l := open(t, fsys, testOptions())
			must(t, l.Append(Group{Entries: entries(1, 1, 1, 50)}))
			fsys.SetHook(func(op disk.Operation) error {
				if op.Kind == disk.OpSync {
					if !syncFailed {
						fsys.Kill()
					}
					return syscall.EIO
				}
				return nil
			})
			if err := l.Append(Group{Entries: entries(2, 1, 1, 2000)}); err == nil {
				t.Fatal("the sync did not fail")
			}
			fsys.SetHook(nil)
			fsys.Kill()
			l = open(t, fsys, testOptions())
			last := l.LastIndex()
			if last != 2 {
				t.Fatalf("opened with last index %d", last)
			}
			fsys.Crash()
			fsys.Restart()
			l = open(t, fsys, testOptions())
			if l.LastIndex() != last {
				t.Fatalf("sync failed %v, seed %d: entry %d was there and is gone", syncFailed, seed, last)
			}
			closeLog(t, l)
		}
	}
}

// TestFailedWriteOrSyncIsFinal has one write or sync fail: the log takes nothing more, even when the disk is well again,
// and still reads.
func TestFailedWriteOrSyncIsFinal(t *testing.T) {
	for _, kind := range []disk.OperationKind{disk.OpWrite, disk.OpSync} {
		fsys := disk.NewMemory(1)
		l := open(t, fsys, testOptions())
		must(t, l.Append(Group{Entries: entries(1, 3, 1, 50)}))
		fsys.SetHook(func(op disk.Operation) error {
			if op.Kind == kind {
				return syscall.EIO
			}
			return nil
		})
		if err := l.Append(Group{Entries: entries(4, 1, 1, 50)}); !errors.Is(err, syscall.EIO) {
			t.Fatalf("failed %s: %v", kind, err)
		}
		fsys.SetHook(nil)
		for name, err := range map[string]error{"append": l.Append(Group{Entries: entries(4, 1, 1, 50)}),
			"trim": l.Trim(0), "reset": l.Reset(9, 1, 1)} {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%s after a failed %s: %v", name, kind, err)
			}
		}
		if got, err := l.Entries(1, 4, 0); err != nil || len(got) != 3 || l.LastIndex() != 3 {
			t.Errorf("reading after a failed %s: %d entries, %v", kind, len(got), err)
		}
		closeLog(t, l)
	}
}

// TestFailedReserveIsFinal has the making of the spare fail: the same disk holds the log.
func TestFailedReserveIsFinal(t *testing.T) {
	fsys := disk.NewMemory(1)
	l := open(t, fsys, testOptions())
	fsys.SetHook(func(op disk.Operation) error {
		if op.Kind == disk.OpAllocate {
			return syscall.EIO
		}
		return nil
	})
	if err := l.Reserve(); !errors.Is(err, syscall.EIO) {
		t.Errorf("reserve: %v", err)
	}
	fsys.SetHook(nil)
	if err := l.Append(Group{Entries: entries(1, 1, 1, 1)}); !errors.Is(err, syscall.EIO) {
		t.Errorf("append: %v", err)
	}
	closeLog(t, l)
}

// TestFailureAnywhereIsFinalOrHarmless fails every operation of the script in turn with EIO: the call reports it, and
// what opens afterwards is what was there before the call or after it.
func TestFailureAnywhereIsFinalOrHarmless(t *testing.T) {
	steps := script()
	for at := 1; ; at++ {
		fsys := disk.NewMemory(uint64(at))
		count, failed := 0, false
		fsys.SetHook(func(op disk.Operation) error {
			if count++; count == at {
				failed = true
				return syscall.EIO
			}
			return nil
		})
		before, after := &model{}, &model{}
		l, err := Open(fsys, testDir, testOptions())
		for i := 0; err == nil && i < len(steps); i++ {
			steps[i].model(after)
			if err = steps[i].log(l); err == nil {
				after.trimmedTo(l.FirstIndex())
				before = after.clone()
			}
		}
		if !failed {
			must(t, err)
			if at < 100 {
				t.Fatalf("the script makes only %d operations", at)
			}
			return
		}
		if err == nil && before.last() != after.last() {
			t.Fatalf("operation %d failed and nobody was told", at)
		}
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatalf("operation %d: %v", at, err)
		}
		fsys.SetHook(nil)
		fsys.Crash()
		fsys.Restart()
		l = open(t, fsys, testOptions())
		outcome(t, l, before, after, fmt.Sprintf("operation %d", at))
		goOn(t, fsys, l)
	}
}

// TestUnreadableIsNotTorn has reads fail while the log is opened: that must never be taken for the end of the log.
func TestUnreadableIsNotTorn(t *testing.T) {
	for _, fault := range []error{syscall.EIO, io.ErrUnexpectedEOF, io.EOF} {
		for at := 1; ; at++ {
			fsys := disk.NewMemory(1)
			m, _, _ := smallLog(t, fsys)
			count, failed := 0, false
			fsys.SetHook(func(op disk.Operation) error {
				if op.Kind != disk.OpRead {
					return nil
				}
				if count++; count == at {
					failed = true
					return fault
				}
				return nil
			})
			l, err := Open(fsys, testDir, testOptions())
			if !failed {
				must(t, err)
				closeLog(t, l)
				break
			}
			if err == nil || errors.Is(err, ErrCorrupt) {
				t.Fatalf("read %d failed with %v: %v", at, fault, err)
			}
			fsys.SetHook(nil)
			l = open(t, fsys, testOptions())
			must(t, m.compare(l))
			closeLog(t, l)
		}
	}
}
