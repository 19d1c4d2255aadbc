package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/logmirror/logmirror/internal/disk"
)

const (
	segmentMagic   = 0x4c4d_5345_474d_4e54 // bytes "TNMGESML"
	segmentVersion = 2
	// segmentFixedBytes precede the membership in a segment's header.
	segmentFixedBytes = 136

	// membershipBytesMax bounds the opaque membership, which each segment's header repeats.
	membershipBytesMax = 1 << 20

	segmentFlagReset      = 1 << 0
	segmentFlagMembership = 1 << 1

	segmentSuffix = ".segment"
	// spareName is the space reserved for the next segment; temporaryName is a segment that the writer is building. What
	// either holds means nothing, nor does what a file with recycledSuffix holds, which was a segment.
	spareName     = "spare"
	temporaryName = "building"
	lockName      = "LOCK"

	recycledSuffix = ".recycled"
)

// base is the point that a log, or a segment, begins after.
type base struct{ index, term, digest uint64 }

// segmentHeader is the first part of a segment. It repeats all state that earlier segments held besides entries, so
// that they can be trimmed.
type segmentHeader struct {
	sequence uint64
	// salt seeds the checksums of the segment's frames, and is what the first of them repeats as the CRC before it.
	salt     uint32
	reset    bool
	identity Identity
	// fileBytes is the size that the file was given; it never gets smaller.
	fileBytes int64
	hardState HardState
	// base is the last entry of the log when the segment was begun.
	base base
	// previousEnd is where the frames of the segment before end, and previousCRC the last one's: whatever that file holds
	// behind is not part of the log.
	previousEnd int64
	previousCRC uint32
	membership  []byte
}

// length is what the header takes up in the file; the first frame follows.
func (h *segmentHeader) length() int64 {
	return alignSector(segmentFixedBytes + int64(len(h.membership)))
}

func segmentName(sequence uint64) string { return fmt.Sprintf("%016x%s", sequence, segmentSuffix) }

// parseSegmentName returns the sequence that a file name stands for.
func parseSegmentName(name string) (sequence uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	sequence, err := strconv.ParseUint(digits, 16, 64)
	return sequence, err == nil && segmentName(sequence) == name
}

// encode returns the header's bytes and sets its salt. The salt depends on the data directory's random id, so
// that who chooses the data of entries can't know it. The file's size does not enter into it: a segment that grows while
// it is built is given its header last.
func (h *segmentHeader) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, h.length())
	flags := uint32(0)
	if h.reset {
		flags |= segmentFlagReset
	}
	if h.membership != nil {
		flags |= segmentFlagMembership
	}
	le.PutUint64(b[0:], segmentMagic)
	le.PutUint32(b[8:], segmentVersion)
	le.PutUint32(b[12:], uint32(len(b)))
	le.PutUint64(b[16:], h.sequence)
	le.PutUint32(b[28:], flags)
	le.PutUint64(b[32:], h.identity.ClusterHash)
	le.PutUint64(b[40:], h.identity.MemberID)
	le.PutUint64(b[48:], h.identity.DataDirectoryID)
	le.PutUint64(b[64:], h.hardState.Term)
	le.PutUint64(b[72:], h.hardState.Vote)
	le.PutUint64(b[80:], h.hardState.Commit)
	le.PutUint64(b[88:], h.base.index)
	le.PutUint64(b[96:], h.base.term)
	le.PutUint64(b[104:], h.base.digest)
	le.PutUint64(b[112:], uint64(h.previousEnd))
	le.PutUint32(b[120:], h.previousCRC)
	le.PutUint32(b[124:], uint32(len(h.membership)))
	h.salt = uint32(xxhash.Sum64(b[:segmentFixedBytes]))
	le.PutUint32(b[24:], h.salt)
	le.PutUint64(b[56:], uint64(h.fileBytes))
	copy(b[segmentFixedBytes:], h.membership)
	le.PutUint32(b[128:], segmentHeaderCRC(b))
	return b
}

func segmentHeaderCRC(b []byte) uint32 {
	crc := crc32.Checksum(b[:128], castagnoli)
	return crc32.Update(crc, castagnoli, b[segmentFixedBytes:])
}

// readSegmentHeader reads and checks the header of an open segment of size bytes. A header is durable before its file
// has its name, and so is the file's size: whatever is wrong with either is damage.
func readSegmentHeader(file disk.File, path string, size int64) (h segmentHeader, err error) {
	damaged := func(reason string) error { return &CorruptError{File: path, Reason: reason} }
	le := binary.LittleEndian
	if size < sectorBytes {
		return h, damaged(fmt.Sprintf("file of %d bytes has no room for a segment header", size))
	}
	fixed := make([]byte, segmentFixedBytes) // they lie in the first sector
	if err := readFull(file, path, fixed, 0); err != nil {
		return h, err
	}
	length := int64(le.Uint32(fixed[12:]))
	membership := int64(le.Uint32(fixed[124:]))
	if le.Uint64(fixed) != segmentMagic || membership > membershipBytesMax ||
		length != alignSector(segmentFixedBytes+membership) || length > contentSize(size) {
		return h, damaged("not a segment header")
	}
	b, err := newSectors(file, path, le.Uint64(fixed[16:])).read(nil, 0, length)
	if err != nil {
		return h, err
	}
	if version := le.Uint32(fixed[8:]); version != segmentVersion {
		le.PutUint32(b[8:], segmentVersion)
		if le.Uint32(b[128:]) == segmentHeaderCRC(b) {
			return h, damaged(fmt.Sprintf("a header of format version %d says %d", segmentVersion, version))
		}
		return h, fmt.Errorf("segment: %s has format version %d, this program reads %d", path, version, segmentVersion)
	}
	if le.Uint32(b[128:]) != segmentHeaderCRC(b) || le.Uint32(b[132:]) != 0 {
		return h, damaged("segment header does not match its checksum")
	}
	flags := le.Uint32(b[28:])
	h = segmentHeader{
		sequence: le.Uint64(b[16:]),
		salt:     le.Uint32(b[24:]),
		reset:    flags&segmentFlagReset != 0,
		identity: Identity{ClusterHash: le.Uint64(b[32:]), MemberID: le.Uint64(b[40:]),
			DataDirectoryID: le.Uint64(b[48:])},
		fileBytes:   int64(le.Uint64(b[56:])),
		hardState:   HardState{Term: le.Uint64(b[64:]), Vote: le.Uint64(b[72:]), Commit: le.Uint64(b[80:])},
		base:        base{index: le.Uint64(b[88:]), term: le.Uint64(b[96:]), digest: le.Uint64(b[104:])},
		previousEnd: int64(le.Uint64(b[112:])),
		previousCRC: le.Uint32(b[120:]),
	}
	if flags&segmentFlagMembership != 0 {
		h.membership = b[segmentFixedBytes : segmentFixedBytes+membership : segmentFixedBytes+membership]
	}
	if name := filepath.Base(path); name != segmentName(h.sequence) {
		return h, damaged(fmt.Sprintf("segment header says its name is %s", segmentName(h.sequence)))
	}
	if size < h.fileBytes {
		return h, &CorruptError{File: path, Offset: size,
			Reason: fmt.Sprintf("file was cut short: it has %d bytes of %d", size, h.fileBytes)}
	}
	return h, nil
}
