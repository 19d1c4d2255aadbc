package frontend

import (
	"context"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/internal/version"
)

type clusterServer struct {
	kvv1.UnimplementedClusterServiceServer
	life *life
}

// Status answers also while this frontend is not ready: it is how one finds out why.
func (c *clusterServer) Status(ctx context.Context, _ *kvv1.StatusRequest) (*kvv1.StatusResponse, error) {
	s := c.life
	machine, identity := s.region.Machine(), s.region.Identity()
	stats := machine.Space().Stats()
	response := &kvv1.StatusResponse{
		Header:          header(s.region.Facts()),
		Version:         version.String(),
		Degraded:        s.degraded(),
		Log:             s.logStatus(ctx),
		Keys:            int64(stats.Keys),
		Leases:          int64(machine.LeaseCount()),
		Watchers:        int64(s.hub.Stats().Watches),
		SizeBytes:       machine.SizeBytes(),
		QuotaBytes:      machine.Settings().QuotaBytes,
		CompactRevision: stats.CompactRevision,
	}
	sessions := machine.Sessions()
	serving.SortSessions(sessions)
	for _, session := range sessions {
		frontend := serving.FrontendStatus(session)
		frontend.Self = session.FrontendID == identity.FrontendID
		response.Frontends = append(response.Frontends, frontend)
	}
	for _, alarm := range machine.Alarms() {
		response.Alarms = append(response.Alarms, alarm.String())
	}
	return response, nil
}
