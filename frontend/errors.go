package frontend

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/watch"
)

// table gives the errors of the parts below their codes on the native API. It is walked with errors.Is, so wrapped errors
// are found; an error that matches several rows has the code of the first. What both APIs say alike is in serving.
var table = []struct {
	err  error
	code codes.Code
}{
	{statemachine.ErrCompacted, codes.OutOfRange},
	{statemachine.ErrFutureRevision, codes.OutOfRange},
	{statemachine.ErrKeyNotFound, codes.NotFound},
	{statemachine.ErrLeaseNotFound, codes.NotFound},
	{keeper.ErrLeaseNotFound, codes.NotFound},
	{statemachine.ErrLeaseExists, codes.AlreadyExists},
	{statemachine.ErrNoSpace, codes.ResourceExhausted},
	{statemachine.ErrNotInteger, codes.FailedPrecondition},
	{statemachine.ErrNotSet, codes.FailedPrecondition},
	{statemachine.ErrIntegerRange, codes.OutOfRange},
	{statemachine.ErrValueTooLarge, codes.OutOfRange},
	{keeper.ErrUnavailable, codes.Unavailable},
	{watch.ErrClosed, codes.Unavailable},
	{watch.ErrOverloaded, codes.ResourceExhausted},
}

// reasonOverLimit tells a bound that a mutation names itself from what else may be in its way.
const reasonOverLimit = "LIMIT_EXCEEDED"

// failure turns an error of the parts below into a status.
func failure(err error) error {
	var refused *statemachine.InvalidError
	switch {
	case errors.Is(err, mirror.ErrUnknown): // whatever else it wraps
		return serving.Status(err, "")
	case errors.As(err, &refused):
		return refusedField(refused)
	case errors.Is(err, statemachine.ErrOverLimit):
		return serving.WithReason(status.Error(codes.FailedPrecondition, err.Error()), reasonOverLimit)
	}
	for _, row := range table {
		if errors.Is(err, row.err) {
			return status.Error(row.code, err.Error())
		}
	}
	return serving.Status(err, "")
}

// refusedField says which field was refused, and by which limit.
func refusedField(refused *statemachine.InvalidError) error {
	s := status.New(codes.InvalidArgument, refused.Error())
	detailed, err := s.WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: refused.Field, Description: refused.Error()},
	}})
	if err != nil {
		return s.Err() // not reached: the detail can always be packed
	}
	return detailed.Err()
}
