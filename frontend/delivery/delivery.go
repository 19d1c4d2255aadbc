// Package delivery writes what the watch hub has for clients to their gRPC streams, for both APIs.
//
// # What it promises
//
// A stream's responses are written in order, each once, until the client or the hub ends the stream. A stream has at most
// one write under way: what gRPC has taken and not yet written to the connection. Until that is done, the stream's next
// responses wait in the hub, where a bound applies to them and events of one watch are put together. So a client that
// does not read costs its buffer in the hub and one write, and holds up nobody.
//
// # How it is built
//
// A stream has no goroutine for writing. Streams with something to write stand in a queue, which a few workers serve;
// they come with the work and go when there is none. A worker never blocks: gRPC takes a message without waiting when
// less than 64 KiB of the stream are unwritten, and those of one write before the last are within writeBytes. They are encoded
// into one buffer. gRPC says that they are written by giving it back; that puts the stream into the queue again where
// more is to be written.
package delivery

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"google.golang.org/grpc"

	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/watch"
)

// writeBytes is the size from which on a stream's messages are not written together: what gRPC gives the kernel at once,
// so that two writes make one system call of each.
const writeBytes = 32 << 10

// messageOverhead and eventOverhead are the room for a message's header, and for what stands before each event.
const (
	messageOverhead = 96
	eventOverhead   = 8
)

// Sender serves the streams of one frontend. The zero value is ready for use.
type Sender struct {
	mu    sync.Mutex
	queue []*Stream
	head  int
	// workers are the goroutines that serve the queue.
	workers int

	batches wire.Batches
}

// Encoder makes messages of a stream's responses.
type Encoder interface {
	// AppendEncoded appends the encoded message.
	AppendEncoded(b []byte, r *watch.Response) []byte
}

// Handler is what one API adds to the streams of watches.
type Handler struct {
	// Request carries one encoded request of the client to the hub. An error ends the stream.
	Request func(encoded []byte, watches *watch.Stream) error
	// Encoder belongs to the stream.
	Encoder Encoder
	// FragmentBytes is that of watch.StreamOptions.
	FragmentBytes int
	// Lost ends the stream when it is closed; nil never is.
	Lost <-chan struct{}
	// LostError is what the stream ends with then.
	LostError error
}

// Serve serves a client's stream on the goroutine of its gRPC handler and returns why it has ended: an error of Request or of
// the hub (watch.ErrClosed), one of gRPC, LostError, or that of the stream's context.
func (d *Sender) Serve(stream grpc.ServerStream, hub *watch.Hub, h Handler) error {
	s := &Stream{
		sender: d, grpc: stream, encoder: h.Encoder, failed: make(chan error, 1), handle: h.Request, handled: make(chan error),
	}
	watches := hub.NewStream(watch.StreamOptions{FragmentBytes: h.FragmentBytes, Ready: s.wake})
	s.mu.Lock()
	s.watches = watches
	s.mu.Unlock()
	s.wake() // for what came before watches was set
	defer s.close()
	// A read blocks until the stream ends, which it only does when the handler returns: so reading has a goroutine of its
	// own, which that return ends.
	go s.read(stream.Context())
	select {
	case err := <-s.failed:
		return err
	case <-h.Lost:
		return h.LostError
	case <-hub.Done():
		return watch.ErrClosed
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// phase of a stream; guarded by Stream.mu.
type phase uint8

const (
	// idle: nothing is known to be taken from the hub.
	idle phase = iota
	// queued: in the sender's queue, or with a worker.
	queued
	// writing: gRPC has a write that is not done.
	writing
)

// Stream is one client's stream.
type Stream struct {
	sender  *Sender
	grpc    grpc.ServerStream
	encoder Encoder
	failed  chan error

	// handle takes the request that was read last, and its result is waited for before the next one is read.
	handle  func(encoded []byte, watches *watch.Stream) error
	handled chan error
	request wire.Raw

	// mu is taken under the hub's locks, and never held while anything is called.
	mu      sync.Mutex
	watches *watch.Stream
	phase   phase
	// woken: the hub has called since a worker last asked it. more: a worker has left something in taken, which comes
	// before the hub is asked again.
	woken, more bool
	// done: gRPC has done the write that the worker is just handing over.
	done bool

	// sending is held while a worker takes and sends.
	sending sync.Mutex
	closed  bool
	// taken is what was taken from the hub and not sent yet; only while the client is behind, or a worker is at it.
	taken *[]watch.Response
	next  int
}

// read takes the client's requests one by one until there are no more, which ends nothing.
func (s *Stream) read(ctx context.Context) {
	for {
		// A client that does not read its answers is left to the transport's flow control.
		if err := s.watches.Admit(ctx); err != nil {
			s.fail(err)
			return
		}
		switch err := s.grpc.RecvMsg(&s.request); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			s.fail(err)
			return
		}
		// On another goroutine, because it needs stack, which this one would keep for as long as the stream lasts.
		go s.handleRequest()
		if err := <-s.handled; err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Stream) handleRequest() {
	request := s.request
	s.request = nil
	s.handled <- s.handle(request, s.watches)
}

// fail ends the stream, unless something else does already.
func (s *Stream) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// close returns when no worker uses the gRPC stream any more.
func (s *Stream) close() {
	s.watches.Close()
	s.sending.Lock()
	defer s.sending.Unlock()
	s.closed, s.taken = true, nil
}

// wake notes that the hub has something. The hub calls it.
func (s *Stream) wake() {
	s.mu.Lock()
	s.woken = true
	enqueue := s.phase == idle
	if enqueue {
		s.phase = queued
	}
	s.mu.Unlock()
	if enqueue {
		s.sender.enqueue(s)
	}
}

// written notes that gRPC has written what it was given last. gRPC calls it.
func (s *Stream) written() {
	s.mu.Lock()
	s.done = true
	enqueue := s.phase == writing && (s.woken || s.more)
	switch {
	case enqueue:
		s.phase = queued
	case s.phase == writing:
		s.phase = idle
	}
	s.mu.Unlock()
	if enqueue {
		s.sender.enqueue(s)
	}
}

// enqueue gives a stream its turn, and the queue another worker if there are fewer than can run at once.
func (d *Sender) enqueue(s *Stream) {
	d.mu.Lock()
	d.queue = append(d.queue, s)
	start := d.workers < runtime.GOMAXPROCS(0)
	if start {
		d.workers++
	}
	d.mu.Unlock()
	if start {
		go d.work()
	}
}

// work serves the queue until it is empty.
func (d *Sender) work() {
	for {
		d.mu.Lock()
		if d.head == len(d.queue) {
			d.queue, d.head = d.queue[:0], 0
			if cap(d.queue) > keptQueue {
				d.queue = nil
			}
			d.workers--
			d.mu.Unlock()
			return
		}
		s := d.queue[d.head]
		d.queue[d.head] = nil
		d.head++
		if d.head >= keptQueue && d.head*2 >= len(d.queue) {
			kept := copy(d.queue, d.queue[d.head:])
			clear(d.queue[kept:])
			d.queue, d.head = d.queue[:kept], 0
		}
		d.mu.Unlock()
		s.turn()
	}
}

// keptQueue bounds what an empty queue keeps.
const keptQueue = 4096

// turn sends one write's worth and decides what comes next.
func (s *Stream) turn() {
	s.mu.Lock()
	s.done = false
	if !s.more {
		s.woken = false // the hub is asked
	}
	watches := s.watches
	s.mu.Unlock()
	sent, more := s.send(watches)
	s.mu.Lock()
	s.more = more
	enqueue := false
	switch {
	case sent && !s.done:
		s.phase = writing
	case more || s.woken:
		enqueue = true // phase stays queued
	default:
		s.phase = idle
	}
	s.mu.Unlock()
	if enqueue {
		s.sender.enqueue(s)
	}
}

// responses has slices for responses, which streams only need while they are served.
var responses = sync.Pool{New: func() any { return new([]watch.Response) }}

// keptResponses bounds the slices that are kept.
const keptResponses = 1024

// send hands the next messages to gRPC. It returns whether there were any, and whether more are known of.
func (s *Stream) send(watches *watch.Stream) (sent, more bool) {
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.closed || watches == nil {
		return false, false
	}
	if s.taken == nil {
		s.taken, s.next = responses.Get().(*[]watch.Response), 0
		var err error
		if *s.taken, err = watches.TakeAll((*s.taken)[:0]); err != nil {
			s.fail(err)
		}
	}
	if err := s.sendNext(); err != nil {
		s.fail(err)
		s.closed, s.taken = true, nil
		return false, false
	}
	sent = s.next > 0
	if s.next < len(*s.taken) {
		return true, true
	}
	clear(*s.taken)
	if cap(*s.taken) <= keptResponses {
		responses.Put(s.taken)
	}
	s.taken = nil
	return sent, false
}

// sendNext hands one write's worth of what was taken to gRPC.
func (s *Stream) sendNext() error {
	rest := (*s.taken)[s.next:]
	if len(rest) == 0 {
		return nil
	}
	bytes := 0
	for i := 0; i < len(rest) && bytes < writeBytes; i++ {
		bytes += encodedBytes(&rest[i])
	}
	batch := s.sender.batches.New(bytes)
	for i := 0; i < len(rest) && len(batch.Bytes()) < writeBytes; i++ {
		batch.Add(s.encoder.AppendEncoded(batch.Bytes(), &rest[i]))
		s.next++
	}
	return batch.Send(s.grpc, s.written)
}

// encodedBytes is about as large as a response's message, and hardly ever less.
func encodedBytes(r *watch.Response) int {
	bytes := messageOverhead + len(r.Reason)
	for _, event := range r.Events {
		bytes += eventOverhead + len(event)
	}
	return bytes
}
