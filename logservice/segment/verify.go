package segment

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/logmirror/logmirror/internal/disk"
)

// Report is what Verify found.
type Report struct {
	Identity   Identity
	HardState  HardState
	Membership []byte
	// FirstIndex and LastIndex are the log's entries; the log is empty where LastIndex is FirstIndex-1.
	FirstIndex, LastIndex uint64
	LastTerm              uint64
	// Digest is the running digest up to LastIndex.
	Digest   uint64
	Segments []SegmentReport
	// Replaced are files of an older log that the next Open removes.
	Replaced []string
}

// SegmentReport is one segment of a Report.
type SegmentReport struct {
	File     string
	Sequence uint64
	// Bytes is the file's size, EndOffset where its frames end.
	Bytes, EndOffset int64
	Frames           int
	// FirstIndex and LastIndex are the entries of the log that this segment holds; zero: none.
	FirstIndex, LastIndex uint64
	// Footer says that a sealed segment has a good footer. One that has none costs a reader time, no more.
	Footer bool
	// TornTail says that behind EndOffset lies what is left of a write that was never acknowledged.
	TornTail bool
}

// Verify reads and checks all of a log that nobody has open, and changes nothing but the lock file. *CorruptError names
// the first damage; the report then holds the segments before it. ErrLocked: somebody has it open.
func Verify(fsys disk.FS, dir string) (report Report, err error) {
	l, closeLog, err := openOffline(fsys, dir)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	replaced, err := l.load()
	for _, s := range replaced {
		report.Replaced = append(report.Replaced, s.path)
		err = errors.Join(err, s.release())
	}
	report.Identity, report.HardState, report.Membership = l.identity, l.hardState, l.membership
	report.FirstIndex, report.LastIndex = l.base.index+1, l.last.index
	report.LastTerm, report.Digest = l.last.term, l.last.digest
	for i, s := range l.segments {
		if s.tail.end == 0 {
			break // not read any more because of the damage before it
		}
		r := SegmentReport{File: s.path, Sequence: s.header.sequence, Bytes: s.bytes, EndOffset: fileOffset(s.tail.end),
			Frames: s.tail.frames, TornTail: s.tail.torn}
		if s.live() {
			r.FirstIndex, r.LastIndex = s.first, s.last
		}
		if i < len(l.segments)-1 {
			_, ok, footerErr := readFooter(s)
			r.Footer = ok
			err = errors.Join(err, footerErr)
		}
		report.Segments = append(report.Segments, r)
	}
	return report, err
}

// DumpRecord is one record of a log as it lies on the disk: exactly one of Segment and Frame is set.
type DumpRecord struct {
	File string
	// Offset is where the record begins, Length what it takes up, both in bytes.
	Offset, Length int64
	Segment        *DumpSegment
	Frame          *DumpFrame
}

// DumpSegment is the header of a segment: the state of the log when it was begun.
type DumpSegment struct {
	Sequence   uint64
	Identity   Identity
	HardState  HardState
	Membership []byte
	// Base is the last entry before the segment. Where Reset is set the log begins anew after it.
	Base  Base
	Reset bool
}

// DumpFrame is a group as it was written, whether or not a later one replaces its entries.
type DumpFrame struct {
	HardState HardState
	// Previous is the entry before the frame's first.
	Previous   Base
	Entries    []Entry
	Membership []byte
}

// Dump visits all records of a log that nobody has open, in the order in which they were written, until visit returns
// an error, which Dump returns. What visit gets is valid during the call. Damage ends the dump with *CorruptError; files
// of an older log that the next Open would remove are not visited.
func Dump(fsys disk.FS, dir string, visit func(DumpRecord) error) (err error) {
	l, closeLog, err := openOffline(fsys, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	sequences, err := l.listSegments()
	if err != nil {
		return err
	}
	if err := l.openSegments(sequences); err != nil {
		return err
	}
	begin := 0
	for i, s := range l.segments {
		if s.header.reset {
			begin = i
		}
	}
	for i, s := range l.segments[begin:] {
		end := int64(-1)
		if next := begin + i + 1; next < len(l.segments) {
			end = l.segments[next].header.previousEnd
		}
		if err := dumpSegment(s, end, visit); err != nil {
			return err
		}
	}
	return nil
}

func dumpSegment(s *segmentFile, end int64, visit func(DumpRecord) error) error {
	h := &s.header
	err := visit(DumpRecord{File: s.path, Length: fileOffset(h.length()), Segment: &DumpSegment{Sequence: h.sequence,
		Identity: h.identity, HardState: h.hardState, Membership: h.membership, Reset: h.reset,
		Base: Base{Index: h.base.index, Term: h.base.term, Digest: h.base.digest}}})
	if err != nil {
		return err
	}
	w := s.window()
	_, err = scan(w, h, end, func(offset int64, f *frame) error {
		d := &DumpFrame{HardState: f.hardState, Membership: f.membership,
			Previous: Base{Index: f.first - 1, Term: f.previousTerm, Digest: f.previousDigest}}
		f.entries(func(e Entry) bool {
			d.Entries = append(d.Entries, e)
			return true
		})
		from := fileOffset(offset)
		return visit(DumpRecord{File: s.path, Offset: from, Length: fileOffset(offset+f.length()) - from, Frame: d})
	})
	return err
}

// ErrReadOnly is returned by what would change a log that OpenReadOnly has opened.
var ErrReadOnly = errors.New("segment: the log is open for reading only")

// OpenReadOnly opens a log that nobody has open, checks all of it as Open does, and changes nothing but the lock file. What
// it holds beyond what was acknowledged may not be durable. Close gives it back.
func OpenReadOnly(fsys disk.FS, dir string) (*Log, error) {
	l, closeLog, err := openOffline(fsys, dir)
	if err != nil {
		return nil, err
	}
	replaced, err := l.load()
	for _, s := range replaced {
		err = errors.Join(err, s.release())
	}
	if err != nil {
		return nil, errors.Join(err, closeLog())
	}
	l.failure = ErrReadOnly
	return l, nil
}

// openOffline locks a log that is there, without reading it.
func openOffline(fsys disk.FS, dir string) (l *Log, closeLog func() error, err error) {
	l = &Log{fs: fsys, dir: dir, writer: make(chan struct{}, 1)}
	l.options.setDefaults()
	sequences, err := l.listSegments()
	if err != nil {
		return nil, nil, err
	}
	if len(sequences) == 0 {
		return nil, nil, fmt.Errorf("segment: %s holds no log", filepath.Clean(dir))
	}
	lock, err := fsys.Lock(l.path(lockName))
	if err != nil {
		return nil, nil, fmt.Errorf("segment: %w", err)
	}
	l.lock = lock
	return l, func() error {
		var errs []error
		for _, s := range l.segments {
			errs = append(errs, s.release())
		}
		return errors.Join(append(errs, lock.Close())...)
	}, nil
}
