package directstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/logmirror/logmirror/internal/wan"
)

const roundTrip = 100 * time.Millisecond

// fixture is a server in eu and a client in us, in virtual time.
type fixture struct {
	network *wan.Network
	server  *Combined
	client  *Client
	grpc    *grpc.ClientConn
}

// handler is called for each stream of the service.
type handler func(stream grpc.ServerStream) error

var both = grpc.StreamDesc{StreamName: "Both", ClientStreams: true, ServerStreams: true}

const bothMethod, downMethod, sharedMethod = "/test.Service/Both", "/test.Service/Down", "/test.Service/Shared"

func service(h handler) *grpc.ServiceDesc {
	handle := func(_ any, stream grpc.ServerStream) error { return h(stream) }
	return &grpc.ServiceDesc{ServiceName: "test.Service", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{
		{StreamName: "Both", ClientStreams: true, ServerStreams: true, Handler: handle},
		{StreamName: "Down", ServerStreams: true, Handler: handle},
		{StreamName: "Shared", ClientStreams: true, ServerStreams: true, Handler: handle},
	}}
}

// of is for handlers that need nothing of the bubble they run in.
func of(h handler) func() handler { return func() handler { return h } }

// with runs a test in virtual time; prepare runs in it first.
func with(t *testing.T, config ServerConfig, prepare func() handler, test func(t *testing.T, f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{network: wan.New(wan.Options{InMemory: true, RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: roundTrip}})}
		f.server = NewCombined(config, nil, grpc.WaitForHandlers(true))
		f.server.RegisterService(service(prepare()), nil)
		listener, err := f.network.Region("eu").Listen("eu:1")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = f.server.Serve(listener) }()
		dial := func(ctx context.Context) (net.Conn, error) { return f.network.Region("us").Dial(ctx, "eu:1") }
		f.grpc, err = grpc.NewClient("passthrough:///eu:1", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		f.client = NewClient(ClientConfig{Dial: dial, Authority: "eu:1", Others: f.grpc,
			Methods: []string{bothMethod, downMethod, "/test.Service/Unknown"}, MessageBytesMax: config.MessageBytesMax})
		test(t, f)
		f.client.Close()
		_ = f.grpc.Close()
		f.server.Stop()
		f.network.Close()
		time.Sleep(time.Minute) // virtual: nothing may be left that ends later
	})
}

func (f *fixture) open(t *testing.T, ctx context.Context, method string) grpc.ClientStream {
	t.Helper()
	stream, err := f.client.NewStream(ctx, &both, method)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func blob(b []byte) *wrapperspb.BytesValue { return wrapperspb.Bytes(b) }

// echo sends back what comes.
func echo(stream grpc.ServerStream) error {
	for {
		m := &wrapperspb.BytesValue{}
		if err := stream.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(m); err != nil {
			return err
		}
	}
}

func TestMessagesOfAllSizesComeBackInOrder(t *testing.T) {
	with(t, ServerConfig{}, of(echo), func(t *testing.T, f *fixture) {
		stream := f.open(t, t.Context(), bothMethod)
		sizes := []int{0, 1, 100, readBytes - 10, readBytes - headerBytes - 3, readBytes, readBytes + 1, keptBytesMax, keptBytesMax + 1, 3 << 20, 5}
		go func() {
			for i, size := range sizes {
				if err := stream.SendMsg(blob(bytes.Repeat([]byte{byte(i)}, size))); err != nil {
					t.Error(err)
				}
			}
			_ = stream.CloseSend()
		}()
		for i, size := range sizes {
			m := &wrapperspb.BytesValue{}
			if err := stream.RecvMsg(m); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.GetValue(), bytes.Repeat([]byte{byte(i)}, size)) {
				t.Fatalf("message %d has %d bytes, not %d, or others", i, len(m.GetValue()), size)
			}
		}
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); !errors.Is(err, io.EOF) {
			t.Errorf("the end: %v", err)
		}
	})
}

func TestStatusOfTheHandlerReachesTheClient(t *testing.T) {
	detailed, err := status.New(codes.FailedPrecondition, "no").WithDetails(&errdetails.ErrorInfo{Reason: "REMOVED"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		end     error
		code    codes.Code
		text    string
		details int
	}{
		{"status", detailed.Err(), codes.FailedPrecondition, "no", 1},
		{"error", errors.New("broken"), codes.Unknown, "broken", 0},
		{"context", context.DeadlineExceeded, codes.DeadlineExceeded, context.DeadlineExceeded.Error(), 0},
		{"long", status.Error(codes.DataLoss, strings.Repeat("ä", statusBytesMax)), codes.DataLoss, strings.Repeat("ä", 1000), 0},
		{"not UTF-8", status.Error(codes.DataLoss, "\xff"), codes.DataLoss, "its text", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			with(t, ServerConfig{}, of(func(grpc.ServerStream) error { return c.end }), func(t *testing.T, f *fixture) {
				stream := f.open(t, t.Context(), bothMethod)
				for range 10 { // the client goes on sending meanwhile
					_ = stream.SendMsg(blob([]byte("more")))
				}
				told := status.Convert(stream.RecvMsg(&wrapperspb.BytesValue{}))
				if told.Code() != c.code || !strings.HasPrefix(told.Message(), c.text) || len(told.Details()) != c.details {
					t.Errorf("%v with %d details", told, len(told.Details()))
				}
				if err := stream.SendMsg(blob(nil)); !errors.Is(err, io.EOF) {
					t.Errorf("sending on the ended stream: %v", err)
				}
			})
		})
	}
}

// waits is a handler that ends with its context, and tells when that was and what came.
type waits struct {
	began, ended chan struct{}
}

func (w *waits) prepare() handler {
	w.began, w.ended = make(chan struct{}), make(chan struct{})
	return w.handle
}

func (w *waits) handle(stream grpc.ServerStream) error {
	if err := stream.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
		return err
	}
	close(w.began)
	<-stream.Context().Done()
	close(w.ended)
	return stream.Context().Err()
}

func TestEndOfOneSideEndsTheOther(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(f *fixture, cancel context.CancelFunc)
		code codes.Code
	}{
		{"client cancels", func(_ *fixture, cancel context.CancelFunc) { cancel() }, codes.Canceled},
		{"client closes", func(f *fixture, _ context.CancelFunc) { f.client.Close() }, codes.Canceled},
		{"server stops", func(f *fixture, _ context.CancelFunc) { f.server.Stop() }, codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &waits{}
			with(t, ServerConfig{}, w.prepare, func(t *testing.T, f *fixture) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stream := f.open(t, ctx, downMethod)
				if err := stream.SendMsg(blob(nil)); err != nil {
					t.Fatal(err)
				}
				<-w.began
				received := make(chan error, 1)
				go func() { received <- stream.RecvMsg(&wrapperspb.BytesValue{}) }()
				synctest.Wait()
				began := time.Now()
				c.end(f, cancel)
				if err := <-received; status.Code(err) != c.code {
					t.Errorf("the client gets %v", err)
				}
				<-w.ended
				if took := time.Since(began); took > roundTrip {
					t.Errorf("the other side knew after %v", took)
				}
			})
		})
	}
}

func TestClientsDeadlineEndsTheStream(t *testing.T) {
	w := &waits{}
	with(t, ServerConfig{}, w.prepare, func(t *testing.T, f *fixture) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		stream := f.open(t, ctx, downMethod)
		_ = stream.SendMsg(blob(nil))
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		<-w.ended
	})
}

func TestSilenceEndsTheStreamOnBothSides(t *testing.T) {
	w := &waits{}
	with(t, ServerConfig{}, w.prepare, func(t *testing.T, f *fixture) {
		stream := f.open(t, t.Context(), downMethod)
		_ = stream.SendMsg(blob(nil))
		<-w.began
		cut := time.Now()
		f.network.Isolate("eu")
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), errSilent.Error()) {
			t.Error(err)
		}
		<-w.ended
		if took := time.Since(cut); took < SilenceMax-AliveInterval || took > SilenceMax+2*AliveInterval {
			t.Errorf("after %v", took)
		}
	})
}

// Who is busy for long, and does not read, is still there; who only listens too.
func TestABusyHandlerIsNotSilent(t *testing.T) {
	const busy = time.Hour
	with(t, ServerConfig{}, of(func(stream grpc.ServerStream) error {
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
			return err
		}
		select {
		case <-time.After(busy):
		case <-stream.Context().Done():
		}
		return echo(stream)
	}), func(t *testing.T, f *fixture) {
		stream := f.open(t, t.Context(), bothMethod)
		for _, m := range []string{"first", "second"} {
			if err := stream.SendMsg(blob([]byte(m))); err != nil {
				t.Fatal(err)
			}
		}
		_ = stream.CloseSend()
		m := &wrapperspb.BytesValue{}
		if err := stream.RecvMsg(m); err != nil || string(m.GetValue()) != "second" {
			t.Errorf("%q, %v", m.GetValue(), err)
		}
	})
}

func TestASlowReaderHoldsTheSenderBack(t *testing.T) {
	var release chan struct{}
	with(t, ServerConfig{}, func() handler {
		release = make(chan struct{})
		return func(stream grpc.ServerStream) error {
			<-release
			return echo(stream)
		}
	}, func(t *testing.T, f *fixture) {
		stream := f.open(t, t.Context(), bothMethod)
		var sent atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			for stream.SendMsg(blob(make([]byte, 1<<20))) == nil {
				sent.Add(1)
			}
		}()
		time.Sleep(time.Minute)
		if n := sent.Load(); n < 1 || n > 8 {
			t.Errorf("%d MiB were taken from the sender", n)
		}
		f.client.Close() // ends a blocked write
		<-done
		close(release)
	})
}

// A message that arrives after the handler has returned is given to nobody.
func TestNothingIsReceivedAfterTheHandler(t *testing.T) {
	var late chan error
	with(t, ServerConfig{}, func() handler {
		late = make(chan error, 1)
		return func(stream grpc.ServerStream) error {
			go func() { late <- stream.RecvMsg(&wrapperspb.BytesValue{}) }()
			return status.Error(codes.Aborted, "another stream took over")
		}
	}, func(t *testing.T, f *fixture) {
		stream := f.open(t, t.Context(), bothMethod)
		_ = stream.SendMsg(blob([]byte("late")))
		if err := <-late; status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.Aborted {
			t.Error(err)
		}
	})
}

func TestLimitOfMessages(t *testing.T) {
	const limit = 1 << 20
	with(t, ServerConfig{MessageBytesMax: limit}, of(echo), func(t *testing.T, f *fixture) {
		stream := f.open(t, t.Context(), bothMethod)
		if err := stream.SendMsg(blob(make([]byte, limit))); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), fmt.Sprint(limit)) {
			t.Errorf("sending too much: %v", err)
		}
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("then: %v", err)
		}
		// A client that has another limit is found out by the header.
		f.client.config.MessageBytesMax = 2 * limit
		stream = f.open(t, t.Context(), bothMethod)
		_ = stream.SendMsg(blob(make([]byte, limit)))
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("receiving too much: %v", err)
		}
	})
}

func TestOtherCallsGoByGRPC(t *testing.T) {
	with(t, ServerConfig{StreamsMax: 1}, of(echo), func(t *testing.T, f *fixture) {
		own := f.open(t, t.Context(), bothMethod)
		for range 3 {
			stream := f.open(t, t.Context(), sharedMethod)
			if _, ours := stream.(*clientStream); ours {
				t.Fatal("it has a connection of its own")
			}
			for _, s := range []grpc.ClientStream{stream, own} {
				if err := s.SendMsg(blob([]byte("x"))); err != nil {
					t.Fatal(err)
				}
				m := &wrapperspb.BytesValue{}
				if err := s.RecvMsg(m); err != nil || string(m.GetValue()) != "x" {
					t.Fatalf("%q, %v", m.GetValue(), err)
				}
			}
		}
		if err := f.client.Invoke(t.Context(), "/test.Service/Nothing", blob(nil), blob(nil)); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
		unknown := f.open(t, t.Context(), "/test.Service/Unknown")
		if err := unknown.RecvMsg(blob(nil)); status.Code(err) != codes.Unavailable {
			t.Errorf("a second stream where one is the limit: %v", err)
		}
	})
	with(t, ServerConfig{}, of(echo), func(t *testing.T, f *fixture) {
		unknown := f.open(t, t.Context(), "/test.Service/Unknown")
		if err := unknown.RecvMsg(blob(nil)); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
	})
}

func TestUnreachableServer(t *testing.T) {
	with(t, ServerConfig{}, of(echo), func(t *testing.T, f *fixture) {
		f.server.Stop()
		if _, err := f.client.NewStream(t.Context(), &both, bothMethod); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
		f.network.Isolate("eu")
		began := time.Now()
		if _, err := f.client.NewStream(t.Context(), &both, bothMethod); status.Code(err) != codes.Unavailable || time.Since(began) > 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// What a stranger sends ends its connection and nothing else.
func TestMalformedConnections(t *testing.T) {
	frame := func(k kind, length uint32, body string) string {
		return string([]byte{byte(k), byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}) + body
	}
	hello := magic + frame(kindMethod, uint32(len(bothMethod)), bothMethod)
	for _, c := range []struct{ name, sent string }{
		{"nothing", ""},
		{"another magic", "LOGMIRROR!" + frame(kindMethod, 1, "x")},
		{"part of the magic", magic[:4]},
		{"a message before the method", magic + frame(kindMessage, 0, "")},
		{"a long method", magic + frame(kindMethod, methodBytesMax+1, strings.Repeat("x", methodBytesMax+1))},
		{"a second method", hello + frame(kindMethod, 1, "x")},
		{"an unknown kind", hello + frame(99, 0, "")},
		{"a status", hello + frame(kindStatus, 0, "")},
		{"an alive with a body", hello + frame(kindAlive, 1, "x")},
		{"more than fits", hello + frame(kindMessage, 1<<31, "x")},
		{"no protobuf", hello + frame(kindMessage, 3, "\xff\xff\xff")},
		{"part of a header", hello + "\x02\x00"},
		{"part of a large message", hello + frame(kindMessage, 8<<20, "x")},
	} {
		t.Run(c.name, func(t *testing.T) {
			with(t, ServerConfig{}, of(echo), func(t *testing.T, f *fixture) {
				conn, err := f.network.Region("us").Dial(t.Context(), "eu:1")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(conn, c.sent); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				read, err := io.Copy(io.Discard, conn)
				if took := time.Since(began); took > 3*time.Minute || read > 1000 {
					t.Errorf("%d bytes, then %v after %v", read, err, took)
				}
				_ = conn.Close()
				stream := f.open(t, t.Context(), bothMethod)
				_ = stream.SendMsg(blob([]byte("still there")))
				if err := stream.RecvMsg(blob(nil)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
