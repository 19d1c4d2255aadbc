package segment

import (
	"encoding/binary"
	"fmt"
)

// window reads a segment's content front to back through one buffer.
type window struct {
	sectors
	// size is that of the content.
	size   int64
	buffer []byte
	at     int64
}

const windowBytes = 1 << 20

// bytes returns length bytes at offset, which must lie within the content; they are valid until the next call.
func (w *window) bytes(offset, length int64) ([]byte, error) {
	if offset >= w.at && offset+length <= w.at+int64(len(w.buffer)) {
		return w.buffer[offset-w.at:][:length], nil
	}
	want := min(max(length, windowBytes), w.size-offset)
	b, err := w.read(w.buffer, offset, want)
	if err != nil {
		w.buffer = w.buffer[:0]
		return nil, err
	}
	w.buffer, w.at = b, offset
	return b[:length], nil
}

// tail is what the scan of a segment found out about its end.
type tail struct {
	// end is the offset behind the last good frame, crc that frame's and length its length (zero: there is none, crc is
	// then the segment's salt).
	end    int64
	crc    uint32
	length uint32
	// frames counts the frames before end.
	frames int
	// torn says that behind end lies what is left of a write that was never synced.
	torn bool
}

// scan visits all frames of a segment in order, checking each. Where end is not negative the frames end exactly there,
// and whatever is behind is ignored; else the segment is the last of its log, and what follows its last good frame is
// judged as FORMAT.md describes. Frames handed to visit are valid during the call.
func scan(w *window, h *segmentHeader, end int64, visit func(offset int64, f *frame) error) (t tail, err error) {
	t = tail{end: h.length(), crc: h.salt}
	limit := w.size
	if end >= 0 {
		limit = min(end, w.size)
	}
	for limit-t.end >= frameBytesMin {
		f, reason, err := readFrameAt(w, h.salt, t.end, limit)
		if err != nil {
			return t, err
		}
		if reason != "" {
			if end >= 0 {
				return t, &CorruptError{File: w.path, Offset: fileOffset(t.end), Reason: reason}
			}
			t.torn, err = judgeTail(w, h.salt, t.end, &f, reason)
			return t, err
		}
		if f.previousCRC != t.crc || f.previousLength != t.length {
			return t, &CorruptError{File: w.path, Offset: fileOffset(t.end), Reason: "frame does not follow the one before it"}
		}
		if err := visit(t.end, &f); err != nil {
			return t, err
		}
		t = tail{end: t.end + f.length(), crc: f.crc, length: uint32(f.length()), frames: t.frames + 1}
	}
	if end >= 0 && t.end != end {
		return t, &CorruptError{File: w.path, Offset: fileOffset(t.end),
			Reason: fmt.Sprintf("frames end here, the next segment says at %d", fileOffset(end))}
	}
	if end < 0 && w.size-t.end >= footerHeaderBytes {
		b, err := w.bytes(t.end, footerHeaderBytes)
		if err != nil {
			return t, err
		}
		if binary.LittleEndian.Uint32(b) == footerMagic {
			return t, &CorruptError{File: w.path, Offset: fileOffset(t.end), Reason: reasonNextMissing}
		}
	}
	return t, nil
}

const reasonNextMissing = "the segment was sealed, but the one after it is missing"

// readFrameAt reads and checks the frame at an offset.
func readFrameAt(w *window, salt uint32, offset, limit int64) (f frame, reason string, err error) {
	b, err := w.bytes(offset, frameHeaderBytes)
	if err != nil {
		return f, "", err
	}
	h, ok := decodeFrameHeader(b, salt, offset)
	if !ok {
		return f, "frame header does not match its checksum", nil
	}
	if h.length() > limit-offset {
		return frame{frameHeader: h}, "frame is longer than what is left of the segment", nil
	}
	if b, err = w.bytes(offset, h.length()); err != nil {
		return f, "", err
	}
	f, reason = decodeFrame(b, salt, offset)
	return f, reason, nil
}

// judgeTail decides what the bytes at the end of the log are, of which no good frame begins at offset: nothing (false),
// a write that was never synced (true), or damage of what was acknowledged (*CorruptError). The frame has its header
// where that is good.
func judgeTail(w *window, salt uint32, offset int64, f *frame, reason string) (torn bool, err error) {
	damaged := func(why string) error {
		return &CorruptError{File: w.path, Offset: fileOffset(offset), Reason: reason + "; " + why}
	}
	lastUsed, follower, err := surveyTail(w, salt, offset)
	switch {
	case err != nil:
		return false, err
	case follower >= 0:
		return false, damaged(fmt.Sprintf("but a frame that was written after it begins at %d", fileOffset(follower)))
	case lastUsed < offset:
		return false, nil
	}
	if f.crc == 0 && f.first == 0 {
		return judgeHeader(w, offset, lastUsed, damaged)
	}
	if f.length() > w.size-offset {
		return false, damaged("its header is good")
	}
	b, err := w.bytes(offset, f.length())
	if err != nil {
		return false, err
	}
	if b[len(b)-1] != 0 && countZeroSectors(b, offset) <= f.zeroSectors {
		return false, damaged("yet every sector of it was written")
	}
	return true, nil
}

// judgeHeader judges a tail that begins with a bad header.
func judgeHeader(w *window, offset, lastUsed int64, damaged func(string) error) (torn bool, err error) {
	b, err := w.bytes(offset, frameHeaderBytes)
	if err != nil {
		return false, err
	}
	if binary.LittleEndian.Uint32(b) == footerMagic {
		return false, damaged(reasonNextMissing)
	}
	if lastUsed < offset+frameHeaderBytes {
		return true, nil
	}
	boundary := min(alignSector(offset+1)-offset, frameHeaderBytes)
	if allZero(b[:boundary]) || boundary < frameHeaderBytes && allZero(b[boundary:]) {
		return true, nil
	}
	return false, damaged("yet its sectors were written")
}

// surveyTail returns the offset of the last byte at or after offset that is not zero (or offset-1), and the offset of
// the first good frame header after offset (or -1).
func surveyTail(w *window, salt uint32, offset int64) (lastUsed, follower int64, err error) {
	lastUsed = offset - 1
	for at := offset; at < w.size; {
		n := min(windowBytes, w.size-at)
		b, err := w.bytes(at, n)
		if err != nil {
			return 0, 0, err
		}
		if !allZero(b) {
			for i := len(b) - 1; ; i-- {
				if b[i] != 0 {
					lastUsed = at + int64(i)
					break
				}
			}
			for i := int64(0); i+frameHeaderBytes <= n; i += frameAlignment {
				if at+i == offset || binary.LittleEndian.Uint32(b[i:]) != frameMagic {
					continue
				}
				if _, ok := decodeFrameHeader(b[i:], salt, at+i); ok {
					return lastUsed, at + i, nil
				}
			}
		}
		if at+n >= w.size {
			break
		}
		// The next piece repeats the last bytes of this one, so that no header is cut by their border.
		at += n - frameHeaderBytes
	}
	return lastUsed, -1, nil
}
