package frontend

import (
	"context"
	"errors"
	"math"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/statemachine"
)

// leases is the keeper in whole seconds, as both APIs tell them. A lease's time is rounded down: a client must not rely
// on more than there is.
type leases struct{ keeper *keeper.Keeper }

// BeginRenewal is the keeper's.
func (l leases) BeginRenewal(id int64) (int64, func(context.Context) (int64, error)) {
	return l.keeper.BeginRenewal(id)
}

// TimeToLive returns the whole seconds left and granted, asking the lease's owner where that is another frontend.
func (l leases) TimeToLive(ctx context.Context, id int64) (remaining, granted int64, err error) {
	left, ttl, err := l.keeper.TimeToLive(ctx, id)
	return wholeSeconds(left), wholeSeconds(ttl), err
}

func wholeSeconds(d time.Duration) int64 { return int64(max(d, 0) / time.Second) }

type leaseServer struct {
	kvv1.UnimplementedLeaseServiceServer
	region *serving.Region
	leases leases
}

func (s *leaseServer) Grant(ctx context.Context, r *kvv1.GrantRequest) (*kvv1.GrantResponse, error) {
	if r.GetTtlSeconds() <= 0 {
		return nil, invalid("ttl_seconds", "must be above zero")
	}
	id := r.GetId()
	if id == 0 {
		id = serving.DrawLeaseID()
	}
	result, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_LeaseGrant{
		LeaseGrant: &commandv1.LeaseGrant{Id: id, TtlSeconds: r.GetTtlSeconds()},
	}})
	if err != nil {
		return nil, err
	}
	return &kvv1.GrantResponse{Header: h, Id: result.LeaseID, TtlSeconds: result.LeaseTTLSeconds}, nil
}

func (s *leaseServer) Revoke(ctx context.Context, r *kvv1.RevokeRequest) (*kvv1.RevokeResponse, error) {
	_, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_LeaseRevoke{
		LeaseRevoke: &commandv1.LeaseRevoke{Id: r.GetId()},
	}})
	if err != nil {
		return nil, err
	}
	return &kvv1.RevokeResponse{Header: h}, nil
}

// KeepAlive ends with UNAVAILABLE where this frontend cannot vouch for a renewal.
func (s *leaseServer) KeepAlive(stream kvv1.LeaseService_KeepAliveServer) error {
	err := s.region.KeepAlive(s.leases, renewalStream{stream})
	if _, ofStream := status.FromError(err); ofStream { // or nil
		return err
	}
	return failure(err)
}

// renewalStream is the native stream in no API's terms.
type renewalStream struct {
	kvv1.LeaseService_KeepAliveServer
}

// Receive returns the next lease to renew.
func (s renewalStream) Receive() (int64, error) {
	request, err := s.Recv()
	return request.GetId(), err
}

// Send answers one renewal.
func (s renewalStream) Send(f serving.Facts, id, ttlSeconds int64) error {
	return s.LeaseService_KeepAliveServer.Send(&kvv1.KeepAliveResponse{Header: header(f), Id: id, TtlSeconds: ttlSeconds})
}

// ownedKey marks a TimeToLive that one frontend asks another: it is answered only by the lease's owner, and goes no
// further.
const ownedKey = "logmirror-owned-only"

func ownedOnly(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(ownedKey)) > 0
}

func (s *leaseServer) TimeToLive(ctx context.Context, r *kvv1.TimeToLiveRequest) (*kvv1.TimeToLiveResponse, error) {
	if ownedOnly(ctx) {
		return s.ownedTimeToLive(r)
	}
	view, err := s.region.Read(ctx, serving.Consistency{Linearizable: true})
	if err != nil {
		return nil, failure(err)
	}
	facts := view.Facts()
	view.Release()
	response := &kvv1.TimeToLiveResponse{Header: header(facts), Id: r.GetId()}
	remaining, granted, err := s.leases.TimeToLive(ctx, r.GetId())
	switch {
	case errors.Is(err, keeper.ErrLeaseNotFound):
		response.TtlSeconds = -1
		return response, nil
	case err != nil:
		return nil, failure(err)
	}
	response.TtlSeconds, response.GrantedTtlSeconds = remaining, granted
	if r.GetKeys() {
		response.Keys = s.region.Machine().LeaseKeys(r.GetId())
	}
	return response, nil
}

// ownedTimeToLive answers another frontend from this one's own clock.
func (s *leaseServer) ownedTimeToLive(r *kvv1.TimeToLiveRequest) (*kvv1.TimeToLiveResponse, error) {
	remaining, granted, err := s.leases.keeper.Owned(r.GetId())
	if errors.Is(err, keeper.ErrNotOwner) {
		err = keeper.ErrUnavailable
	}
	if err != nil {
		return nil, failure(err)
	}
	return &kvv1.TimeToLiveResponse{
		Header:            header(s.region.Facts()),
		Id:                r.GetId(),
		TtlSeconds:        wholeSeconds(remaining),
		GrantedTtlSeconds: wholeSeconds(granted),
	}, nil
}

func (s *leaseServer) ListLeases(ctx context.Context, r *kvv1.ListLeasesRequest) (*kvv1.ListLeasesResponse, error) {
	size, err := pageSize(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	first := int64(math.MinInt64)
	if r.GetPageToken() != "" {
		if first, err = parseLeasePageToken(r.GetPageToken()); err != nil {
			return nil, invalid("page_token", "%v", err)
		}
	}
	view, err := s.region.Read(ctx, serving.Consistency{Linearizable: true})
	if err != nil {
		return nil, failure(err)
	}
	defer view.Release()
	machine := s.region.Machine()
	page := machine.LeasesFrom(first, size+1) // one more tells whether there is another page
	return listedLeases(header(view.Facts()), page, size, machine.Sessions()), nil
}

// listedLeases is a page of at most size leases, and of not much more than pageBytes.
func listedLeases(h *kvv1.ResponseHeader, found []lease.Info, size int, sessions []statemachine.SessionInfo) *kvv1.ListLeasesResponse {
	owners := make(map[uint64]statemachine.SessionInfo, len(sessions))
	for _, session := range sessions {
		owners[session.ID] = session
	}
	response, bytes := &kvv1.ListLeasesResponse{Header: h}, 0
	for _, l := range found {
		if len(response.Leases) == size || bytes >= pageBytes {
			response.NextPageToken = leasePageToken(l.ID)
			break
		}
		status := &kvv1.LeaseStatus{Id: l.ID, GrantedTtlSeconds: l.TTLSeconds, Keys: int64(l.Keys)}
		if owner, known := owners[l.Owner]; known && !l.Orphaned {
			status.Owner, status.OwnerRegion = owner.Name, owner.Region
		}
		response.Leases = append(response.Leases, status)
		bytes += proto.Size(status)
	}
	return response
}
