package wire

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// Batches makes batches and keeps what they are made of. The zero value is ready for use.
type Batches struct {
	buffers pool
	unused  sync.Pool // of *Batch
}

// Batch is a run of messages for one stream, encoded into one buffer: a message costs its bytes and no memory of its own.
type Batch struct {
	owner  *Batches
	buffer *[]byte
	// encoded holds the messages, which end at ends.
	encoded []byte
	ends    []int
	message encoded
}

// encoded is what gRPC is given as a message: Codec.Marshal returns the bytes there are.
type encoded struct{ data mem.BufferSlice }

// New returns a batch with room for a number of bytes. It makes more where the messages turn out to be larger.
func (b *Batches) New(bytes int) *Batch {
	batch, ok := b.unused.Get().(*Batch)
	if !ok {
		batch = &Batch{owner: b}
	}
	// gRPC counts references to a buffer, which tells when it is written, above a certain size only.
	const counted = 2 << smallestBits
	batch.buffer = b.buffers.Get(max(bytes, counted))
	batch.encoded = (*batch.buffer)[:0]
	return batch
}

// Bytes returns the messages so far, for the next one to be appended.
func (b *Batch) Bytes() []byte { return b.encoded }

// Add adds a message: bytes is Bytes with the message appended.
func (b *Batch) Add(bytes []byte) {
	b.encoded = bytes
	b.ends = append(b.ends, len(bytes))
}

// Sender is the part of a grpc.ServerStream that messages are sent by.
type Sender interface {
	SendMsg(m any) error
}

// Send sends the messages one after the other, up to the first error, and takes the batch back. It calls written once, when
// all messages were written to the connection or dropped with their stream: maybe before Send returns, and maybe
// inside gRPC's locks, so written must not block. The stream's codec must be a Codec.
func (b *Batch) Send(stream Sender, written func()) (err error) {
	*b.buffer = b.encoded
	whole := mem.NewBuffer(b.buffer, &batchBuffer{&b.owner.buffers, written})
	defer whole.Free() // each message holds the buffer as well
	messages := make(mem.BufferSlice, len(b.ends))
	begin := 0
	for i, end := range b.ends {
		if err == nil {
			messages[i] = whole.Slice(begin, end)
			b.message.data = messages[i : i+1 : i+1]
			err = stream.SendMsg(&b.message) // which frees it
		}
		begin = end
	}
	*b = Batch{owner: b.owner, ends: b.ends[:0]}
	b.owner.unused.Put(b)
	return err
}

// batchBuffer takes back the buffer of a batch.
type batchBuffer struct {
	pool    *pool
	written func()
}

// Get is not called: gRPC only gives back.
func (b *batchBuffer) Get(length int) *[]byte { return b.pool.Get(length) }

// Put is called when gRPC has no more use for any of the messages.
func (b *batchBuffer) Put(buffer *[]byte) {
	b.pool.Put(buffer)
	b.written()
}
