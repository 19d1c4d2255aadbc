package directstream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// kind of a frame.
type kind byte

const (
	kindMethod kind = iota + 1
	kindMessage
	kindHalf
	kindStatus
	kindAlive
)

const headerBytes = 5

var (
	errSilent   = errors.New("no sign of life from the other side")
	errEnded    = errors.New("the stream has ended")
	errNotProto = errors.New("not a protobuf message")
)

// framer reads and writes frames of one connection. One goroutine may read while others write. Any of them may close it.
type framer struct {
	conn net.Conn
	// messageBytesMax bounds the body of a message, in both directions.
	messageBytesMax int

	// reading is for those who share the reader.
	reading lock
	reader  *bufio.Reader
	// large holds a body that is larger than the reader's buffer.
	large bytes.Buffer

	writing lock
	buffer  []byte // of the frame that is written

	// What the watch looks at: counts of frames written and reads begun and ended. A read is under way when they differ.
	written, readsBegun, readsEnded atomic.Uint64
	watch                           *time.Timer
	closed                          atomic.Pointer[error]
}

// lock is held while a connection blocks, so whoever waits for it must be seen to wait where time is virtual: a mutex's waiters
// are not (testing/synctest).
type lock chan struct{}

func (l lock) take()    { l <- struct{}{} }
func (l lock) release() { <-l }

// try takes the lock if nobody has it.
func (l lock) try() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

func newFramer(conn net.Conn, messageBytesMax int) *framer {
	f := &framer{conn: conn, messageBytesMax: messageBytesMax, reading: make(lock, 1), writing: make(lock, 1)}
	f.reader = bufio.NewReaderSize(watchedReader{f}, readBytes)
	return f
}

// watchedReader counts reads, so that the watch sees one that nothing ends.
type watchedReader struct{ f *framer }

func (r watchedReader) Read(p []byte) (int, error) {
	r.f.readsBegun.Add(1)
	n, err := r.f.conn.Read(p)
	r.f.readsEnded.Add(1)
	return n, err
}

// startWatch begins to say that this side is alive, and to look whether the other is.
func (f *framer) startWatch() {
	var written, waitingFor uint64
	var silent time.Duration
	armed := make(chan struct{})
	f.watch = time.AfterFunc(AliveInterval, func() {
		<-armed
		if now := f.written.Load(); now != written {
			written = now
		} else if f.writing.try() {
			_ = f.writeLocked(kindAlive, nil) // its failure is found by whoever reads or writes
			f.writing.release()
			written = f.written.Load()
		}
		// The counts are read in this order so that a read between the two looks ended.
		if ended := f.readsEnded.Load(); f.readsBegun.Load() == ended || ended != waitingFor {
			silent, waitingFor = 0, ended
		} else if silent += AliveInterval; silent >= SilenceMax {
			f.close(errSilent)
		}
		if f.closed.Load() == nil {
			f.watch.Reset(AliveInterval)
		}
	})
	close(armed)
}

// close ends the connection; reads and writes fail with reason from now on, or with that of an earlier close.
func (f *framer) close(reason error) {
	if f.closed.CompareAndSwap(nil, &reason) {
		_ = f.conn.Close()
	}
}

// failure is why a read or write failed: the reason of close, where that is what ended it.
func (f *framer) failure(err error) error {
	if reason := f.closed.Load(); reason != nil {
		return *reason
	}
	return err
}

// write sends a frame.
func (f *framer) write(k kind, body []byte) error {
	f.writing.take()
	defer f.writing.release()
	return f.writeLocked(k, body)
}

func (f *framer) writeLocked(k kind, body []byte) error {
	f.buffer = append(append(f.buffer[:0], byte(k), 0, 0, 0, 0), body...)
	return f.flushLocked()
}

// writeMessage encodes a message and sends it.
func (f *framer) writeMessage(m any) error {
	message, ok := m.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%T: %v", m, errNotProto)
	}
	f.writing.take()
	defer f.writing.release()
	encoded, err := proto.MarshalOptions{}.MarshalAppend(append(f.buffer[:0], byte(kindMessage), 0, 0, 0, 0), message)
	if err != nil {
		return status.Errorf(codes.Internal, "encoding: %v", err)
	}
	f.buffer = encoded
	if bytes := len(encoded) - headerBytes; bytes > f.messageBytesMax {
		f.buffer = nil
		return status.Errorf(codes.ResourceExhausted, "a message of %d bytes, where %d is the limit", bytes, f.messageBytesMax)
	}
	return f.flushLocked()
}

// flushLocked completes the frame in the buffer and sends it.
func (f *framer) flushLocked() error {
	binary.BigEndian.PutUint32(f.buffer[1:], uint32(len(f.buffer)-headerBytes))
	_, err := f.conn.Write(f.buffer)
	if cap(f.buffer) > keptBytesMax {
		f.buffer = nil
	}
	if err != nil {
		return f.failure(err)
	}
	f.written.Add(1)
	return nil
}

// next returns the next frame that is more than a sign of life. The body is valid until the next call.
func (f *framer) next() (kind, []byte, error) {
	for {
		k, body, err := f.read()
		if err != nil {
			return 0, nil, f.failure(err)
		}
		if k != kindAlive {
			return k, body, nil
		}
	}
}

// drain reads until the connection ends, for nothing but its end.
func (f *framer) drain() {
	for {
		f.reading.take()
		_, _, err := f.next()
		f.reading.release()
		if err != nil {
			return
		}
	}
}

func (f *framer) read() (kind, []byte, error) {
	header, err := f.reader.Peek(headerBytes)
	if err != nil {
		if errors.Is(err, io.EOF) && len(header) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	k, length := kind(header[0]), int64(binary.BigEndian.Uint32(header[1:]))
	if limit := f.bodyBytesMax(k); length > int64(limit) {
		return 0, nil, status.Errorf(codes.ResourceExhausted, "a frame of kind %d with %d bytes, where %d is the limit", k, length, limit)
	}
	_, _ = f.reader.Discard(headerBytes) // they were there
	if length <= readBytes {
		body, err := f.reader.Peek(int(length))
		if err != nil {
			return 0, nil, unexpected(err)
		}
		_, _ = f.reader.Discard(int(length)) // what Peek returned stays until the next read
		return k, body, nil
	}
	if f.large.Cap() > keptBytesMax {
		f.large = bytes.Buffer{}
	}
	f.large.Reset()
	// Beyond that the buffer grows with what comes, whatever the header claims.
	f.large.Grow(int(min(length, keptBytesMax)) + bytes.MinRead)
	if _, err := io.CopyN(&f.large, f.reader, length); err != nil {
		return 0, nil, unexpected(err)
	}
	return k, f.large.Bytes(), nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (f *framer) bodyBytesMax(k kind) int {
	switch k {
	case kindMethod:
		return methodBytesMax
	case kindMessage:
		return f.messageBytesMax
	case kindStatus:
		return statusBytesMax
	default:
		return 0
	}
}

// decode fills a message from a body.
func decode(body []byte, m any) error {
	message, ok := m.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%T: %v", m, errNotProto)
	}
	if err := proto.Unmarshal(body, message); err != nil {
		return status.Errorf(codes.Internal, "decoding: %v", err)
	}
	return nil
}

// encodeStatus is the body of a status frame. What is too much is left out: first the details, then the end of the text.
func encodeStatus(err error) []byte {
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	told := s.Proto() // a copy; nil for success
	if proto.Size(told) > statusBytesMax {
		told.Details = nil
	}
	if excess := proto.Size(told) - statusBytesMax; excess > 0 {
		told.Message = strings.ToValidUTF8(told.GetMessage()[:len(told.GetMessage())-excess], "")
	}
	body, err := proto.Marshal(told)
	if err != nil {
		return encodeStatus(status.Error(s.Code(), "its text can't be encoded"))
	}
	return body
}

// decodeStatus is the error that a status frame tells: io.EOF for success, as a stream's Recv returns it.
func decodeStatus(body []byte) error {
	told := &spb.Status{}
	if err := proto.Unmarshal(body, told); err != nil {
		return status.Errorf(codes.Internal, "malformed status: %v", err)
	}
	if err := status.ErrorProto(told); err != nil {
		return err
	}
	return io.EOF
}
