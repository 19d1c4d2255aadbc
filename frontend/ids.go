package frontend

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/idgen"
	"github.com/logmirror/logmirror/statemachine"
)

// idsMax is how many ids one call gives at most.
const idsMax = 100_000

// idErrors gives the errors of ids their codes.
var idErrors = []struct {
	err  error
	code codes.Code
}{
	{idgen.ErrUnavailable, codes.Unavailable},
	{idgen.ErrClosed, codes.Unavailable},
	{idgen.ErrTooManyRanges, codes.ResourceExhausted},
	{idgen.ErrTooManyWaiting, codes.ResourceExhausted},
	{statemachine.ErrIDNodesUsedUp, codes.ResourceExhausted},
	{statemachine.ErrIDRangeUsedUp, codes.ResourceExhausted},
	{statemachine.ErrIDSequenceUsedUp, codes.ResourceExhausted},
	{statemachine.ErrIDNames, codes.ResourceExhausted},
	{statemachine.ErrIDRangeMaximum, codes.InvalidArgument},
}

type idServer struct {
	kvv1.UnimplementedIdServiceServer
	region *serving.Region
	ids    *idgen.Generator
}

// Generate gives ids of one kind.
func (s *idServer) Generate(ctx context.Context, r *kvv1.GenerateRequest) (*kvv1.GenerateResponse, error) {
	count := max(r.GetCount(), 1)
	named := r.GetKind() == kvv1.GenerateRequest_KIND_SEGMENT || r.GetKind() == kvv1.GenerateRequest_KIND_SEQUENCE
	switch {
	case r.GetCount() < 0 || count > idsMax:
		return nil, invalid("count", "must be from 0 to %d", idsMax)
	case named && r.GetName() == "":
		return nil, invalid("name", "must name the range or sequence")
	case !named && r.GetName() != "":
		return nil, invalid("name", "is of ranges and sequences")
	case r.GetMax() < 0 || r.GetMax() != 0 && r.GetKind() != kvv1.GenerateRequest_KIND_SEGMENT:
		return nil, invalid("max", "is of ranges, and must not be negative")
	case r.GetOptions() != nil && r.GetKind() != kvv1.GenerateRequest_KIND_SEQUENCE:
		return nil, invalid("options", "are of sequences")
	}
	if err := s.region.CheckReady(); err != nil {
		return nil, failure(err)
	}
	var (
		blocks []idgen.Block
		err    error
	)
	switch r.GetKind() {
	case kvv1.GenerateRequest_KIND_SNOWFLAKE:
		blocks, err = s.ids.Next(ctx, statemachine.IDSnowflake, count)
	case kvv1.GenerateRequest_KIND_RAINDROP:
		blocks, err = s.ids.Next(ctx, statemachine.IDRaindrop, count)
	case kvv1.GenerateRequest_KIND_SEGMENT:
		blocks, err = s.ids.Segment(ctx, r.GetName(), r.GetMax(), count)
	case kvv1.GenerateRequest_KIND_SEQUENCE:
		return s.sequence(ctx, r, count)
	default:
		return nil, invalid("kind", "must be SNOWFLAKE, RAINDROP, SEGMENT or SEQUENCE")
	}
	if err != nil {
		return nil, idFailure(err)
	}
	response := &kvv1.GenerateResponse{Header: header(s.region.Facts()), Blocks: make([]*kvv1.IdBlock, len(blocks))}
	for i, block := range blocks {
		response.Blocks[i] = &kvv1.IdBlock{First: block.First, Count: block.Count}
	}
	return response, nil
}

// GenerateStream answers requests one after the other: what bounds it is the stream's own flow control.
func (s *idServer) GenerateStream(stream kvv1.IdService_GenerateStreamServer) error {
	err := s.region.Serve(func() error {
		for {
			request, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			answer, err := s.Generate(stream.Context(), request.GetRequest())
			if err != nil {
				return err
			}
			if err := stream.Send(&kvv1.GenerateStreamResponse{Response: answer}); err != nil {
				return err
			}
		}
	})
	if _, ofStream := status.FromError(err); ofStream { // or nil
		return err
	}
	return failure(err)
}

// sequence takes numbers by a write: the order of the log is theirs. One without options of its own shares the command.
func (s *idServer) sequence(ctx context.Context, r *kvv1.GenerateRequest, count int64) (*kvv1.GenerateResponse, error) {
	if r.GetOptions() == nil {
		block, err := s.ids.Sequence(ctx, r.GetName(), count)
		if err != nil {
			return nil, idFailure(err)
		}
		return &kvv1.GenerateResponse{
			Header: header(s.region.FactsAt(block.Index, block.Revision)),
			Blocks: []*kvv1.IdBlock{{First: block.First, Count: block.Count}},
		}, nil
	}
	result, err := write(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_IdSequenceNext{
		IdSequenceNext: &commandv1.IdSequenceNext{Name: r.GetName(), Count: count},
	}})
	if err != nil {
		return nil, idFailure(err)
	}
	return &kvv1.GenerateResponse{
		Header: header(s.region.FactsAt(result.Index, result.Revision)),
		Blocks: []*kvv1.IdBlock{{First: result.ID.First, Count: result.ID.Count}},
	}, nil
}

func idFailure(err error) error {
	var ahead *idgen.AheadError
	if errors.As(err, &ahead) {
		return status.Error(codes.Unavailable, err.Error())
	}
	for _, row := range idErrors {
		if errors.Is(err, row.err) {
			return status.Error(row.code, err.Error())
		}
	}
	return failure(err)
}
