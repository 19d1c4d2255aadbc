package logservice

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/tlsfiles"
)

// allowed are the roles that may call a method, where the listener asks for certificates. A method that is not named here is
// for everybody.
var allowed = map[string][]string{
	logv1.PeerService_Send_FullMethodName:            {tlsfiles.RoleMember},
	logv1.PeerService_FetchLog_FullMethodName:        {tlsfiles.RoleMember},
	logv1.PeerService_FetchCheckpoint_FullMethodName: {tlsfiles.RoleMember},

	logv1.LogService_Append_FullMethodName:             {tlsfiles.RoleFrontend},
	logv1.LogService_Tail_FullMethodName:               {tlsfiles.RoleFrontend},
	logv1.LogService_ReadRound_FullMethodName:          {tlsfiles.RoleFrontend},
	logv1.LogService_Report_FullMethodName:             {tlsfiles.RoleFrontend},
	logv1.LogService_UploadCheckpoint_FullMethodName:   {tlsfiles.RoleFrontend},
	logv1.LogService_DownloadCheckpoint_FullMethodName: {tlsfiles.RoleFrontend},

	logv1.LogService_Status_FullMethodName:        {tlsfiles.RoleMember, tlsfiles.RoleFrontend, tlsfiles.RoleOperator},
	logv1.LogService_GetMembership_FullMethodName: {tlsfiles.RoleMember, tlsfiles.RoleFrontend, tlsfiles.RoleOperator},

	logv1.LogService_TransferLeadership_FullMethodName: {tlsfiles.RoleOperator},
	logv1.LogService_AddMember_FullMethodName:          {tlsfiles.RoleOperator},
	logv1.LogService_PromoteMember_FullMethodName:      {tlsfiles.RoleOperator},
	logv1.LogService_RemoveMember_FullMethodName:       {tlsfiles.RoleOperator},
	logv1.LogService_RequestCheckpoint_FullMethodName:  {tlsfiles.RoleOperator},
}

// authorize refuses a caller whose certificate does not give it a role that the method is for. Without certificates the
// network decides who may call.
func authorize(ctx context.Context, method string) (caller tlsfiles.Identity, err error) {
	roles, named := allowed[method]
	caller, shown, err := tlsfiles.Caller(ctx)
	switch {
	case !shown || !named:
		return tlsfiles.Identity{}, nil
	case err != nil:
		return caller, status.Error(codes.PermissionDenied, err.Error())
	case !slices.Contains(roles, caller.Role):
		return caller, status.Errorf(codes.PermissionDenied, "%s is for %s, not for %s", method, rolesText(roles), caller)
	}
	return caller, nil
}

func rolesText(roles []string) string {
	text := ""
	for i, role := range roles {
		if i > 0 {
			text += " or "
		}
		text += role + "s"
	}
	return text
}

func authorizeUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if _, err := authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

func authorizeStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	caller, err := authorize(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if caller != (tlsfiles.Identity{}) {
		stream = &namedStream{ServerStream: stream, caller: caller}
	}
	return handle(server, stream)
}

// namedStream refuses a caller that says another name than its certificate does.
type namedStream struct {
	grpc.ServerStream
	caller tlsfiles.Identity
}

// RecvMsg implements grpc.ServerStream.
func (s *namedStream) RecvMsg(message any) error {
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	var said *logv1.Handshake
	switch m := message.(type) {
	case interface{ GetHandshake() *logv1.Handshake }:
		said = m.GetHandshake()
	case interface{ GetHandshake() *logv1.PeerHandshake }:
		said = m.GetHandshake().GetHandshake()
	}
	if said != nil && said.GetName() != s.caller.Name {
		return status.Errorf(codes.PermissionDenied, "the caller says that it is %q; its certificate is that of %s", said.GetName(), s.caller)
	}
	return nil
}
