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
		trim(18),
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
	dry := disk.NewMemory(0)
	if _, _, err := run(dry); err != nil {
		t.Fatal(err)
	}
	operations := dry.Operations()
	if operations < 100 {
		t.Fatalf("the script makes only %d operations", operations)
	}
	outcomes := map[bool]int{}
	for at := uint64(1); at <= operations; at++ {
		for seed := uint64(0); seed < 12; seed++ {
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
	if outcomes[true] < 50 || outcomes[false] < 50 {
		t.Errorf("interrupted calls that survived: %v", outcomes)
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
	o := testOptions()
	o.SegmentBytes = 2048
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

// frameAt returns the record that a byte belongs to.
func frameAt(records []DumpRecord, file string, offset int64) (DumpRecord, bool) {
	for _, r := range records {
		if r.File == file && offset >= r.Offset && offset < r.Offset+r.Length {
			return r, true
		}
	}
	return DumpRecord{}, false
}

// TestEveryDamagedByteIsFound changes each byte of a log in turn: opening refuses and names the place, or the byte meant
// nothing and the log holds what it held. That includes the frame that was acknowledged last.
func TestEveryDamagedByteIsFound(t *testing.T) {
	for _, mask := range []byte{0x01, 0x80, 0xff} {
		fsys := disk.NewMemory(1)
		m, _, _ := smallLog(t, fsys)
		var records []DumpRecord
		must(t, Dump(fsys, testDir, func(r DumpRecord) error {
			records = append(records, DumpRecord{File: r.File, Offset: r.Offset, Length: r.Length})
			return nil
		}))
		refused := 0
		paths := segmentPaths(fsys)
		if len(paths) < 2 {
			t.Fatalf("only %d segments", len(paths))
		}
		for _, path := range paths {
			content, err := fsys.Bytes(path)
			must(t, err)
			for offset := range int64(len(content)) {
				must(t, fsys.Corrupt(path, offset, mask))
				record, used := frameAt(records, path, offset)
				var damage *CorruptError
				l, err := Open(fsys, testDir, testOptions())
				switch {
				case err == nil:
					if used {
						t.Fatalf("%s: byte %d changed by %x was not missed", path, offset, mask)
					}
					if err := m.compare(l); err != nil {
						t.Fatalf("%s: byte %d changed by %x: %v", path, offset, mask, err)
					}
					closeLog(t, l)
				case errors.As(err, &damage):
					refused++
					if !used || damage.File != path || damage.Offset != record.Offset {
						t.Fatalf("%s: byte %d changed by %x: %v", path, offset, mask, err)
					}
				case record.Offset != 0 || !used: // a header may name another version or member
					t.Fatalf("%s: byte %d changed by %x: %v", path, offset, mask, err)
				}
				must(t, fsys.SetBytes(path, content))
			}
		}
		if refused < 2000 {
			t.Errorf("only %d of the changed bytes were refused", refused)
		}
	}
}

// TestDamageIsFoundWhenRead changes bytes of a log that is open.
func TestDamageIsFoundWhenRead(t *testing.T) {
	fsys := disk.NewMemory(1)
	m, _, _ := smallLog(t, fsys)
	var records []DumpRecord
	must(t, Dump(fsys, testDir, func(r DumpRecord) error {
		if r.Frame != nil {
			records = append(records, DumpRecord{File: r.File, Offset: r.Offset, Length: r.Length})
		}
		return nil
	}))
	l := open(t, fsys, testOptions())
	defer closeLog(t, l)
	for _, r := range records {
		for offset := r.Offset; offset < r.Offset+r.Length; offset++ {
			must(t, fsys.Corrupt(r.File, offset, 0x10))
			for index := l.FirstIndex(); index <= l.LastIndex(); index++ {
				var damage *CorruptError
				err := m.compareEntries(l, index, index+1, 0)
				if err != nil && (!errors.As(err, &damage) || damage.File != r.File || damage.Offset != r.Offset) {
					t.Fatalf("%s: byte %d: entry %d: %v", r.File, offset, index, err)
				}
			}
			must(t, fsys.Corrupt(r.File, offset, 0x10))
		}
	}
}

// TestTruncatedFileIsRefused cuts each segment at every byte. A segment's size is durable before it is part of the log,
// so that a shorter file is damage wherever it ends.
func TestTruncatedFileIsRefused(t *testing.T) {
	fsys := disk.NewMemory(1)
	m, _, _ := smallLog(t, fsys)
	for _, path := range segmentPaths(fsys) {
		content, err := fsys.Bytes(path)
		must(t, err)
		for size := range len(content) {
			must(t, fsys.SetBytes(path, content[:size]))
			l, err := Open(fsys, testDir, testOptions())
			var damage *CorruptError
			switch {
			case err == nil && size >= 2048: // a part of the footer is gone
				if err := m.compare(l); err != nil {
					t.Fatalf("%s cut at %d: %v", path, size, err)
				}
				closeLog(t, l)
			case !errors.As(err, &damage) || damage.File != path || damage.Offset > int64(size):
				t.Fatalf("%s cut at %d: %v", path, size, err)
			}
			must(t, fsys.SetBytes(path, content))
		}
	}
}

// TestWriteCutAnywhere leaves of the last write every prefix, then every choice of its sectors: all but the whole write
// must open to the record before it, and go on.
func TestWriteCutAnywhere(t *testing.T) {
	fsys := disk.NewMemory(1)
	m, path, frame := smallLog(t, fsys)
	whole, err := fsys.Bytes(path)
	must(t, err)
	before := m.clone()
	before.entries, before.membership = before.entries[:12], []byte("members")
	try := func(what string, content []byte) {
		t.Helper()
		if bytes.Equal(content, whole) {
			return
		}
		must(t, fsys.SetBytes(path, content))
		l, err := Open(fsys, testDir, testOptions())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := before.compare(l); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		kept := len(segmentPaths(fsys))
		goOn(t, fsys, l)
		added := segmentPaths(fsys)[kept:]
		for i := len(added) - 1; i >= 0; i-- {
			must(t, fsys.Remove(added[i]))
		}
	}
	for end := frame.Offset; end < frame.Offset+frame.Length; end++ {
		content := bytes.Clone(whole)
		clear(content[end:])
		try(fmt.Sprintf("cut at %d", end), content)
	}
	firstSector := frame.Offset / sectorBytes
	sectors := (frame.Offset+frame.Length-1)/sectorBytes - firstSector + 1
	if sectors < 2 {
		t.Fatalf("the last write has %d sectors", sectors)
	}
	for lost := 1; lost < 1<<sectors; lost++ {
		content := bytes.Clone(whole)
		for i := range sectors {
			if lost>>i&1 == 1 {
				begin := max(frame.Offset, (firstSector+i)*sectorBytes)
				end := min(frame.Offset+frame.Length, (firstSector+i+1)*sectorBytes)
				clear(content[begin:end])
			}
		}
		try(fmt.Sprintf("lost sectors %b", lost), content)
	}
}

// TestZeroDataIsNotTakenForALostSector has sectors of zeros in the data of the last write: losing one of its other
// sectors is a torn write, a flipped bit is damage.
func TestZeroDataIsNotTakenForALostSector(t *testing.T) {
	for _, size := range []int{300, 1000, 2500} {
		fsys := disk.NewMemory(1)
		l := open(t, fsys, testOptions())
		must(t, l.Append(Group{Entries: entries(1, 1, 1, 40)}))
		zeros := Entry{Index: 2, Term: 1, Data: make([]byte, size)}
		must(t, l.Append(Group{Entries: []Entry{zeros}}))
		offset, length := l.active().tail.end-int64(l.active().tail.length), int64(l.active().tail.length)
		path := l.active().path
		closeLog(t, l)
		for at := offset; at < offset+length; at++ {
			must(t, fsys.Corrupt(path, at, 0x04))
			if _, err := Open(fsys, testDir, testOptions()); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("data of %d zeros, byte %d changed: %v", size, at, err)
			}
			must(t, fsys.Corrupt(path, at, 0x04))
		}
	}
}

// TestDataThatLooksLikeFrames stores the log's own frames as data, at every alignment, and tears the write that does: what
// is left of it must not be taken for frames behind a damaged one.
func TestDataThatLooksLikeFrames(t *testing.T) {
	for shift := range 8 {
		fsys := disk.NewMemory(1)
		m, path, _ := smallLog(t, fsys)
		content, err := fsys.Bytes(path)
		must(t, err)
		l := open(t, fsys, testOptions())
		g := Group{Entries: []Entry{{Index: m.last() + 1, Term: 2, Data: append(make([]byte, shift), content...)}}}
		must(t, l.Append(g))
		path, end, length := l.active().path, l.active().tail.end, int64(l.active().tail.length)
		closeLog(t, l)
		torn, err := fsys.Bytes(path)
		must(t, err)
		start := end - length
		clear(torn[start:][:min(align512(start+1)-start, length)])
		must(t, fsys.SetBytes(path, torn))
		l = open(t, fsys, testOptions())
		must(t, m.compare(l))
		closeLog(t, l)
	}
}

// TestFrameLostBeforeTheTail wipes each frame but the last, as a disk does that loses a block: what follows tells.
func TestFrameLostBeforeTheTail(t *testing.T) {
	fsys := disk.NewMemory(1)
	_, lastFile, lastFrame := smallLog(t, fsys)
	var frames []DumpRecord
	must(t, Dump(fsys, testDir, func(r DumpRecord) error {
		if r.Frame != nil && (r.File != lastFile || r.Offset != lastFrame.Offset) {
			frames = append(frames, DumpRecord{File: r.File, Offset: r.Offset, Length: r.Length})
		}
		return nil
	}))
	for _, f := range frames {
		content, err := fsys.Bytes(f.File)
		must(t, err)
		wiped := bytes.Clone(content)
		clear(wiped[f.Offset : f.Offset+f.Length])
		must(t, fsys.SetBytes(f.File, wiped))
		var damage *CorruptError
		if _, err := Open(fsys, testDir, testOptions()); !errors.As(err, &damage) || damage.File != f.File ||
			damage.Offset != f.Offset {
			t.Errorf("%s: frame at %d is gone: %v", f.File, f.Offset, err)
		}
		must(t, fsys.SetBytes(f.File, content))
	}
}

// TestSegmentMissing removes each segment but the oldest, which may have been trimmed.
func TestSegmentMissing(t *testing.T) {
	fsys := disk.NewMemory(1)
	m, _, _ := smallLog(t, fsys)
	paths := segmentPaths(fsys)
	for _, path := range paths[1:] {
		must(t, fsys.Rename(path, path+".away"))
		if _, err := Open(fsys, testDir, testOptions()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("without %s: %v", path, err)
		}
		must(t, fsys.Rename(path+".away", path))
	}
	l := open(t, fsys, testOptions())
	must(t, m.compare(l))
	closeLog(t, l)
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
