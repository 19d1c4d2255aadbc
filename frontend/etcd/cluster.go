package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// clusterServer tells of frontends as etcd tells of members. The members of the log are not among them: no etcd client
// has business with those.
type clusterServer struct {
	pb.UnimplementedClusterServer
	*services
}

// MemberList lists every frontend with an open session. Those of other regions are listed without client URLs.
func (s *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	view, err := s.read(ctx, !r.GetLinearizable())
	if err != nil {
		return nil, err
	}
	defer view.Release()
	response := &pb.MemberListResponse{Header: s.tell(ctx, view.Facts())}
	region := s.region.Identity().Region
	for _, session := range s.region.Machine().Sessions() {
		member := &pb.Member{ID: session.FrontendID, Name: session.Name}
		if session.Region == region {
			member.ClientURLs = session.ClientURLs
		}
		response.Members = append(response.Members, member)
	}
	return response, nil
}

const membershipInstead = "frontends join by starting; the log's members are those it was started with"

func (s *clusterServer) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, unimplemented("MemberAdd", membershipInstead)
}

func (s *clusterServer) MemberRemove(context.Context, *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, unimplemented("MemberRemove", membershipInstead)
}

func (s *clusterServer) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, unimplemented("MemberUpdate", membershipInstead)
}

func (s *clusterServer) MemberPromote(context.Context, *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, unimplemented("MemberPromote", membershipInstead)
}
