package logservice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/internal/observe/calls"
	"github.com/logmirror/logmirror/internal/observe/slow"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/logservice/peer"
	"github.com/logmirror/logmirror/logservice/segment"
)

// Epoch is the log's. It is raised by the recovery of a lost quorum.
const epoch = 1

// Server is one running log member. Its methods may be called from any goroutine.
type Server struct {
	config    Config
	id        uint64
	directory *directory
	storage   *segment.Log
	store     *checkpoint.Store
	member    *Member
	transport *peer.Transport
	grpc      *directstream.Combined
	published *published
	metrics   *metrics
	disk      *disk.Counted
	calls     *calls.Observer
	health    *health.Server
	logger    *slog.Logger
	guests    guests
	slowLimit slow.Limit
	// ticks are counted by the loop.
	ticks int

	// events are for the loop, which alone steps the member; queries are run by it between two steps.
	events  chan []Event
	queries chan func(*Member)
	groups  chan groupWrite
	written chan error
	// trims holds the newest index that the log may be trimmed to.
	trims chan uint64
	pins  pins
	// installs holds the snapshot that is to be installed. staged is held by whoever uses staging.
	installs chan *InstallSnapshot
	staged   sync.Mutex
	staging  stagingArea
	// held keeps what the store holds and what the loop is told of it in one order.
	held sync.Mutex
	// uploads, downloads and fetches bound those that are under way.
	uploads, downloads, fetches semaphore

	clusterID atomic.Uint64
	// regions that other members named before the loop ran, and all that wait for an answer of the loop.
	answers answers
	reports reports
	last    atomic.Pointer[MemberState]

	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
	end    sync.Once
	done   chan struct{}
	mu     sync.Mutex
	err    error
}

// Start opens a member's data directory and serves LogService and PeerService on config.Listener. The first start of the
// members of config.InitialCluster begins a log. The listener is closed when Start fails.
func Start(config Config) (s *Server, err error) {
	if config.Listener == nil {
		return nil, errors.New("logservice: a member needs a listener")
	}
	if config, err = config.withDefaults(); err != nil {
		return nil, errors.Join(err, config.Listener.Close())
	}
	counted := disk.Count(config.FS)
	config.FS = counted
	s = &Server{config: config, disk: counted, logger: config.Logger.With("member", config.Name),
		events: make(chan []Event, 256), queries: make(chan func(*Member)), groups: make(chan groupWrite, 1),
		written: make(chan error, 1), trims: make(chan uint64, 1), installs: make(chan *InstallSnapshot, 1), done: make(chan struct{}),
		uploads: make(semaphore, maxUploads), downloads: make(semaphore, maxDownloads), fetches: make(semaphore, maxFetches)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.cancel()
		return nil, errors.Join(err, s.closeFiles(), config.Listener.Close())
	}
	s.serve()
	return s, nil
}

// open makes everything but runs nothing.
func (s *Server) open() (err error) {
	c := s.config
	cluster, err := c.initialCluster()
	if err != nil {
		return err
	}
	if err := checkRestored(c.FS, c.DataDir); err != nil {
		return err
	}
	if s.directory, err = openDirectory(c.FS, c.DataDir, c.Name, c.beginning); err != nil {
		return err
	}
	s.id = s.directory.record.MemberID
	if cluster.hash != 0 && cluster.hash != s.directory.record.ClusterHash {
		return fmt.Errorf("%w: %s is of member %q of a log that began with other members", ErrOtherMember, c.DataDir, c.Name)
	}
	log, err := segment.Open(c.FS, filepath.Join(c.DataDir, "log"), segment.Options{
		SegmentBytes: c.SegmentBytes, Identity: s.directory.identity(), Logger: s.logger})
	if err != nil {
		return err
	}
	s.storage = log
	if s.storage.Membership() == nil {
		if last := s.storage.LastIndex(); last != 0 {
			return fmt.Errorf("%w: the log ends at %d and has no membership", ErrDamaged, last)
		}
		first := s.directory.beginning()
		if first.Membership == nil {
			return fmt.Errorf("%w: the log has no membership", ErrDamaged)
		}
		if err := s.storage.Append(first); err != nil {
			return fmt.Errorf("write the first membership: %w", err)
		}
	}
	s.staging = stagingArea{server: s, dir: filepath.Join(c.DataDir, "staging")}
	if err := s.staging.clear(); err != nil {
		return err
	}
	if s.store, err = checkpoint.Open(c.FS, filepath.Join(c.DataDir, "checkpoints"), checkpoint.Options{
		MaxCheckpointBytes: c.MaxCheckpointBytes, Logger: s.logger}); err != nil {
		return err
	}
	addresses := map[uint64]string{}
	for _, m := range cluster.members {
		addresses[cluster.id(m.Name)] = m.Address
	}
	if c.Advertise != "" {
		addresses[s.id] = c.Advertise
	}
	s.member, err = NewMember(MemberConfig{ID: s.id, Region: c.Region, Addresses: addresses, Storage: s.storage,
		Nonce: random64() >> 1, ClusterID: random64(), Publication: c.Publication, LeaderPolicy: c.LeaderPolicy,
		TickInterval: c.TickInterval, Logger: s.logger, HeartbeatTicks: c.HeartbeatTicks, ElectionTicks: c.ElectionTicks,
		MaxPayloadBytes: c.MaxPayloadBytes, MaxStreamBytes: c.MaxStreamBytes, MaxForwardBytes: c.MaxForwardBytes,
		MaxUncommittedBytes: c.MaxUncommittedBytes, CheckpointLogBytes: c.CheckpointLogBytes, CheckpointAge: c.CheckpointAge,
		CheckpointTimeoutTicks: int(c.CheckpointTimeout / c.TickInterval), TailBytes: c.TailBytes, TailAge: c.TailAge,
		SlowBatchAfter: c.SlowBatchAfter})
	if err != nil {
		return err
	}
	s.events <- []Event{HeldCheckpoints{s.store.List()}} // has room: nothing runs yet
	s.clusterID.Store(s.member.ClusterID())
	state := s.member.State()
	s.last.Store(&state)
	s.published = newPublished(s.storage, state.Published, c.TailMemoryBytes)
	s.transport = peer.New(peer.Config{ID: s.id, Handler: peerHandler{s}, Fetches: fetchServer{s}, Dial: c.Dial, Credentials: c.PeerCredentials,
		MaxMessageBytes: maxMessageBytes, Logger: s.logger})
	if s.metrics, err = newMetrics(s); err != nil {
		return err
	}
	if s.calls, err = calls.New(calls.Config{Logger: s.logger, Registerer: c.Registerer}); err != nil {
		return err
	}
	s.health = health.NewServer()
	return s.membershipChanged()
}

// handshakeTimeout is how long a new connection may take until it is ready for calls, encryption included.
const handshakeTimeout = 10 * time.Second

// serve runs everything.
func (s *Server) serve() {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.InitialWindowSize(4 << 20), grpc.InitialConnWindowSize(8 << 20),
		grpc.WaitForHandlers(true), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ChainUnaryInterceptor(authorizeUnary), grpc.ChainStreamInterceptor(authorizeStream),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 2 * time.Second, PermitWithoutStream: true}),
	}
	direct := directstream.ServerConfig{Interceptor: authorizeStream, MessageBytesMax: maxMessageBytes}
	s.grpc = directstream.NewCombined(direct, s.config.ServerCredentials, options...)
	observed := s.calls.Registrar(s.grpc)
	logv1.RegisterLogServiceServer(observed, &service{server: s})
	s.transport.Register(observed)
	healthv1.RegisterHealthServer(observed, s.health)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	s.wait.Go(s.write)
	s.wait.Go(s.loop)
	s.wait.Go(func() {
		if err := s.grpc.Serve(s.config.Listener); err != nil {
			s.fail(fmt.Errorf("logservice: serve: %w", err))
		}
	})
	go func() {
		<-s.ctx.Done()
		s.shutDown()
	}()
	s.logger.Info("log member started", "id", memberName(s.id), "region", s.config.Region,
		"address", s.config.Listener.Addr().String(), "published", s.published.view().index, "publication", s.config.Publication.String())
}

// Stop ends the member in order and waits for the end.
func (s *Server) Stop() {
	s.handOver()
	s.Kill()
}

// Kill ends the member at once, without any word to the others, and waits for the end: to them it is as after kill -9.
func (s *Server) Kill() {
	s.cancel()
	<-s.done
}

// Done is closed when the member has ended, by Stop, by Kill, or because it could not go on (see Err).
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why the member ended by itself; nil otherwise.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail ends the member with the first error that is given to it.
func (s *Server) fail(err error) {
	if s.ctx.Err() == nil {
		s.logger.Error("the member can't go on", "error", err)
		s.mu.Lock()
		if s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
	}
	s.cancel()
}

// shutDown runs once, when the context has ended.
func (s *Server) shutDown() {
	s.end.Do(func() {
		s.health.Shutdown()
		s.grpc.Stop()
		s.transport.Close()
		s.wait.Wait()
		if err := s.closeFiles(); err != nil {
			s.logger.Error("could not close the data directory", "error", err)
		}
		s.metrics.close()
		s.calls.Close(s.config.Registerer)
		s.logger.Info("log member ended")
		close(s.done)
	})
}

func (s *Server) closeFiles() (err error) {
	if s.transport != nil {
		s.transport.Close()
	}
	if s.storage != nil {
		err = s.storage.Close()
	}
	if s.staging.log != nil {
		err = errors.Join(err, s.staging.log.Close())
	}
	if s.directory != nil {
		err = errors.Join(err, s.directory.close())
	}
	return err
}

// handOver gives another voter the chance to take leadership before this member goes, for a short time.
func (s *Server) handOver() {
	target := make(chan uint64, 1)
	ctx, cancel := context.WithTimeout(s.ctx, handOverLimit)
	defer cancel()
	s.query(ctx, func(m *Member) {
		if m.State().IsLeader {
			target <- m.successor(func(uint64) bool { return true })
			return
		}
		target <- 0
	})
	select {
	case id := <-target:
		if id == 0 {
			return
		}
		if _, err := s.transfer(ctx, id); err != nil {
			s.logger.Info("leadership was not handed over", "error", err)
		}
	default:
	}
}

// handOverLimit is a few round trips: long enough for a transfer, short enough for an orderly end.
const handOverLimit = 600 * time.Millisecond

// query runs a function on the loop, and waits for it until ctx ends; it may still run after that.
func (s *Server) query(ctx context.Context, f func(*Member)) {
	ran := make(chan struct{})
	select {
	case s.queries <- func(m *Member) { f(m); close(ran) }:
	case <-ctx.Done():
		return
	case <-s.ctx.Done():
		return
	}
	select {
	case <-ran:
	case <-ctx.Done():
	case <-s.done:
	}
}

// state is the member's, or the latest that was seen of it where the loop does not answer.
func (s *Server) state() MemberState {
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	s.query(ctx, func(m *Member) {
		state := m.State()
		s.last.Store(&state)
	})
	return *s.last.Load()
}

// post hands events to the loop, for one step; it blocks while the loop is behind.
func (s *Server) post(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	select {
	case s.events <- events:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return ErrStopped
	}
}
