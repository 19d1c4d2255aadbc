package segment

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/logmirror/logmirror/internal/disk"
)

// HardState is what Raft must not forget besides entries and membership. Zero in a Group: unchanged.
type HardState struct{ Term, Vote, Commit uint64 }

// Entry is one log entry.
type Entry struct {
	Index, Term uint64
	// Type is the entry's type as its owner numbers it; the log keeps it and knows nothing of it.
	Type uint8
	Data []byte
}

// Group is written as one frame: one write, one sync. All of it is durable or none of it.
type Group struct {
	// HardState replaces the one before unless it is zero. Term and Commit must not go back, and Commit must not lie
	// beyond the last entry.
	HardState HardState
	// Entries have contiguous indexes, of which the first is at most LastIndex()+1; where it is lower, the entries from
	// there on are replaced, which must not be committed ones.
	Entries []Entry
	// Membership is opaque. Nil: unchanged.
	Membership []byte
}

// Identity says whose log it is. It stands in every segment.
type Identity struct{ ClusterHash, MemberID, DataDirectoryID uint64 }

// String shows the three in hexadecimal, as operators meet them elsewhere.
func (i Identity) String() string {
	return fmt.Sprintf("member %x of cluster %x (data directory %x)", i.MemberID, i.ClusterHash, i.DataDirectoryID)
}

// matches tells whether a log on disk may be opened under this identity.
func (i Identity) matches(onDisk Identity) bool {
	return (i.ClusterHash == 0 || i.ClusterHash == onDisk.ClusterHash) &&
		(i.MemberID == 0 || i.MemberID == onDisk.MemberID) &&
		(i.DataDirectoryID == 0 || i.DataDirectoryID == onDisk.DataDirectoryID)
}

// Defaults of Options.
const (
	SegmentBytesDefault = 64 << 20
	MaxReadBytesDefault = 8 << 20
	IndexBytesDefault   = 16 << 20
	ReserveRetryDefault = 5 * time.Second
)

// Options configure a log.
type Options struct {
	// SegmentBytes is the size of a segment file; a group that is larger gets a segment of its own. Zero: 64 MiB. It may
	// differ from one start to the next.
	SegmentBytes int64
	// MaxReadBytes bounds what one call of Entries loads, but for a single group that is larger. Zero: 8 MiB.
	MaxReadBytes int
	// IndexBytes bounds the memory for the indexes of sealed segments, but for one and for those that the disk has no
	// room for. Zero: 16 MiB.
	IndexBytes int
	// ReserveRetry is how long the log waits before it tries again to reserve space for the next segment. Zero: 5 s.
	ReserveRetry time.Duration
	// ManualReserve leaves it to the caller to call Reserve, so that the log has no goroutine of its own: for
	// simulations, which step all they run.
	ManualReserve bool
	// Identity is whose log is wanted. A zero field matches any: the log's own is adopted.
	Identity Identity
	// Logger gets what an operator should know. Nil: nothing is said.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = SegmentBytesDefault
	}
	o.SegmentBytes = max((o.SegmentBytes+sectorBytes-1)/sectorBytes*sectorBytes, segmentBytesMin)
	if o.MaxReadBytes <= 0 {
		o.MaxReadBytes = MaxReadBytesDefault
	}
	if o.IndexBytes <= 0 {
		o.IndexBytes = IndexBytesDefault
	}
	if o.ReserveRetry <= 0 {
		o.ReserveRetry = ReserveRetryDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// segmentBytesMin leaves a segment room for its header and a few frames.
const segmentBytesMin = 2048

// Log is a member's log on disk. One goroutine at a time appends, trims and resets (others wait); any number read at
// the same time.
type Log struct {
	fs      disk.FS
	dir     string
	options Options
	// identity is the one in the segments.
	identity Identity
	lock     interface{ Close() error }

	// writer is held, as a semaphore, by whoever changes the log. It is a channel and no mutex because it is held over
	// I/O. Its holder alone changes the fields below mu, and may read them without mu.
	writer chan struct{}
	// buffer is where the writer builds frames.
	buffer []byte
	// lastBlock is what the active segment ends with.
	lastBlock lastBlock
	// mustRoll says that the active segment's tail is not usable, so that the next group goes to a new segment.
	mustRoll bool

	// reserving is held, as a semaphore, by whoever makes the spare, and from taking it until its name is free again.
	reserving chan struct{}
	spare     *spareFile
	// wanted wakes the goroutine that makes the spare; stop ends it, stopped says that it has ended.
	wanted, stop, stopped chan struct{}

	// mu guards what follows. It is never held over I/O.
	mu sync.RWMutex
	// segments are the log's files, oldest first; the last one is written to.
	segments []*segmentFile
	base     base
	// last is the log's last entry; where there is none, equal to base.
	last base
	runs []termRun
	// uses counts the uses of indexes.
	uses       atomic.Uint64
	hardState  HardState
	membership []byte
	spareBytes int64
	// recycled are files of trimmed segments that will be spares.
	recycled   []*spareFile
	reserveErr error
	// failure is the first error that ended the log's life as a writable one.
	failure error
	closed  bool
}

// segmentFile is one open segment.
type segmentFile struct {
	path   string
	file   disk.File
	header segmentHeader
	bytes  int64
	// tail is where the next frame goes, and what it has to repeat.
	tail tail
	// first and last are the segment's live entries; last < first: there are none.
	first, last uint64
	// frames is the segment's index: one element per frame with live entries, by ascending first index. A frame's entries
	// end where the next one's begin, and the last one's at last. Nil in a sealed segment: not in memory.
	frames []frameRef
	// hasFooter says that the index is also in the file; used orders the segments by the last use of their index.
	hasFooter bool
	used      atomic.Uint64
	// references counts the log itself and the readers that hold the file open; the last one closes it.
	references atomic.Int32
}

// content is the file without its stamps.
func (s *segmentFile) content() sectors { return newSectors(s.file, s.path, s.header.sequence) }

func (s *segmentFile) window() *window {
	return &window{sectors: s.content(), size: contentSize(s.bytes)}
}

func (s *segmentFile) release() error {
	if s.references.Add(-1) == 0 {
		return s.file.Close()
	}
	return nil
}

func (s *segmentFile) live() bool { return s.first <= s.last }

// cut forgets the segment's entries from an index on.
func (s *segmentFile) cut(first uint64) {
	s.frames = cutFrames(s.frames, first)
	s.last = min(s.last, first-1)
}

// addFrame takes a frame into the index, after a cut of what it replaces.
func (s *segmentFile) addFrame(f frameRef, last uint64) {
	if !s.live() {
		s.first = f.first
	}
	s.frames = append(s.frames, f)
	s.last = last
}

// HardState returns the one of the last durable group.
func (l *Log) HardState() HardState {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.hardState
}

// Membership returns the last durable one, or nil where there never was one. The caller must not change it.
func (l *Log) Membership() []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.membership
}

// Identity returns the one that stands in the segments.
func (l *Log) Identity() Identity { return l.identity }

// FirstIndex returns the index of the first entry; in an empty log, of the next one.
func (l *Log) FirstIndex() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.base.index + 1
}

// LastIndex returns the index of the last durable entry, or FirstIndex()-1.
func (l *Log) LastIndex() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last.index
}

// DiskBytes returns the sum of the sizes of the log's files, the reserved and recycled ones included.
func (l *Log) DiskBytes() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	total := l.spareBytes
	for _, f := range l.recycled {
		total += f.bytes
	}
	for _, s := range l.segments {
		total += s.bytes
	}
	return total
}

// Extent is a range of entries that lie in one file and are trimmed together, and the bytes that they take on the disk.
// Last is below First where a file has no entries.
type Extent struct {
	First, Last uint64
	Bytes       int64
}

// Extents returns what the log consists of, oldest first. The last one is being written to and is never trimmed; its bytes
// are those written so far.
func (l *Log) Extents() []Extent {
	l.mu.RLock()
	defer l.mu.RUnlock()
	extents := make([]Extent, len(l.segments))
	for i, s := range l.segments {
		extents[i] = Extent{First: s.first, Last: s.last, Bytes: s.bytes}
	}
	if n := len(l.segments); n > 0 {
		extents[n-1].Bytes = fileOffset(l.segments[n-1].tail.end)
	}
	return extents
}

// ReserveError returns why there is no space reserved for the next segment, or nil: the alarm that comes before
// ErrNoSpace.
func (l *Log) ReserveError() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.reserveErr
}

// Term returns the term of an entry from FirstIndex()-1 to LastIndex(). It never touches the disk.
func (l *Log) Term(index uint64) (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.closed:
		return 0, ErrClosed
	case index < l.base.index:
		return 0, ErrTrimmed
	case index > l.last.index:
		return 0, ErrUnavailable
	}
	return l.term(index), nil
}

// term is Term without checks; the caller holds mu or is the writer.
func (l *Log) term(index uint64) uint64 {
	if index == l.base.index {
		return l.base.term
	}
	n, found := slices.BinarySearchFunc(l.runs, index, func(r termRun, index uint64) int {
		switch {
		case r.first < index:
			return -1
		case r.first > index:
			return 1
		}
		return 0
	})
	if found {
		return l.runs[n].term
	}
	return l.runs[n-1].term
}

// active is the segment that is written to; for the writer.
func (l *Log) active() *segmentFile { return l.segments[len(l.segments)-1] }

// acquireWriter waits for the right to change the log. The caller must release it unless there is an error.
func (l *Log) acquireWriter() error {
	l.writer <- struct{}{}
	l.mu.RLock()
	failure, closed := l.failure, l.closed
	l.mu.RUnlock()
	if closed {
		failure = ErrClosed
	}
	if failure != nil {
		<-l.writer
	}
	return failure
}

func (l *Log) releaseWriter() { <-l.writer }

// fail ends the log's life as a writable one and returns the first error that did.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure == nil {
		l.failure = fmt.Errorf("segment: log can't be written any more: %w", err)
		l.options.Logger.Error("log can't be written any more", "dir", l.dir, "error", err)
	}
	return l.failure
}

// Close ends the log. It waits for the writer and for the making of the spare; a reader at work finishes. Nothing needs
// to be flushed: what was acknowledged is durable.
func (l *Log) Close() error {
	l.writer <- struct{}{}
	defer l.releaseWriter()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	segments := l.segments
	l.segments = nil
	l.mu.Unlock()
	if l.stop != nil {
		close(l.stop)
		<-l.stopped
	}
	var errs []error
	if l.spare != nil {
		errs = append(errs, l.spare.file.Close())
	}
	for file := l.takeRecycled(); file != nil; file = l.takeRecycled() {
		errs = append(errs, file.file.Close())
	}
	for _, s := range segments {
		errs = append(errs, s.release())
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }
