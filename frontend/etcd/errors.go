package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/watch"
)

// textPrefix begins the text of errors that etcd has no word for.
const textPrefix = "logmirror: "

// table says the errors of the parts below in etcd's words. It is walked with errors.Is, so wrapped errors are found; an
// error that matches several rows has the meaning of the first. What etcd has no word for is in serving.
var table = []struct{ err, status error }{
	{statemachine.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{statemachine.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{statemachine.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{statemachine.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{statemachine.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{statemachine.ErrLeaseTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},
	{statemachine.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{statemachine.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
	{statemachine.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
	{statemachine.ErrTooManyOperations, rpctypes.ErrGRPCTooManyOps},
	{statemachine.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{statemachine.ErrValueProvided, rpctypes.ErrGRPCValueProvided},
	{statemachine.ErrLeaseProvided, rpctypes.ErrGRPCLeaseProvided},
	{statemachine.ErrInvalidSortOption, rpctypes.ErrGRPCInvalidSortOption},
	{keeper.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{keeper.ErrUnavailable, status.Error(codes.Unavailable, textPrefix+keeper.ErrUnavailable.Error())},
	{watch.ErrClosed, rpctypes.ErrGRPCStopped},
	{serving.ErrStopping, rpctypes.ErrGRPCStopped},
	{mirror.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{mirror.ErrOverloaded, rpctypes.ErrGRPCRequestTooManyRequests},
	// Before the ends of contexts: the mirror's own attempts end by those, too.
	{mirror.ErrStopped, rpctypes.ErrGRPCStopped},
	{mirror.ErrUnavailable, rpctypes.ErrGRPCNoLeader},
	{context.DeadlineExceeded, status.FromContextError(context.DeadlineExceeded).Err()},
	{context.Canceled, status.FromContextError(context.Canceled).Err()},
	{mirror.ErrNotApplied, rpctypes.ErrGRPCNoLeader},
}

// failure turns an error of the parts below into a status, with what became of a write as a detail.
func failure(err error) error {
	var refused *serving.RefusedError
	if errors.Is(err, mirror.ErrUnknown) || errors.Is(err, serving.ErrNotReady) || errors.As(err, &refused) {
		// Whatever its reason, the first must not read as a write that can be repeated; the others are said as they are.
		return serving.Status(err, textPrefix)
	}
	for _, row := range table {
		if errors.Is(err, row.err) {
			if serving.Outcome(err) != "" {
				return serving.WithOutcome(row.status, err)
			}
			return row.status
		}
	}
	return serving.Status(err, textPrefix)
}
