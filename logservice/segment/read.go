package segment

import (
	"fmt"
	"sort"
)

// extent is a run of frames that lie one behind the other in one segment, and the live entries in them.
type extent struct {
	segment *segmentFile
	offset  int64
	length  int64
	frames  []liveFrame
}

// liveFrame is a frame and the range of its entries that are asked for.
type liveFrame struct {
	first, lo, hi uint64
	length        uint32
}

// Entries returns entries from lo on, up to but not including hi: at least one, as many as have maxBytes of data
// together (zero or less: Options.MaxReadBytes, which bounds it in any case), and all from one moment of the log. Every
// frame is checked as it is read: *CorruptError names what does not match. The caller owns the result; the data of one
// call share their memory. It may run beside everything else.
func (l *Log) Entries(lo, hi uint64, maxBytes int) ([]Entry, error) {
	if maxBytes <= 0 {
		maxBytes = l.options.MaxReadBytes
	}
	maxBytes = min(maxBytes, l.options.MaxReadBytes)
	extents, err := l.locate(lo, hi, int64(maxBytes))
	if err != nil {
		return nil, err
	}
	defer releaseExtents(extents)
	entries := make([]Entry, 0, min(hi-lo, uint64(maxBytes/entryRecordBytes)+1, countLive(extents)))
	total := 0
	for i := range extents {
		if entries, total, err = extents[i].read(entries, total, maxBytes); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func countLive(extents []extent) (count uint64) {
	for i := range extents {
		for _, f := range extents[i].frames {
			count += f.hi - f.lo
		}
	}
	return count
}

// locate finds the frames that hold [lo, hi), as many as may be needed for maxBytes of data, and holds their files open.
func (l *Log) locate(lo, hi uint64, maxBytes int64) ([]extent, error) {
	for {
		extents, missing, err := l.locateInMemory(lo, hi, maxBytes)
		if missing == nil {
			return extents, err
		}
		frames, err := loadIndex(missing)
		if err == nil {
			l.mu.Lock()
			l.keepIndex(missing, frames)
			l.mu.Unlock()
		}
		_ = missing.release() // closing a file that was only read loses nothing
		if err != nil {
			return nil, err
		}
	}
}

// locateInMemory is locate as far as it goes without I/O: where an index that it needs first is not in memory, it
// returns that segment, held open.
func (l *Log) locateInMemory(lo, hi uint64, maxBytes int64) (extents []extent, missing *segmentFile, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.closed:
		return nil, nil, ErrClosed
	case lo <= l.base.index:
		return nil, nil, fmt.Errorf("%w: entry %d, the first is %d", ErrTrimmed, lo, l.base.index+1)
	case hi > l.last.index+1 || lo >= hi:
		return nil, nil, fmt.Errorf("%w: entries [%d,%d), the last is %d", ErrUnavailable, lo, hi, l.last.index)
	}
	total := int64(0)
	for _, s := range l.segmentsFrom(lo) {
		if lo >= hi || total >= maxBytes {
			break
		}
		if !s.live() {
			continue
		}
		if s.frames == nil {
			if len(extents) > 0 {
				break // what was found is an answer; the next call goes on here
			}
			s.references.Add(1)
			return nil, s, nil
		}
		l.useIndex(s)
		n := sort.Search(len(s.frames), func(i int) bool { return s.frames[i].first > lo }) - 1
		for ; n < len(s.frames) && s.frames[n].first <= s.last && lo < hi && total < maxBytes; n++ {
			end := s.last + 1
			if n+1 < len(s.frames) {
				end = min(end, s.frames[n+1].first)
			}
			f := s.frames[n]
			live := liveFrame{first: f.first, lo: lo, hi: min(hi, end), length: f.length}
			// Entries before lo do not count: the frame that holds lo is read whole, but its answer may be small.
			if lo == f.first {
				total += int64(f.length)
			}
			extents = appendExtent(extents, s, f.offset, live)
			lo = live.hi
		}
	}
	for i := range extents {
		extents[i].segment.references.Add(1)
	}
	return extents, nil, nil
}

// segmentsFrom returns the segments of which the first one with entries holds the entry at index; the caller holds mu.
func (l *Log) segmentsFrom(index uint64) []*segmentFile {
	for i := len(l.segments) - 1; i >= 0; i-- {
		if s := l.segments[i]; s.live() && s.first <= index {
			return l.segments[i:]
		}
	}
	return nil
}

func appendExtent(extents []extent, s *segmentFile, offset int64, live liveFrame) []extent {
	if n := len(extents); n > 0 {
		e := &extents[n-1]
		if e.segment == s && e.offset+e.length == offset {
			e.length += int64(live.length)
			e.frames = append(e.frames, live)
			return extents
		}
	}
	return append(extents, extent{segment: s, offset: offset, length: int64(live.length), frames: []liveFrame{live}})
}

func releaseExtents(extents []extent) {
	for i := range extents {
		_ = extents[i].segment.release() // closing a file that was only read loses nothing
	}
}

// read appends the extent's entries until their data exceeds maxBytes.
func (e *extent) read(entries []Entry, total, maxBytes int) ([]Entry, int, error) {
	if total >= maxBytes && len(entries) > 0 {
		return entries, total, nil
	}
	b, err := e.segment.content().read(nil, e.offset, e.length)
	if err != nil {
		return nil, 0, err
	}
	offset := e.offset
	for _, live := range e.frames {
		f, err := e.segment.checkFrame(b, offset, live.first)
		if err != nil {
			return nil, 0, err
		}
		full := false
		f.entries(func(entry Entry) bool {
			if entry.Index < live.lo {
				return true
			}
			if entry.Index >= live.hi {
				return false
			}
			if full = len(entries) > 0 && total+len(entry.Data) > maxBytes; full {
				return false
			}
			total += len(entry.Data)
			entries = append(entries, entry)
			return true
		})
		if full {
			return entries, maxBytes, nil
		}
		offset += int64(live.length)
		b = b[live.length:]
	}
	return entries, total, nil
}

// checkFrame decodes the frame that b begins with, which must be the one the index knows.
func (s *segmentFile) checkFrame(b []byte, offset int64, first uint64) (*frame, error) {
	f, reason := decodeFrame(b, s.header.salt, offset)
	if reason == "" && f.first != first {
		reason = fmt.Sprintf("frame begins with entry %d instead of %d", f.first, first)
	}
	if reason != "" {
		return nil, &CorruptError{File: s.path, Offset: fileOffset(offset), Reason: reason}
	}
	return &f, nil
}

// Digest returns the running digest (NextDigest) of the log up to an entry from FirstIndex()-1 to LastIndex(). It costs
// nothing for these two, and one frame read for any other.
func (l *Log) Digest(index uint64) (uint64, error) {
	l.mu.RLock()
	begin, last, closed := l.base, l.last, l.closed
	l.mu.RUnlock()
	switch {
	case closed:
		return 0, ErrClosed
	case index < begin.index:
		return 0, ErrTrimmed
	case index > last.index:
		return 0, ErrUnavailable
	case index == begin.index:
		return begin.digest, nil
	case index == last.index:
		return last.digest, nil
	}
	extents, err := l.locate(index, index+1, 1)
	if err != nil {
		return 0, err
	}
	defer releaseExtents(extents)
	e := &extents[0]
	b, err := e.segment.content().read(nil, e.offset, e.length)
	if err != nil {
		return 0, err
	}
	f, err := e.segment.checkFrame(b, e.offset, e.frames[0].first)
	if err != nil {
		return 0, err
	}
	digest := f.previousDigest
	f.entries(func(entry Entry) bool {
		if entry.Index > index {
			return false
		}
		digest = NextDigest(digest, entry.Index, entry.Term, entry.Data)
		return true
	})
	return digest, nil
}
