package directstream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// readOnly is a connection from which bytes come and to which nothing goes.
type readOnly struct {
	net.Conn
	from io.Reader
}

func (r readOnly) Read(p []byte) (int, error) { return r.from.Read(p) }
func (r readOnly) Close() error               { return nil }

// Whatever comes, a body is within its limit and what is kept within what came.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{byte(kindMessage), 0, 0, 0, 2, 10, 0, byte(kindAlive), 0, 0, 0, 0, byte(kindStatus), 0, 0, 0, 2, 8, 5})
	f.Add([]byte{byte(kindMessage), 0, 1, 0, 0, 1})
	f.Add([]byte{byte(kindHalf), 0, 0, 0, 0, byte(kindMethod), 0, 0, 0, 1, 'x', 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		const limit = 64 << 10
		framer := newFramer(readOnly{from: bytes.NewReader(sent)}, limit)
		read := 0
		for {
			k, body, err := framer.next()
			if err != nil {
				break
			}
			read += headerBytes + len(body)
			if len(body) > limit || read > len(sent) {
				t.Fatalf("frame of kind %d with %d bytes, %d of %d read", k, len(body), read, len(sent))
			}
			switch k {
			case kindMessage:
				if err := decode(body, &wrapperspb.BytesValue{}); err != nil && status.Code(err) != codes.Internal {
					t.Fatal(err)
				}
			case kindStatus:
				if err := decodeStatus(body); err == nil {
					t.Fatal("a status that is no end")
				} else if again := decodeStatus(encodeStatus(err)); !errors.Is(err, io.EOF) && status.Code(again) != status.Code(err) {
					t.Fatalf("%v became %v", err, again)
				}
			}
		}
		if framer.large.Cap() > max(4*len(sent), 2*keptBytesMax) {
			t.Fatalf("%d bytes are kept of %d", framer.large.Cap(), len(sent))
		}
	})
}

// loop is a connection that gives back what is written to it.
type loop struct {
	net.Conn
	bytes.Buffer
}

func (l *loop) Read(p []byte) (int, error)  { return l.Buffer.Read(p) }
func (l *loop) Write(p []byte) (int, error) { return l.Buffer.Write(p) }

// A message costs what decoding it costs, its value, be it a few entries or as many as the log sends at once; a large one also a
// reader that ends where it does.
func TestAllocationsOfAMessage(t *testing.T) {
	for _, size := range []int{500, 1 << 20} {
		f := newFramer(&loop{}, 2<<20)
		sent, received := wrapperspb.Bytes(make([]byte, size)), &wrapperspb.BytesValue{}
		allocations := testing.AllocsPerRun(100, func() {
			if err := f.writeMessage(sent); err != nil {
				t.Fatal(err)
			}
			_, body, err := f.next()
			if err != nil {
				t.Fatal(err)
			}
			if err := decode(body, received); err != nil {
				t.Fatal(err)
			}
		})
		if allocations > 2 || size < readBytes && allocations > 1 {
			t.Errorf("%d bytes: %v allocations", size, allocations)
		}
	}
}
