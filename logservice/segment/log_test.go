package segment

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/logmirror/logmirror/internal/disk"
)

// TestFullDisk fills the disk: appends stop with ErrNoSpace, reads go on, and appends go on when there is room, after a
// trim or not, in the same life of the log or the next.
func TestFullDisk(t *testing.T) {
	fsys := disk.NewMemory(1)
	o := testOptions()
	l := open(t, fsys, o)
	fsys.SetCapacity(5 * o.SegmentBytes)
	m := &model{}
	fill := func() {
		t.Helper()
		for {
			g := Group{HardState: HardState{Term: 1, Commit: m.last() + 1}, Entries: entries(m.last()+1, 1, 1, 900)}
			err := l.Append(g)
			if errors.Is(err, ErrNoSpace) {
				break
			}
			must(t, err)
			m.append(g)
			if m.last() > 1000 {
				t.Fatal("the disk is never full")
			}
		}
		if err := l.Reserve(); !errors.Is(err, ErrNoSpace) || !errors.Is(l.ReserveError(), ErrNoSpace) {
			t.Fatalf("reserved on a full disk: %v, %v", err, l.ReserveError())
		}
		must(t, m.compare(l))
	}
	fill()
	if m.last() < 10 {
		t.Fatalf("full after %d entries", m.last())
	}
	must(t, l.Trim(m.last()/2))
	m.trimmedTo(l.FirstIndex())
	must(t, l.Reserve())
	if l.ReserveError() != nil {
		t.Fatal(l.ReserveError())
	}
	fill()
	if err := l.Reset(m.last()+10, 1, 1); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("reset on a full disk: %v", err)
	}
	must(t, m.compare(l))
	closeLog(t, l)
	l = open(t, fsys, o)
	must(t, m.compare(l))
	fill()
	fsys.SetCapacity(0)
	g := Group{Entries: entries(m.last()+1, 2, 2, 900)}
	must(t, l.Append(g))
	m.append(g)
	must(t, m.compare(l))
	closeLog(t, l)
}

// TestFullDiskUnderWrite has a frame's own write find no room, as file systems may that never overwrite, with or without
// the bytes reaching the file. The group does not count, and the log goes on when there is room: what is left of its frame is
// in the way of nothing, not even where a later write is cut off by a crash.
func TestFullDiskUnderWrite(t *testing.T) {
	fsys := disk.NewMemory(1)
	o := testOptions()
	o.SegmentBytes = 5 * disk.BlockBytes // what is left of a frame may lie in blocks that the next one does not write
	l := open(t, fsys, o)
	m := &model{}
	fail := func(written int, err error) {
		fsys.SetHook(func(op disk.Operation) error {
			if op.Kind == disk.OpWrite {
				return &disk.PartialWrite{Bytes: written, Err: err}
			}
			return nil
		})
	}
	add := func(count int) {
		t.Helper()
		g := Group{Entries: entries(m.last()+1, count, 1, 100)}
		must(t, l.Append(g))
		m.append(g)
		must(t, m.compare(l))
	}
	for round := range 12 {
		add(1) // begins the segment, so that it is the frame that finds no room
		g := Group{Entries: entries(m.last()+1, 2, 1, 3000)}
		fail(1+round*800, disk.ErrNoSpace)
		if err := l.Append(g); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("append without room: %v", err)
		}
		if err := l.Append(g); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("second append without room: %v", err)
		}
		fsys.SetHook(nil)
		add(2)

		fail(disk.BlockBytes, syscall.EIO)
		if err := l.Append(Group{Entries: entries(m.last()+1, 2, 1, 2500)}); err == nil {
			t.Fatal("appended though the write was cut off")
		}
		fsys.SetHook(nil)
		_ = l.Close() // it says again what failed
		l = open(t, fsys, o)
		must(t, m.compare(l))
	}
	closeLog(t, l)
}

// TestSpaceIsReservedAhead lets the log's own goroutine make the next segment's file, and sees it try again on a full
// disk until there is room.
func TestSpaceIsReservedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disk.NewMemory(1)
		o := testOptions()
		o.ManualReserve = false
		l := open(t, fsys, o)
		synctest.Wait()
		if l.DiskBytes() != 2*o.SegmentBytes {
			t.Errorf("%d bytes on disk, want a segment and its spare", l.DiskBytes())
		}
		fsys.SetCapacity(2 * o.SegmentBytes)
		must(t, l.Append(Group{Entries: entries(1, 3, 1, 900)}))
		must(t, l.Append(Group{Entries: entries(4, 3, 1, 900)}))
		synctest.Wait()
		if err := l.ReserveError(); !errors.Is(err, ErrNoSpace) {
			t.Errorf("no alarm on a full disk: %v", err)
		}
		fsys.SetCapacity(0)
		time.Sleep(2 * ReserveRetryDefault)
		if err := l.ReserveError(); err != nil || l.spareBytes == 0 {
			t.Errorf("not reserved though there is room: %v", err)
		}
		closeLog(t, l)
	})
}

// TestReserveBesideRoll asks for a spare while the last one is being given its name as a segment.
func TestReserveBesideRoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disk.NewMemory(1)
		l := open(t, fsys, testOptions())
		m := &model{}
		for range 3 {
			must(t, l.Reserve())
			fsys.SetHook(func(op disk.Operation) error {
				if op.Kind == disk.OpRename {
					time.Sleep(time.Second)
				}
				return nil
			})
			g := Group{Entries: entries(m.last()+1, 3, 1, 900)}
			var writers sync.WaitGroup
			writers.Go(func() { must(t, l.Append(g)) })
			synctest.Wait()
			writers.Go(func() { must(t, l.Reserve()) })
			writers.Wait()
			m.append(g)
			must(t, m.compare(l))
			fsys.SetHook(nil)
		}
		closeLog(t, l)
		l = open(t, fsys, testOptions())
		must(t, m.compare(l))
		closeLog(t, l)
	})
}

// TestReadersDoNotWaitForTheDisk has a sync take a minute of virtual time: reads are answered at once, and see nothing of
// the group under way.
func TestReadersDoNotWaitForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disk.NewMemory(1)
		l := open(t, fsys, testOptions())
		must(t, l.Append(Group{Entries: entries(1, 2, 1, 100)}))
		fsys.SetHook(func(op disk.Operation) error {
			if op.Kind == disk.OpSync {
				time.Sleep(time.Minute)
			}
			return nil
		})
		start := time.Now()
		var writers sync.WaitGroup
		writers.Go(func() {
			must(t, l.Append(Group{HardState: HardState{Term: 1, Commit: 2}, Entries: entries(3, 1, 1, 1)}))
		})
		synctest.Wait()
		writers.Go(func() { must(t, l.Trim(0)) })
		synctest.Wait()
		if got, err := l.Entries(1, 3, 0); err != nil || len(got) != 2 || l.LastIndex() != 2 || l.HardState().Commit != 0 {
			t.Errorf("%d entries, %v, last %d", len(got), err, l.LastIndex())
		}
		if digest, err := l.Digest(1); err != nil || digest == 0 {
			t.Errorf("digest %x, %v", digest, err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("readers waited %v", waited)
		}
		writers.Wait()
		if waited := time.Since(start); waited != time.Minute || l.LastIndex() != 3 {
			t.Errorf("after %v the last entry is %d", waited, l.LastIndex())
		}
		fsys.SetHook(nil)
		closeLog(t, l)
	})
}

// TestReadersBesideAWriter reads, on several goroutines, while entries are appended, cut and trimmed: all that is read
// must be what was written at some time under that index and term.
func TestReadersBesideAWriter(t *testing.T) {
	fsys := disk.NewMemory(1)
	o := testOptions()
	o.ManualReserve = false
	l := open(t, fsys, o)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				lo, hi := l.FirstIndex(), l.LastIndex()+1
				got, err := l.Entries(lo, hi, 5000)
				if err != nil {
					if !errors.Is(err, ErrTrimmed) && !errors.Is(err, ErrUnavailable) {
						t.Errorf("entries [%d,%d): %v", lo, hi, err)
						return
					}
					continue
				}
				for i, e := range got {
					if e.Index != lo+uint64(i) || string(e.Data) != fmt.Sprintf("%0300d of %d", e.Index, e.Term) {
						t.Errorf("entry %d is %d of %d: %q", lo+uint64(i), e.Index, e.Term, e.Data)
						return
					}
				}
				if _, err := l.Digest(lo); err != nil && !errors.Is(err, ErrTrimmed) {
					t.Errorf("digest of %d: %v", lo, err)
				}
			}
		})
	}
	next := uint64(1)
	for term := uint64(1); term <= 300; term++ {
		first := max(next-min(next-1, term%3), l.HardState().Commit+1)
		var g Group
		for index := first; index < first+4; index++ {
			g.Entries = append(g.Entries, Entry{Index: index, Term: term, Data: fmt.Appendf(nil, "%0300d of %d", index, term)})
		}
		next = first + 4
		g.HardState = HardState{Term: term, Commit: next - 3}
		must(t, l.Append(g))
		if term%7 == 0 {
			must(t, l.Trim(next-min(next, 40)))
		}
	}
	close(done)
	readers.Wait()
	closeLog(t, l)
	if _, err := l.Entries(next-1, next, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := l.Append(Group{Membership: []byte("x")}); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	must(t, l.Close())
}

func TestOtherMembersLogIsRefused(t *testing.T) {
	for name, fsys := range map[string]disk.FS{"memory": disk.NewMemory(1), "os": disk.OS()} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			o := testOptions()
			l, err := Open(fsys, dir, o)
			must(t, err)
			if _, err := Open(fsys, dir, o); !errors.Is(err, ErrLocked) {
				t.Errorf("opened twice: %v", err)
			}
			if _, err := Verify(fsys, dir); !errors.Is(err, ErrLocked) {
				t.Errorf("verified while open: %v", err)
			}
			must(t, l.Close())
			for _, other := range []Identity{{1, 0xa2, 0xd3}, {0xc1, 1, 0xd3}, {0xc1, 0xa2, 1}} {
				o.Identity = other
				var mismatch *OtherMemberError
				if _, err := Open(fsys, dir, o); !errors.As(err, &mismatch) || !errors.Is(err, ErrOtherMember) ||
					mismatch.Want != other || mismatch.Have != testIdentity {
					t.Errorf("opened as %v: %v", other, err)
				}
			}
			o.Identity = Identity{MemberID: 0xa2}
			l, err = Open(fsys, dir, o)
			must(t, err)
			if l.Identity() != testIdentity {
				t.Errorf("identity %v", l.Identity())
			}
			must(t, l.Close())
		})
	}
}

// TestInstallThatIsNotFinished has the groups end in an error, or not fit: the old log stays.
func TestInstallThatIsNotFinished(t *testing.T) {
	fsys := disk.NewMemory(1)
	l := open(t, fsys, testOptions())
	m := &model{}
	g := Group{HardState: HardState{Term: 1, Commit: 3}, Entries: entries(1, 5, 1, 100)}
	must(t, l.Append(g))
	m.append(g)
	failure := errors.New("the sender is gone")
	err := l.Install(Base{Index: 10, Term: 1}, func(yield func(Group, error) bool) {
		_ = yield(Group{Entries: entries(11, 5, 1, 100)}, nil) && yield(Group{}, failure)
	})
	if !errors.Is(err, failure) {
		t.Errorf("install: %v", err)
	}
	err = l.Install(Base{Index: 10, Term: 1}, func(yield func(Group, error) bool) {
		yield(Group{Entries: entries(12, 5, 1, 100)}, nil)
	})
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("install with a gap: %v", err)
	}
	if err := l.Reset(2, 1, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("reset below the commit: %v", err)
	}
	must(t, m.compare(l))
	g = Group{Entries: entries(6, 1, 1, 1)}
	must(t, l.Append(g))
	m.append(g)
	closeLog(t, l)
	l = open(t, fsys, testOptions())
	must(t, m.compare(l))
	closeLog(t, l)
}

// TestFootersServeTheIndex checks that sealed segments are read through their footers with no index in memory, and that a
// lost or damaged footer costs nothing but time.
func TestFootersServeTheIndex(t *testing.T) {
	fsys := disk.NewMemory(1)
	m, _, _ := smallLog(t, fsys)
	paths := segmentPaths(fsys)
	l := open(t, fsys, testOptions())
	inMemory := 0
	for _, s := range l.segments[:len(l.segments)-1] {
		if !s.hasFooter {
			t.Errorf("%s has no footer", s.path)
		}
		if s.frames != nil {
			inMemory++
		}
	}
	if inMemory > 1 {
		t.Errorf("%d indexes in memory, at most one was asked for", inMemory)
	}
	reads := 0
	fsys.SetHook(func(op disk.Operation) error {
		if op.Kind == disk.OpRead {
			reads++
			if op.Length > 1024 {
				t.Errorf("read %d bytes of %s for one small entry", op.Length, op.Name)
			}
		}
		return nil
	})
	must(t, m.compareEntries(l, 1, 2, 0))
	fsys.SetHook(nil)
	if reads == 0 {
		t.Error("nothing was read")
	}
	for _, s := range l.segments[:len(l.segments)-1] {
		for offset := fileOffset(s.tail.end); offset < s.bytes; offset++ {
			must(t, fsys.Corrupt(s.path, offset, 0x08))
			for _, other := range l.segments[:len(l.segments)-1] {
				other.frames = nil
			}
			must(t, m.compare(l))
			must(t, fsys.Corrupt(s.path, offset, 0x08))
		}
	}
	closeLog(t, l)
	if len(paths) != len(segmentPaths(fsys)) {
		t.Error("reading made segments")
	}
}

func TestVerifyAndDump(t *testing.T) {
	fsys := disk.NewMemory(1)
	if _, err := Verify(fsys, testDir); err == nil {
		t.Error("verified a directory that is not there")
	}
	m, path, frame := smallLog(t, fsys)
	report, err := Verify(fsys, testDir)
	must(t, err)
	if report.Identity != testIdentity || report.HardState != m.hardState || string(report.Membership) != "other members" ||
		report.FirstIndex != 1 || report.LastIndex != m.last() || report.LastTerm != 2 || report.Digest != m.digest(m.last()) {
		t.Errorf("report %+v", report)
	}
	frames := 0
	for i, s := range report.Segments {
		frames += s.Frames
		if s.TornTail || s.Footer != (i < len(report.Segments)-1) {
			t.Errorf("segment %+v", s)
		}
	}
	if len(report.Segments) != len(segmentPaths(fsys)) || frames != 7 {
		t.Errorf("%d segments with %d frames", len(report.Segments), frames)
	}

	replayed := &model{}
	must(t, Dump(fsys, testDir, func(r DumpRecord) error {
		if f := r.Frame; f != nil {
			g := Group{HardState: f.HardState, Membership: f.Membership}
			for _, e := range f.Entries {
				e.Data = append([]byte{}, e.Data...)
				g.Entries = append(g.Entries, e)
			}
			replayed.append(g)
		} else if r.Segment.Identity != testIdentity || r.Segment.Base.Index != replayed.last() {
			t.Errorf("segment %+v", r.Segment)
		}
		return nil
	}))
	for i := range m.entries {
		m.entries[i].Data = append([]byte{}, m.entries[i].Data...)
	}
	if !reflect.DeepEqual(replayed, m) {
		t.Error("the dump does not give what was written")
	}
	enough := errors.New("enough")
	if err := Dump(fsys, testDir, func(DumpRecord) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("dump: %v", err)
	}

	must(t, fsys.Corrupt(path, frame.Offset+10, 1))
	var damage *CorruptError
	report, err = Verify(fsys, testDir)
	if !errors.As(err, &damage) || damage.Offset != frame.Offset || len(report.Segments) != len(segmentPaths(fsys))-1 {
		t.Errorf("verified damage: %v, %d segments", err, len(report.Segments))
	}
	if err := Dump(fsys, testDir, func(DumpRecord) error { return nil }); !errors.As(err, &damage) {
		t.Errorf("dumped damage: %v", err)
	}
}

// blockFS counts the writes of whole blocks from memory that begins with one, the others, and reads.
type blockFS struct {
	disk.FS
	direct, blocks, others, reads int
}

type blockFile struct {
	disk.File
	noted *blockFS
}

func (f *blockFS) OpenFile(name string) (disk.File, error) {
	file, err := f.FS.OpenFile(name)
	return &blockFile{file, f}, err
}

func (f *blockFS) Create(name string) (disk.File, error) {
	file, err := f.FS.Create(name)
	return &blockFile{file, f}, err
}

func (f *blockFile) Direct() {
	f.noted.direct++
	f.File.Direct()
}

func (f *blockFile) ReadAt(b []byte, offset int64) (int, error) {
	f.noted.reads++
	return f.File.ReadAt(b, offset)
}

func (f *blockFile) WriteAt(b []byte, offset int64) (int, error) {
	address := int64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	if (offset|int64(len(b))|address)%disk.BlockBytes == 0 {
		f.noted.blocks++
	} else {
		f.noted.others++
	}
	return f.File.WriteAt(b, offset)
}

// TestGroupsAreWholeBlocks has a log write on a real disk what can go past the page cache, group by group, also after a segment
// has begun and after it was opened: one write for each group and no read but the first. Only headers, footers and the tail that
// opening writes again are other writes.
func TestGroupsAreWholeBlocks(t *testing.T) {
	fsys := &blockFS{FS: disk.OS()}
	directory := filepath.Join(t.TempDir(), "log")
	o := testOptions()
	o.SegmentBytes = 6 * disk.BlockBytes
	m := &model{}
	random := rand.New(rand.NewPCG(3, 4))
	for range 4 {
		made := fsys.direct
		l, err := Open(fsys, directory, o)
		must(t, err)
		if asked := fsys.direct - made; asked < len(l.segments) {
			t.Errorf("%d of %d files are written to past the page cache", asked, len(l.segments))
		}
		must(t, m.compare(l))
		var written *segmentFile // where the group before is
		for range 60 {
			must(t, l.Reserve())
			g := Group{HardState: HardState{Term: 1, Vote: 1, Commit: m.last()}, Entries: entries(m.last()+1, 1+random.IntN(4), 1, random.IntN(1500))}
			segment, before := l.active(), *fsys
			must(t, l.Append(g))
			m.append(g)
			if wrote := fsys.blocks - before.blocks; wrote != 1 {
				t.Fatalf("%d writes of whole blocks for one group", wrote)
			}
			if l.active() == segment && fsys.others != before.others {
				t.Fatalf("%d writes for one group that are no whole blocks", fsys.others-before.others)
			}
			if l.active() == segment && segment == written && fsys.reads != before.reads {
				t.Fatalf("%d reads for one group", fsys.reads-before.reads)
			}
			written = l.active()
			must(t, m.compareEntries(l, max(m.last(), 9)-8, m.last()+1, 0))
		}
		if len(l.segments) < 4 || fsys.direct < len(l.segments) {
			t.Errorf("%d segments, and %d files that are written to past the page cache", len(l.segments), fsys.direct)
		}
		closeLog(t, l)
	}
}

// TestLastBlockOfAFile fills files that end within a block: no write makes them longer.
func TestLastBlockOfAFile(t *testing.T) {
	fsys := disk.NewMemory(1)
	o := testOptions()
	o.SegmentBytes = disk.BlockBytes + 3*sectorBytes
	l := open(t, fsys, o)
	m := &model{}
	last := 0
	for len(l.segments) < 8 {
		must(t, l.Reserve())
		g := Group{HardState: HardState{Term: 1, Commit: m.last()}, Entries: entries(m.last()+1, 1, 1, 64)}
		must(t, l.Append(g))
		m.append(g)
		s := l.active()
		if size, err := s.file.Size(); err != nil || size != o.SegmentBytes {
			t.Fatalf("a segment of %d bytes after %d bytes of content: %v", size, s.tail.end, err)
		}
		if fileOffset(s.tail.end) > disk.BlockBytes {
			last++
		}
	}
	if last == 0 {
		t.Error("no group in the last block of a file")
	}
	must(t, m.compare(l))
	closeLog(t, l)
	must(t, m.compare(open(t, fsys, o)))
}

// TestAppendAllocations checks that a group costs the same few allocations however many entries it has.
func TestAppendAllocations(t *testing.T) {
	cost := func(count int) float64 {
		o := testOptions()
		o.SegmentBytes = 64 << 20
		fsys := nullFS{disk.NewMemory(1)}
		l, err := Open(fsys, testDir, o)
		must(t, err)
		defer l.Close()
		g := Group{Entries: entries(1, count, 1, 64)}
		next := uint64(1)
		return testing.AllocsPerRun(200, func() {
			for i := range g.Entries {
				g.Entries[i].Index = next
				next++
			}
			must(t, l.Append(g))
		})
	}
	if one, many := cost(1), cost(200); one > 1 || many > one {
		t.Errorf("%v allocations for one entry, %v for 200", one, many)
	}
}

// nullFS writes to a memory disk what goes to the header of a file, and nothing else: what is measured is the log.
type nullFS struct{ *disk.Memory }

type nullFile struct{ disk.File }

func (f nullFS) Create(name string) (disk.File, error) {
	file, err := f.Memory.Create(name)
	return nullFile{file}, err
}

func (f nullFile) WriteAt(b []byte, offset int64) (int, error) {
	if offset == 0 {
		return f.File.WriteAt(b, offset)
	}
	return len(b), nil
}

func (f nullFile) Datasync() error { return nil }

func BenchmarkAppend(b *testing.B) {
	for _, count := range []int{1, 30, 300} {
		for name, fsys := range map[string]disk.FS{"null": nullFS{disk.NewMemory(1)}, "os": disk.OS()} {
			b.Run(fmt.Sprintf("%s/%d", name, count), func(b *testing.B) {
				o := Options{Identity: testIdentity}
				l, err := Open(fsys, filepath.Join(b.TempDir(), "log"), o)
				must(b, err)
				defer l.Close()
				g := Group{Entries: entries(1, count, 1, 256)}
				next := uint64(1)
				b.SetBytes(int64(count * 256))
				b.ReportAllocs()
				for b.Loop() {
					for i := range g.Entries {
						g.Entries[i].Index = next
						next++
					}
					g.HardState = HardState{Term: 1, Commit: next - 1}
					if err := l.Append(g); err != nil {
						b.Fatal(err)
					}
					if next%100_000 < uint64(count) {
						must(b, l.Trim(next-1))
					}
				}
			})
		}
	}
}

func BenchmarkEntries(b *testing.B) {
	for _, count := range []int{1, 30} {
		b.Run(fmt.Sprintf("os/%d", count), func(b *testing.B) {
			l, err := Open(disk.OS(), filepath.Join(b.TempDir(), "log"), Options{SegmentBytes: 8 << 20, ManualReserve: true})
			must(b, err)
			defer l.Close()
			for next := uint64(1); next < 20_000; next += uint64(100) {
				must(b, l.Append(Group{Entries: entries(next, 100, 1, 256)}))
			}
			lo := uint64(1)
			b.SetBytes(int64(count * 256))
			b.ReportAllocs()
			for b.Loop() {
				got, err := l.Entries(lo, lo+uint64(count), 1<<20)
				if err != nil || len(got) != count {
					b.Fatal(len(got), err)
				}
				if lo += uint64(count); lo+uint64(count) > 19_900 {
					lo = 1
				}
			}
		})
	}
}
