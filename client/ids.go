package client

import (
	"context"
	"errors"
	"iter"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// IDs yields the ids of an answer, in ascending order.
func IDs(answer *kvv1.GenerateResponse) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, block := range answer.GetBlocks() {
			for i := range block.GetCount() {
				if !yield(block.GetFirst() + i) {
					return
				}
			}
		}
	}
}

// GenerateBlocks yields one answer to the same request after the other, as long as the caller wants more: one is asked for
// ahead, so that what is made and never used are two at most. A lost connection is resumed, and what has an unknown outcome is
// asked for again, which leaves a gap; an error is final. The request may not have options: a request id would give the same ids again.
func (c *Client) GenerateBlocks(ctx context.Context, request *kvv1.GenerateRequest) iter.Seq2[*kvv1.GenerateResponse, error] {
	return func(yield func(*kvv1.GenerateResponse, error) bool) {
		if request.GetOptions() != nil {
			yield(nil, errors.New("client: ids by the block are asked for without options"))
			return
		}
		delay := resumeDelayMin
		for {
			heard, err := c.generateOnce(ctx, request, yield)
			if err == nil {
				return // the caller has enough
			}
			if !again(err) || ctx.Err() != nil {
				yield(nil, err)
				return
			}
			if heard {
				delay = resumeDelayMin
			}
			if wait(ctx, delay) != nil {
				yield(nil, err)
				return
			}
			delay = min(2*delay, resumeDelayMax)
		}
	}
}

// generateOnce runs one stream. It returns nil when the caller has enough, and whether anything was heard.
func (c *Client) generateOnce(
	ctx context.Context, request *kvv1.GenerateRequest, yield func(*kvv1.GenerateResponse, error) bool,
) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.GenerateStream(ctx)
	if err != nil {
		return false, err
	}
	// A failed Send says only that the stream is over; why is what Recv returns.
	_ = stream.Send(&kvv1.GenerateStreamRequest{Request: request})
	for {
		_ = stream.Send(&kvv1.GenerateStreamRequest{Request: request})
		answer, err := stream.Recv()
		if err != nil {
			if status.Code(err) == codes.Unknown && !hasReason(err, "OUTCOME_UNKNOWN") { // an end of stream without a status
				err = status.Error(codes.Unavailable, err.Error())
			}
			return heard, err
		}
		heard = true
		if !yield(answer.GetResponse(), nil) {
			return heard, nil
		}
	}
}
