package logservice

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// AddMember implements LogService.
func (s *service) AddMember(ctx context.Context, r *logv1.AddMemberRequest) (*logv1.AddMemberResponse, error) {
	member := &logv1.Member{Id: newMemberID(), Name: r.GetName(), Address: r.GetAddress(), Region: r.GetRegion()}
	membership, err := s.server.changeMembership(ctx, logv1.MembershipChange_KIND_ADD, member)
	if err != nil {
		return nil, err
	}
	for _, m := range membership.Members {
		if m.Id == member.Id {
			member = m
		}
	}
	return &logv1.AddMemberResponse{Member: member, Membership: membership}, nil
}

// PromoteMember implements LogService.
func (s *service) PromoteMember(ctx context.Context, r *logv1.PromoteMemberRequest) (*logv1.PromoteMemberResponse, error) {
	membership, err := s.server.changeMembership(ctx, logv1.MembershipChange_KIND_PROMOTE, &logv1.Member{Id: r.GetMemberId()})
	if err != nil {
		return nil, err
	}
	return &logv1.PromoteMemberResponse{Membership: membership}, nil
}

// RemoveMember implements LogService.
func (s *service) RemoveMember(ctx context.Context, r *logv1.RemoveMemberRequest) (*logv1.RemoveMemberResponse, error) {
	membership, err := s.server.changeMembership(ctx, logv1.MembershipChange_KIND_REMOVE, &logv1.Member{Id: r.GetMemberId()})
	if err != nil {
		return nil, err
	}
	return &logv1.RemoveMemberResponse{Membership: membership}, nil
}

// GetMembership implements LogService.
func (s *service) GetMembership(ctx context.Context, _ *logv1.GetMembershipRequest) (*logv1.GetMembershipResponse, error) {
	answers := make(chan *logv1.GetMembershipResponse, 1)
	s.server.query(ctx, func(m *Member) { answers <- m.joining() })
	select {
	case answer := <-answers:
		if answer == nil {
			return nil, status.Error(codes.Unavailable, "the log has no name yet, or its membership is just being changed")
		}
		answer.Handshake = s.server.handshake()
		answer.InitialMembershipHash = s.server.directory.record.ClusterHash
		answer.Publication = s.server.config.Publication.String()
		return answer, nil
	default:
		return nil, status.Error(codes.Unavailable, "this member can't answer now")
	}
}

// newMemberID draws a raft id. The chance that it was drawn before is that of any two of 63 bits.
func newMemberID() uint64 { return random64()>>1 | 1 }

// changeMembership asks for a change and waits until this member has applied it.
func (s *Server) changeMembership(ctx context.Context, kind logv1.MembershipChange_Kind, member *logv1.Member) (*logv1.Membership, error) {
	result, err := ask(ctx, s, &s.answers.changes, func(token uint64) Event {
		return ChangeMembership{Token: token, Change: &logv1.MembershipChange{Kind: kind, Member: member}}
	})
	if err != nil {
		return nil, callerError(err, s)
	}
	switch refusal := result.Refusal; {
	case result.TimedOut:
		return nil, status.Error(codes.DeadlineExceeded,
			"no leader made the change in time; whether it will be made is not known: look at the members again")
	case refusal.GetReason() == logv1.ChangeRefusal_REASON_INVALID:
		return nil, status.Error(codes.InvalidArgument, refusal.GetMessage())
	case refusal.GetReason() == logv1.ChangeRefusal_REASON_TAKEN:
		return nil, status.Error(codes.AlreadyExists, refusal.GetMessage())
	case refusal.GetReason() == logv1.ChangeRefusal_REASON_NO_MEMBER:
		return nil, status.Error(codes.NotFound, refusal.GetMessage())
	case refusal != nil:
		return nil, status.Error(codes.FailedPrecondition, refusal.GetMessage())
	}
	return result.Membership, nil
}
