package frontend

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/logmirror/logmirror/frontend/etcd"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/internal/observe"
	"github.com/logmirror/logmirror/statemachine"
)

// Degraded says what keeps this frontend from serving everything, for people; empty for nothing.
func (s *Server) Degraded() []string {
	if status := s.bootstrap(); status != nil {
		return []string{status.String()}
	}
	return s.present().degraded()
}

func (s *life) degraded() []string {
	degraded := s.mirror.Health()
	if reason := s.region.StateReason(); reason != "" {
		degraded = append(degraded, reason)
	}
	return degraded
}

// Checks returns all that tells whether this frontend serves, and how far. One that has lost the log is degraded: it goes on
// with serializable reads, watches, and leases for a while. A drained region's is too; a fenced one's fails, since clients
// should go elsewhere, but goes on serving reads to those who come nevertheless.
func (s *Server) Checks() []observe.Check {
	if status := s.bootstrap(); status != nil {
		return []observe.Check{{Name: "bootstrap", Reason: status.String()}}
	}
	l := s.present()
	mirror := observe.Check{Name: "mirror"}
	select {
	case <-l.mirror.Done():
		mirror.Reason = fmt.Sprintf("the mirror has ended: %v", l.mirror.Err())
		return []observe.Check{mirror}
	default:
	}
	trouble := strings.Join(l.mirror.Health(), "; ")
	caughtUp, log := observe.Check{Name: "caught-up"}, observe.Check{Name: "log", Reason: trouble, Degraded: true}
	if err := l.region.CheckReady(); err != nil {
		caughtUp.Reason = err.Error() + ": " + trouble
	}
	region := observe.Check{Name: "region", Reason: l.region.StateReason(), Degraded: l.region.State() != statemachine.RegionFenced}
	space := observe.Check{Name: "space", Degraded: true}
	if slices.Contains(l.region.Machine().Alarms(), statemachine.AlarmNoSpace) {
		space.Reason = "the quota of the key space is used up: writes that take up room are refused"
	}
	return []observe.Check{mirror, caughtUp, log, region, space}
}

// NotReady says why clients should go elsewhere; empty while this frontend serves.
func (s *Server) NotReady() (reasons []string) {
	for _, check := range s.Checks() {
		if check.Reason != "" && !check.Degraded {
			reasons = append(reasons, check.Reason)
		}
	}
	return reasons
}

// EtcdVersion is the version of etcd's API that is served.
func (s *Server) EtcdVersion() string { return etcd.Version() }

// EtcdUnhealthy says, in etcd's words, why its /health would tell that a member is not healthy; empty where it is. A member of
// etcd is healthy while it has a leader and answers a linearizable read; serializable asks for what it answers by itself,
// which a frontend does without the log too. Alarms in excluded do not count.
func (s *Server) EtcdUnhealthy(ctx context.Context, serializable bool, excluded []string) string {
	if reasons := s.NotReady(); len(reasons) > 0 {
		return "RANGE ERROR:" + strings.Join(reasons, "; ")
	}
	l := s.present()
	for _, alarm := range l.region.Machine().Alarms() {
		if name := etcd.AlarmName(alarm); !slices.Contains(excluded, name) {
			return "ALARM " + name
		}
	}
	if serializable {
		return ""
	}
	if !l.logReachable() {
		return "RAFT NO LEADER"
	}
	view, err := l.region.Read(ctx, serving.Consistency{Linearizable: true})
	if err != nil {
		return "QGET ERROR:" + err.Error()
	}
	view.Release()
	return ""
}

// nameServices makes the health service answer for each service by its name.
func (s *Server) nameServices(server *grpc.Server) {
	s.mu.Lock()
	s.services = slices.Sorted(maps.Keys(server.GetServiceInfo()))
	s.mu.Unlock()
	s.setServing(false)
}

// setServing tells the health service whether clients should come. A frontend that has lost the log serves: what it can
// answer is for each call to say.
func (s *Server) setServing(serving bool) {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health.SetServingStatus("", status)
	for _, name := range s.services {
		s.health.SetServingStatus(name, status)
	}
}
