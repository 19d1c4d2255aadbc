package wire

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// filler is a message of n bytes that announces announced.
type filler struct{ n, announced int }

func (f filler) EncodedSize() int { return f.announced }
func (f filler) AppendEncoded(b []byte) []byte {
	return append(b, bytes.Repeat([]byte{'x'}, f.n)...)
}

func TestCodecEncodesMessagesOfEverySize(t *testing.T) {
	codec := NewCodec()
	for _, size := range []int{0, 1, 1023, 1024, 1025, 4096, 1<<22 - 1, 1 << 22, 1<<22 + 1} {
		for range 2 { // the second time from the pool
			data, err := codec.Marshal(filler{size, size})
			if err != nil {
				t.Fatal(err)
			}
			if got := data.Materialize(); len(got) != size || bytes.Count(got, []byte{'x'}) != size {
				t.Fatalf("%d bytes encoded into %d", size, len(got))
			}
			data.Free()
		}
	}
}

func TestCodecRefusesAMessageThatLiesAboutItsSize(t *testing.T) {
	if _, err := NewCodec().Marshal(filler{5000, 4000}); err == nil {
		t.Fatal("a message longer than announced was encoded")
	}
}

func TestCodecFallsBackToProtobuf(t *testing.T) {
	codec, request := NewCodec(), &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v"), Lease: 7}
	data, err := codec.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	got := new(kvv1.PutRequest)
	if err := codec.Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, request) {
		t.Fatalf("got %v, want %v", got, request)
	}
}

func TestBuffersInUseAreNotShared(t *testing.T) {
	codec := NewCodec()
	first, err := codec.Marshal(filler{3000, 3000})
	if err != nil {
		t.Fatal(err)
	}
	second, err := codec.Marshal(filler{3000, 3000})
	if err != nil {
		t.Fatal(err)
	}
	a, b := first[0].ReadOnlyData(), second[0].ReadOnlyData()
	if &a[0] == &b[0] {
		t.Fatal("two messages in flight share a buffer")
	}
	first.Free()
	second.Free()
}

func TestKeyValueWithoutItsValue(t *testing.T) {
	whole := &kvv1.KeyValue{
		Key: []byte("key"), Value: []byte("value"), CreateRevision: 1, ModRevision: 1 << 40, Version: 3, Lease: -4,
	}
	encoded, err := proto.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(encoded)
	got := new(kvv1.KeyValue)
	if err := proto.Unmarshal(KeyValue(encoded, true), got); err != nil {
		t.Fatal(err)
	}
	want := proto.Clone(whole).(*kvv1.KeyValue)
	want.Value = nil
	if !proto.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if !bytes.Equal(encoded, before) {
		t.Fatal("the shared encoding was changed")
	}
}
