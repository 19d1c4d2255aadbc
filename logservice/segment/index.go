package segment

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"sort"
)

// footerMagic begins a footer: the offset index of a sealed segment, behind its last frame.
const (
	footerMagic       = 0x5446_4d4c // "LMFT"
	footerHeaderBytes = 16
	frameRefBytes     = 24
)

// frameRef says where the frame is that holds the entries from first on.
type frameRef struct {
	first  uint64
	offset int64
	length uint32
}

// A segment's index is its frames with live entries. The active segment's is always in memory. A sealed one's is also
// in its footer, as it was when the segment was sealed, so that memory holds only those in use: the footer may list
// frames that were replaced from a later segment, all of them behind the segment's last live entry.
//
// The footer is a copy. It is not synced, and one that is missing or bad is made again from the frames.

// encodeFooter returns the footer of a sealed segment.
func encodeFooter(s *segmentFile) []byte {
	le := binary.LittleEndian
	b := make([]byte, footerHeaderBytes+len(s.frames)*frameRefBytes)
	le.PutUint32(b[0:], footerMagic)
	le.PutUint32(b[4:], uint32(len(s.frames)))
	at := footerHeaderBytes
	for _, f := range s.frames {
		le.PutUint64(b[at:], f.first)
		le.PutUint64(b[at+8:], uint64(f.offset))
		le.PutUint32(b[at+16:], f.length)
		at += frameRefBytes
	}
	le.PutUint32(b[8:], footerCRC(b, s))
	return b
}

// footerCRC covers all but itself, seeded with what the frames before it end with.
func footerCRC(b []byte, s *segmentFile) uint32 {
	crc := crc32.Update(s.tail.crc, castagnoli, b[:8])
	return crc32.Update(crc, castagnoli, b[footerHeaderBytes:])
}

// readFooter returns the index in a sealed segment's footer; false where there is no good one.
func readFooter(s *segmentFile) (frames []frameRef, ok bool, err error) {
	le := binary.LittleEndian
	size, err := s.file.Size()
	size = contentSize(size)
	if err != nil || size-s.tail.end < footerHeaderBytes {
		return nil, false, err
	}
	head, err := s.content().read(nil, s.tail.end, footerHeaderBytes)
	if err != nil {
		return nil, false, err
	}
	length := footerHeaderBytes + int64(le.Uint32(head[4:]))*frameRefBytes
	if le.Uint32(head) != footerMagic || length > size-s.tail.end {
		return nil, false, nil
	}
	b, err := s.content().read(nil, s.tail.end, length)
	if err != nil {
		return nil, false, err
	}
	if le.Uint32(b[8:]) != footerCRC(b, s) {
		return nil, false, nil
	}
	frames = make([]frameRef, 0, le.Uint32(b[4:]))
	for at := int64(footerHeaderBytes); at < length; at += frameRefBytes {
		frames = append(frames, frameRef{first: le.Uint64(b[at:]), offset: int64(le.Uint64(b[at+8:])),
			length: le.Uint32(b[at+16:])})
	}
	return frames, len(frames) == 0 || frames[0].first == s.first, nil
}

// seal writes the footer of a segment that is written to no more. Where there is no room for it, the index stays in
// memory.
func (l *Log) seal(s *segmentFile) error {
	b := encodeFooter(s)
	length := int64(len(b))
	b = slices.Grow(b, int(stampedBytes(s.tail.end, length)-length))
	if err := s.content().write(b, s.tail.end, length); err != nil {
		if errors.Is(err, ErrNoSpace) {
			return nil
		}
		return l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.bytes = max(s.bytes, fileOffset(alignSector(s.tail.end+length)))
	s.hasFooter = true
	l.evictIndexes()
	return nil
}

// loadIndex returns the index of a sealed segment with live entries from its file. The caller holds a reference to the segment.
func loadIndex(s *segmentFile) ([]frameRef, error) {
	frames, ok, err := readFooter(s)
	if err != nil || ok && len(frames) > 0 {
		return frames, err
	}
	frames = nil
	w := s.window()
	_, err = scan(w, &s.header, s.tail.end, func(offset int64, f *frame) error {
		if f.entryCount == 0 {
			return nil
		}
		frames = append(cutFrames(frames, f.first), frameRef{first: f.first, offset: offset, length: uint32(f.length())})
		return nil
	})
	if err == nil && len(frames) == 0 {
		err = &CorruptError{File: s.path, Offset: fileOffset(s.header.length()), Reason: "segment has lost its entries"}
	}
	return frames, err
}

// cutFrames returns the frames that hold entries below an index.
func cutFrames(frames []frameRef, first uint64) []frameRef {
	n := sort.Search(len(frames), func(i int) bool { return frames[i].first >= first })
	return frames[:n:n]
}

// keepIndex puts a loaded index into memory, and others out of it; the caller holds mu for writing.
func (l *Log) keepIndex(s *segmentFile, frames []frameRef) {
	if s.frames == nil {
		s.frames = frames
	}
	l.useIndex(s)
	l.evictIndexes()
}

// useIndex notes that a segment's index is in use, for evictIndexes.
func (l *Log) useIndex(s *segmentFile) { s.used.Store(l.uses.Add(1)) }

// evictIndexes forgets the indexes of sealed segments that were not used for longest, until those in memory are few
// enough; the one used last always stays. The caller holds mu for writing.
func (l *Log) evictIndexes() {
	for {
		total := 0
		var oldest *segmentFile
		for _, s := range l.segments[:max(0, len(l.segments)-1)] {
			total += len(s.frames) * frameRefBytes
			used := s.used.Load()
			if s.hasFooter && len(s.frames) > 0 && (used == 0 || used != l.uses.Load()) &&
				(oldest == nil || used < oldest.used.Load()) {
				oldest = s
			}
		}
		if total <= l.options.IndexBytes || oldest == nil {
			return
		}
		oldest.frames = nil
	}
}
