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
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/delivery"
	"github.com/logmirror/logmirror/frontend/etcd"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/idgen"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/watch"
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
}

const (
	defaultMaxConcurrentStreams = 100_000
	// stopCallsTimeout is how long Stop waits for unary calls under way.
	stopCallsTimeout = time.Second
	// keepalivePingMinimum is how often a client may ping; etcd's servers allow the same.
	keepalivePingMinimum = 5 * time.Second
	// serverPingInterval and serverPingTimeout find clients that are gone without a word, so that their watches end.
	serverPingInterval = 2 * time.Hour
	serverPingTimeout  = 20 * time.Second
)

// Server is a running frontend.
type Server struct {
	config Config
	logger *slog.Logger
	mirror *mirror.Mirror
	region *serving.Region
	hub    *watch.Hub
	sender delivery.Sender
	keeper *keeper.Keeper
	ids    *idgen.Generator
	owners *owners
	grpc   *grpc.Server
	health *health.Server

	// stopping ends the server's own goroutines.
	stopping chan struct{}
	running  sync.WaitGroup
	stop     sync.Once
	done     chan struct{}
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
	if config.Clock == nil {
		config.Clock = boottime
	}
	if config.PeerCredentials == nil {
		config.PeerCredentials = config.LogCredentials
	}
	s := &Server{
		config: config, logger: config.Logger,
		stopping: make(chan struct{}), done: make(chan struct{}),
		health: health.NewServer(),
	}
	s.owners = newOwners(config.Dial, config.PeerCredentials)
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)

	m, err := mirror.Start(s.mirrorConfig())
	if err != nil {
		s.owners.close()
		s.closeParts()
		return nil, fmt.Errorf("frontend %s: %w", config.Name, err)
	}
	s.mirror = m
	s.ids = idgen.New(idgen.Config{
		Log: keeperMirror{m}, Clock: s.config.Clock, Logger: s.logger, Registerer: s.config.Registerer,
		ProposeSequence: func(ctx context.Context, command *commandv1.Command) (statemachine.Result, error) {
			return s.region.Write(ctx, command, serving.WriteOptions{})
		},
	})
	s.grpc = s.newGRPC()
	s.running.Go(s.serve)
	s.running.Go(s.followHealth)
	return s, nil
}

func (s *Server) mirrorConfig() mirror.Config {
	c := s.config.Mirror
	c.Name, c.Region, c.DataDir, c.Advertise = s.config.Name, s.config.Region, s.config.DataDir, s.config.Advertise
	scheme := "http://"
	if s.config.ServerCredentials != nil {
		scheme = "https://"
	}
	c.ClientURLs = []string{scheme + s.config.Advertise}
	c.Log.Members, c.Log.Dial, c.Log.Credentials = s.config.Log, s.config.Dial, s.config.LogCredentials
	c.Logger, c.Log.Logger = s.logger, s.logger
	c.Registerer, c.Log.Registerer = s.config.Registerer, s.config.Registerer
	c.Clock = s.config.Clock
	c.NewObservers = s.newObservers
	return c
}

// newObservers makes the parts that stand on the mirror, before it applies anything.
func (s *Server) newObservers(machine *statemachine.Machine, m *mirror.Mirror) []mirror.Observer {
	s.region = serving.New(m, statemachine.Limits{
		MaxRequestBytes: s.config.MaxRequestBytes, MaxTxnOperations: s.config.MaxTxnOperations,
	})
	s.hub = watch.NewHub(machine.Space(), watch.Config{
		ProgressInterval: s.config.WatchProgressInterval, Logger: s.logger, Registerer: s.config.Registerer,
	})
	s.keeper = keeper.New(keeper.Config{
		Mirror: keeperMirror{m}, Leases: machine, FrontendID: m.Identity().FrontendID,
		Clock: s.config.Clock, AskOwner: s.askOwner,
		Logger: s.logger, Registerer: s.config.Registerer,
	})
	return []mirror.Observer{s.region, s.hub, s.keeper}
}

func (s *Server) newGRPC() *grpc.Server {
	limits := s.region.Limits()
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(wire.NewCodec()),
		grpc.MaxRecvMsgSize(limits.MaxRequestBytes + serving.RequestOverheadBytes),
		grpc.MaxSendMsgSize(1<<31 - 1),
		grpc.MaxConcurrentStreams(s.config.MaxConcurrentStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: keepalivePingMinimum, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPingInterval, Timeout: serverPingTimeout}),
		grpc.WaitForHandlers(true),
	}
	if s.config.ServerCredentials != nil {
		options = append(options, grpc.Creds(s.config.ServerCredentials))
	}
	server := grpc.NewServer(options...)
	held := leases{s.keeper}
	server.RegisterService(kvServiceDesc(), &kvServer{region: s.region})
	kvv1.RegisterWatchServiceServer(server, &watchServer{region: s.region, hub: s.hub, sender: &s.sender})
	kvv1.RegisterLeaseServiceServer(server, &leaseServer{region: s.region, leases: held})
	kvv1.RegisterIdServiceServer(server, &idServer{region: s.region, ids: s.ids})
	kvv1.RegisterClusterServiceServer(server, &clusterServer{server: s})
	kvv1.RegisterAdminServiceServer(server, &adminServer{region: s.region})
	healthv1.RegisterHealthServer(server, s.health)
	etcd.Register(server, etcd.Config{
		Region: s.region, Hub: s.hub, Sender: &s.sender, Leases: held,
		LogStatus: s.etcdLogStatus, LogReachable: s.logReachable, Logger: s.logger,
	})
	return server
}

func (s *Server) serve() {
	if err := s.grpc.Serve(s.config.Listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		s.logger.Error("the client listener ended", "address", s.config.Advertise, "error", err)
		go s.Stop()
	}
}

// followHealth tells the health service what the mirror is up to, and ends the frontend with it.
func (s *Server) followHealth() {
	ready := s.mirror.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
			s.logger.Info("serving", "name", s.config.Name, "region", s.config.Region, "address", s.config.Advertise)
		case <-s.mirror.Done():
			s.health.Shutdown()
			if err := s.Err(); err != nil {
				s.logger.Error("the mirror cannot go on", "error", err)
				go s.Stop() // which waits for this goroutine
			}
			return
		case <-s.stopping:
			return
		}
	}
}

// Stop ends the frontend: calls under way first, for a bounded time, then the mirror.
func (s *Server) Stop() {
	s.end(func() {
		s.health.Shutdown()
		// Streams first: they would keep the graceful stop from ending. Their clients see UNAVAILABLE.
		s.region.Stop()
		s.hub.Close()
		s.keeper.Close()
		graceful := make(chan struct{})
		go func() {
			defer close(graceful)
			s.grpc.GracefulStop()
		}()
		timer := time.NewTimer(stopCallsTimeout)
		defer timer.Stop()
		select {
		case <-graceful:
		case <-timer.C:
			s.grpc.Stop()
			<-graceful
		}
		s.ids.Close()
		s.mirror.Stop()
	})
}

// Kill drops everything at once, as the end of the process would. For tests.
func (s *Server) Kill() {
	s.end(func() {
		s.mirror.Kill()
		s.ids.Close()
		s.hub.Close()
		s.keeper.Close()
		s.grpc.Stop()
	})
}

func (s *Server) end(parts func()) {
	s.stop.Do(func() {
		close(s.stopping)
		parts()
		s.owners.close()
		s.running.Wait()
		close(s.done)
	})
	<-s.done
}

// closeParts ends what newObservers made, where the mirror did not start.
func (s *Server) closeParts() {
	if s.hub != nil {
		s.hub.Close()
	}
	if s.keeper != nil {
		s.keeper.Close()
	}
}

// Done is closed when the frontend has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err returns why the mirror could not go on; nil while it can, and after Stop.
func (s *Server) Err() error {
	if err := s.mirror.Err(); !errors.Is(err, mirror.ErrStopped) {
		return err
	}
	return nil
}

// Ready is closed once this frontend serves.
func (s *Server) Ready() <-chan struct{} { return s.mirror.Ready() }

// Mirror returns the mirror, for tests and status.
func (s *Server) Mirror() *mirror.Mirror { return s.mirror }

// keeperMirror is the mirror as the keeper and the generator of ids use it: its proposals do not wait for a log that is
// away, since these decide themselves when to try again.
type keeperMirror struct{ *mirror.Mirror }

// Propose returns once the command was applied here.
func (m keeperMirror) Propose(ctx context.Context, command *commandv1.Command) (statemachine.Result, error) {
	return m.Mirror.Propose(ctx, command, mirror.ProposeOptions{})
}
