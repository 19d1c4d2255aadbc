// Package peer carries frames between the members of a log.
//
// Each member holds one stream to each other member for all that it sends there, so the frames to one target arrive in
// the order in which they were handed over, or not at all; a slow or unreachable target costs the others nothing. What
// comes back travels on the target's own stream in the other direction.
//
// A frame is lost when its target is not connected, when its stream ends, or when too many wait: then the oldest ones
// that may be lost make room. Raft, acks and rounds all bear loss. Proposals are not dropped silently: those that can't
// be sent are returned, or handed to Handler.Unsent, so that they can be rejected.
//
// Both sides of a stream introduce themselves before the first frame, and each decides whether to go on
// (Handler.Check). Pings measure the round trip to each member.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
)

// Handler is what a Transport needs of the member it serves. Its methods are called from several goroutines.
type Handler interface {
	// Handshake is what this member says of itself; the transport fills in whom it talks to. The caller owns it.
	Handshake() *logv1.PeerHandshake
	// Check decides on what another member says of itself, before any of its frames is taken and before any frame is
	// sent to it. The error is told to the other side; a status error keeps its code.
	Check(h *logv1.PeerHandshake) error
	// Receive takes frames of a member, in order. It may block, which holds up only that member; it returns when ctx
	// ends.
	Receive(ctx context.Context, from uint64, frames []*logv1.PeerFrame)
	// Unsent takes proposals back that were waiting for a stream that broke.
	Unsent(ctx context.Context, to uint64, frames []*logv1.PeerFrame)
	// Unreachable says that frames to a member have been lost.
	Unreachable(ctx context.Context, to uint64)
	// Refused says that another member does not take this one's frames.
	Refused(by uint64, err error)
}

// Fetches is what other members ask of the member beside their frames. The transport has checked who asks; ctx of the
// stream ends with the call. The first message of each stream holds the answering member's handshake, which the caller fills
// in from hello.
type Fetches interface {
	FetchLog(hello *logv1.PeerHandshake, request *logv1.FetchLogRequest, stream logv1.PeerService_FetchLogServer) error
	FetchCheckpoint(hello *logv1.PeerHandshake, request *logv1.FetchCheckpointRequest,
		stream logv1.PeerService_FetchCheckpointServer) error
}

// Config is a Transport's. ID, Handler and Dial are required.
type Config struct {
	ID      uint64
	Handler Handler
	// Fetches may be nil: then nothing can be fetched from this member.
	Fetches Fetches
	Dial    func(ctx context.Context, address string) (net.Conn, error)
	// Credentials for dialing; nil for none.
	Credentials credentials.TransportCredentials
	// QueueBytes and QueueFrames bound what waits for one target; zero for 48 MiB and 16384.
	QueueBytes, QueueFrames int
	// PingInterval is the time between measurements of a round trip; zero for 1 s.
	PingInterval time.Duration
	// MaxMessageBytes bounds one message on the wire; zero for 16 MiB.
	MaxMessageBytes int
	Logger          *slog.Logger
}

// Transport sends to and receives from all other members. Its methods may be called from any goroutine.
type Transport struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu    sync.Mutex
	links map[uint64]*link
	// incoming is the stream that each member sends on.
	incoming map[uint64]*incomingStream
	closed   bool
}

// incomingStream is ended when the same member opens another one, and done when its last frame has been handled.
type incomingStream struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a transport without targets. Close ends it.
func New(config Config) *Transport {
	if config.QueueBytes == 0 {
		config.QueueBytes = 48 << 20
	}
	if config.QueueFrames == 0 {
		config.QueueFrames = 16384
	}
	if config.PingInterval == 0 {
		config.PingInterval = time.Second
	}
	if config.MaxMessageBytes == 0 {
		config.MaxMessageBytes = 16 << 20
	}
	if config.Credentials == nil {
		config.Credentials = insecure.NewCredentials()
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Transport{config: config, ctx: ctx, cancel: cancel,
		links: map[uint64]*link{}, incoming: map[uint64]*incomingStream{}}
}

// SetMembers says who the other members are and where: streams to new ones are opened, those to and from members that are
// gone are closed, those to members with another address are moved. A member that is gone and comes back is for
// Handler.Check to judge.
func (t *Transport) SetMembers(addresses map[uint64]string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	for id, l := range t.links {
		if addresses[id] != l.address {
			l.close()
			delete(t.links, id)
		}
	}
	for id, incoming := range t.incoming {
		if addresses[id] == "" {
			incoming.cancel()
		}
	}
	for id, address := range addresses {
		if id == t.config.ID || t.links[id] != nil {
			continue
		}
		l, err := t.open(id, address)
		if err != nil {
			return err
		}
		t.links[id] = l
	}
	return nil
}

func (t *Transport) open(id uint64, address string) (*link, error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(t.config.Credentials),
		grpc.WithContextDialer(t.config.Dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialMax / 2, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: dialTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(t.config.MaxMessageBytes), grpc.MaxCallSendMsgSize(t.config.MaxMessageBytes)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("member %016x at %s: %w", id, address, err)
	}
	streams := directstream.NewClient(directstream.ClientConfig{
		Dial:      func(ctx context.Context) (net.Conn, error) { return t.config.Dial(ctx, address) },
		Authority: address, Credentials: t.config.Credentials, Others: conn, DialTimeout: dialTimeout,
		Methods: []string{logv1.PeerService_Send_FullMethodName}, MessageBytesMax: t.config.MaxMessageBytes})
	ctx, cancel := context.WithCancel(t.ctx)
	l := &link{transport: t, id: id, address: address, conn: conn, streams: streams, cancel: cancel, wake: make(chan struct{}, 1),
		logger: t.config.Logger.With("to", fmt.Sprintf("%016x", id), "address", address)}
	t.wait.Go(func() { l.run(ctx) })
	return l, nil
}

const (
	// redialMax: a region that was cut off for long waits for the next attempt when it is healed, so they follow each other
	// closely. There are few members.
	redialMax = 100 * time.Millisecond
	// dialTimeout: TCP sends its first packet at 0, 1 and 3 s; the next would be at 7 s.
	dialTimeout = 5 * time.Second
)

// windowBytes is the flow control window of what members fetch from each other: what a path of 200 ms at 1 Gbit/s holds is more,
// but a window is also what a stalled receiver may have to keep.
const windowBytes = 8 << 20

// Send hands frames over for a member, in order, and never blocks. It returns the proposals among them that will not be
// sent; other frames may be lost. The transport keeps the frames; nobody may modify them.
func (t *Transport) Send(to uint64, frames []*logv1.PeerFrame) (unsent []*logv1.PeerFrame) {
	t.mu.Lock()
	l := t.links[to]
	t.mu.Unlock()
	if l == nil {
		return proposals(frames)
	}
	return l.send(frames)
}

// Health is what is known of the path to a member.
type Health struct {
	// RoundTrip is smoothed; negative while unknown.
	RoundTrip time.Duration
	// LastHeard is when a frame last came from the member; zero for never.
	LastHeard time.Time
	// Connected tells whether there is a stream to the member.
	Connected bool
	// QueuedBytes wait to be sent.
	QueuedBytes int
}

// Health describes the path to a member.
func (t *Transport) Health(id uint64) Health {
	t.mu.Lock()
	l := t.links[id]
	t.mu.Unlock()
	if l == nil {
		return Health{RoundTrip: -1}
	}
	return l.health()
}

// Fetch returns what is needed to fetch something from a member: its service and this member's handshake. Calls should
// wait until the connection is ready. The error says that it is no member.
func (t *Transport) Fetch(id uint64) (logv1.PeerServiceClient, *logv1.PeerHandshake, error) {
	l := t.link(id)
	if l == nil {
		return nil, nil, fmt.Errorf("%016x is not a member that this one knows", id)
	}
	hello := t.config.Handler.Handshake()
	hello.TargetId = id
	return logv1.NewPeerServiceClient(l.conn), hello, nil
}

// Close ends all streams and waits for everything that the transport started.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	t.cancel()
	for _, l := range t.links {
		l.close()
	}
	t.mu.Unlock()
	t.wait.Wait()
}

func (t *Transport) link(id uint64) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.links[id]
}

// proposals returns those frames whose loss must be told.
func proposals(frames []*logv1.PeerFrame) (found []*logv1.PeerFrame) {
	for _, f := range frames {
		if f.GetProposal() != nil {
			found = append(found, f)
		}
	}
	return found
}

var errClosed = errors.New("the member is shutting down")
