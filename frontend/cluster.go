package frontend

import (
	"context"
	"slices"
	"strings"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/internal/version"
)

type clusterServer struct {
	kvv1.UnimplementedClusterServiceServer
	server *Server
}

// Status answers also while this frontend is not ready: it is how one finds out why.
func (c *clusterServer) Status(ctx context.Context, _ *kvv1.StatusRequest) (*kvv1.StatusResponse, error) {
	s := c.server
	machine, identity := s.region.Machine(), s.region.Identity()
	stats := machine.Space().Stats()
	response := &kvv1.StatusResponse{
		Header:          header(s.region.Facts()),
		Version:         version.String(),
		Degraded:        s.Degraded(),
		Log:             s.logStatus(ctx),
		Keys:            int64(stats.Keys),
		Leases:          int64(machine.LeaseCount()),
		Watchers:        int64(s.hub.Stats().Watches),
		SizeBytes:       machine.SizeBytes(),
		QuotaBytes:      machine.Settings().QuotaBytes,
		CompactRevision: stats.CompactRevision,
	}
	for _, session := range machine.Sessions() {
		response.Frontends = append(response.Frontends, &kvv1.FrontendStatus{
			Name:        session.Name,
			Region:      session.Region,
			Incarnation: session.Incarnation,
			ClientUrls:  session.ClientURLs,
			Session:     session.ID,
			Self:        session.FrontendID == identity.FrontendID,
		})
	}
	slices.SortFunc(response.Frontends, func(a, b *kvv1.FrontendStatus) int {
		return strings.Compare(a.GetRegion()+"\x00"+a.GetName(), b.GetRegion()+"\x00"+b.GetName())
	})
	for _, alarm := range machine.Alarms() {
		response.Alarms = append(response.Alarms, alarm.String())
	}
	return response, nil
}
