package directstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// ServerConfig is a Server's. Zero values do.
type ServerConfig struct {
	// Interceptor is called for each stream, in place of its handler.
	Interceptor grpc.StreamServerInterceptor
	// MessageBytesMax bounds one message; zero for 16 MiB.
	MessageBytesMax int
	// StreamsMax bounds the streams at one time, each of which is a connection; zero for 4096.
	StreamsMax int
}

// Server serves streams on the connections that Credentials finds to be theirs. Its methods may be called from any goroutine;
// services are registered before the first connection.
type Server struct {
	config ServerConfig
	ctx    context.Context
	cancel context.CancelFunc
	// methods are the streaming ones, by their full names.
	methods map[string]method

	mu      sync.Mutex
	framers map[*framer]struct{}
	stopped bool
	wait    sync.WaitGroup
}

type method struct {
	desc    *grpc.StreamDesc
	service any
	info    grpc.StreamServerInfo
}

var _ grpc.ServiceRegistrar = (*Server)(nil)

// NewServer returns a server of no services. Stop ends it.
func NewServer(config ServerConfig) *Server {
	if config.MessageBytesMax == 0 {
		config.MessageBytesMax = 16 << 20
	}
	if config.StreamsMax == 0 {
		config.StreamsMax = 4096
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{config: config, ctx: ctx, cancel: cancel, methods: map[string]method{}, framers: map[*framer]struct{}{}}
}

// RegisterService implements grpc.ServiceRegistrar. Unary methods are left to others.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, service any) {
	for i := range desc.Streams {
		stream := &desc.Streams[i]
		name := "/" + desc.ServiceName + "/" + stream.StreamName
		s.methods[name] = method{desc: stream, service: service,
			info: grpc.StreamServerInfo{FullMethod: name, IsClientStream: stream.ClientStreams, IsServerStream: stream.ServerStreams}}
	}
}

// Combined serves one listener: streams that come on connections of their own, and gRPC's.
type Combined struct {
	*grpc.Server
	streams *Server
}

var _ grpc.ServiceRegistrar = (*Combined)(nil)

// NewCombined returns a server of no services. of are the credentials of both kinds of connection, nil for none; options, with no
// credentials among them, and interceptors there are for gRPC alone.
func NewCombined(config ServerConfig, of credentials.TransportCredentials, options ...grpc.ServerOption) *Combined {
	streams := NewServer(config)
	return &Combined{Server: grpc.NewServer(append(options, grpc.Creds(streams.Credentials(of)))...), streams: streams}
}

// RegisterService implements grpc.ServiceRegistrar.
func (c *Combined) RegisterService(desc *grpc.ServiceDesc, service any) {
	c.Server.RegisterService(desc, service)
	c.streams.RegisterService(desc, service)
}

// Stop ends everything and waits for the handlers of streams.
func (c *Combined) Stop() {
	c.Server.Stop()
	c.streams.Stop()
}

// Stop ends all streams and waits for their handlers.
func (s *Server) Stop() {
	s.mu.Lock()
	s.stopped = true
	s.cancel()
	for f := range s.framers {
		f.close(errStopped)
	}
	s.mu.Unlock()
	s.wait.Wait()
}

var errStopped = status.Error(codes.Unavailable, "the server is stopping")

// Credentials wraps those of a gRPC server (nil for none), which then hands connections that are ours to this one.
func (s *Server) Credentials(of credentials.TransportCredentials) credentials.TransportCredentials {
	if of == nil {
		of = insecure.NewCredentials()
	}
	return sorting{TransportCredentials: of, server: s}
}

// sorting tells the two kinds of connection apart.
type sorting struct {
	credentials.TransportCredentials
	server *Server
}

// Clone implements credentials.TransportCredentials.
func (c sorting) Clone() credentials.TransportCredentials {
	return sorting{TransportCredentials: c.TransportCredentials.Clone(), server: c.server}
}

// ServerHandshake implements credentials.TransportCredentials. gRPC bounds its time, by closing the connection.
func (c sorting) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	if first[0] != magic[0] {
		return &replayed{Conn: conn, first: first}, info, nil
	}
	if err := c.server.serve(conn, info); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return nil, nil, credentials.ErrConnDispatched
}

// replayed is a connection whose first bytes have been read.
type replayed struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 && len(p) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

var errTooMany = errors.New("too many streams")

// serve takes a connection whose first byte has been read, unless the server has enough of them.
func (s *Server) serve(conn net.Conn, info credentials.AuthInfo) error {
	f := newFramer(conn, s.config.MessageBytesMax)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return errStopped
	case len(s.framers) >= s.config.StreamsMax:
		return errTooMany
	}
	s.framers[f] = struct{}{}
	s.wait.Go(func() {
		defer func() {
			f.close(errEnded)
			s.mu.Lock()
			delete(s.framers, f)
			s.mu.Unlock()
		}()
		s.handle(f, info)
	})
	return nil
}

// handle serves a connection from its method's name to the status.
func (s *Server) handle(f *framer, info credentials.AuthInfo) {
	hurry := time.AfterFunc(handshakeMax, func() { f.close(errSilent) })
	name, err := methodName(f)
	hurry.Stop()
	if err != nil {
		return
	}
	f.startWatch()
	err = s.run(f, info, name)
	if f.write(kindStatus, encodeStatus(err)) != nil {
		return
	}
	// Closing now, with something of the client's unread, would reset the connection and might take the status with it.
	linger := time.AfterFunc(lingerMax, func() { f.close(errEnded) })
	defer linger.Stop()
	f.drain()
}

func methodName(f *framer) (string, error) {
	rest := make([]byte, len(magic)-1)
	if _, err := io.ReadFull(f.reader, rest); err != nil {
		return "", err
	}
	if string(rest) != magic[1:] {
		return "", fmt.Errorf("not %q", magic)
	}
	k, body, err := f.next()
	if err != nil {
		return "", err
	}
	if k != kindMethod {
		return "", fmt.Errorf("frame of kind %d before the method", k)
	}
	return string(body), nil
}

func (s *Server) run(f *framer, info credentials.AuthInfo, name string) error {
	m, known := s.methods[name]
	if !known {
		return status.Errorf(codes.Unimplemented, "there is no stream %q", name)
	}
	ctx, cancel := context.WithCancel(peer.NewContext(s.ctx, &peer.Peer{Addr: f.conn.RemoteAddr(), LocalAddr: f.conn.LocalAddr(), AuthInfo: info}))
	defer cancel()
	stream := &serverStream{server: s, framer: f, ctx: ctx, cancel: cancel, desc: m.desc}
	defer stream.ended.Store(true)
	if s.config.Interceptor != nil {
		return s.config.Interceptor(m.service, stream, &m.info, m.desc.Handler)
	}
	return m.desc.Handler(m.service, stream)
}

// serverStream implements grpc.ServerStream.
type serverStream struct {
	server *Server
	framer *framer
	ctx    context.Context
	cancel context.CancelFunc
	desc   *grpc.StreamDesc
	// ended is set when the handler has returned: whoever is still in RecvMsg gets nothing any more.
	ended atomic.Bool
}

// RecvMsg implements grpc.ServerStream.
func (s *serverStream) RecvMsg(m any) error {
	s.framer.reading.take()
	defer s.framer.reading.release()
	k, body, err := s.framer.next()
	switch {
	case s.ended.Load():
		return status.FromContextError(context.Canceled).Err()
	case err != nil:
		err = unavailable(s.ctx, err)
		s.cancel()
		return err
	case k == kindHalf:
		return io.EOF
	case k != kindMessage:
		s.cancel()
		return status.Errorf(codes.Internal, "a client sent a frame of kind %d", k)
	}
	if err := decode(body, m); err != nil {
		return err
	}
	if !s.desc.ClientStreams {
		// The handler will not receive again: somebody has to notice that the client goes.
		s.server.wait.Go(func() {
			s.framer.drain()
			s.cancel()
		})
	}
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *serverStream) SendMsg(m any) error {
	err := s.framer.writeMessage(m)
	if err == nil {
		return nil
	}
	return unavailable(s.ctx, err)
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }

// SetHeader implements grpc.ServerStream: there are none.
func (s *serverStream) SetHeader(metadata.MD) error { return errNoHeaders }

// SendHeader implements grpc.ServerStream: there are none.
func (s *serverStream) SendHeader(metadata.MD) error { return errNoHeaders }

// SetTrailer implements grpc.ServerStream: there are none.
func (s *serverStream) SetTrailer(metadata.MD) {}

var errNoHeaders = status.Error(codes.Unimplemented, "streams with connections of their own have no headers")
