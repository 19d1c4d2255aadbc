package segment

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

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
// nothing and the log holds what it held. That includes the frame that was acknowledged last. It is so in files of zeros, and
// in files that were segments before.
func TestEveryDamagedByteIsFound(t *testing.T) {
	t.Run("new files", func(t *testing.T) {
		everyDamagedByte(t, stride(13), func(fsys disk.FS) *model {
			m, _, _ := smallLog(t, fsys)
			return m
		})
	})
	t.Run("recycled files", func(t *testing.T) {
		everyDamagedByte(t, 5*stride(13), func(fsys disk.FS) *model { // larger segments, not every byte of them
			l, m := recycledLog(t, fsys)
			must(t, l.Trim(m.last()-8)) // two or three segments take long enough
			m.trimmedTo(l.FirstIndex())
			closeLog(t, l)
			return m
		})
	})
}

func everyDamagedByte(t *testing.T, step int64, makeLog func(disk.FS) *model) {
	for _, mask := range []byte{0x01, 0x80, 0xff} {
		fsys := disk.NewMemory(1)
		m := makeLog(fsys)
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
			for offset := int64(0); offset < int64(len(content)); offset += step {
				must(t, fsys.Corrupt(path, offset, mask))
				record, used := frameAt(records, path, offset)
				var damage *CorruptError
				l, err := Open(fsys, testDir, testOptions())
				switch {
				case err == nil:
					if used && offset%sectorBytes < contentBytes { // what a sector's checksums say goes before its stamp
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
				default:
					t.Fatalf("%s: byte %d changed by %x: %v", path, offset, mask, err)
				}
				must(t, fsys.SetBytes(path, content))
			}
		}
		if int64(refused) < 2000/step {
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
		for offset := r.Offset; offset < r.Offset+r.Length; offset += stride(13) {
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
		for size := int64(0); size < int64(len(content)); size += stride(13) {
			must(t, fsys.SetBytes(path, content[:size]))
			l, err := Open(fsys, testDir, testOptions())
			var damage *CorruptError
			switch {
			case err == nil && size >= 2048: // a part of the footer is gone
				if err := m.compare(l); err != nil {
					t.Fatalf("%s cut at %d: %v", path, size, err)
				}
				closeLog(t, l)
			case !errors.As(err, &damage) || damage.File != path || damage.Offset > size:
				t.Fatalf("%s cut at %d: %v", path, size, err)
			}
			must(t, fsys.SetBytes(path, content))
		}
	}
}

// TestWriteCutAnywhere leaves of the last write every prefix, then every choice of its sectors, with the write at every
// place within a sector, in a file of zeros and in one that was a segment before: all but the whole write must open to the
// record before it, and go on.
func TestWriteCutAnywhere(t *testing.T) {
	for filler := 0; filler < contentBytes; filler += frameAlignment * int(stride(9)) {
		fsys := disk.NewMemory(1)
		cutLastWrite(t, fsys, open(t, fsys, testOptions()), &model{}, filler)
		if filler%24 == 0 {
			fsys = disk.NewMemory(1)
			l, before := recycledLog(t, fsys)
			beginRecycledSegment(t, l, before)
			cutLastWrite(t, fsys, l, before, filler)
		}
	}
}

func cutLastWrite(t *testing.T, fsys *disk.Memory, l *Log, before *model, filler int) {
	t.Helper()
	next := before.last() + 1
	state := HardState{Term: before.hardState.Term + 1, Vote: 1, Commit: before.hardState.Commit}
	g := Group{HardState: state, Membership: []byte("members"), Entries: entries(next, 1, state.Term, filler)}
	must(t, l.Append(g))
	before.append(g)
	path := l.active().path
	old, err := fsys.Bytes(path)
	must(t, err)
	state.Term++
	must(t, l.Append(Group{HardState: state, Membership: []byte("others"), Entries: entries(next+1, 2, state.Term, 300)}))
	if l.active().path != path {
		t.Fatal("the write to be cut went to another file")
	}
	closeLog(t, l)
	whole, err := fsys.Bytes(path)
	must(t, err)
	cutEverywhere(t, fsys, path, old, whole, before, filler%64 == 0)
}

// cutEverywhere takes parts of the last frame away, so that the file has there what it had before: choices of sectors, and
// where asked for every prefix.
func cutEverywhere(t *testing.T, fsys *disk.Memory, path string, old, whole []byte, before *model, prefixes bool) {
	t.Helper()
	var frame DumpRecord
	must(t, Dump(fsys, testDir, func(r DumpRecord) error {
		frame = DumpRecord{Offset: r.Offset, Length: r.Length}
		return nil
	}))
	paths := segmentPaths(fsys)
	try := func(what string, content []byte) {
		t.Helper()
		must(t, fsys.SetBytes(path, content))
		l, err := Open(fsys, testDir, testOptions())
		if err != nil {
			t.Fatalf("frame at %d, %s: %v", frame.Offset, what, err)
		}
		if err := before.compare(l); err != nil {
			t.Fatalf("frame at %d, %s: %v", frame.Offset, what, err)
		}
		goOn(t, fsys, l)
		for _, added := range segmentPaths(fsys)[len(paths):] {
			must(t, fsys.Remove(added))
		}
	}
	end := frame.Offset + frame.Length
	for at := frame.Offset; prefixes && at < end; at++ {
		content := append(bytes.Clone(whole[:at]), old[at:]...)
		try(fmt.Sprintf("cut at %d", at), content)
	}
	firstSector := frame.Offset / sectorBytes
	// What the write holds around the frame is what was there before, and sectors that were never written for this segment.
	behind := (end + sectorBytes - 1) / sectorBytes * sectorBytes
	next := min(alignBlock(behind), int64(len(whole)))
	if !bytes.Equal(whole[:frame.Offset], old[:frame.Offset]) || len(bytes.Trim(whole[behind:next], "\x00")) > 0 ||
		!bytes.Equal(whole[next:], old[next:]) {
		t.Fatalf("the write of the frame at %d changed more than its blocks, or something else in them", frame.Offset)
	}
	sectors := (end-1)/sectorBytes - firstSector + 1
	for lost := 1; lost < 1<<sectors; lost++ {
		content := bytes.Clone(whole)
		for i := range sectors {
			if lost>>i&1 == 1 {
				sector := (firstSector + i) * sectorBytes
				copy(content[sector:sector+sectorBytes], old[sector:])
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
		end := l.active().tail.end
		begin := end - int64(l.active().tail.length)
		path := l.active().path
		closeLog(t, l)
		for at := fileOffset(begin); at < fileOffset(end); at += stride(13) {
			if at%sectorBytes >= contentBytes {
				continue
			}
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
		clear(torn[fileOffset(start):][:min(alignSector(start+1)-start, length)])
		must(t, fsys.SetBytes(path, torn))
		l = open(t, fsys, testOptions())
		must(t, m.compare(l))
		closeLog(t, l)
	}
}

// TestFrameLostBeforeTheTail wipes each frame but the last, as a disk does that loses a block: what follows tells.
func TestFrameLostBeforeTheTail(t *testing.T) {
	for _, segmentBytes := range []int64{2048, 8192} {
		frameLost(t, segmentBytes)
	}
}

func frameLost(t *testing.T, segmentBytes int64) {
	t.Helper()
	fsys := disk.NewMemory(1)
	_, lastFile, lastFrame := smallLogIn(t, fsys, segmentBytes)
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
		for at := f.Offset; at < f.Offset+f.Length; at++ {
			if at%sectorBytes < contentBytes { // the first sector is also the frame's before, and has its stamp
				wiped[at] = 0
			}
		}
		must(t, fsys.SetBytes(f.File, wiped))
		var damage *CorruptError
		if _, err := Open(fsys, testDir, testOptions()); !errors.As(err, &damage) || damage.File != f.File ||
			damage.Offset != f.Offset {
			t.Errorf("%s: frame at %d is gone: %v", f.File, f.Offset, err)
		}
		must(t, fsys.SetBytes(f.File, content))
	}
}

// TestFrameOfAnotherHistory puts a frame of a log that took another course into the place of one: each is good by itself.
func TestFrameOfAnotherHistory(t *testing.T) {
	course := func(vote uint64) (fsys *disk.Memory, path string, frames []DumpRecord) {
		fsys = disk.NewMemory(1)
		l := open(t, fsys, testOptions())
		must(t, l.Append(Group{HardState: HardState{Term: 1, Vote: 1}, Entries: entries(1, 1, 1, 10)}))
		must(t, l.Append(Group{HardState: HardState{Term: 2, Vote: vote}}))
		must(t, l.Append(Group{HardState: HardState{Term: 3, Vote: 1}}))
		closeLog(t, l)
		must(t, Dump(fsys, testDir, func(r DumpRecord) error {
			frames = append(frames, r)
			return nil
		}))
		return fsys, frames[0].File, frames[1:]
	}
	fsys, path, frames := course(1)
	other, _, _ := course(2)
	content, err := fsys.Bytes(path)
	must(t, err)
	strange, err := other.Bytes(path)
	must(t, err)
	second := frames[1]
	copy(content[second.Offset:], strange[second.Offset:second.Offset+second.Length])
	must(t, fsys.SetBytes(path, content))
	var damage *CorruptError
	if _, err := Open(fsys, testDir, testOptions()); !errors.As(err, &damage) || damage.Offset != frames[2].Offset {
		t.Errorf("opened with a frame of another history: %v", err)
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
