package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/logmirror/logmirror/internal/disk"
)

// A segment file consists of sectors: each has content, and behind it a stamp that tells which segment it was written for.
// What a sector holds that was written for another one, while the file was that one's, reads as zeros. So a file that was
// trimmed begins its next life as empty as a file of zeros does, without being written over.
//
// Everything else in this package knows content only: its offsets and lengths leave the stamps out. Offsets within the file
// are for people, in errors, reports and dumps.
const (
	// sectorBytes is the unit that a disk writes wholly or not at all.
	sectorBytes  = 512
	stampBytes   = 8
	contentBytes = sectorBytes - stampBytes
	// A block is the unit in which a file system writes, and a multiple of what a disk likes to write.
	blockSectors      = disk.BlockBytes / sectorBytes
	blockContentBytes = blockSectors * contentBytes
)

// fileOffset is where content begins in its file.
func fileOffset(content int64) int64 {
	return content/contentBytes*sectorBytes + content%contentBytes
}

// contentSize is how much content whole sectors of a file of that size have.
func contentSize(fileBytes int64) int64 { return fileBytes / sectorBytes * contentBytes }

// alignSector rounds content up to whole sectors.
func alignSector(content int64) int64 {
	return (content + contentBytes - 1) / contentBytes * contentBytes
}

// stamp returns what stands behind the content of a sector that was written for a segment: the segment, and behind it a
// check, so that it tells by itself that it is a stamp, and which sector's.
func stamp(segment uint32, sector int64) uint64 {
	named := uint64(segment)<<32 + uint64(sector)
	check := named * stampFactor >> 32
	return uint64(segment) | check<<32
}

// stampFactor is odd and has no pattern: 2^64 divided by the golden ratio.
const stampFactor = 0x9e37_79b9_7f4a_7c15

// sectors is a segment's file as the content of its sectors.
type sectors struct {
	file disk.File
	path string
	// segment is the lower half of the segment's sequence number.
	segment uint32
}

func newSectors(file disk.File, path string, sequence uint64) sectors {
	return sectors{file: file, path: path, segment: uint32(sequence)}
}

// span returns the part of the file that has the content, from its first byte to the end of its last sector.
func span(offset, length int64) (from, bytes int64) {
	from = fileOffset(offset)
	return from, fileOffset(alignSector(offset+length)) - from
}

// read returns exactly length bytes of content, which must lie in whole sectors of the file. It uses the buffer if that is
// large enough.
func (s sectors) read(buffer []byte, offset, length int64) ([]byte, error) {
	from, n := span(offset, length)
	if int64(cap(buffer)) < n {
		buffer = make([]byte, n)
	}
	buffer = buffer[:n]
	if err := readFull(s.file, s.path, buffer, from); err != nil {
		return nil, err
	}
	filled := int64(0)
	for at := int64(0); at < n; {
		sector := (from + at) / sectorBytes
		end := (sector+1)*sectorBytes - from
		content := buffer[at : end-stampBytes]
		if s.unwritten(buffer[end-stampBytes:end], sector) {
			clear(content)
		}
		filled += int64(copy(buffer[filled:], content))
		at = end
	}
	return buffer[:length], nil
}

// unwritten tells from a sector's stamp that the sector was not written for this segment: it never was written, or for
// another one. A stamp that is neither this segment's nor any other's proves nothing: the checksums then decide.
func (s sectors) unwritten(b []byte, sector int64) bool {
	found := binary.LittleEndian.Uint64(b)
	segment := uint32(found)
	return found == 0 || segment != s.segment && found == stamp(segment, sector)
}

// stampedBytes is how large a buffer has to be for write, and blockedBytes for writeBlocks.
func stampedBytes(offset, length int64) int64 {
	_, n := span(offset, length)
	return n
}

func blockedBytes(offset, length int64) int64 { return alignBlock(stampedBytes(offset, length)) }

func alignBlock(bytes int64) int64 {
	return (bytes + disk.BlockBytes - 1) / disk.BlockBytes * disk.BlockBytes
}

// write writes content, and zeros behind it up to the end of its last sector, with one write. It needs a buffer of
// stampedBytes, and leaves the content in it no longer as it was.
func (s sectors) write(buffer []byte, offset, length int64) error {
	from, n := s.stampAll(buffer, offset, length)
	_, err := s.file.WriteAt(buffer[:n], from)
	return err
}

// writeBlocks writes content that begins with a block, and behind its last sector sectors of zeros, which count as never
// written, up to the end of a block or of the file, which has fileBytes. It needs a buffer of blockedBytes, and leaves the
// content in it no longer as it was.
func (s sectors) writeBlocks(buffer []byte, offset, length, fileBytes int64) error {
	from, n := s.stampAll(buffer, offset, length)
	end := max(n, min(alignBlock(n), fileBytes-from))
	clear(buffer[n:end])
	_, err := s.file.WriteAt(buffer[:end], from)
	return err
}

// stampAll turns content at the beginning of a buffer into the sectors that have it, zeros behind it and their stamps, and
// returns where they belong in the file.
func (s sectors) stampAll(buffer []byte, offset, length int64) (from, bytes int64) {
	from, n := span(offset, length)
	buffer = buffer[:n]
	first := from / sectorBytes
	for sector := (from+n)/sectorBytes - 1; sector >= first; sector-- {
		// Sectors are spread out from the last one on, so that none is written over before it has moved.
		begin := max(sector*contentBytes, offset) - offset
		end := min((sector+1)*contentBytes-offset, length)
		to := fileOffset(offset+begin) - from
		moved := to + int64(copy(buffer[to:], buffer[begin:end]))
		stampAt := (sector+1)*sectorBytes - stampBytes - from
		clear(buffer[moved:stampAt])
		binary.LittleEndian.PutUint64(buffer[stampAt:], stamp(s.segment, sector))
	}
	return from, n
}

// rewrite writes the sectors that have the content again, as they are.
func (s sectors) rewrite(offset, length int64) error {
	from, n := span(offset, length)
	b := make([]byte, n)
	if err := readFull(s.file, s.path, b, from); err != nil {
		return err
	}
	_, err := s.file.WriteAt(b, from)
	return err
}

// readFull reads exactly len(p) bytes. A read that stops short is an error of the disk, never the end of the log: the
// file's size was asked before.
func readFull(file disk.File, path string, p []byte, offset int64) error {
	n, err := file.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("segment: read %d bytes of %s at %d: %w", len(p), path, offset, err)
}
