package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

type kvServer struct {
	pb.UnimplementedKVServer
	*services
}

// kvServiceDesc is the generated description, but for Range, whose answers are wire messages.
func kvServiceDesc() *grpc.ServiceDesc {
	desc := pb.KV_ServiceDesc
	desc.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range desc.Methods {
		if desc.Methods[i].MethodName == "Range" {
			desc.Methods[i].Handler = handleRange
		}
	}
	return &desc
}

func handleRange(
	server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor,
) (any, error) {
	request := new(pb.RangeRequest)
	if err := decode(request); err != nil {
		return nil, err
	}
	s := server.(*kvServer)
	if interceptor == nil {
		return s.rangeAnswer(ctx, request)
	}
	info := &grpc.UnaryServerInfo{Server: server, FullMethod: pb.KV_Range_FullMethodName}
	return interceptor(ctx, request, info, func(ctx context.Context, request any) (any, error) {
		return s.rangeAnswer(ctx, request.(*pb.RangeRequest))
	})
}

func (s *kvServer) rangeAnswer(ctx context.Context, r *pb.RangeRequest) (any, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	view, err := s.read(ctx, r.GetSerializable())
	if err != nil {
		return nil, err
	}
	defer view.Release()
	if len(r.GetRangeEnd()) == 0 && !r.GetCountOnly() && !revisionFilters(r) {
		return s.get(ctx, view, r)
	}
	command := rangeCommand(r)
	if statemachine.Gatherable(command) {
		return s.gatherRange(ctx, view, command)
	}
	command.KeysOnly = false // the answer is cut from what is encoded already
	result, err := statemachine.EvaluateRange(view.Snapshot, command)
	if err != nil {
		return nil, failure(err)
	}
	facts := view.Facts()
	s.send(ctx, facts)
	return newRangeAnswer(encodedHeader(&facts), result, r.GetKeysOnly()), nil
}

// get answers a range that is one key: whatever it says of order and limit means nothing then.
func (s *kvServer) get(ctx context.Context, view serving.View, r *pb.RangeRequest) (any, error) {
	version, ok, err := statemachine.EvaluateGet(view.Snapshot, r.GetKey(), r.GetRevision())
	if err != nil {
		return nil, failure(err)
	}
	facts := view.Facts()
	s.send(ctx, facts)
	answer := &rangeAnswer{header: encodedHeader(&facts)}
	if ok {
		answer.one[0] = wire.KeyValue(version.Encoded, r.GetKeysOnly())
		answer.keyValues, answer.count = answer.one[:], 1
	}
	return answer, nil
}

// gatherRange copies the key-values from where they are kept into the answer.
func (s *kvServer) gatherRange(ctx context.Context, view serving.View, command *commandv1.Range) (any, error) {
	answer, facts := new(wire.Gathered), view.Facts()
	answer.AppendElement(rangeHeaderField, encodedHeader(&facts))
	packed := func(elements []byte, _ int) bool {
		if ctx.Err() != nil {
			return false
		}
		answer.AppendShared(elements)
		return true
	}
	if command.KeysOnly {
		packed = nil
	}
	visited := 0
	count, more, err := statemachine.GatherRange(view.Snapshot, command, func(encoded []byte) bool {
		answer.AppendElement(rangeKeyValuesField, wire.KeyValue(encoded, command.KeysOnly))
		visited++
		return visited%rangeCheckInterval != 0 || ctx.Err() == nil
	}, byte(protowire.EncodeTag(rangeKeyValuesField, protowire.BytesType)), packed)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, failure(err)
	}
	answer.AppendVarint(rangeMoreField, wire.Bool(more))
	answer.AppendVarint(rangeCountField, uint64(count))
	s.send(ctx, facts)
	return answer, nil
}

// rangeCheckInterval is the number of key-values after which a range looks whether its caller still waits.
const rangeCheckInterval = 1024

func (s *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	result, err := s.write(ctx, &putCommand(r).command)
	if err != nil {
		return nil, err
	}
	facts := s.region.FactsAt(result.Index, result.Revision)
	s.send(ctx, facts)
	answer := new(putAnswer)
	setHeader(&answer.header, facts)
	answer.response.Header = &answer.header
	if result.Put != nil {
		answer.response.PrevKv = previous(result.Put.Previous)
	}
	return &answer.response, nil
}

// putAnswer is an answer that is one object.
type putAnswer struct {
	response pb.PutResponse
	header   pb.ResponseHeader
}

func (s *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	result, err := s.write(ctx, &commandv1.Command{
		Operation: &commandv1.Command_DeleteRange{DeleteRange: deleteCommand(r)},
	})
	if err != nil {
		return nil, err
	}
	response := &pb.DeleteRangeResponse{Header: s.tell(ctx, s.region.FactsAt(result.Index, result.Revision))}
	if result.Delete != nil {
		response.Deleted, response.PrevKvs = result.Delete.Deleted, keyValues(result.Delete.Previous, false)
	}
	return response, nil
}

// Txn is a read where it can write nothing; it then costs no entry of the log.
func (s *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, s.region.Limits().MaxTxnOperations); err != nil {
		return nil, err
	}
	if readOnly(r) {
		return s.readTxn(ctx, r)
	}
	swap := swapCommand(r)
	command := swap
	if swap == nil {
		command = &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: txnCommand(r)}}
	}
	result, err := s.write(ctx, command)
	if err != nil {
		return nil, err
	}
	if swap != nil && result.Txn.Succeeded && len(result.Txn.Operations) == 1 {
		facts := s.region.FactsAt(result.Index, result.Revision)
		s.send(ctx, facts)
		return newSwapAnswer(facts, result.Txn.Operations[0].Put.Previous, result.Revision), nil
	}
	response := txnAnswer(r, result.Txn, result.Revision)
	response.Header = s.tell(ctx, s.region.FactsAt(result.Index, result.Revision))
	return response, nil
}

func (s *kvServer) readTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	view, err := s.read(ctx, serializable(r))
	if err != nil {
		return nil, err
	}
	defer view.Release()
	result, revision, err := statemachine.EvaluateReadOnlyTxn(view.Snapshot, txnCommand(r))
	if err != nil {
		return nil, failure(err)
	}
	response := txnAnswer(r, result, revision)
	response.Header = s.tell(ctx, view.Facts())
	return response, nil
}

// Compact returns once the revision is compacted here. Physical removal goes on in slices and is not waited for: what is
// compacted cannot be read from then on, whether it is removed or not.
func (s *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	result, err := s.write(ctx, &commandv1.Command{
		Operation: &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: r.GetRevision()}},
	})
	if err != nil {
		return nil, err
	}
	return &pb.CompactionResponse{Header: s.tell(ctx, s.region.FactsAt(result.Index, result.Revision))}, nil
}

// RangeStream sends a range in messages of bounded size, in one pass over one pinned state. The last message carries the
// header and the count.
func (s *kvServer) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	if err := checkRange(r); err != nil {
		return err
	}
	if !defaultOrder(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if revisionFilters(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	view, err := s.read(stream.Context(), r.GetSerializable())
	if err != nil {
		return err
	}
	defer view.Release()
	facts := view.Facts()
	// An error here is one of the stream, which the first send will return too.
	_ = stream.SetHeader(s.metadataOf(facts))

	sender := rangeSender{
		stream: stream, limit: r.GetLimit(), keysOnly: r.GetKeysOnly(), countOnly: r.GetCountOnly(),
		targetBytes: s.region.Limits().MaxRequestBytes,
	}
	start, end := bounds(r.GetKey(), r.GetRangeEnd())
	if err := view.Range(start, end, r.GetRevision(), sender.visit); err != nil {
		return failure(err)
	}
	return sender.finish(encodedHeader(&facts))
}

// bounds turns etcd's range into [start, end), where nil means no end.
func bounds(key, rangeEnd []byte) (start, end []byte) {
	switch {
	case len(rangeEnd) == 0:
		return key, append(append(make([]byte, 0, len(key)+1), key...), 0)
	case len(rangeEnd) == 1 && rangeEnd[0] == 0:
		return key, nil
	default:
		return key, rangeEnd
	}
}

// rangeSender collects key-values and sends them when there are enough for a message.
type rangeSender struct {
	stream              pb.KV_RangeStreamServer
	limit               int64
	keysOnly, countOnly bool
	targetBytes         int

	pending rangeAnswer
	bytes   int
	count   int64
	err     error
}

func (s *rangeSender) visit(v keyspace.Version) bool {
	s.count++
	if s.countOnly {
		return s.stream.Context().Err() == nil
	}
	if s.limit > 0 && s.count > s.limit {
		s.pending.more = true
		return s.stream.Context().Err() == nil // the rest is only counted
	}
	if s.bytes >= s.targetBytes {
		sent := s.pending
		s.pending, s.bytes = rangeAnswer{}, 0
		if s.err = s.stream.SendMsg(&rangeStreamAnswer{&sent}); s.err != nil {
			return false
		}
	}
	encoded := wire.KeyValue(v.Encoded, s.keysOnly)
	s.pending.keyValues = append(s.pending.keyValues, encoded)
	s.bytes += len(encoded)
	return true
}

func (s *rangeSender) finish(header []byte) error {
	if s.err != nil {
		return s.err
	}
	if err := s.stream.Context().Err(); err != nil {
		return err
	}
	s.pending.header, s.pending.count = header, s.count
	return s.stream.SendMsg(&rangeStreamAnswer{&s.pending})
}
