package frontend

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/delivery"
	"github.com/logmirror/logmirror/frontend/etcd"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/idgen"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/watch"
)

// life is everything that stands on one mirror.
type life struct {
	server     *Server
	registered *lifeRegisterer
	mirror     *mirror.Mirror
	region     *serving.Region
	hub        *watch.Hub
	sender     delivery.Sender
	keeper     *keeper.Keeper
	ids        *idgen.Generator
	grpc       *grpc.Server
	loss       *logLoss

	end sync.Once
}

// newLife begins to mirror the log.
func (s *Server) newLife() (*life, error) {
	l := &life{server: s, registered: &lifeRegisterer{to: s.config.Registerer}, loss: newLogLoss()}
	config := s.mirrorConfig()
	config.Registerer = l.registerer()
	config.Log.Registerer = config.Registerer
	config.NewObservers = l.newObservers
	m, err := mirror.Start(config)
	if err != nil {
		l.closeParts()
		return nil, err
	}
	l.mirror = m
	l.ids = idgen.New(idgen.Config{
		Log: keeperMirror{m}, Clock: s.config.Clock, Logger: s.logger, Registerer: config.Registerer,
		ProposeSequence: func(ctx context.Context, command *commandv1.Command) (statemachine.Result, error) {
			return l.region.Write(ctx, command, serving.WriteOptions{})
		},
	})
	l.grpc = s.newGRPC()
	l.register()
	return l, nil
}

// mirrorConfig is that of every life, but for its observers and metrics.
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
	c.Clock, c.Tracer = s.config.Clock, s.config.Tracer
	return c
}

// newObservers makes the parts that stand on the mirror, before it applies anything.
func (l *life) newObservers(machine *statemachine.Machine, m *mirror.Mirror) []mirror.Observer {
	s := l.server
	l.region = serving.New(m, s.limits())
	l.hub = watch.NewHub(machine.Space(), watch.Config{
		ProgressInterval: s.config.WatchProgressInterval, Logger: s.logger, Registerer: l.registerer(),
	})
	l.keeper = keeper.New(keeper.Config{
		Mirror: keeperMirror{m}, Leases: machine, FrontendID: m.Identity().FrontendID,
		Clock: s.config.Clock, AskOwner: l.askOwner,
		Logger: s.logger, Registerer: l.registerer(),
	})
	l.registerLeases(machine)
	return []mirror.Observer{l.region, l.hub, l.keeper}
}

// register registers the services.
func (l *life) register() {
	held, observed := leases{l.keeper}, l.server.calls.Registrar(l.grpc)
	observed.RegisterService(kvServiceDesc(), &kvServer{region: l.region})
	kvv1.RegisterWatchServiceServer(observed, &watchServer{region: l.region, hub: l.hub, sender: &l.sender})
	kvv1.RegisterLeaseServiceServer(observed, &leaseServer{region: l.region, leases: held})
	kvv1.RegisterIdServiceServer(observed, &idServer{region: l.region, ids: l.ids})
	kvv1.RegisterClusterServiceServer(observed, &clusterServer{life: l})
	kvv1.RegisterAdminServiceServer(observed, &adminServer{region: l.region})
	healthv1.RegisterHealthServer(observed, l.server.health)
	etcd.Register(observed, etcd.Config{
		Region: l.region, Hub: l.hub, Sender: &l.sender, Leases: held,
		LogStatus: l.etcdLogStatus, LogReachable: l.logReachable, LogLost: l.loss.Lost, Logger: l.server.logger,
	})
	l.server.nameServices(l.grpc)
}

// live serves one life after another, until the server is stopped or its mirror cannot go on.
func (s *Server) live(l *life) {
	for {
		served := s.serve(l.grpc)
		after := s.follow(l)
		if after == afterNothing {
			return // whoever stops the server ends the life
		}
		s.setServing(false)
		if after == afterQuarantine {
			l.kill() // nothing more is answered from this state
		} else {
			l.stop()
		}
		<-served
		if after == afterBootstrap && !s.rebuild() {
			return
		}
		next, err := s.newLife()
		if err != nil {
			s.fail(err)
			return
		}
		s.mu.Lock()
		stopped := s.ctx.Err() != nil
		if !stopped {
			s.life, s.bootstrapping = next, nil
		}
		s.mu.Unlock()
		if stopped {
			next.kill()
			return
		}
		l = next
	}
}

// serve takes clients for a server until that is stopped; the channel is closed then.
func (s *Server) serve(server *grpc.Server) (served chan struct{}) {
	served = make(chan struct{})
	loan := s.listener.lend()
	s.running.Go(func() {
		defer close(served)
		if err := server.Serve(loan); err != nil && !errors.Is(err, grpc.ErrServerStopped) && s.ctx.Err() == nil {
			s.logger.Error("the client listener ended", "address", s.config.Advertise, "error", err)
			go s.Stop() // which waits for this goroutine
		}
	})
	return served
}

// afterlife says what follows a life.
type afterlife uint8

const (
	// afterNothing: the server ends.
	afterNothing afterlife = iota
	// afterBootstrap: the state is built from a checkpoint, and another life begins with it.
	afterBootstrap
	// afterQuarantine: another life begins without what this one had, from the log or else from a checkpoint.
	afterQuarantine
)

// follow tells the health service and streams what the mirror is up to until that ends, and says what is to follow.
func (s *Server) follow(l *life) afterlife {
	ready := l.mirror.Ready()
	look := time.NewTicker(lostLookInterval)
	defer look.Stop()
	for {
		select {
		case <-ready:
			ready = nil
			s.setServing(true)
			s.logger.Info("serving", "name", s.config.Name, "region", s.config.Region, "address", s.config.Advertise)
			s.readyOnce.Do(func() { close(s.ready) })
		case <-l.mirror.Done():
			quarantined := (*mirror.QuarantineError)(nil)
			switch err := l.mirror.Err(); {
			case s.ctx.Err() != nil:
			case errors.Is(err, logclient.ErrTrimmed):
				return afterBootstrap
			case errors.As(err, &quarantined):
				s.logger.Error("the state is built anew", "reason", err)
				return afterQuarantine
			case !errors.Is(err, mirror.ErrStopped):
				s.fail(err)
			}
			return afterNothing
		case <-look.C:
			l.lookForLoss()
		case <-s.ctx.Done():
			return afterNothing
		}
	}
}

// fail ends the server.
func (s *Server) fail(err error) {
	s.mu.Lock()
	s.failed = err
	s.mu.Unlock()
	s.health.Shutdown()
	s.logger.Error("this frontend cannot go on", "error", err)
	go s.Stop() // which waits for the caller's goroutine
}

// stop ends a life: calls under way first, for a bounded time, then the mirror.
func (l *life) stop() {
	l.end.Do(func() {
		// Streams first: they would keep the graceful stop from ending. Their clients see UNAVAILABLE.
		l.region.Stop()
		l.hub.Close()
		l.keeper.Close()
		stopGracefully(l.grpc)
		l.ids.Close()
		l.mirror.Stop()
		l.registered.unregisterAll()
	})
}

// stopGracefully lets calls under way finish for a bounded time.
func stopGracefully(server *grpc.Server) {
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		server.GracefulStop()
	}()
	timer := time.NewTimer(stopCallsTimeout)
	defer timer.Stop()
	select {
	case <-graceful:
	case <-timer.C:
		server.Stop()
		<-graceful
	}
}

// kill drops everything at once.
func (l *life) kill() {
	l.end.Do(func() {
		l.mirror.Kill()
		l.ids.Close()
		l.hub.Close()
		l.keeper.Close()
		l.grpc.Stop()
		l.registered.unregisterAll()
	})
}

// closeParts ends what newObservers made, where the mirror did not start.
func (l *life) closeParts() {
	if l.hub != nil {
		l.hub.Close()
	}
	if l.keeper != nil {
		l.keeper.Close()
	}
	l.registered.unregisterAll()
}

// registerer takes the metrics of the life's parts; nil where nobody wants them.
func (l *life) registerer() prometheus.Registerer {
	if l.registered.to == nil {
		return nil
	}
	return l.registered
}

// lifeRegisterer takes back what was registered through it, so that the next life can register the same.
type lifeRegisterer struct {
	to prometheus.Registerer

	mu         sync.Mutex
	collectors []prometheus.Collector
}

// Register implements prometheus.Registerer.
func (r *lifeRegisterer) Register(c prometheus.Collector) error {
	if err := r.to.Register(c); err != nil {
		return err
	}
	r.mu.Lock()
	r.collectors = append(r.collectors, c)
	r.mu.Unlock()
	return nil
}

// MustRegister implements prometheus.Registerer.
func (r *lifeRegisterer) MustRegister(collectors ...prometheus.Collector) {
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister implements prometheus.Registerer.
func (r *lifeRegisterer) Unregister(c prometheus.Collector) bool { return r.to.Unregister(c) }

func (r *lifeRegisterer) unregisterAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.collectors {
		r.to.Unregister(c)
	}
	r.collectors = nil
}
