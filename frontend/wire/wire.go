// Package wire lets a handler answer with bytes that exist already. Key-values and events are encoded once, when they
// are applied; a range or a watch answer copies them into one buffer instead of decoding and marshalling them again.
//
// The codec takes a Message by its own encoding and everything else as gRPC's own protobuf codec does, so that both kinds
// of handlers live on one server, and clients see plain protobuf.
package wire

import (
	"fmt"
	"math/bits"
	"sync"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one falls back to
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Message is an answer that encodes itself.
type Message interface {
	// EncodedSize returns exactly how many bytes AppendEncoded will append.
	EncodedSize() int
	// AppendEncoded appends the protobuf encoding to b.
	AppendEncoded(b []byte) []byte
}

// Codec is a grpc codec under the name of protobuf; make one per server.
type Codec struct {
	fallback encoding.CodecV2
	buffers  pool
}

// NewCodec returns a codec for grpc.ForceServerCodecV2.
func NewCodec() *Codec { return &Codec{fallback: encoding.GetCodecV2("proto")} }

// Name is that of gRPC's protobuf codec: the bytes are the same.
func (c *Codec) Name() string { return c.fallback.Name() }

// Raw receives a message as it is, for a handler that decodes it elsewhere.
type Raw []byte

// Unmarshal reads a plain protobuf message, or any into a *Raw.
func (c *Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if raw, ok := v.(*Raw); ok {
		*raw = data.Materialize()
		return nil
	}
	return c.fallback.Unmarshal(data, v)
}

// Marshal encodes a Message into a buffer of the codec's own, which comes back when gRPC has written it.
func (c *Codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(*encoded); ok {
		return e.data, nil
	}
	if gathered, ok := v.(*Gathered); ok {
		return gathered.take(), nil
	}
	message, ok := v.(Message)
	if !ok {
		return c.marshalPlain(v)
	}
	size := message.EncodedSize()
	if mem.IsBelowBufferPoolingThreshold(size) {
		return single(message.AppendEncoded(make([]byte, 0, size))), nil
	}
	buffer := c.buffers.Get(size)
	if n := len(message.AppendEncoded((*buffer)[:0])); n != size {
		c.buffers.Put(buffer)
		return nil, fmt.Errorf("%T encoded into %d bytes, had announced %d", v, n, size)
	}
	return mem.BufferSlice{mem.NewBuffer(buffer, &c.buffers)}, nil
}

// marshalPlain encodes a plain protobuf message. A small one, as most are, takes fewer allocations than by gRPC's codec.
func (c *Codec) marshalPlain(v any) (mem.BufferSlice, error) {
	message, ok := v.(proto.Message)
	if !ok {
		return c.fallback.Marshal(v)
	}
	size := proto.Size(message)
	if !mem.IsBelowBufferPoolingThreshold(size) {
		return c.fallback.Marshal(v)
	}
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, size), message)
	if err != nil {
		return nil, err
	}
	return single(b), nil
}

// single returns bytes as gRPC takes them.
func single(b []byte) mem.BufferSlice {
	one := &struct {
		bytes  mem.SliceBuffer
		buffer [1]mem.Buffer
	}{bytes: b}
	one.buffer[0] = &one.bytes // a slice itself would have to be allocated to be a Buffer
	return one.buffer[:]
}

// Sizes of pooled buffers are powers of two in these bounds; what is larger is left to the garbage collector.
const (
	smallestBits = 10
	largestBits  = 22
)

// pool keeps buffers by size. Unlike gRPC's own it does not clear them: they are overwritten whole.
type pool struct {
	classes [largestBits - smallestBits + 1]sync.Pool
}

// class returns the class whose buffers hold size bytes; above the largest it is out of range.
func class(size int) int { return max(bits.Len(uint(max(size, 1)-1))-smallestBits, 0) }

// Get returns a buffer of the length, with any content.
func (p *pool) Get(length int) *[]byte {
	c := class(length)
	if c >= len(p.classes) {
		buffer := make([]byte, length)
		return &buffer
	}
	if buffer, ok := p.classes[c].Get().(*[]byte); ok {
		*buffer = (*buffer)[:length]
		return buffer
	}
	buffer := make([]byte, length, 1<<(c+smallestBits))
	return &buffer
}

// Put takes a buffer back.
func (p *pool) Put(buffer *[]byte) {
	c := class(cap(*buffer))
	if c >= len(p.classes) || cap(*buffer) != 1<<(c+smallestBits) {
		return
	}
	p.classes[c].Put(buffer)
}
