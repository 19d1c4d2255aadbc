package directstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ClientConfig is a Client's. Dial, Authority, Methods and Others are required.
type ClientConfig struct {
	// Dial connects to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Authority is the server's name and port, for its certificate.
	Authority string
	// Credentials encrypt connections; nil for none.
	Credentials credentials.TransportCredentials
	// Methods are the full names of those streams that get a connection of their own.
	Methods []string
	// Others takes all other calls, and is not closed.
	Others grpc.ClientConnInterface
	// DialTimeout bounds the time until a connection is ready, encryption included; zero for 5 s.
	DialTimeout time.Duration
	// MessageBytesMax bounds one message; zero for 16 MiB.
	MessageBytesMax int
}

// Client opens streams to one server. Its methods may be called from any goroutine.
type Client struct {
	config ClientConfig

	mu      sync.Mutex
	streams map[*clientStream]struct{}
	closed  bool
}

var _ grpc.ClientConnInterface = (*Client)(nil)

// NewClient returns a client without connections. Close ends it.
func NewClient(config ClientConfig) *Client {
	if config.Credentials == nil {
		config.Credentials = insecure.NewCredentials()
	}
	if config.DialTimeout == 0 {
		config.DialTimeout = 5 * time.Second
	}
	if config.MessageBytesMax == 0 {
		config.MessageBytesMax = 16 << 20
	}
	return &Client{config: config, streams: map[*clientStream]struct{}{}}
}

// Close ends all streams that have connections of their own, with codes.Canceled.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	streams := c.streams
	c.streams = nil
	c.mu.Unlock()
	for s := range streams {
		s.framer.close(errClientClosed)
	}
}

var errClientClosed = status.Error(codes.Canceled, "the client is closing")

// Invoke implements grpc.ClientConnInterface.
func (c *Client) Invoke(ctx context.Context, method string, request, answer any, options ...grpc.CallOption) error {
	return c.config.Others.Invoke(ctx, method, request, answer, options...)
}

// NewStream implements grpc.ClientConnInterface. The end of ctx ends the stream. Options are for streams that share a
// connection; one of its own fails at once where the server can't be reached.
func (c *Client) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, options ...grpc.CallOption) (grpc.ClientStream, error) {
	if !slices.Contains(c.config.Methods, method) {
		return c.config.Others.NewStream(ctx, desc, method, options...)
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	s := &clientStream{client: c, ctx: ctx, framer: newFramer(conn, c.config.MessageBytesMax)}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		_ = conn.Close()
		return nil, errClientClosed
	}
	c.streams[s] = struct{}{}
	c.mu.Unlock()
	s.stop = context.AfterFunc(ctx, func() { s.release(status.FromContextError(ctx.Err()).Err()) })
	s.framer.startWatch()
	hello := append([]byte(magic), byte(kindMethod), 0, 0, 0, byte(len(method)))
	if _, err := conn.Write(append(hello, method...)); err != nil {
		err = unavailable(ctx, s.framer.failure(err))
		s.end(err)
		return nil, err
	}
	return s, nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.DialTimeout)
	defer cancel()
	raw, err := c.config.Dial(ctx)
	if err != nil {
		return nil, err
	}
	conn, _, err := c.config.Credentials.ClientHandshake(ctx, c.config.Authority, raw)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// unavailable is the status of a stream whose connection failed.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, fmt.Sprintf("connection: %v", unexpected(err)))
}

// clientStream implements grpc.ClientStream.
type clientStream struct {
	client *Client
	ctx    context.Context
	framer *framer
	stop   func() bool
}

// end gives up what the stream holds.
func (s *clientStream) end(reason error) {
	s.stop()
	s.release(reason)
}

func (s *clientStream) release(reason error) {
	s.framer.close(reason)
	s.client.mu.Lock()
	delete(s.client.streams, s)
	s.client.mu.Unlock()
}

// SendMsg implements grpc.ClientStream: io.EOF says that the stream has ended, and RecvMsg how.
func (s *clientStream) SendMsg(m any) error {
	err := s.framer.writeMessage(m)
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok && s.framer.closed.Load() == nil {
		s.end(err) // nothing was sent of a message that can't be: no other may take its place
		return err
	}
	return io.EOF
}

// RecvMsg implements grpc.ClientStream.
func (s *clientStream) RecvMsg(m any) error {
	k, body, err := s.framer.next()
	switch {
	case err != nil:
		err = unavailable(s.ctx, err)
	case k == kindMessage:
		if err = decode(body, m); err == nil {
			return nil
		}
	case k == kindStatus:
		err = decodeStatus(body)
	default:
		err = status.Errorf(codes.Internal, "a server sent a frame of kind %d", k)
	}
	s.end(errEnded)
	return err
}

// CloseSend implements grpc.ClientStream.
func (s *clientStream) CloseSend() error {
	_ = s.framer.write(kindHalf, nil) // RecvMsg finds why it failed
	return nil
}

// Context implements grpc.ClientStream.
func (s *clientStream) Context() context.Context { return s.ctx }

// Header implements grpc.ClientStream: there are none.
func (s *clientStream) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream: there are none.
func (s *clientStream) Trailer() metadata.MD { return nil }
