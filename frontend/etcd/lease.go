package etcd

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

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
		Header: s.tell(ctx, s.region.FactsAt(result.Index, result.Revision)),
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
	return &pb.LeaseRevokeResponse{Header: s.tell(ctx, s.region.FactsAt(result.Index, result.Revision))}, nil
}

// LeaseKeepAlive ends with UNAVAILABLE where this frontend cannot vouch for a renewal; a TTL of zero is said only of a
// lease that does not exist.
func (s *leaseServer) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	// An error here is one of the stream, which the first read or write will return too.
	_ = stream.SetHeader(s.metadataOf(s.region.Facts()))
	err := s.region.KeepAlive(s.leases, renewalStream{stream})
	if _, ofStream := status.FromError(err); ofStream { // or nil
		return err
	}
	return failure(err)
}

// renewalStream is etcd's stream in no API's terms.
type renewalStream struct{ pb.Lease_LeaseKeepAliveServer }

// Receive returns the next lease to renew.
func (s renewalStream) Receive() (int64, error) {
	request, err := s.Recv()
	return request.GetID(), err
}

// Send answers one renewal.
func (s renewalStream) Send(f serving.Facts, id, ttlSeconds int64) error {
	return s.Lease_LeaseKeepAliveServer.Send(&pb.LeaseKeepAliveResponse{Header: header(f), ID: id, TTL: ttlSeconds})
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
	response.Header = s.tell(ctx, facts)
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
		Header: s.tell(ctx, view.Facts()),
		Leases: make([]*pb.LeaseStatus, len(leases)),
	}
	for i, l := range leases {
		response.Leases[i] = &pb.LeaseStatus{ID: l.ID}
	}
	return response, nil
}
