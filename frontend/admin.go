package frontend

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/statemachine"
)

// adminServer takes the commands of operators. A drained region's frontend takes them, too.
type adminServer struct {
	kvv1.UnimplementedAdminServiceServer
	region *serving.Region
	// saving: a snapshot is sent.
	saving atomic.Bool
}

var regionStates = map[kvv1.RegionState]commandv1.SetRegionState_State{
	kvv1.RegionState_REGION_STATE_OPEN:    commandv1.SetRegionState_STATE_OPEN,
	kvv1.RegionState_REGION_STATE_DRAINED: commandv1.SetRegionState_STATE_DRAINED,
	kvv1.RegionState_REGION_STATE_FENCED:  commandv1.SetRegionState_STATE_FENCED,
}

func (s *adminServer) SetRegionState(
	ctx context.Context, r *kvv1.SetRegionStateRequest,
) (*kvv1.SetRegionStateResponse, error) {
	state, ok := regionStates[r.GetState()]
	switch {
	case r.GetRegion() == "":
		return nil, invalid("region", "must not be empty")
	case !ok:
		return nil, invalid("state", "must be open, drained or fenced")
	case state == commandv1.SetRegionState_STATE_FENCED && r.GetRegion() == s.region.Identity().Region:
		// Who fences another region has a session when the fence is applied: two regions that fence each other end with
		// one of them open. Fencing itself, the last open region would leave nobody who can open one.
		return nil, status.Errorf(codes.FailedPrecondition,
			"region %s cannot be fenced through its own frontend: ask a frontend of another region", r.GetRegion())
	}
	_, known := s.regions()[r.GetRegion()]
	result, err := write(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_SetRegionState{
		SetRegionState: &commandv1.SetRegionState{Region: r.GetRegion(), State: state},
	}})
	if err != nil {
		return nil, failure(err)
	}
	after := s.regions()[r.GetRegion()]
	if after == nil { // open, and nobody there
		after = &kvv1.Region{Name: r.GetRegion(), State: kvv1.RegionState_REGION_STATE_OPEN}
	}
	return &kvv1.SetRegionStateResponse{
		Header: header(s.region.FactsAt(result.Index, result.Revision)), Region: after, Known: known,
	}, nil
}

// regions returns every region that has a frontend in session or is not open, by name.
func (s *adminServer) regions() map[string]*kvv1.Region {
	machine := s.region.Machine()
	self := s.region.Identity().FrontendID
	regions := make(map[string]*kvv1.Region)
	named := func(name string) *kvv1.Region {
		region, ok := regions[name]
		if !ok {
			region = &kvv1.Region{Name: name, State: kvv1.RegionState_REGION_STATE_OPEN}
			regions[name] = region
		}
		return region
	}
	sessions := machine.Sessions()
	serving.SortSessions(sessions)
	for _, session := range sessions {
		frontend := serving.FrontendStatus(session)
		frontend.Self = session.FrontendID == self
		region := named(session.Region)
		region.Frontends = append(region.Frontends, frontend)
	}
	for name, state := range machine.Regions() {
		named(name).State = serving.RegionStateOf(state)
	}
	return regions
}

func (s *adminServer) ListRegions(ctx context.Context, r *kvv1.ListRegionsRequest) (*kvv1.ListRegionsResponse, error) {
	facts, err := s.read(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	response := &kvv1.ListRegionsResponse{Header: header(facts)}
	for _, region := range s.regions() {
		response.Regions = append(response.Regions, region)
	}
	slices.SortFunc(response.Regions, func(a, b *kvv1.Region) int { return strings.Compare(a.GetName(), b.GetName()) })
	return response, nil
}

// read waits until this region's tables are as fresh as asked for. They are no part of a view: what is read from them
// afterwards may be newer than the facts.
func (s *adminServer) read(ctx context.Context, c *kvv1.Consistency) (serving.Facts, error) {
	asked, err := consistency(c)
	if err != nil {
		return serving.Facts{}, err
	}
	view, err := s.region.Read(ctx, asked)
	if err != nil {
		return serving.Facts{}, failure(err)
	}
	defer view.Release()
	return view.Facts(), nil
}

func (s *adminServer) GetSettings(ctx context.Context, r *kvv1.GetSettingsRequest) (*kvv1.GetSettingsResponse, error) {
	facts, err := s.read(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	return &kvv1.GetSettingsResponse{Header: header(facts), Settings: settings(s.region.Machine().Settings())}, nil
}

func (s *adminServer) ChangeSettings(
	ctx context.Context, r *kvv1.ChangeSettingsRequest,
) (*kvv1.ChangeSettingsResponse, error) {
	changes := r.GetChanges()
	if changes == nil {
		return nil, invalid("changes", "must name at least one setting")
	}
	result, err := write(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_ChangeSettings{
		ChangeSettings: &commandv1.ChangeSettings{
			SessionTimeMilliseconds:             changes.SessionTimeMilliseconds,
			QuotaBytes:                          changes.QuotaBytes,
			AutoCompactionRetentionMilliseconds: changes.AutoCompactionRetentionMilliseconds,
			AutoCompactionRevisions:             changes.AutoCompactionRevisions,
			LeaseMinimumTtlSeconds:              changes.LeaseMinimumTtlSeconds,
			RequestIdsMax:                       changes.RequestIdsMax,
			RequestIdAgeMilliseconds:            changes.RequestIdAgeMilliseconds,
		},
	}})
	if err != nil {
		return nil, failure(err)
	}
	return &kvv1.ChangeSettingsResponse{
		Header:   header(s.region.FactsAt(result.Index, result.Revision)),
		Settings: settings(s.region.Machine().Settings()),
	}, nil
}

func settings(s statemachine.Settings) *kvv1.Settings {
	number := func(n int64) *int64 { return &n }
	milliseconds := func(d time.Duration) *int64 { return number(d.Milliseconds()) }
	return &kvv1.Settings{
		SessionTimeMilliseconds:             milliseconds(s.SessionTime),
		QuotaBytes:                          number(s.QuotaBytes),
		AutoCompactionRetentionMilliseconds: milliseconds(s.AutoCompactionRetention),
		AutoCompactionRevisions:             number(s.AutoCompactionRevisions),
		LeaseMinimumTtlSeconds:              number(s.LeaseMinimumTTLSeconds),
		RequestIdsMax:                       number(s.RequestIDsMax),
		RequestIdAgeMilliseconds:            milliseconds(s.RequestIDAge),
	}
}
