package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/cespare/xxhash/v2"
)

// The layout of frames; FORMAT.md draws it. All integers are little-endian.
const (
	frameMagic      = 0x5246_4d4c // "LMFR"
	frameHeaderMark = 0x4846_4d4c // "LMFH"
	frameEndMark    = 0x4546_4d4c // "LMFE"

	frameHeaderBytes  = 96
	frameTrailerBytes = 8
	entryRecordBytes  = 16
	// frameAlignment is the alignment of frames in a file, so that the scan for frames after a bad one has few places to
	// look at and a magic number is never torn.
	frameAlignment = 8
	// frameBytesMin is the size of a frame that carries nothing but the hard state.
	frameBytesMin = frameHeaderBytes + frameTrailerBytes
	// frameBytesMax keeps all lengths within 32 bits.
	frameBytesMax = 1 << 30

	flagMembership = 1 << 0
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameHeader is the first part of a frame.
type frameHeader struct {
	payloadCRC uint32
	// payloadLength counts entry records, data and membership, without padding and trailer.
	payloadLength uint32
	// previousCRC and previousLength repeat what identifies the frame before: its header's CRC, which covers its payload's
	// CRC, and its length. The first frame of a segment repeats the segment's salt and the length zero.
	previousCRC, previousLength uint32
	entryCount                  uint32
	membershipLength            uint32
	flags                       uint32
	// zeroSectors counts the sectors after the header that are zeros as written. On disk more of them are zeros only
	// where a write did not reach the disk.
	zeroSectors uint32
	hardState   HardState
	// first is the index of the first entry; without entries, the index the next entry would have.
	first uint64
	// previousTerm and previousDigest are those of the entry at first-1.
	previousTerm, previousDigest uint64

	// crc is the header's own, seeded with the segment's salt and the frame's offset: the bytes of a frame are a frame
	// in one place of one segment only, so that data which looks like a frame never passes for one.
	crc uint32
}

// encode writes the header to the first frameHeaderBytes of b and returns its CRC.
func (h *frameHeader) encode(b []byte, salt uint32, offset int64) uint32 {
	le := binary.LittleEndian
	_ = b[frameHeaderBytes-1]
	le.PutUint32(b[0:], frameMagic)
	le.PutUint32(b[4:], h.payloadCRC)
	le.PutUint32(b[8:], h.payloadLength)
	le.PutUint32(b[12:], h.previousCRC)
	le.PutUint32(b[16:], h.previousLength)
	le.PutUint32(b[20:], h.entryCount)
	le.PutUint32(b[24:], h.membershipLength)
	le.PutUint32(b[28:], h.flags)
	le.PutUint64(b[32:], h.hardState.Term)
	le.PutUint64(b[40:], h.hardState.Vote)
	le.PutUint64(b[48:], h.hardState.Commit)
	le.PutUint64(b[56:], h.first)
	le.PutUint64(b[64:], h.previousTerm)
	le.PutUint64(b[72:], h.previousDigest)
	le.PutUint32(b[80:], h.zeroSectors)
	le.PutUint32(b[84:], 0)
	h.crc = headerCRC(b, salt, offset)
	le.PutUint32(b[88:], h.crc)
	le.PutUint32(b[92:], frameHeaderMark)
	return h.crc
}

// decodeFrameHeader reads a header and tells whether b begins with one that was written at this offset of the segment.
func decodeFrameHeader(b []byte, salt uint32, offset int64) (h frameHeader, ok bool) {
	le := binary.LittleEndian
	if len(b) < frameHeaderBytes || le.Uint32(b) != frameMagic || le.Uint32(b[92:]) != frameHeaderMark ||
		le.Uint32(b[84:]) != 0 || le.Uint32(b[88:]) != headerCRC(b, salt, offset) {
		return h, false
	}
	h = frameHeader{
		payloadCRC:       le.Uint32(b[4:]),
		payloadLength:    le.Uint32(b[8:]),
		previousCRC:      le.Uint32(b[12:]),
		previousLength:   le.Uint32(b[16:]),
		entryCount:       le.Uint32(b[20:]),
		membershipLength: le.Uint32(b[24:]),
		flags:            le.Uint32(b[28:]),
		hardState:        HardState{Term: le.Uint64(b[32:]), Vote: le.Uint64(b[40:]), Commit: le.Uint64(b[48:])},
		first:            le.Uint64(b[56:]),
		previousTerm:     le.Uint64(b[64:]),
		previousDigest:   le.Uint64(b[72:]),
		zeroSectors:      le.Uint32(b[80:]),
		crc:              le.Uint32(b[88:]),
	}
	records := uint64(h.entryCount)*entryRecordBytes + uint64(h.membershipLength)
	return h, h.payloadLength <= frameBytesMax && records <= uint64(h.payloadLength)
}

func headerCRC(b []byte, salt uint32, offset int64) uint32 {
	return crc32.Update(salt^uint32(offset/frameAlignment), castagnoli, b[:88])
}

// length is the whole frame's, from its magic to the end of its trailer.
func (h *frameHeader) length() int64 {
	return frameHeaderBytes + align(int64(h.payloadLength)) + frameTrailerBytes
}

// last is the index of the last entry, or of the entry before where there is none.
func (h *frameHeader) last() uint64 { return h.first + uint64(h.entryCount) - 1 }

func align(n int64) int64 { return (n + frameAlignment - 1) &^ (frameAlignment - 1) }

// payloadBytes returns the length of the payload that a group makes.
func payloadBytes(g *Group) (int64, error) {
	total := int64(len(g.Entries))*entryRecordBytes + int64(len(g.Membership))
	for i := range g.Entries {
		total += int64(len(g.Entries[i].Data))
		if total > frameBytesMax {
			return 0, fmt.Errorf("%w: more than %d bytes", ErrInvalid, frameBytesMax)
		}
	}
	if int64(len(g.Membership)) > membershipBytesMax {
		return 0, fmt.Errorf("%w: membership of %d bytes, at most %d", ErrInvalid, len(g.Membership), membershipBytesMax)
	}
	return total, nil
}

// encodeFrame builds the whole frame of a group in b, which has exactly the frame's length, and returns the digest of
// the last entry. The header comes with all but its lengths, counts and checksums set.
func encodeFrame(b []byte, h *frameHeader, g *Group, salt uint32, offset int64) (digest uint64) {
	le := binary.LittleEndian
	digest = h.previousDigest
	h.entryCount = uint32(len(g.Entries))
	h.membershipLength = uint32(len(g.Membership))
	if g.Membership != nil {
		h.flags |= flagMembership
	}
	payload := b[frameHeaderBytes : len(b)-frameTrailerBytes]
	record, at := 0, len(g.Entries)*entryRecordBytes
	for i := range g.Entries {
		e := &g.Entries[i]
		le.PutUint64(payload[record:], e.Term)
		le.PutUint32(payload[record+8:], uint32(len(e.Data)))
		le.PutUint32(payload[record+12:], uint32(e.Type))
		record += entryRecordBytes
		at += copy(payload[at:], e.Data)
		digest = NextDigest(digest, e.Index, e.Term, e.Data)
	}
	at += copy(payload[at:], g.Membership)
	h.payloadLength = uint32(at)
	clear(payload[at:])
	h.payloadCRC = crc32.Checksum(payload, castagnoli)

	le.PutUint32(b[len(b)-4:], frameEndMark)
	h.zeroSectors = countZeroSectors(b, offset)
	h.encode(b, salt, offset)
	le.PutUint32(b[len(b)-8:], h.crc)
	return digest
}

// frame is a decoded and checked frame; its slices point into the buffer it was decoded from.
type frame struct {
	frameHeader
	records, data, membership []byte
}

// decodeFrame checks the frame that b begins with; reason tells what is wrong with it. An error leaves in f the header
// if that is good.
func decodeFrame(b []byte, salt uint32, offset int64) (f frame, reason string) {
	le := binary.LittleEndian
	h, ok := decodeFrameHeader(b, salt, offset)
	if !ok {
		return f, "frame header does not match its checksum"
	}
	f.frameHeader = h
	length := h.length()
	if int64(len(b)) < length {
		return f, "frame is longer than what is left of the segment"
	}
	if le.Uint32(b[length-8:]) != h.crc || le.Uint32(b[length-4:]) != frameEndMark {
		return f, "frame trailer does not repeat the header's checksum"
	}
	payload := b[frameHeaderBytes : length-frameTrailerBytes]
	if crc32.Checksum(payload, castagnoli) != h.payloadCRC {
		return f, "payload does not match its checksum"
	}
	dataAt := int64(h.entryCount) * entryRecordBytes
	dataEnd := int64(h.payloadLength) - int64(h.membershipLength)
	f.records, f.data = payload[:dataAt], payload[dataAt:dataEnd:dataEnd]
	if h.flags&flagMembership != 0 {
		f.membership = payload[dataEnd:h.payloadLength:h.payloadLength]
	}
	sum := int64(0)
	for at := int64(8); at < dataAt; at += entryRecordBytes {
		sum += int64(le.Uint32(f.records[at:]))
	}
	if sum != int64(len(f.data)) || (h.first == 0) {
		return f, "lengths of the entries do not add up"
	}
	return f, ""
}

// entries calls visit for each entry in order until it returns false. Data points into the frame's buffer.
func (f *frame) entries(visit func(Entry) bool) {
	le := binary.LittleEndian
	at := uint32(0)
	for i := uint32(0); i < f.entryCount; i++ {
		record := f.records[i*entryRecordBytes:]
		length := le.Uint32(record[8:])
		e := Entry{Index: f.first + uint64(i), Term: le.Uint64(record), Type: record[12],
			Data: f.data[at : at+length : at+length]}
		at += length
		if !visit(e) {
			return
		}
	}
}

// NextDigest returns the running digest of the log up to an entry from the digest of the entry before: XXH64 of the
// previous digest, the index, the term (each 8 bytes, little-endian) and the data. The digest of an empty log is zero.
// Two logs with the same digest at the same index hold the same entries up to it, but for a collision of 64 bits.
func NextDigest(previous, index, term uint64, data []byte) uint64 {
	var head [24]byte
	binary.LittleEndian.PutUint64(head[0:], previous)
	binary.LittleEndian.PutUint64(head[8:], index)
	binary.LittleEndian.PutUint64(head[16:], term)
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(head[:])
	_, _ = d.Write(data)
	return d.Sum64()
}

// countZeroSectors counts the sectors after the frame's header that hold nothing but zeros of this frame.
func countZeroSectors(b []byte, offset int64) (count uint32) {
	at := alignSector(offset+frameHeaderBytes) - offset
	for at < int64(len(b)) {
		end := min(at+contentBytes, int64(len(b)))
		if allZero(b[at:end]) {
			count++
		}
		at = end
	}
	return count
}

var zeroSector [sectorBytes]byte

func allZero(b []byte) bool {
	for len(b) > sectorBytes {
		if string(b[:sectorBytes]) != string(zeroSector[:]) {
			return false
		}
		b = b[sectorBytes:]
	}
	return len(b) == 0 || b[0] == 0 && string(b) == string(zeroSector[:len(b)])
}

// termRun says that entries from first on have a term, up to the next run.
type termRun struct{ first, term uint64 }

const indexMax = math.MaxUint64 >> 1
