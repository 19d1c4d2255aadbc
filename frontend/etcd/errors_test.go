package etcd

import (
	"context"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

func TestErrorsAreSaidInEtcdsWords(t *testing.T) {
	const unknown = "logmirror: "
	for _, test := range []struct {
		err    error
		want   error // in etcd's words; nil for an unknown outcome of the code
		code   codes.Code
		reason string
	}{
		{fmt.Errorf("at entry 5: %w", statemachine.ErrCompacted), rpctypes.ErrGRPCCompacted, 0, ""},
		{&statemachine.InvalidError{Field: "put.key", Err: statemachine.ErrEmptyKey}, rpctypes.ErrGRPCEmptyKey, 0, ""},
		{&statemachine.InvalidError{Err: statemachine.ErrTooLarge}, rpctypes.ErrGRPCRequestTooLarge, 0, ""},
		{statemachine.ErrNoSpace, rpctypes.ErrGRPCNoSpace, 0, ""},
		{keeper.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound, 0, ""},
		{fmt.Errorf("%w: %w", mirror.ErrNotApplied, mirror.ErrUnavailable), rpctypes.ErrGRPCNoLeader, 0,
			serving.ReasonNotApplied},
		{fmt.Errorf("%w: %w", mirror.ErrNotApplied, mirror.ErrOverloaded), rpctypes.ErrGRPCRequestTooManyRequests, 0,
			serving.ReasonNotApplied},
		{fmt.Errorf("%w: %w", mirror.ErrNotApplied, mirror.ErrStopped), rpctypes.ErrGRPCStopped, 0, serving.ReasonNotApplied},
		{mirror.ErrUnavailable, rpctypes.ErrGRPCNoLeader, 0, ""},
		{mirror.ErrUnknown, nil, codes.Unknown, serving.ReasonOutcomeUnknown},
		{fmt.Errorf("%w: %w", mirror.ErrUnknown, mirror.ErrUnavailable), nil, codes.Unknown, serving.ReasonOutcomeUnknown},
		{fmt.Errorf("%w: %w", mirror.ErrUnknown, context.DeadlineExceeded), nil, codes.DeadlineExceeded,
			serving.ReasonOutcomeUnknown},
	} {
		got := status.Convert(failure(test.err))
		reason := ""
		for _, detail := range got.Details() {
			if info, ok := detail.(*errdetails.ErrorInfo); ok {
				reason = info.GetReason()
			}
		}
		if reason != test.reason {
			t.Errorf("%v: reason %q, want %q", test.err, reason, test.reason)
		}
		if test.want == nil {
			if got.Code() != test.code || got.Message()[:len(unknown)] != unknown {
				t.Errorf("%v: %v", test.err, got)
			}
			continue
		}
		// Clients recognise etcd's errors by code and text.
		if want := status.Convert(test.want); got.Code() != want.Code() || got.Message() != want.Message() {
			t.Errorf("%v: %v, want %v", test.err, got, want)
		}
	}
}
