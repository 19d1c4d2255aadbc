package frontend

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

type kvServer struct {
	kvv1.UnimplementedKvServiceServer
	region *serving.Region
}

// kvServiceDesc is the generated description, but for Get and List, whose answers are wire messages.
func kvServiceDesc() *grpc.ServiceDesc {
	desc := kvv1.KvService_ServiceDesc
	desc.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range desc.Methods {
		switch desc.Methods[i].MethodName {
		case "Get":
			desc.Methods[i].Handler = encodedHandler(kvv1.KvService_Get_FullMethodName, (*kvServer).get)
		case "List":
			desc.Methods[i].Handler = encodedHandler(kvv1.KvService_List_FullMethodName, (*kvServer).list)
		}
	}
	return &desc
}

// encodedHandler is a unary handler whose answer is a wire message.
func encodedHandler[Request any](
	method string, handle func(*kvServer, context.Context, *Request) (any, error),
) grpc.MethodHandler {
	return func(
		server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor,
	) (any, error) {
		request := new(Request)
		if err := decode(request); err != nil {
			return nil, err
		}
		call := func(ctx context.Context, request any) (any, error) {
			return handle(server.(*kvServer), ctx, request.(*Request))
		}
		if interceptor == nil {
			return call(ctx, request)
		}
		return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: server, FullMethod: method}, call)
	}
}

func (s *kvServer) Put(ctx context.Context, r *kvv1.PutRequest) (*kvv1.PutResponse, error) {
	if err := checkKey("key", r.GetKey()); err != nil {
		return nil, err
	}
	result, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_Put{
		Put: &commandv1.Put{Key: r.GetKey(), Value: r.GetValue(), Lease: r.GetLease(), Previous: r.GetReturnPrevious()},
	}})
	if err != nil {
		return nil, err
	}
	response := &kvv1.PutResponse{Header: h, Revision: result.Revision}
	if result.Put != nil {
		response.Previous = previous(result.Put.Previous)
	}
	return response, nil
}

func (s *kvServer) Delete(ctx context.Context, r *kvv1.DeleteRequest) (*kvv1.DeleteResponse, error) {
	if err := checkKey("key", r.GetKey()); err != nil {
		return nil, err
	}
	result, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_DeleteRange{
		DeleteRange: &commandv1.DeleteRange{Key: r.GetKey(), RangeEnd: r.GetRangeEnd(), Previous: r.GetReturnPrevious()},
	}})
	if err != nil {
		return nil, err
	}
	response := &kvv1.DeleteResponse{Header: h, Revision: result.Revision}
	if result.Delete != nil {
		response.Deleted, response.Previous = result.Delete.Deleted, keyValues(result.Delete.Previous)
	}
	return response, nil
}

// CompareAndSwap is a transaction: one comparison, one write, and a read of what is there then.
func (s *kvServer) CompareAndSwap(
	ctx context.Context, r *kvv1.CompareAndSwapRequest,
) (*kvv1.CompareAndSwapResponse, error) {
	txn, err := compareAndSwapTxn(r)
	if err != nil {
		return nil, err
	}
	result, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: txn}})
	if err != nil {
		return nil, err
	}
	response := &kvv1.CompareAndSwapResponse{Header: h, Revision: result.Revision}
	if result.Txn == nil {
		return response, nil
	}
	response.Succeeded = result.Txn.Succeeded
	if n := len(result.Txn.Operations); n > 0 {
		if found := result.Txn.Operations[n-1].Range; found != nil && len(found.KVs) == 1 {
			response.Current = keyValue(&found.KVs[0])
		}
	}
	return response, nil
}

func (s *kvServer) Txn(ctx context.Context, r *kvv1.TxnRequest) (*kvv1.TxnResponse, error) {
	txn, writes, err := txnCommand(r, s.region.Limits().MaxTxnOperations)
	if err != nil {
		return nil, err
	}
	if !writes {
		return s.readTxn(ctx, r, txn)
	}
	result, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: txn}})
	if err != nil {
		return nil, err
	}
	response := &kvv1.TxnResponse{Header: h, Revision: result.Revision}
	if result.Txn != nil {
		response.Succeeded, response.Results = result.Txn.Succeeded, txnResults(txn, result.Txn)
	}
	return response, nil
}

// readTxn answers a transaction without writes from a state as fresh as asked for; it makes no entry of the log.
func (s *kvServer) readTxn(ctx context.Context, r *kvv1.TxnRequest, txn *commandv1.Txn) (*kvv1.TxnResponse, error) {
	view, err := s.read(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer view.Release()
	result, revision, err := statemachine.EvaluateReadOnlyTxn(view.Snapshot, txn)
	if err != nil {
		return nil, failure(err)
	}
	return &kvv1.TxnResponse{
		Header:    header(view.Facts()),
		Revision:  revision,
		Succeeded: result.Succeeded,
		Results:   txnResults(txn, result),
	}, nil
}

func (s *kvServer) Compact(ctx context.Context, r *kvv1.CompactRequest) (*kvv1.CompactResponse, error) {
	if r.GetRevision() <= 0 {
		return nil, invalid("revision", "must be above zero")
	}
	_, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{
		Operation: &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: r.GetRevision()}},
	})
	if err != nil {
		return nil, err
	}
	return &kvv1.CompactResponse{Header: h}, nil
}

func (s *kvServer) read(ctx context.Context, c *kvv1.Consistency) (serving.View, error) {
	asked, err := consistency(c)
	if err != nil {
		return serving.View{}, err
	}
	view, err := s.region.Read(ctx, asked)
	if err != nil {
		return serving.View{}, failure(err)
	}
	return view, nil
}

func (s *kvServer) get(ctx context.Context, r *kvv1.GetRequest) (any, error) {
	if err := checkKey("key", r.GetKey()); err != nil {
		return nil, err
	}
	if r.GetRevision() < 0 {
		return nil, invalid("revision", "must not be negative")
	}
	view, err := s.read(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer view.Release()
	version, found, err := view.Get(r.GetKey(), r.GetRevision())
	if err != nil {
		return nil, failure(err)
	}
	answer := &getAnswer{header: encodedHeader(view.Facts())}
	if found {
		answer.keyValue = version.Encoded
	}
	return answer, nil
}

// Bounds of one page of a listing. The bytes stay below the 4 MiB that a gRPC client takes by default.
const (
	pageSizeDefault = 1_000
	pageSizeMax     = 10_000
	pageBytes       = 2 << 20
)

// pageSize checks how many a page is to have at most.
func pageSize(asked int32) (int, error) {
	switch {
	case asked < 0 || asked > pageSizeMax:
		return 0, invalid("page_size", "must be from 0 to %d", pageSizeMax)
	case asked == 0:
		return pageSizeDefault, nil
	}
	return int(asked), nil
}

func (s *kvServer) list(ctx context.Context, r *kvv1.ListRequest) (any, error) {
	start, revision, asked := r.GetKey(), r.GetRevision(), r.GetConsistency()
	if revision < 0 {
		return nil, invalid("revision", "must not be negative")
	}
	size, err := pageSize(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	if r.GetPageToken() != "" {
		page, err := parsePageToken(r.GetPageToken())
		if err != nil {
			return nil, invalid("page_token", "%v", err)
		}
		start, revision = page.next, page.revision
		// Wherever the page before came from, its revision says what this one is of.
		asked = &kvv1.Consistency{
			Level: kvv1.Consistency_LEVEL_SERIALIZABLE, AtLeast: asked.GetAtLeast(), MinRevision: revision,
		}
	}
	view, err := s.read(ctx, asked)
	if err != nil {
		return nil, err
	}
	defer view.Release()
	if revision == 0 {
		revision = view.Revision()
	}
	answer := &listAnswer{header: encodedHeader(view.Facts()), revision: revision, keysOnly: r.GetKeysOnly()}
	if err := view.Range(firstKey(start), openEnd(r.GetRangeEnd()), revision, answer.collect(ctx, size)); err != nil {
		return nil, failure(err)
	}
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	return answer, nil
}

// collect returns a visitor that fills the answer with a page, and notes where the next one begins.
func (a *listAnswer) collect(ctx context.Context, size int) func(keyspace.Version) bool {
	bytes := 0
	return func(v keyspace.Version) bool {
		if len(a.keyValues) == size || bytes >= pageBytes {
			a.nextPageToken = pageToken{revision: a.revision, next: v.Key}.String()
			return false
		}
		kv := wire.KeyValue(v.Encoded, a.keysOnly)
		a.keyValues = append(a.keyValues, kv)
		bytes += len(kv)
		return ctx.Err() == nil
	}
}

// firstKey turns the empty key of a listing, the first one, into a key.
func firstKey(key []byte) []byte {
	if len(key) == 0 {
		return []byte{0}
	}
	return key
}

// openEnd turns both forms of no end into nil.
func openEnd(end []byte) []byte {
	if len(end) == 0 || (len(end) == 1 && end[0] == 0) {
		return nil
	}
	return end
}
