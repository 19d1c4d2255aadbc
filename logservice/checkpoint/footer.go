package checkpoint

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/logmirror/logmirror/internal/disk"
)

// A file is the data, then its footer, little-endian, CRC meaning CRC32C:
//
//	CRC of each chunk of chunkBytes of the data, the last one shorter   4 bytes each
//	magic "LMCKPT01"                                                      8
//	length of the data                                                    8
//	format version of the checkpoint                                      4
//	CRC of the footer up to here, begun with the index's CRC              4
const (
	footerMagic      = "LMCKPT01"
	footerFixedBytes = 24
	chunkBytes       = 256 << 10

	suffix    = ".checkpoint"
	temporary = ".incoming"
	damaged   = ".damaged"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Name names the bytes of one checkpoint.
type Name struct {
	// Index is that of the log entry that the checkpoint is the state after.
	Index         uint64
	SHA256        [32]byte
	SizeBytes     int64
	FormatVersion uint32
}

// String is short, for logs.
func (n Name) String() string { return fmt.Sprintf("%d-%x", n.Index, n.SHA256[:6]) }

func (n Name) file() string { return fmt.Sprintf("%016x-%x%s", n.Index, n.SHA256, suffix) }

// parseFile reads index and hash of a file's name.
func parseFile(file string) (n Name, ok bool) {
	text, ok := strings.CutSuffix(file, suffix)
	index, sum, found := strings.Cut(text, "-")
	if !ok || !found || len(index) != 16 || len(sum) != 64 {
		return n, false
	}
	var err error
	if n.Index, err = strconv.ParseUint(index, 16, 64); err != nil {
		return n, false
	}
	if _, err := hex.Decode(n.SHA256[:], []byte(sum)); err != nil {
		return n, false
	}
	return n, n.file() == file
}

func chunkCount(sizeBytes int64) int64 { return (sizeBytes + chunkBytes - 1) / chunkBytes }

func encodeFooter(n Name, chunks []uint32) []byte {
	b := make([]byte, 0, len(chunks)*4+footerFixedBytes)
	for _, crc := range chunks {
		b = binary.LittleEndian.AppendUint32(b, crc)
	}
	b = append(b, footerMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(n.SizeBytes))
	b = binary.LittleEndian.AppendUint32(b, n.FormatVersion)
	return binary.LittleEndian.AppendUint32(b, footerCRC(n, b))
}

func footerCRC(n Name, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(n.file()), castagnoli), castagnoli, b)
}

// readFooter completes the name of an open file with what its footer says, and returns the checksums of its chunks.
func readFooter(file disk.File, n Name) (Name, []uint32, error) {
	le := binary.LittleEndian
	size, err := file.Size()
	if err != nil {
		return n, nil, err
	}
	if size < footerFixedBytes {
		return n, nil, fmt.Errorf("%w: it has %d bytes", ErrDamaged, size)
	}
	fixed := make([]byte, footerFixedBytes)
	if err := readFull(file, fixed, size-footerFixedBytes); err != nil {
		return n, nil, err
	}
	n.SizeBytes, n.FormatVersion = int64(le.Uint64(fixed[8:])), le.Uint32(fixed[16:])
	if string(fixed[:8]) != footerMagic || n.SizeBytes < 0 || n.SizeBytes > size ||
		n.SizeBytes+4*chunkCount(n.SizeBytes)+footerFixedBytes != size {
		return n, nil, fmt.Errorf("%w: its footer does not fit its size of %d bytes", ErrDamaged, size)
	}
	b := make([]byte, size-n.SizeBytes)
	if err := readFull(file, b, n.SizeBytes); err != nil {
		return n, nil, err
	}
	if le.Uint32(b[len(b)-4:]) != footerCRC(n, b[:len(b)-4]) {
		return n, nil, fmt.Errorf("%w: its footer does not match its checksum", ErrDamaged)
	}
	chunks := make([]uint32, chunkCount(n.SizeBytes))
	for i := range chunks {
		chunks[i] = le.Uint32(b[4*i:])
	}
	return n, chunks, nil
}

// readFull reads exactly len(p) bytes; the file is known to have them.
func readFull(file disk.File, p []byte, offset int64) error {
	n, err := file.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF { //nolint:errorlint // io.ReaderAt returns it bare
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), offset, err)
}
