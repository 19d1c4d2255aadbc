package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
	"github.com/logmirror/logmirror/watch"
)

// fakeStream is a client's stream whose writes are done when the test says so.
type fakeStream struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan string // empty: no more

	mu      sync.Mutex
	sent    []string
	undone  []mem.BufferSlice
	instant bool // writes are done before SendMsg returns
	broken  error
	open    int // SendMsg calls under way
	ended   bool
}

func (f *fakeStream) Context() context.Context { return f.ctx }

func (f *fakeStream) RecvMsg(m any) error {
	select {
	case r := <-f.requests:
		if r == "" {
			return io.EOF
		}
		*m.(*wire.Raw) = wire.Raw(r)
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

func (f *fakeStream) SendMsg(m any) error {
	f.mu.Lock()
	f.open++
	if f.open > 1 || f.ended {
		panic("SendMsg twice at once, or after the handler returned")
	}
	defer func() {
		f.open--
		f.mu.Unlock()
	}()
	if f.broken != nil {
		return f.broken
	}
	message, err := codec.Marshal(m)
	if err != nil {
		panic(err)
	}
	if n := len(f.undone); n > 0 && !follows(message, f.undone[n-1]) {
		panic("a second write under way")
	}
	said, _, _ := strings.Cut(string(message.Materialize()), "\x00")
	f.sent = append(f.sent, said)
	if f.instant {
		message.Free() // as if it were written before SendMsg returns
	} else {
		f.undone = append(f.undone, message)
	}
	return nil
}

// follows tells whether two messages stand one behind the other in the buffer of one write.
func follows(message, before mem.BufferSlice) bool {
	m, b := message[0].ReadOnlyData(), before[0].ReadOnlyData()
	return cap(b) > len(b) && &b[:len(b)+1][len(b)] == &m[0]
}

// finish ends the write under way.
func (f *fakeStream) finish() bool {
	f.mu.Lock()
	undone := f.undone
	f.undone = nil
	f.mu.Unlock()
	for _, message := range undone {
		message.Free()
	}
	return len(undone) > 0
}

func (f *fakeStream) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent := f.sent
	f.sent = nil
	return sent
}

type fixture struct {
	space    *keyspace.Space
	hub      *watch.Hub
	sender   Sender
	revision int64
}

func newFixture(t *testing.T, c watch.Config) *fixture {
	f := &fixture{space: keyspace.New(keyspace.Options{}), revision: 1}
	f.space.Publish(0, 1)
	f.hub = watch.NewHub(f.space, c)
	t.Cleanup(f.hub.Close)
	return f
}

func (f *fixture) put(key, value string) {
	f.revision++
	kv, previous, existed := f.space.Put([]byte(key), []byte(value), 0, f.revision, 0)
	f.space.Publish(uint64(f.revision), f.revision)
	f.hub.Applied(&statemachine.Applied{Revision: f.revision, Events: []statemachine.Event{
		{Put: true, KV: kv, Previous: previous, HasPrevious: existed},
	}})
}

var codec = wire.NewCodec()

// text encodes what a response is about, the first revision and the number of its events, and is as large as these.
type text struct{}

func (text) AppendEncoded(b []byte, r *watch.Response) []byte {
	if len(r.Events) == 0 {
		return fmt.Appendf(b, "%d: created %v canceled %v", r.WatchID, r.Created, r.Canceled)
	}
	first := int64(0)
	_, _, n := protowire.ConsumeTag(r.Events[0])
	kv, _ := protowire.ConsumeBytes(r.Events[0][n:])
	for len(kv) > 0 {
		number, kind, n := protowire.ConsumeTag(kv)
		if number == 3 { // mod_revision
			revision, _ := protowire.ConsumeVarint(kv[n:])
			first = int64(revision)
		}
		kv = kv[n+protowire.ConsumeFieldValue(number, kind, kv[n:]):]
	}
	b = fmt.Appendf(b, "%d: %d events from %d to %d\x00", r.WatchID, len(r.Events), first, r.Revision)
	for _, event := range r.Events {
		b = append(b, event...)
	}
	return b
}

func (f *fixture) serve(t *testing.T, stream *fakeStream, lost <-chan struct{}) <-chan error {
	if stream.ctx == nil {
		stream.ctx = t.Context()
	}
	stream.requests = make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		err := f.sender.Serve(stream, f.hub, Handler{
			Request: func(request []byte, watches *watch.Stream) error {
				if string(request) == "bad" {
					return errors.New("bad request")
				}
				_, err := watches.Watch(watch.Request{Key: request})
				return err
			},
			Encoder: text{}, Lost: lost, LostError: errors.New("lost"),
		})
		stream.mu.Lock()
		stream.ended = true
		stream.mu.Unlock()
		ended <- err
	}()
	return ended
}

func expect(t *testing.T, stream *fakeStream, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := stream.taken(); !slices.Equal(got, want) {
		t.Fatalf("sent %q, want %q", got, want)
	}
}

// TestOneWriteUnderWay: while a client does not read, one write is with gRPC and everything else in the hub, where it is
// put together; other clients get theirs at once.
func TestOneWriteUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, watch.Config{})
		stalled, reading := &fakeStream{}, &fakeStream{instant: true}
		for _, stream := range []*fakeStream{stalled, reading} {
			f.serve(t, stream, nil)
			stream.requests <- "k"
			expect(t, stream, "0: created true canceled false")
		}
		stalled.finish()
		f.put("k", "v")
		expect(t, stalled, "0: 1 events from 2 to 2")
		expect(t, reading, "0: 1 events from 2 to 2")
		for range 50 {
			f.put("k", "v")
			expect(t, reading, fmt.Sprintf("0: 1 events from %d to %d", f.revision, f.revision))
		}
		expect(t, stalled)
		stalled.finish()
		expect(t, stalled, "0: 50 events from 3 to 52")
		stalled.finish()
		expect(t, stalled)
		f.hub.Close()
	})
}

// TestLargeAnswersGoInPieces: what is written together is bounded, and what the hub says meanwhile is not forgotten.
func TestLargeAnswersGoInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, watch.Config{})
		stream := &fakeStream{}
		f.serve(t, stream, nil)
		for range 5 {
			stream.requests <- "k"
		}
		synctest.Wait()
		for stream.finish() {
			synctest.Wait()
		}
		stream.taken()
		value := string(make([]byte, writeBytes/2))
		f.put("k", value) // five responses of half a write each
		expect(t, stream, "4: 1 events from 2 to 2", "3: 1 events from 2 to 2")
		f.put("k", "v")
		stream.finish()
		expect(t, stream, "2: 1 events from 2 to 2", "1: 1 events from 2 to 2")
		stream.finish()
		expect(t, stream, "0: 1 events from 2 to 2")
		stream.finish()
		expect(t, stream, "4: 1 events from 3 to 3", "3: 1 events from 3 to 3", "2: 1 events from 3 to 3",
			"1: 1 events from 3 to 3", "0: 1 events from 3 to 3")
		f.hub.Close()
	})
}

func TestEndOfAStream(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(f *fixture, stream *fakeStream, cancel context.CancelFunc, lost chan struct{})
		want string
	}{
		{"client", func(_ *fixture, _ *fakeStream, cancel context.CancelFunc, _ chan struct{}) { cancel() }, "context canceled"},
		{"request", func(_ *fixture, s *fakeStream, _ context.CancelFunc, _ chan struct{}) { s.requests <- "bad" }, "bad request"},
		{"hub", func(f *fixture, _ *fakeStream, _ context.CancelFunc, _ chan struct{}) { f.hub.Close() }, watch.ErrClosed.Error()},
		{"lost", func(_ *fixture, _ *fakeStream, _ context.CancelFunc, lost chan struct{}) { close(lost) }, "lost"},
		{"write", func(f *fixture, s *fakeStream, _ context.CancelFunc, _ chan struct{}) {
			s.mu.Lock()
			s.broken = errors.New("broken")
			s.mu.Unlock()
			s.finish()
			f.put("k", "v")
		}, "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, watch.Config{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stream, lost := &fakeStream{ctx: ctx}, make(chan struct{})
				ended := f.serve(t, stream, lost)
				stream.requests <- "k"
				synctest.Wait() // the client reads nothing: a write is under way
				select {
				case err := <-ended:
					t.Fatalf("ended early: %v", err)
				default:
				}
				c.end(f, stream, cancel, lost)
				synctest.Wait()
				select {
				case err := <-ended:
					if err == nil || err.Error() != c.want {
						t.Errorf("ended with %v, want %s", err, c.want)
					}
				default:
					t.Error("goes on")
				}
				if st := f.hub.Stats(); st.Streams != 0 || st.Watches != 0 {
					t.Errorf("left behind: %+v", st)
				}
				cancel()
				f.hub.Close()
			})
		})
	}
}

// TestNothingIsForgotten: whatever the order in which the hub, workers and gRPC call, every event arrives once.
func TestNothingIsForgotten(t *testing.T) {
	f := newFixture(t, watch.Config{StreamBufferBytes: 4096})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const last = 2000
	var readers sync.WaitGroup
	for range 8 {
		stream := &fakeStream{ctx: ctx}
		f.serve(t, stream, nil)
		stream.requests <- "k"
		readers.Go(func() {
			next := int64(2)
			for next <= last {
				if rand.IntN(4) == 0 {
					stream.finish()
				}
				for _, said := range stream.taken() {
					var id, events, from, to int64
					if n, _ := fmt.Sscanf(said, "%d: %d events from %d to %d", &id, &events, &from, &to); n < 4 {
						continue
					}
					if from != next || events != to-from+1 {
						t.Errorf("%s, want %d next", said, next)
						return
					}
					next = to + 1
				}
			}
		})
	}
	for f.hub.Stats().Watches < 8 {
		cancelled := ctx.Err()
		if cancelled != nil {
			t.Fatal(cancelled)
		}
	}
	for f.revision < last {
		f.put("k", "v")
	}
	readers.Wait()
}
