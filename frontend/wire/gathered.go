package wire

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Gathered is an answer that is encoded while it is read: each element is copied once at most, from where it is kept to the
// buffers that gRPC writes. The zero value is an empty message. It is sent once, by one call of the Codec; one that is dropped
// instead is left to the garbage collector.
type Gathered struct {
	full   mem.BufferSlice
	shared []mem.SliceBuffer // some of full's
	open   *[]byte           // the buffer being filled; nil: none
	bytes  int               // in full
}

// Sizes of the buffers: the first is small, as most answers are, and each next one four times as large.
const (
	firstGatheredBytes = 4 << 10
	mostGatheredBytes  = 64 << 10
	// sharedBytesLeast are worth a buffer of their own.
	sharedBytesLeast = 2 << 10
	// sharedAtOnce of them take one allocation.
	sharedAtOnce = 16
)

// gatheredBuffers are those of all answers of the process.
var gatheredBuffers pool

// AppendElement appends an encoded message, or an element of a repeated field, even where it is empty.
func (g *Gathered) AppendElement(number protowire.Number, encoded []byte) {
	var head [2 * 10]byte // no varint is longer than 10 bytes
	g.append(protowire.AppendVarint(protowire.AppendTag(head[:0], number, protowire.BytesType), uint64(len(encoded))))
	g.append(encoded)
}

// AppendShared appends whole fields, which nobody may change any more. Many of them are not copied but given to gRPC as they are.
func (g *Gathered) AppendShared(fields []byte) {
	if len(fields) < sharedBytesLeast {
		g.append(fields)
		return
	}
	if g.open != nil {
		g.seal()
	}
	if len(g.shared) == cap(g.shared) {
		g.shared = make([]mem.SliceBuffer, 0, sharedAtOnce)
	}
	g.shared = append(g.shared, fields)
	g.bytes += len(fields)
	g.full = append(g.full, &g.shared[len(g.shared)-1])
}

// AppendVarint appends an integer or bool field; a zero one is left out, as proto3 does.
func (g *Gathered) AppendVarint(number protowire.Number, value uint64) {
	var field [2 * 10]byte
	g.append(AppendVarint(field[:0], number, value))
}

// Bytes is how many bytes were appended.
func (g *Gathered) Bytes() int {
	if g.open == nil {
		return g.bytes
	}
	return g.bytes + len(*g.open)
}

func (g *Gathered) append(b []byte) {
	for len(b) > 0 {
		if g.open == nil || len(*g.open) == cap(*g.open) {
			g.grow()
		}
		filled := *g.open
		n := min(len(b), cap(filled)-len(filled))
		*g.open = append(filled, b[:n]...)
		b = b[n:]
	}
}

// grow opens the next buffer.
func (g *Gathered) grow() {
	size := firstGatheredBytes
	if g.open != nil {
		size = min(4*cap(*g.open), mostGatheredBytes)
		g.seal()
	}
	g.open = gatheredBuffers.Get(size)
	*g.open = (*g.open)[:0]
}

func (g *Gathered) seal() {
	g.bytes += len(*g.open)
	g.full = append(g.full, mem.NewBuffer(g.open, &gatheredBuffers))
	g.open = nil
}

// take gives the buffers away.
func (g *Gathered) take() mem.BufferSlice {
	if g.open != nil {
		g.seal()
	}
	taken := g.full
	*g = Gathered{}
	return taken
}
