// Package frontend is one region's server: a mirror of the log's state, and the services that clients reach it by on one
// port: the native API (kv.v1), etcd's v3 API (package etcd) and gRPC's health service.
//
// # What it promises
//
// Handlers check, call, translate the error and fill the header; what they answer is decided below: by the log for writes,
// by the mirror for the freshness of reads, by the hub for watches and by the keeper for leases.
//
// The port is open from Start on. Until the mirror has caught up with the log (Ready), every call that would show state is
// answered with UNAVAILABLE, and the health service says NOT_SERVING. While the log is out of reach afterwards, reads that
// ask for no more, watches and lease answers go on as far as the parts below can vouch for them; Degraded says what is
// amiss.
//
// # Lives
//
// Everything that stands on one mirror is a life: the mirror, hub, keeper and the services over them. A mirror that is
// below what the log still holds (it was away for too long, or lost its image) ends its life: streams and calls end
// with UNAVAILABLE, and writes that were handed to the log are unknown, as at a restart. The state is then built
// from a checkpoint, while the port answers everything with UNAVAILABLE and Degraded and the metrics tell the progress,
// and the next life begins as the next incarnation.
//
// # How it ends
//
// Stop takes no new calls, ends streams (clients see UNAVAILABLE and go elsewhere), lets calls under way finish for a
// bounded time, and then stops the mirror, all within about 3 s. Kill drops everything at once. A mirror that cannot go on
// (Done, Err) ends the frontend too.
package frontend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/keepalive"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/internal/boottime"
	"github.com/logmirror/logmirror/internal/observe/calls"
	"github.com/logmirror/logmirror/internal/observe/tracing"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// Config of a frontend. Zero values mean the defaults named beside them.
type Config struct {
	// Name is unique in the cluster; Region is where the frontend is. Both must be UTF-8.
	Name, Region string
	// Advertise is the host:port by which clients and other frontends reach this one; the listener's address by default.
	Advertise string
	// DataDir keeps the frontend's identity. It belongs to this frontend alone.
	DataDir string
	// Listener takes clients. Start owns it, also where it returns an error.
	Listener net.Listener
	// Log are addresses of log members; one that answers is enough.
	Log []string
	// Dial opens connections to log members and other frontends; nil dials TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// ServerCredentials secure the listener, LogCredentials the connections to the log, PeerCredentials those to other
	// frontends' listeners (LogCredentials by default). Nil: no encryption.
	ServerCredentials, LogCredentials, PeerCredentials credentials.TransportCredentials

	// MaxRequestBytes bounds the encoded command of one request; 1.5 MiB.
	MaxRequestBytes int
	// MaxTxnOperations bounds each list of a transaction; 128.
	MaxTxnOperations int
	// MaxConcurrentStreams bounds the calls and streams under way on one client's connection; 100,000.
	MaxConcurrentStreams uint32
	// WatchProgressInterval is how often idle watches that asked for it are told of the revision; 10 minutes.
	WatchProgressInterval time.Duration

	// Clock counts time while the machine sleeps, too; nil reads CLOCK_BOOTTIME.
	Clock func() time.Duration
	// Mirror tunes the mirror; what is named above wins over it.
	Mirror mirror.Config
	// Logger takes what operators may want to know; nil discards it.
	Logger *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// Tracer makes the spans of unary calls and of what they propose, and of entries that are traced; nil for none.
	Tracer trace.Tracer
}

const (
	defaultMaxConcurrentStreams = 100_000
	// stopCallsTimeout is how long Stop waits for unary calls under way.
	stopCallsTimeout = time.Second
	// streamWorkers are goroutines that take calls one after the other: their stacks have grown to what a call needs, which
	// new goroutines do anew for each. Calls beyond them get goroutines of their own. A call that waits for the log holds one for
	// as long.
	streamWorkers = 256
	// keepalivePingMinimum is how often a client may ping; etcd's servers allow the same.
	keepalivePingMinimum = 5 * time.Second
	// serverPingInterval and serverPingTimeout find clients that are gone without a word, so that their watches end.
	serverPingInterval = 2 * time.Hour
	serverPingTimeout  = 20 * time.Second
	// handshakeTimeout is how long a new connection may take until it is ready for calls, encryption included.
	handshakeTimeout = 10 * time.Second
)

// Server is a running frontend.
type Server struct {
	config   Config
	logger   *slog.Logger
	owners   *owners
	health   *health.Server
	listener *sharedListener
	metrics  *metrics
	calls    *calls.Observer

	// ready is closed when a life is ready for the first time.
	ready     chan struct{}
	readyOnce sync.Once

	mu sync.Mutex
	// services are the names that the health service knows, beside the empty one for the whole.
	services []string
	// life is the present one, or the last one while a bootstrap runs.
	life *life
	// bootstrapping tells how far a bootstrap has come; nil while none runs.
	bootstrapping *bootstrapStatus
	// failed is why the frontend cannot go on.
	failed error

	// ctx ends the server's own goroutines.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	stop    sync.Once
	done    chan struct{}
}

// Start begins to mirror the log and to serve. It returns once the port is open; see Ready. Stop or Kill ends it.
func Start(config Config) (*Server, error) {
	s, err := start(config)
	if err != nil && config.Listener != nil {
		config.Listener.Close()
	}
	return s, err
}

func start(config Config) (*Server, error) {
	if config.Listener == nil {
		return nil, errors.New("frontend: no listener is configured")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Advertise == "" {
		config.Advertise = config.Listener.Addr().String()
	}
	if config.MaxConcurrentStreams == 0 {
		config.MaxConcurrentStreams = defaultMaxConcurrentStreams
	}
	// Mirror and keeper are given the same clock: the keeper compares its own readings with the time until which the mirror's
	// session is held.
	if config.Clock == nil {
		config.Clock = boottime.Now
	}
	if config.PeerCredentials == nil {
		config.PeerCredentials = config.LogCredentials
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		config: config, logger: config.Logger,
		ctx: ctx, cancel: cancel, done: make(chan struct{}), ready: make(chan struct{}),
		health: health.NewServer(),
	}
	s.owners = newOwners(config.Dial, config.PeerCredentials)
	s.setServing(false)
	var err error
	if s.calls, err = calls.New(calls.Config{Logger: config.Logger, Registerer: config.Registerer}); err == nil {
		s.metrics, err = newMetrics(s, config.Registerer)
	}
	if err == nil {
		s.life, err = s.newLife()
	}
	if err != nil {
		cancel()
		s.owners.close()
		return nil, fmt.Errorf("frontend %s: %w", config.Name, err)
	}
	s.listener = shareListener(config.Listener)
	s.running.Go(func() { s.live(s.life) })
	return s, nil
}

// newGRPC returns a server without services.
func (s *Server) newGRPC(further ...grpc.ServerOption) *grpc.Server {
	limits := serving.DefaultLimits(s.limits())
	options := append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(wire.NewCodec()),
		grpc.MaxRecvMsgSize(limits.MaxRequestBytes + serving.RequestOverheadBytes),
		grpc.MaxSendMsgSize(1<<31 - 1),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(s.config.MaxConcurrentStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: keepalivePingMinimum, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPingInterval, Timeout: serverPingTimeout}),
		grpc.WaitForHandlers(true),
	}, further...)
	if s.config.Tracer != nil {
		options = append(options, grpc.ChainUnaryInterceptor(tracing.UnaryServer(s.config.Tracer)))
	}
	if s.config.ServerCredentials != nil {
		options = append(options, grpc.Creds(s.config.ServerCredentials))
	}
	return grpc.NewServer(options...)
}

func (s *Server) limits() statemachine.Limits {
	return statemachine.Limits{MaxRequestBytes: s.config.MaxRequestBytes, MaxTxnOperations: s.config.MaxTxnOperations}
}

// Stop ends the frontend: calls under way first, for a bounded time, then the mirror.
func (s *Server) Stop() { s.end((*life).stop) }

// Kill drops everything at once, as the end of the process would. For tests.
func (s *Server) Kill() { s.end((*life).kill) }

func (s *Server) end(life func(*life)) {
	s.stop.Do(func() {
		s.health.Shutdown()
		s.cancel()
		s.mu.Lock()
		l := s.life
		s.mu.Unlock()
		life(l)
		s.running.Wait()
		s.listener.Close()
		s.owners.close()
		close(s.done)
	})
	<-s.done
}

// Done is closed when the frontend has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err returns why the frontend could not go on; nil while it can, and after Stop.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Ready is closed once this frontend has served. NotReady tells whether it does now.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Mirror returns the mirror, for tests and status. After a bootstrap there is another one.
func (s *Server) Mirror() *mirror.Mirror { return s.present().mirror }

// present returns the present life, or the last one while a bootstrap runs.
func (s *Server) present() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// keeperMirror is the mirror as the keeper and the generator of ids use it: its proposals do not wait for a log that is
// away, since these decide themselves when to try again.
type keeperMirror struct{ *mirror.Mirror }

// Propose returns once the command was applied here.
func (m keeperMirror) Propose(ctx context.Context, command *commandv1.Command) (statemachine.Result, error) {
	return m.Mirror.Propose(ctx, command, mirror.ProposeOptions{})
}
