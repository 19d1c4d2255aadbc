package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/logmirror/logmirror/internal/disk"
)

// Reserve makes the space for the next segment, if it is not there yet, of a trimmed one where it can. Needed only with ManualReserve; it may run
// beside everything else. ErrNoSpace changes nothing; after any other error the log takes no more.
func (l *Log) Reserve() error {
	l.reserving <- struct{}{}
	defer func() { <-l.reserving }()
	if l.spare != nil {
		return nil
	}
	var err error
	spare := l.takeRecycled()
	if spare == nil {
		spare, err = l.makeFile(spareName, l.options.SegmentBytes)
	}
	if err != nil && !errors.Is(err, ErrNoSpace) {
		err = l.fail(err)
	}
	l.mu.Lock()
	if l.reserveErr == nil && err != nil {
		l.options.Logger.Warn("no space reserved for the next segment", "dir", l.dir, "error", err)
	}
	l.reserveErr = err
	if err == nil {
		l.spareBytes = spare.bytes
	}
	l.mu.Unlock()
	if err == nil {
		l.spare = spare
	}
	return err
}

// reserve makes spares as they are wanted, until the log is closed.
func (l *Log) reserve() {
	defer close(l.stopped)
	var retry <-chan time.Time
	for {
		select {
		case <-l.stop:
			return
		case <-l.wanted:
		case <-retry:
		}
		retry = nil
		if err := l.Reserve(); errors.Is(err, ErrNoSpace) {
			retry = time.After(l.options.ReserveRetry)
		}
	}
}

// wantSpare asks for the next spare, without waiting for it.
func (l *Log) wantSpare() {
	select {
	case l.wanted <- struct{}{}:
	default:
	}
}

// makeFile makes a durable file of zeros, with the space of recycled files if it takes that. Where there is no room it leaves
// none.
func (l *Log) makeFile(name string, bytes int64) (*spareFile, error) {
	file, err := l.makeFileOnce(name, bytes)
	if !errors.Is(err, ErrNoSpace) {
		return file, err
	}
	dropped, dropErr := l.dropRecycled()
	switch {
	case dropErr != nil:
		return nil, dropErr
	case dropped:
		return l.makeFileOnce(name, bytes)
	}
	return nil, err
}

func (l *Log) makeFileOnce(name string, bytes int64) (*spareFile, error) {
	path := l.path(name)
	file, err := l.fs.Create(path)
	if err != nil {
		return nil, fmt.Errorf("segment: make %s: %w", path, err)
	}
	file.Direct()
	err = file.Allocate(bytes)
	if err == nil {
		err = file.Datasync()
		if err != nil && errors.Is(err, ErrNoSpace) {
			// Nothing of the file counts yet, so a sync that failed for want of room has lost nothing.
			err = fmt.Errorf("sync %s: %w", path, err)
		}
	}
	if err != nil {
		return nil, l.discard(path, file, err)
	}
	return &spareFile{name: name, file: file, bytes: bytes}, nil
}

// discard gives up a file that is not part of the log and returns the error that made it useless.
func (l *Log) discard(path string, file disk.File, cause error) error {
	err := file.Close()
	if removeErr := l.fs.Remove(path); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	if err != nil {
		l.options.Logger.Warn("file can't be removed", "file", path, "error", err)
	}
	return fmt.Errorf("segment: %w", cause)
}

// takeFile returns a file for a segment that has room for a frame of need bytes behind a header of headerBytes: the
// spare or a recycled one if that is large enough, else a new one. The caller holds reserving until it has given the file a
// segment's name or discarded it.
func (l *Log) takeFile(headerBytes, need int64) (file *spareFile, err error) {
	bytes := max(l.options.SegmentBytes, fileOffset(alignSector(headerBytes+need)))
	if l.spare != nil && l.spare.bytes >= bytes {
		file, l.spare = l.spare, nil
		l.mu.Lock()
		l.spareBytes = 0
		l.mu.Unlock()
		return file, nil
	}
	if bytes == l.options.SegmentBytes {
		if file = l.takeRecycled(); file != nil {
			return file, nil
		}
	}
	file, err = l.makeFile(temporaryName, bytes)
	if err != nil && !errors.Is(err, ErrNoSpace) {
		err = l.fail(err)
	}
	return file, err
}

// roll begins the next segment, with room for a frame of need bytes, and seals the one before.
func (l *Log) roll(need int64) error {
	s, err := l.makeSegment(need)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.segments = append(slices.Clone(l.segments), s)
	l.mu.Unlock()
	l.mustRoll = false
	l.wantSpare()
	if len(l.segments) > 1 {
		return l.seal(l.segments[len(l.segments)-2])
	}
	return nil
}

func (l *Log) makeSegment(need int64) (*segmentFile, error) {
	l.reserving <- struct{}{}
	defer func() { <-l.reserving }()
	h := l.nextHeader()
	spare, err := l.takeFile(h.length(), need)
	if err != nil {
		return nil, err
	}
	h.fileBytes = spare.bytes
	return l.beginSegment(spare, &h)
}

// nextHeader returns the header of the segment that continues the log.
func (l *Log) nextHeader() segmentHeader {
	h := segmentHeader{sequence: 1, identity: l.identity, hardState: l.hardState, base: l.last, membership: l.membership}
	if len(l.segments) > 0 {
		active := l.active()
		h.sequence = active.header.sequence + 1
		h.previousEnd, h.previousCRC = active.tail.end, active.tail.crc
	}
	return h
}

// beginSegment makes a file a segment: its header is durable before it gets its name, and its name before the first frame is
// written to it.
func (l *Log) beginSegment(spare *spareFile, h *segmentHeader) (*segmentFile, error) {
	h.encode() // for the salt
	s := newSegmentFile(spare, h)
	if err := s.writeHeader(); err != nil {
		err = l.discard(l.path(spare.name), spare.file, err)
		if errors.Is(err, ErrNoSpace) {
			return nil, err
		}
		return nil, l.fail(err)
	}
	if err := spare.file.Datasync(); err != nil {
		return nil, l.fail(errors.Join(err, spare.file.Close()))
	}
	return s, l.nameSegment(spare.name, s)
}

// newSegmentFile returns a segment without frames, which has no path yet.
func newSegmentFile(spare *spareFile, h *segmentHeader) *segmentFile {
	s := &segmentFile{file: spare.file, header: *h, bytes: spare.bytes, first: 1, tail: tail{end: h.length(), crc: h.salt}}
	s.references.Store(1)
	return s
}

// writeHeader writes the header, without a sync.
func (s *segmentFile) writeHeader() error {
	b := s.header.encode()
	length := int64(len(b))
	return s.content().write(slices.Grow(b, int(stampedBytes(0, length)-length)), 0, length)
}

// nameSegment gives a file whose content is durable its name as a segment. From here on it is part of the log.
func (l *Log) nameSegment(name string, s *segmentFile) error {
	s.path = l.path(segmentName(s.header.sequence))
	err := l.fs.Rename(l.path(name), s.path)
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return l.fail(errors.Join(err, s.file.Close()))
	}
	l.options.Logger.Debug("began segment", "file", s.path, "after_index", s.header.base.index)
	return nil
}
