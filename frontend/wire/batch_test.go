package wire

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/grpc/mem"
)

// taker is a stream that keeps what it is sent until it is freed, as gRPC does, and breaks at one message.
type taker struct {
	kept    []mem.BufferSlice
	breakAt int
}

func (k *taker) SendMsg(m any) error {
	message, err := NewCodec().Marshal(m)
	if err != nil {
		return err
	}
	if len(k.kept) == k.breakAt {
		message.Free()
		return errors.New("broken")
	}
	k.kept = append(k.kept, message)
	return nil
}

func fill(b *Batch, sizes ...int) {
	for i, size := range sizes {
		b.Add(append(b.Bytes(), bytes.Repeat([]byte{'a' + byte(i)}, size)...))
	}
}

// TestABatchIsWrittenOnce: its messages keep their bytes until the last of them is written, in whatever order, and then it
// is said once.
func TestABatchIsWrittenOnce(t *testing.T) {
	var batches Batches
	for _, room := range []int{0, 10_000, 10_000} { // too little, enough, and from the pool
		stream, written := &taker{breakAt: -1}, 0
		batch := batches.New(room)
		fill(batch, 1, 300, 0, 4000)
		if err := batch.Send(stream, func() { written++ }); err != nil {
			t.Fatal(err)
		}
		other := batches.New(room) // must not get the buffer
		fill(other, 5000)
		for _, i := range []int{2, 3, 1, 0} { // an empty one holds nothing
			if written > 0 {
				t.Fatal("written before the last message was freed")
			}
			want := bytes.Repeat([]byte{'a' + byte(i)}, []int{1, 300, 0, 4000}[i])
			if got := stream.kept[i].Materialize(); !bytes.Equal(got, want) {
				t.Fatalf("message %d has %d bytes, not the %d that it was given", i, len(got), len(want))
			}
			stream.kept[i].Free()
		}
		if written != 1 {
			t.Fatalf("written %d times", written)
		}
		if err := other.Send(&taker{breakAt: -1}, func() {}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABatchEndsAtTheFirstError(t *testing.T) {
	var batches Batches
	stream, written := &taker{breakAt: 1}, 0
	batch := batches.New(0)
	fill(batch, 10, 20, 30)
	if err := batch.Send(stream, func() { written++ }); err == nil || len(stream.kept) != 1 {
		t.Fatalf("sent %d messages, error %v", len(stream.kept), err)
	}
	if written > 0 {
		t.Fatal("written while a message is kept")
	}
	stream.kept[0].Free()
	if written != 1 {
		t.Fatalf("written %d times", written)
	}
}
