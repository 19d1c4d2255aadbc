package segment

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

// recycledLog writes a log of a few segments, some in files that were others before, full of frames and footers. A segment has
// several blocks, and some end before the last of them: a write leaves nothing of what was there before in the blocks that it
// touches.
func recycledLog(t testing.TB, fsys disk.FS) (*Log, *model) {
	t.Helper()
	o := testOptions()
	o.SegmentBytes = 3 * disk.BlockBytes
	l := open(t, fsys, o)
	m := &model{}
	first := uint64(0)
	for life := uint64(1); life <= 3; life++ {
		first = l.active().header.sequence + 1
		for n := range 12 {
			must(t, l.Reserve())
			g := Group{HardState: HardState{Term: life, Vote: life, Commit: m.last()}, Membership: fmt.Appendf(nil, "members %d", life),
				Entries: entries(m.last()+1, 3, life, 200+n%2*1450+int(life/3)*100)}
			must(t, l.Append(g))
			m.append(g)
		}
		if life < 3 {
			must(t, l.Trim(m.hardState.Commit))
			m.trimmedTo(l.FirstIndex())
		}
	}
	stale := 0
	for _, s := range l.segments {
		if s.header.sequence > first && hasForeignStamps(t, s) {
			stale++
		}
	}
	if stale < 2 {
		t.Fatalf("%d segments in recycled files", stale)
	}
	return l, m
}

// beginRecycledSegment trims the log and makes its last segment one in a trimmed file, with one small group in it.
func beginRecycledSegment(t testing.TB, l *Log, m *model) {
	t.Helper()
	must(t, l.Trim(m.hardState.Commit))
	m.trimmedTo(l.FirstIndex())
	for before := l.active(); l.active() == before || !hasForeignStamps(t, l.active()); {
		if len(l.recycled) == 0 && l.active() != before {
			t.Fatal("the last segment is not in a recycled file")
		}
		must(t, l.Reserve())
		g := Group{HardState: m.hardState, Entries: entries(m.last()+1, 1, m.hardState.Term, 100)}
		must(t, l.Append(g))
		m.append(g)
	}
}

// hasForeignStamps tells whether the file of a segment has sectors of another one.
func hasForeignStamps(t testing.TB, s *segmentFile) bool {
	t.Helper()
	for sector := range s.bytes / sectorBytes {
		var b [stampBytes]byte
		must(t, readFull(s.file, s.path, b[:], (sector+1)*sectorBytes-stampBytes))
		if b != [stampBytes]byte{} && s.content().unwritten(b[:], sector) {
			return true
		}
	}
	return false
}

// TestTrimmedFilesAreUsedAgain keeps a log at one length: from some point on no file is filled with zeros any more, the disk
// holds no more than before, and the log opens to what it held, from files of any age.
func TestTrimmedFilesAreUsedAgain(t *testing.T) {
	fsys := disk.NewMemory(1)
	l := open(t, fsys, testOptions())
	m := &model{}
	allocated := 0
	fsys.SetHook(func(op disk.Operation) error {
		if op.Kind == disk.OpAllocate {
			allocated++
		}
		return nil
	})
	var allocatedBefore int
	var bytesBefore int64
	for i := range uint64(600) {
		if i == 100 {
			allocatedBefore, bytesBefore = allocated, l.DiskBytes()
		}
		must(t, l.Reserve())
		g := Group{HardState: HardState{Term: i + 1, Commit: m.last()}, Entries: entries(m.last()+1, 1, i+1, int(i*37)%900)}
		must(t, l.Append(g))
		m.append(g)
		if m.last() > 40 {
			must(t, l.Trim(m.last()-40))
			m.trimmedTo(l.FirstIndex())
		}
		if i%29 == 0 {
			must(t, m.compare(l))
		}
	}
	if allocatedBefore == 0 || allocated != allocatedBefore {
		t.Errorf("%d files were filled with zeros in the beginning, %d afterwards", allocatedBefore, allocated-allocatedBefore)
	}
	if bytes := l.DiskBytes(); bytes > bytesBefore+2*testOptions().SegmentBytes {
		t.Errorf("the log takes %d bytes, took %d", bytes, bytesBefore)
	}
	closeLog(t, l)
	if _, err := Verify(fsys, testDir); err != nil {
		t.Error(err)
	}
	l = open(t, fsys, testOptions())
	must(t, m.compare(l))
	closeLog(t, l)
	for _, path := range fsys.Files(testDir) {
		if strings.HasSuffix(path, recycledSuffix) {
			t.Errorf("%s is left", path)
		}
	}
}

// TestFileThatIsReadIsNotUsedAgain trims a segment that a reader has open: it reads what it asked for, whatever is written
// afterwards.
func TestFileThatIsReadIsNotUsedAgain(t *testing.T) {
	fsys := disk.NewMemory(1)
	l := open(t, fsys, testOptions())
	m := &model{}
	appendSome := func(count int) {
		for range count {
			must(t, l.Reserve())
			g := Group{HardState: HardState{Term: 1, Commit: m.last()}, Entries: entries(m.last()+1, 2, 1, 600)}
			must(t, l.Append(g))
			m.append(g)
		}
	}
	appendSome(10)
	extents, err := l.locate(1, 3, 1<<20)
	must(t, err)
	must(t, l.Trim(m.hardState.Commit))
	appendSome(20)
	got, _, err := extents[0].read(nil, 0, 1<<20)
	must(t, err)
	if len(got) != 2 || !bytes.Equal(got[0].Data, entries(1, 1, 1, 600)[0].Data) {
		t.Errorf("read %d entries of a trimmed segment", len(got))
	}
	releaseExtents(extents)
	closeLog(t, l)
}

// TestRecycledSpaceGoesBackToAFullDisk has a group that needs a file of its own, on a disk whose free space is in recycled
// files.
func TestRecycledSpaceGoesBackToAFullDisk(t *testing.T) {
	fsys := disk.NewMemory(1)
	l := open(t, fsys, testOptions())
	m := &model{}
	for range 10 {
		must(t, l.Reserve())
		g := Group{HardState: HardState{Term: 1, Commit: m.last()}, Entries: entries(m.last()+1, 3, 1, 600)}
		must(t, l.Append(g))
		m.append(g)
	}
	must(t, l.Trim(m.hardState.Commit))
	if len(l.recycled) != recycledFilesMax {
		t.Fatalf("%d files were kept of those trimmed", len(l.recycled))
	}
	fsys.SetCapacity(fsys.Used())
	must(t, l.Append(Group{Entries: entries(m.last()+1, 1, 1, 10_000)}))
	if len(l.recycled) != 0 {
		t.Errorf("%d recycled files are left on a full disk", len(l.recycled))
	}
	closeLog(t, l)
}

// TestSectorsOfAnotherSegmentReadAsZeros writes and reads at every place, over what another segment has left.
func TestSectorsOfAnotherSegmentReadAsZeros(t *testing.T) {
	const all = 4 * contentBytes
	for begin := int64(0); begin < 2*contentBytes; begin += 56 * stride(5) {
		for length := int64(8); begin+length <= all; length += 200 {
			file, err := disk.NewMemory(1).Create("file")
			must(t, err)
			put := func(sequence uint64, offset int64, content []byte) {
				buffer := make([]byte, stampedBytes(offset, int64(len(content))))
				copy(buffer, content)
				must(t, newSectors(file, "file", sequence).write(buffer, offset, int64(len(content))))
			}
			put(7, 0, bytes.Repeat([]byte{7}, all))
			put(9, begin/contentBytes*contentBytes, bytes.Repeat([]byte{8}, int(begin%contentBytes)))
			put(9, begin, bytes.Repeat([]byte{9}, int(length)))
			want := make([]byte, all)
			copy(want[begin/contentBytes*contentBytes:begin], bytes.Repeat([]byte{8}, all))
			copy(want[begin:begin+length], bytes.Repeat([]byte{9}, all))
			for from := int64(0); from < all; from += 100 {
				got, err := newSectors(file, "file", 9).read(nil, from, all-from)
				must(t, err)
				if !bytes.Equal(got, want[from:]) {
					t.Fatalf("%d bytes at %d, read from %d: %x", length, begin, from, got)
				}
			}
		}
	}
}
