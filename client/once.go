package client

import (
	"context"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// Once makes a write happen once, however often it has to be sent: it calls write with a request id for its options, and
// again while the log or the region's frontends cannot be reached or an outcome stays unknown, until ctx ends. write must
// send the same request each time. The error is that of the write; where ctx ended, that of the attempt that left the outcome
// open, if there was one, else of the last attempt (see NotApplied).
//
// The frontends remember request ids for an hour by default: ctx should end well before.
func (c *Client) Once(ctx context.Context, write func(ctx context.Context, requestID string) error) error {
	var id string
	var open, last error
	delay := resumeDelayMin
	for {
		var err error
		if id == "" {
			id, err = c.RequestID(ctx)
		}
		if err == nil {
			if err = write(ctx, id); !again(err) {
				return err
			}
			if open == nil && !NotApplied(err) {
				open = err
			}
		} else if !again(err) {
			if last != nil && ctx.Err() != nil {
				return last // nothing was sent, and this says why
			}
			return err
		}
		last = err
		if wait(ctx, delay) != nil {
			if open != nil {
				return open
			}
			return last
		}
		delay = min(2*delay, resumeDelayMax)
	}
}

// again tells whether sending a write again, under its request id, may bring an outcome.
func again(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable:
		for _, detail := range status.Convert(err).Details() {
			if _, refused := detail.(*kvv1.RegionRefusal); refused {
				return false // by the state of the region, until somebody changes that
			}
		}
		return true
	case codes.Unknown:
		return hasReason(err, "OUTCOME_UNKNOWN")
	default:
		return false
	}
}

// NotApplied tells of a write that failed with UNAVAILABLE whether it is sure that it was not applied and never will be: the
// frontend said so, or the request never got as far as a connection.
func NotApplied(err error) bool {
	return hasReason(err, "NOT_APPLIED") ||
		status.Code(err) == codes.Unavailable && strings.Contains(status.Convert(err).Message(), "connection error:")
}

func hasReason(err error, reason string) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetReason() == reason {
			return true
		}
	}
	return false
}
