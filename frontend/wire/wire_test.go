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

func TestCodecTakesPlainProtobuf(t *testing.T) {
	codec := NewCodec()
	for _, size := range []int{0, 1, 1000, 1100, 100_000} {
		request := &kvv1.PutRequest{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), size), Lease: 7}
		data, err := codec.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := proto.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		// gRPC reads a message in pieces that fit its frames.
		read, reader := make([]byte, 0, len(encoded)), data.Reader()
		for piece := make([]byte, 16<<10); ; {
			n, err := reader.Read(piece)
			read = append(read, piece[:n]...)
			if err != nil {
				break
			}
		}
		if data.Len() != len(encoded) || !bytes.Equal(read, encoded) {
			t.Errorf("a value of %d bytes was not encoded as protobuf does", size)
		}
		got := new(kvv1.PutRequest)
		if err := codec.Unmarshal(data, got); err != nil || !proto.Equal(got, request) {
			t.Errorf("a value of %d bytes: got %v, %v", size, got, err)
		}
		data.Free()
	}
	if _, err := codec.Marshal(7); err == nil {
		t.Error("an int was encoded")
	}
	if _, err := codec.Marshal(&kvv1.ResponseHeader{Region: string([]byte{0xff})}); err == nil {
		t.Error("a string that is not UTF-8 was encoded")
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

// FuzzKeyValue cuts the value out of arbitrary bytes. Of what protobuf reads as a key-value all else stays.
func FuzzKeyValue(f *testing.F) {
	whole, err := proto.Marshal(&kvv1.KeyValue{Key: []byte("key"), Value: []byte("value"), ModRevision: 7, Version: 3, Lease: -4})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-2])
	f.Add([]byte{0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0x2b, 0x2a, 0x01, 0x00, 0x2c})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		before := bytes.Clone(encoded)
		if same := KeyValue(encoded, false); !bytes.Equal(same, before) {
			t.Errorf("all of %x is %x", before, same)
		}
		cut := KeyValue(encoded, true)
		if !bytes.Equal(encoded, before) {
			t.Fatal("the shared encoding was changed")
		}
		want, got := new(kvv1.KeyValue), new(kvv1.KeyValue)
		if proto.Unmarshal(encoded, want) != nil {
			return
		}
		if want.Value = nil; proto.Unmarshal(cut, got) != nil || !bytes.Equal(got.Key, want.Key) || len(got.Value) > 0 ||
			got.ModRevision != want.ModRevision || got.Version != want.Version || got.Lease != want.Lease {
			t.Errorf("%x without its value is %v, want %v", encoded, got, want)
		}
	})
}

// Messages of every size come out as protobuf has them, over however many buffers.
func TestGatheredIsPlainProtobuf(t *testing.T) {
	codec := NewCodec()
	for _, bytesEach := range []int{0, 1, 100, 4090, 4095, 70_000} {
		for _, elements := range []int{0, 1, 3, 500} {
			gathered, whole := new(Gathered), []byte(nil)
			for i := range elements {
				element := bytes.Repeat([]byte{byte(i)}, bytesEach)
				gathered.AppendElement(2, element)
				whole = AppendElement(whole, 2, element)
			}
			gathered.AppendVarint(3, 0)
			gathered.AppendVarint(4, 1<<40)
			whole = AppendVarint(whole, 4, 1<<40)
			if gathered.Bytes() != len(whole) {
				t.Errorf("%d elements of %d: counted %d bytes, are %d", elements, bytesEach, gathered.Bytes(), len(whole))
			}
			data, err := codec.Marshal(gathered)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data.Materialize(), whole) {
				t.Errorf("%d elements of %d were not encoded as protobuf does", elements, bytesEach)
			}
			data.Free()
		}
	}
}

// A range of 1,000 key-values of 256 bytes costs an allocation for each buffer's handle, and none for a key-value.
func TestGatheredAllocations(t *testing.T) {
	codec, element := NewCodec(), make([]byte, 280)
	got := testing.AllocsPerRun(100, func() {
		gathered := new(Gathered)
		for range 1000 {
			gathered.AppendElement(2, element)
		}
		data, err := codec.Marshal(gathered)
		if err != nil {
			t.Fatal(err)
		}
		data.Free()
	})
	if got > 20 {
		t.Errorf("%v allocations", got)
	}
}
