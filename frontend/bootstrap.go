package frontend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/internal/version"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// rebuildPauseMin and rebuildPauseMax bound the pause between two attempts at a bootstrap.
const (
	rebuildPauseMin = time.Second
	rebuildPauseMax = 30 * time.Second
)

// rebuild builds the state from a checkpoint, again and again until that succeeds or the server is stopped. Meanwhile the
// port answers everything with the reason. Where the log is a newer build's by now, no attempt can succeed: the server ends.
func (s *Server) rebuild() (ok bool) {
	progress := &bootstrapStatus{}
	s.mu.Lock()
	s.bootstrapping = progress
	s.mu.Unlock()
	s.logger.Warn("the log no longer holds what comes next here: the state is built from a checkpoint")
	room := s.newWaitingRoom(progress)
	served := s.serve(room)
	defer func() {
		stopGracefully(room)
		<-served
	}()
	for pause := rebuildPauseMin; ; pause = min(2*pause, rebuildPauseMax) {
		err := mirror.Bootstrap(s.ctx, s.mirrorConfig(), progress.set)
		switch {
		case err == nil:
			s.metrics.bootstraps.WithLabelValues("done").Inc()
			return true
		case s.ctx.Err() != nil:
			return false
		}
		s.metrics.bootstraps.WithLabelValues("failed").Inc()
		if errors.Is(err, statemachine.ErrNewer) {
			progress.failed(err)
			s.fail(err)
			return false
		}
		s.logger.Error("the state could not be built from a checkpoint; trying again", "in", pause, "error", err)
		progress.failed(err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// bootstrap tells how far a bootstrap has come; nil while none runs.
func (s *Server) bootstrap() *bootstrapStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bootstrapping
}

// bootstrapStatus tells how far a bootstrap has come.
type bootstrapStatus struct {
	mu       sync.Mutex
	progress mirror.BootstrapProgress
	err      error
}

func (b *bootstrapStatus) set(p mirror.BootstrapProgress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.progress, b.err = p, nil
}

func (b *bootstrapStatus) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *bootstrapStatus) present() mirror.BootstrapProgress {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.progress
}

// String says it for people.
func (b *bootstrapStatus) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return "bootstrapping: the last attempt failed: " + b.err.Error()
	}
	return "bootstrapping: " + b.progress.String()
}

// newWaitingRoom returns the server that holds the port during a bootstrap.
func (s *Server) newWaitingRoom(progress *bootstrapStatus) *grpc.Server {
	room := s.newGRPC(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(codes.Unavailable, "this frontend is not serving: "+progress.String())
	}))
	observed := s.calls.Registrar(room)
	kvv1.RegisterClusterServiceServer(observed, &waitingCluster{server: s, progress: progress})
	healthv1.RegisterHealthServer(observed, s.health)
	return room
}

type waitingCluster struct {
	kvv1.UnimplementedClusterServiceServer
	server   *Server
	progress *bootstrapStatus
}

// Status tells how far the bootstrap has come.
func (c *waitingCluster) Status(context.Context, *kvv1.StatusRequest) (*kvv1.StatusResponse, error) {
	identity := c.server.present().mirror.Identity()
	return &kvv1.StatusResponse{
		Header: &kvv1.ResponseHeader{
			ClusterId: identity.ClusterID, Epoch: identity.Epoch, Frontend: identity.Name, Region: identity.Region,
			Incarnation: identity.Incarnation, AgeMicroseconds: -1,
		},
		Version:  version.String(),
		Degraded: []string{c.progress.String()},
	}, nil
}

// metrics are those of the server, beyond the lives.
type metrics struct {
	bootstraps *prometheus.CounterVec
}

func newMetrics(s *Server, registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{bootstraps: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "logmirror_frontend_bootstraps_total", Help: "Attempts to build the state from a checkpoint, by outcome.",
	}, []string{"outcome"})}
	for _, outcome := range []string{"done", "failed"} {
		m.bootstraps.WithLabelValues(outcome)
	}
	if registerer == nil {
		return m, nil
	}
	gauge := func(name, help string, value func(mirror.BootstrapProgress) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if b := s.bootstrap(); b != nil {
				return value(b.present())
			}
			return 0
		})
	}
	for _, c := range []prometheus.Collector{
		m.bootstraps,
		gauge("logmirror_frontend_bootstrapping", "1 while the state is built from a checkpoint.",
			func(mirror.BootstrapProgress) float64 { return 1 }),
		gauge("logmirror_frontend_bootstrap_received_bytes", "Bytes that have come of that checkpoint.",
			func(p mirror.BootstrapProgress) float64 { return float64(p.Bytes) }),
		gauge("logmirror_frontend_bootstrap_size_bytes", "Size of that checkpoint.",
			func(p mirror.BootstrapProgress) float64 { return float64(p.BytesTotal) }),
	} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	return m, nil
}
