package etcd

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/lease/keeper"
)

type leaseServer struct {
	pb.UnimplementedLeaseServer
	*services
}

func (s *leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	id := r.GetID()
	if id == 0 {
		id = serving.DrawLeaseID()
	}
	result, err := s.write(ctx, &commandv1.Command{Operation: &commandv1.Command_LeaseGrant{
		LeaseGrant: &commandv1.LeaseGrant{Id: id, TtlSeconds: r.GetTTL()},
	}})
	if err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{
		Header: tell(ctx, s.region.FactsAt(result.Index, result.Revision)),
		ID:     result.LeaseID,
		TTL:    result.LeaseTTLSeconds,
	}, nil
}

func (s *leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	result, err := s.write(ctx, &commandv1.Command{Operation: &commandv1.Command_LeaseRevoke{
		LeaseRevoke: &commandv1.LeaseRevoke{Id: r.GetID()},
	}})
	if err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: tell(ctx, s.region.FactsAt(result.Index, result.Revision))}, nil
}

// LeaseKeepAlive answers each renewal in order. It ends with UNAVAILABLE where this frontend cannot vouch for one; a TTL
// of zero is said only of a lease that does not exist.
func (s *leaseServer) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	if err := s.region.CheckReady(); err != nil {
		return failure(err)
	}
	err := s.region.Serve(func() error { return s.keepAlive(stream) })
	if errors.Is(err, serving.ErrStopping) {
		return failure(err)
	}
	return err
}

func (s *leaseServer) keepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ctx := stream.Context()
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// The header is made first: a client must not see a renewal at a revision at which the lease was gone already.
		h := header(s.region.Facts())
		ttl, err := s.leases.Renew(ctx, request.GetID())
		if errors.Is(err, keeper.ErrLeaseNotFound) {
			ttl, err = 0, nil
		}
		if err != nil {
			return failure(err)
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{Header: h, ID: request.GetID(), TTL: ttl}); err != nil {
			return err
		}
	}
}

func (s *leaseServer) LeaseTimeToLive(
	ctx context.Context, r *pb.LeaseTimeToLiveRequest,
) (*pb.LeaseTimeToLiveResponse, error) {
	// As in etcd, where the leader answers it: what was acknowledged before is seen.
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	facts := view.Facts()
	view.Release()
	response := &pb.LeaseTimeToLiveResponse{ID: r.GetID()}
	remaining, granted, err := s.leases.TimeToLive(ctx, r.GetID())
	switch {
	case errors.Is(err, keeper.ErrLeaseNotFound):
		response.TTL = -1
	case err != nil:
		return nil, failure(err)
	default:
		response.TTL, response.GrantedTTL = remaining, granted
		if r.GetKeys() {
			response.Keys = s.region.Machine().LeaseKeys(r.GetID())
		}
	}
	response.Header = tell(ctx, facts)
	return response, nil
}

func (s *leaseServer) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	defer view.Release()
	leases := s.region.Machine().Leases()
	response := &pb.LeaseLeasesResponse{
		Header: tell(ctx, view.Facts()),
		Leases: make([]*pb.LeaseStatus, len(leases)),
	}
	for i, l := range leases {
		response.Leases[i] = &pb.LeaseStatus{ID: l.ID}
	}
	return response, nil
}
