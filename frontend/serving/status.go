package serving

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// ReasonDomain is the domain of the google.rpc.ErrorInfo details that frontends attach.
const ReasonDomain = "logmirror"

// Reasons say what became of a write that failed.
const (
	// ReasonNotApplied: it was not applied and never will be. It may be sent again.
	ReasonNotApplied = "NOT_APPLIED"
	// ReasonOutcomeUnknown: nobody knows. Sending it again is safe only with a request id, or where it is idempotent.
	ReasonOutcomeUnknown = "OUTCOME_UNKNOWN"
	// ReasonApplied: it was applied and is durable; what failed is only the wait for other regions.
	ReasonApplied = "APPLIED"
)

// retryAfter is the hint for a caller that was turned away because of load.
const retryAfter = 100 * time.Millisecond

// WithReason adds an ErrorInfo for a reason that is not empty, and further details, to a status error.
func WithReason(err error, reason string, details ...protoadapt.MessageV1) error {
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: ReasonDomain})
	}
	detailed, detailErr := status.Convert(err).WithDetails(details...)
	if detailErr != nil {
		return err // not reached: these details can always be packed
	}
	return detailed.Err()
}

// Outcome says what became of a write that failed with err: one of the reasons, or "" where err says nothing of it.
func Outcome(err error) string {
	incomplete := (*SyncIncompleteError)(nil)
	switch {
	case errors.As(err, &incomplete):
		return ReasonApplied
	case errors.Is(err, mirror.ErrUnknown), errors.Is(err, statemachine.ErrRequestIDTooOld):
		return ReasonOutcomeUnknown
	case errors.Is(err, mirror.ErrNotApplied):
		return ReasonNotApplied
	default:
		return ""
	}
}

// rows are the errors that mean the same on both APIs. An error that matches several has the meaning of the first.
var rows = []struct {
	err  error
	code codes.Code
}{
	{ErrNotReady, codes.Unavailable},
	{ErrStopping, codes.Unavailable},
	{mirror.ErrOverloaded, codes.ResourceExhausted},
	{mirror.ErrTooLarge, codes.InvalidArgument},
	// Before the ends of contexts: the mirror's own attempts end by those, too.
	{mirror.ErrStopped, codes.Unavailable},
	{mirror.ErrUnavailable, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{mirror.ErrNotApplied, codes.Unavailable},
	{ErrOtherLog, codes.FailedPrecondition},
	{statemachine.ErrRequestIDMalformed, codes.InvalidArgument},
	{statemachine.ErrRequestIDFuture, codes.InvalidArgument},
	{statemachine.ErrRequestIDMismatch, codes.InvalidArgument},
	{statemachine.ErrRequestIDTooOld, codes.FailedPrecondition},
	{statemachine.ErrRegionFenced, codes.Unavailable},
	{statemachine.ErrInvalidCommand, codes.InvalidArgument},
	{statemachine.ErrInvalidSettings, codes.InvalidArgument},
}

// Status turns an error of Read or Write, or of waiting for the mirror, into a status error whose text begins with prefix
// and which tells the outcome of a write. UNKNOWN is the code of an outcome that nobody knows, rather than UNAVAILABLE: no
// client and no proxy repeats a request by itself on UNKNOWN. An error that is a status already stays as it is.
func Status(err error, prefix string) error {
	converted := status.Error(code(err), prefix+err.Error())
	if _, isStatus := status.FromError(err); isStatus {
		converted = err
	}
	return WithOutcome(converted, err)
}

// WithOutcome adds to a status what err tells of the outcome of a write, and of when and where to go on.
func WithOutcome(converted, err error) error {
	var details []protoadapt.MessageV1
	if errors.Is(err, mirror.ErrOverloaded) {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		details = append(details, refused.detail())
	}
	if incomplete := (*SyncIncompleteError)(nil); errors.As(err, &incomplete) {
		details = append(details, incomplete.detail())
	}
	if reason := Outcome(err); reason != "" || details != nil {
		return WithReason(converted, reason, details...)
	}
	return converted
}

func code(err error) codes.Code {
	if errors.Is(err, mirror.ErrUnknown) {
		return unknownCode(err)
	}
	var (
		stale      *StaleError
		behind     *BehindError
		incomplete *SyncIncompleteError
		absent     *NoFrontendError
	)
	switch {
	case errors.As(err, &incomplete):
		return incomplete.code()
	case errors.As(err, &absent):
		return codes.FailedPrecondition
	case errors.As(err, &stale):
		return codes.Unavailable
	case errors.As(err, &behind):
		return codes.OutOfRange
	}
	for _, row := range rows {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return codes.Unknown
}

// unknownCode says why nobody knows: the end of the caller's own time, or something else.
func unknownCode(err error) codes.Code {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	default:
		return codes.Unknown
	}
}
