package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/logmirror/logmirror/internal/disk"
)

// Open opens the log in a directory, which is made if it is missing, and recovers it: on return everything that the log
// says it holds is durable. It takes the directory's lock. ErrLocked, *OtherMemberError and *CorruptError tell what is
// wrong with a log that can't be used; ErrNoSpace that there is no room for the first segment of a new one.
func Open(fsys disk.FS, dir string, o Options) (*Log, error) {
	o.setDefaults()
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("segment: open log: %w", err)
	}
	l := &Log{fs: fsys, dir: dir, options: o, identity: o.Identity,
		writer: make(chan struct{}, 1), reserving: make(chan struct{}, 1), wanted: make(chan struct{}, 1)}
	lock, err := fsys.Lock(l.path(lockName))
	if err != nil {
		return nil, fmt.Errorf("segment: open log: %w", err)
	}
	l.lock = lock
	if err := l.recover(); err != nil {
		for _, s := range l.segments {
			err = errors.Join(err, s.release())
		}
		return nil, errors.Join(err, lock.Close())
	}
	if !o.ManualReserve {
		l.stop, l.stopped = make(chan struct{}), make(chan struct{})
		l.wantSpare()
		go l.reserve()
	}
	return l, nil
}

func (l *Log) recover() error {
	if err := l.clean(); err != nil {
		return err
	}
	replaced, err := l.load()
	if err != nil {
		return err
	}
	for _, s := range replaced {
		if err := l.retire(s); err != nil {
			return err
		}
	}
	if len(l.segments) == 0 {
		return l.roll(0)
	}
	active := l.active()
	if active.tail.torn {
		l.mustRoll = true
		l.options.Logger.Warn("cut off a write that was never synced", "file", active.path, "offset", fileOffset(active.tail.end))
	}
	if err := l.syncTail(active); err != nil {
		return err
	}
	return l.renewFooters()
}

// clean removes what an interrupted log left behind, and makes durable the names that were seen.
func (l *Log) clean() error {
	names, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("segment: open log: %w", err)
	}
	for _, name := range names {
		if name != spareName && name != temporaryName && !isRecycledName(name) {
			continue
		}
		// Not kept for the next segment: a header may stand in it already, stamped for that segment.
		if err := l.fs.Remove(l.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("segment: open log: %w", err)
		}
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("segment: open log: %w", err)
	}
	return nil
}

// load reads the whole log and changes nothing on the disk. It returns the open segments that the newest beginning of
// the log has replaced; the others are the log's, also where there is an error.
func (l *Log) load() (replaced []*segmentFile, err error) {
	sequences, err := l.listSegments()
	if err != nil {
		return nil, err
	}
	if err := l.openSegments(sequences); err != nil || len(l.segments) == 0 {
		return nil, err
	}
	l.identity = l.segments[0].header.identity
	begin := 0
	for i, s := range l.segments {
		if s.header.reset {
			begin = i
		}
	}
	replaced, l.segments = l.segments[:begin], slices.Clone(l.segments[begin:])
	for i, s := range l.segments {
		if err := l.loadSegment(i, s); err != nil {
			for _, s := range replaced {
				err = errors.Join(err, s.release())
			}
			return nil, err
		}
	}
	return replaced, nil
}

// renewFooters writes the footers of sealed segments that have none, or not a good one.
func (l *Log) renewFooters() error {
	for _, s := range l.segments[:len(l.segments)-1] {
		_, ok, err := readFooter(s)
		if err != nil {
			return err
		}
		if s.hasFooter = ok; !ok {
			if err := l.seal(s); err != nil {
				return err
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.evictIndexes()
	return nil
}

// listSegments returns the sequences of the segments that are there, ascending.
func (l *Log) listSegments() (sequences []uint64, err error) {
	names, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("segment: open log: %w", err)
	}
	for _, name := range names {
		if sequence, ok := parseSegmentName(name); ok {
			sequences = append(sequences, sequence)
		}
	}
	slices.Sort(sequences)
	return sequences, nil
}

func (l *Log) openSegments(sequences []uint64) error {
	for _, sequence := range sequences {
		s, err := openSegment(l.fs, l.path(segmentName(sequence)))
		if err != nil {
			return err
		}
		s.file.Direct()
		l.segments = append(l.segments, s)
		if have := s.header.identity; !l.identity.matches(have) || have != l.segments[0].header.identity {
			return &OtherMemberError{File: s.path, Want: l.identity, Have: have}
		}
	}
	return nil
}

func openSegment(fsys disk.FS, path string) (*segmentFile, error) {
	file, err := fsys.OpenFile(path)
	if err != nil {
		return nil, fmt.Errorf("segment: open log: %w", err)
	}
	s := &segmentFile{path: path, file: file, first: 1}
	s.references.Store(1)
	s.bytes, err = file.Size()
	if err == nil {
		s.header, err = readSegmentHeader(file, path, s.bytes)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return s, nil
}

// loadSegment takes segment number i of the log into the log's state.
func (l *Log) loadSegment(i int, s *segmentFile) error {
	h := &s.header
	end := int64(-1)
	if i+1 < len(l.segments) {
		next := &l.segments[i+1].header
		if next.sequence != h.sequence+1 {
			return &CorruptError{File: l.path(segmentName(h.sequence + 1)), Reason: "segment is missing"}
		}
		end = next.previousEnd
	}
	if i == 0 {
		l.base, l.last, l.hardState, l.membership = h.base, h.base, h.hardState, h.membership
	} else if h.base != l.last || h.hardState != l.hardState || !bytes.Equal(h.membership, l.membership) {
		return &CorruptError{File: s.path,
			Reason: fmt.Sprintf("segment continues after entry %d and %+v, the log ends at %d with %+v",
				h.base.index, h.hardState, l.last.index, l.hardState)}
	}
	w := s.window()
	t, err := scan(w, h, end, func(offset int64, f *frame) error { return l.replay(s, offset, f) })
	if err != nil {
		return err
	}
	s.tail = t
	if i+1 < len(l.segments) && t.crc != l.segments[i+1].header.previousCRC {
		return &CorruptError{File: s.path, Offset: fileOffset(t.end), Reason: "segment does not end as the next one says"}
	}
	return nil
}

// replay takes a frame into the log's state, as Append did when it wrote it.
func (l *Log) replay(s *segmentFile, offset int64, f *frame) error {
	damaged := func(reason string) error {
		return &CorruptError{File: s.path, Offset: fileOffset(offset), Reason: reason}
	}
	if f.first > l.last.index+1 {
		return damaged(fmt.Sprintf("entry %d follows entry %d", f.first, l.last.index))
	}
	if f.first == l.last.index+1 && (f.previousTerm != l.last.term || f.previousDigest != l.last.digest) {
		return damaged(fmt.Sprintf("frame does not continue entry %d", l.last.index))
	}
	l.hardState = f.hardState
	if f.membership != nil {
		l.membership = append([]byte{}, f.membership...)
	}
	if f.entryCount == 0 {
		return nil
	}
	l.cut(&f.frameHeader)
	f.entries(func(e Entry) bool {
		l.addTerm(e.Index, e.Term)
		l.last = base{index: e.Index, term: e.Term, digest: NextDigest(l.last.digest, e.Index, e.Term, e.Data)}
		return true
	})
	s.addFrame(frameRef{first: f.first, offset: offset, length: uint32(f.length())}, l.last.index)
	return nil
}

// syncTail makes the last frame durable before anything is said on the strength of it: whoever wrote it may have died
// before its sync. The same bytes are written again first, because a system whose sync failed may hold them in memory and
// take them for written.
func (l *Log) syncTail(s *segmentFile) error {
	if length := int64(s.tail.length); length > 0 {
		if err := s.content().rewrite(s.tail.end-length, length); err != nil {
			return fmt.Errorf("segment: open log: %w", err)
		}
	}
	if err := s.file.Datasync(); err != nil {
		return fmt.Errorf("segment: open log: %w", err)
	}
	return nil
}
