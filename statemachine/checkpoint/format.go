package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/logmirror/logmirror/statemachine"
)

// FormatVersion is the version of the format that this build writes and reads.
const FormatVersion = 1

var (
	// ErrCorrupt is returned for bytes that no Writer of this format made.
	ErrCorrupt = errors.New("checkpoint is corrupt")
	// ErrFormat is returned for a checkpoint of another format version.
	ErrFormat = errors.New("checkpoint is of an unknown format version")
)

// Header is what a checkpoint says of itself.
type Header struct {
	statemachine.Summary
	// Epoch of the log.
	Epoch uint64
}

const (
	magic         = "LMCHKPT\n"
	preambleBytes = 16

	blockHeaderBytes = 16
	// blockBytes is how many bytes of records close a block.
	blockBytes = 64 << 10
	// blockBytesMax bounds a block, and with it every record: far above the largest command and the small state.
	blockBytesMax = 64 << 20

	headerBytes = 64
	endBytes    = 32
)

// blockKind says what a block's records are. Blocks come in this order.
type blockKind uint8

const (
	kindHeader blockKind = 1 + iota
	kindState
	kindLeases
	kindRequests
	kindBase
	kindHistory
	kindEnd
)

func (k blockKind) String() string {
	names := [...]string{"nothing", "header", "state", "leases", "request ids", "base versions", "history", "end"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendPreamble(b []byte) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, FormatVersion)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[len(b)-12:], castagnoli))
}

// checkPreamble returns the checksum with which the chain of blocks begins.
func checkPreamble(b []byte) (uint32, error) {
	sum := crc32.Checksum(b[:12], castagnoli)
	if string(b[:len(magic)]) != magic || sum != binary.LittleEndian.Uint32(b[12:]) {
		return 0, fmt.Errorf("%w: it does not begin like one", ErrCorrupt)
	}
	if version := binary.LittleEndian.Uint32(b[8:]); version != FormatVersion {
		return 0, fmt.Errorf("%w: %d, known is %d", ErrFormat, version, FormatVersion)
	}
	return sum, nil
}

func (h *Header) append(b []byte) []byte {
	for _, v := range []uint64{
		h.Index, h.Term, h.ClusterID, h.Epoch, uint64(h.LogTime), uint64(h.Revision), uint64(h.CompactRevision),
	} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, h.ApplyVersion)
	return binary.LittleEndian.AppendUint32(b, 0)
}

func decodeHeader(b []byte) (h Header, err error) {
	if len(b) != headerBytes || binary.LittleEndian.Uint32(b[60:]) != 0 {
		return h, fmt.Errorf("%w: header", ErrCorrupt)
	}
	word := func(n int) uint64 { return binary.LittleEndian.Uint64(b[8*n:]) }
	h = Header{Epoch: word(3), Summary: statemachine.Summary{
		Index: word(0), Term: word(1), ClusterID: word(2), LogTime: int64(word(4)),
		Revision: int64(word(5)), CompactRevision: int64(word(6)), ApplyVersion: binary.LittleEndian.Uint32(b[56:]),
	}}
	return h, nil
}

// Counts are how many records of each kind a checkpoint holds.
type Counts struct {
	Leases, RequestIDs uint64
	// Base are the keys that exist at the compact revision and were changed last below it, History the versions from it on.
	Base, History uint64
}

func (c *Counts) append(b []byte) []byte {
	for _, v := range []uint64{c.Leases, c.RequestIDs, c.Base, c.History} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeCounts(b []byte) (c Counts, err error) {
	if len(b) != endBytes {
		return c, fmt.Errorf("%w: end", ErrCorrupt)
	}
	word := func(n int) uint64 { return binary.LittleEndian.Uint64(b[8*n:]) }
	return Counts{word(0), word(1), word(2), word(3)}, nil
}
