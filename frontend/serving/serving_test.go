package serving

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

func TestWhatAFailureMeans(t *testing.T) {
	join := func(errs ...error) error {
		err := errs[0]
		for _, next := range errs[1:] {
			err = fmt.Errorf("%w: %w", err, next)
		}
		return err
	}
	for _, test := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{join(mirror.ErrNotApplied, mirror.ErrUnavailable), codes.Unavailable, ReasonNotApplied},
		{join(mirror.ErrNotApplied, mirror.ErrOverloaded), codes.ResourceExhausted, ReasonNotApplied},
		{join(mirror.ErrNotApplied, mirror.ErrStopped), codes.Unavailable, ReasonNotApplied},
		{join(mirror.ErrNotApplied, mirror.ErrTooLarge), codes.InvalidArgument, ReasonNotApplied},
		{join(mirror.ErrNotApplied, context.DeadlineExceeded), codes.DeadlineExceeded, ReasonNotApplied},
		{join(mirror.ErrNotApplied, context.Canceled), codes.Canceled, ReasonNotApplied},
		{join(mirror.ErrNotApplied, ErrNotReady), codes.Unavailable, ReasonNotApplied},
		{mirror.ErrUnknown, codes.Unknown, ReasonOutcomeUnknown},
		{join(mirror.ErrUnknown, mirror.ErrUnavailable), codes.Unknown, ReasonOutcomeUnknown},
		{join(mirror.ErrUnknown, mirror.ErrStopped), codes.Unknown, ReasonOutcomeUnknown},
		{join(mirror.ErrUnknown, context.DeadlineExceeded), codes.DeadlineExceeded, ReasonOutcomeUnknown},
		{join(mirror.ErrUnknown, context.Canceled), codes.Canceled, ReasonOutcomeUnknown},
		{statemachine.ErrRequestIDTooOld, codes.FailedPrecondition, ReasonOutcomeUnknown},
		{statemachine.ErrRequestIDMismatch, codes.InvalidArgument, ""},
		{join(mirror.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable, ""},
		{ErrNotReady, codes.Unavailable, ""},
		{ErrStopping, codes.Unavailable, ""},
		{ErrOtherLog, codes.FailedPrecondition, ""},
		{&StaleError{Age: time.Second, Known: true, Bound: time.Millisecond}, codes.Unavailable, ""},
		{&BehindError{What: "revision", Want: 9, Have: 8}, codes.OutOfRange, ""},
		{context.Canceled, codes.Canceled, ""},
		{status.Error(codes.DataLoss, "as it is"), codes.DataLoss, ""},
		{errors.New("new"), codes.Unknown, ""},
	} {
		got := status.Convert(Status(test.err, ""))
		reason, hint := "", time.Duration(0)
		for _, detail := range got.Details() {
			switch info := detail.(type) {
			case *errdetails.ErrorInfo:
				reason = info.GetReason()
			case *errdetails.RetryInfo:
				hint = info.GetRetryDelay().AsDuration()
			}
		}
		if overloaded := errors.Is(test.err, mirror.ErrOverloaded); (hint > 0) != overloaded {
			t.Errorf("%v: a hint to try again after %v", test.err, hint)
		}
		if got.Code() != test.code || reason != test.reason {
			t.Errorf("%v: %v with reason %q, want %v with %q", test.err, got.Code(), reason, test.code, test.reason)
		}
	}
}

func TestTokensKeepTheirText(t *testing.T) {
	for _, token := range []Token{{}, {1, 2, 3}, {math.MaxUint64, math.MaxUint64, math.MaxUint64}} {
		if got, err := ParseToken(token.String()); err != nil || got != token {
			t.Errorf("%v came back as %v, %v", token, got, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	for _, text := range []string{"", "-", "1-2-3", "feed-1-99", "1-2-3-4", "x-1-1", "1--1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(token.String()); err != nil || again != token {
			t.Errorf("%q parsed to %v, which came back as %v, %v", text, token, again, err)
		}
	})
}
