package logclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
	"github.com/logmirror/logmirror/internal/observe/calls"
)

// Client follows the members of one log. See the package comment for its promises.
type Client struct {
	config  Config
	metrics *metrics

	ctx    context.Context
	cancel context.CancelCauseFunc
	// goroutines counts everything that the client started.
	goroutines sync.WaitGroup
	// probeNow wakes the probe loop; one waiting signal is enough.
	probeNow chan struct{}
	// membersChanged wakes the goroutine that writes the members file.
	membersChanged chan struct{}

	mu      sync.Mutex
	tracker *tracker
	// changed is closed and replaced whenever a decision of the tracker may have changed.
	changed     chan struct{}
	lastCurrent string
	connections map[string]*connection
	rounds      map[string]*roundStream
	roundsOpen  int
	// clusterID and epoch are zero until known; then they stay. Written under mu.
	clusterID, epoch atomic.Uint64
	membership       *logv1.Membership
	// unreachableSince is when the last member that answered was lost; zero while one answers.
	unreachableSince time.Time
	closed           bool
}

// connection is how one address is reached: the hot streams each on a connection of its own, the rest by gRPC.
type connection struct {
	address string
	grpc    *grpc.ClientConn
	streams *directstream.Client
	service logv1.LogServiceClient
	// received counts bytes of all of them, to tell a member that is silent from one whose long message is still on its way.
	received atomic.Uint64
}

// countingConn counts what it reads.
type countingConn struct {
	net.Conn
	received *atomic.Uint64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(uint64(n))
	return n, err
}

// Open starts to look for the log's members. It does not wait for one to be found.
func Open(config Config) (*Client, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	metrics, err := newMetrics(config.Registerer)
	if err != nil {
		return nil, err
	}
	persisted, err := readMembers(config.MembersFile, config.ClusterID, config.Epoch)
	if err != nil {
		config.Logger.Warn("the saved list of log members is of no use; the configured addresses are used",
			"file", config.MembersFile, "error", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	now := time.Now()
	c := &Client{
		config:           config,
		metrics:          metrics,
		ctx:              ctx,
		cancel:           cancel,
		probeNow:         make(chan struct{}, 1),
		membersChanged:   make(chan struct{}, 1),
		tracker:          newTracker(config.tracker(jitter), config.Members, persisted, now),
		changed:          make(chan struct{}),
		connections:      make(map[string]*connection),
		rounds:           make(map[string]*roundStream),
		unreachableSince: now,
	}
	if config.Registerer != nil {
		if err := config.Registerer.Register(memberMetrics{c}); err != nil {
			cancel(err)
			return nil, err
		}
	}
	c.clusterID.Store(config.ClusterID)
	c.epoch.Store(config.Epoch)
	c.goroutines.Go(c.probeLoop)
	c.goroutines.Go(c.saveLoop)
	return c, nil
}

// Close ends every tail, appender and round, and waits for all goroutines.
func (c *Client) Close() {
	c.fail(ErrClosed)
	c.mu.Lock()
	c.closed = true
	connections := c.connections
	c.connections = make(map[string]*connection)
	c.mu.Unlock()
	for _, connection := range connections {
		connection.close()
	}
	c.goroutines.Wait()
}

// Done is closed when the client ended: by Close, or because it can never work again, which Err explains.
func (c *Client) Done() <-chan struct{} { return c.ctx.Done() }

// Err is nil before Done is closed, ErrClosed after Close, and otherwise what ended the client (ErrOtherLog, ErrTrimmed
// or ErrMalformedEntry, wrapped).
func (c *Client) Err() error { return context.Cause(c.ctx) }

func (c *Client) fail(err error) { c.cancel(err) }

// Identity returns the cluster id and epoch of the log; zero while no member has told them.
func (c *Client) Identity() (clusterID, epoch uint64) {
	return c.clusterID.Load(), c.epoch.Load()
}

// Unreachable tells since when no member answers; false if one does.
func (c *Client) Unreachable() (since time.Time, unreachable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unreachableSince, !c.unreachableSince.IsZero()
}

// Current returns the address of the member in use and its measured round trip; false if there is none.
func (c *Client) Current() (address string, roundTrip time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.tracker.find(c.tracker.current)
	if m == nil {
		return "", 0, false
	}
	return m.address, m.roundTrip, true
}

func (c *Client) handshake() *logv1.Handshake {
	clusterID, epoch := c.Identity()
	return &logv1.Handshake{
		ClusterId: clusterID,
		Epoch:     epoch,
		Name:      c.config.Name,
		Region:    c.config.Region,
		Id:        c.config.FrontendID,
	}
}

// checkHandshake compares what a member says it belongs to with what is known, and learns what is not known yet.
func (c *Client) checkHandshake(h *logv1.Handshake) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	clusterID, epoch := c.Identity()
	if clusterID != 0 && h.GetClusterId() != 0 && h.GetClusterId() != clusterID {
		return fmt.Errorf("%w: member %q is of cluster %016x, wanted %016x", ErrOtherLog, h.GetName(), h.GetClusterId(), clusterID)
	}
	if epoch != 0 && h.GetEpoch() != 0 && h.GetEpoch() != epoch {
		return fmt.Errorf("%w: member %q is of epoch %d, wanted %d", ErrOtherLog, h.GetName(), h.GetEpoch(), epoch)
	}
	if clusterID == 0 && h.GetClusterId() != 0 {
		c.clusterID.Store(h.GetClusterId())
		// A member list that was learned before can be saved now.
		c.saveSoon()
	}
	if epoch == 0 {
		c.epoch.Store(h.GetEpoch())
	}
	return nil
}

// dialTimeout bounds the time until a connection is ready.
const dialTimeout = 3 * time.Second

// connect returns the connection to an address, made if there is none.
func (c *Client) connect(address string) (*connection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if existing := c.connections[address]; existing != nil {
		return existing, nil
	}
	made := &connection{address: address}
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := c.config.Dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return countingConn{Conn: conn, received: &made.received}, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(c.config.Credentials),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: c.config.RetryMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(c.config.MessageBytesMax)),
		// Windows that hold what a fast log sends during the round trip of an ocean.
		grpc.WithInitialWindowSize(4<<20),
		grpc.WithInitialConnWindowSize(16<<20),
		grpc.WithDisableServiceConfig(),
		calls.Propagate(),
	)
	if err != nil {
		return nil, err
	}
	made.grpc = conn
	made.streams = directstream.NewClient(directstream.ClientConfig{Dial: dial, Authority: address, Credentials: c.config.Credentials,
		Others: conn, DialTimeout: dialTimeout, MessageBytesMax: c.config.MessageBytesMax,
		Methods: []string{logv1.LogService_Append_FullMethodName, logv1.LogService_Tail_FullMethodName, logv1.LogService_ReadRound_FullMethodName}})
	made.service = logv1.NewLogServiceClient(made.streams)
	c.connections[address] = made
	return made, nil
}

// disconnect gives up a connection on which a question got no answer, so that the next use dials afresh: an answer may
// never come on one whose packets are lost.
func (c *Client) disconnect(connection *connection) {
	c.mu.Lock()
	if c.connections[connection.address] == connection {
		delete(c.connections, connection.address)
	}
	c.mu.Unlock()
	connection.close()
}

func (c *connection) close() {
	c.streams.Close()
	_ = c.grpc.Close()
}

// update runs one step of the tracker and wakes whoever waits for its decisions.
func (c *Client) update(step func(t *tracker, now time.Time)) {
	c.mu.Lock()
	now := time.Now()
	step(c.tracker, now)
	c.tracker.choose(now)
	switch {
	case c.tracker.anyReachable():
		c.unreachableSince = time.Time{}
	case c.unreachableSince.IsZero():
		c.unreachableSince = now
	}
	if c.tracker.current != c.lastCurrent {
		c.config.Logger.Info("log member in use changes", "from", c.lastCurrent, "to", c.tracker.current)
		c.lastCurrent = c.tracker.current
		c.metrics.memberChanges.Inc()
	}
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	c.probeSoon()
}

func (c *Client) saveSoon() {
	select {
	case c.membersChanged <- struct{}{}:
	default:
	}
}

func (c *Client) probeSoon() {
	select {
	case c.probeNow <- struct{}{}:
	default:
	}
}

// streamFailed tells the tracker of a stream that broke, and decides what the error means. An error that it returns is
// final.
func (c *Client) streamFailed(address string, err error) error {
	if isOtherLog(err) {
		return c.refuse(address, err)
	}
	c.update(func(t *tracker, now time.Time) { t.failed(address, now) })
	return nil
}

// refuse never uses an address again. An error that it returns is final.
func (c *Client) refuse(address string, reason error) error {
	c.config.Logger.Error("a log member is refused", "address", address, "reason", reason)
	var final error
	c.update(func(t *tracker, now time.Time) { final = t.refuse(address, reason, now) })
	if final != nil {
		c.fail(final)
	}
	return final
}

// await returns the member that is to be used now, waiting until there is one.
func (c *Client) await(ctx context.Context) (address string, roundTrip time.Duration, err error) {
	for {
		c.mu.Lock()
		m, wait := c.tracker.usable(time.Now())
		changed := c.changed
		if m != nil {
			address, roundTrip = m.address, m.roundTrip
		}
		c.mu.Unlock()
		if m != nil {
			return address, roundTrip, nil
		}
		if wait == 0 {
			wait = c.config.RetryMax
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return "", 0, context.Cause(ctx)
		}
	}
}

// cancelWhenMoved ends a stream's context when another member than its own is to be used. The goroutine ends with ctx.
func (c *Client) cancelWhenMoved(ctx context.Context, cancel context.CancelCauseFunc, address string) {
	c.goroutines.Go(func() {
		for {
			c.mu.Lock()
			moved := c.tracker.current != address
			changed := c.changed
			c.mu.Unlock()
			if moved {
				cancel(errMemberChanged)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
}

// isOtherLog tells whether a member, or this client, said that the two do not belong together.
func isOtherLog(err error) bool {
	return status.Code(err) == codes.FailedPrecondition || errors.Is(err, ErrOtherLog)
}

// streamError replaces the error of a stream by the reason for which its context was ended, where that is the cause.
func streamError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if status.Code(err) == codes.FailedPrecondition {
		return fmt.Errorf("%w: %w", ErrOtherLog, err)
	}
	return err
}

// FrontendID returns the id that this client tells the members.
func (c *Client) FrontendID() uint64 { return c.config.FrontendID }
