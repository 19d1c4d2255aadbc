package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

func keyValue(v *keyspace.Version, keysOnly bool) *mvccpb.KeyValue {
	kv := &mvccpb.KeyValue{
		Key:            v.Key,
		CreateRevision: v.CreateRevision,
		ModRevision:    v.ModRevision,
		Version:        v.Version,
		Lease:          v.Lease,
	}
	if !keysOnly {
		kv.Value = v.Value
	}
	return kv
}

func keyValues(versions []keyspace.Version, keysOnly bool) []*mvccpb.KeyValue {
	kvs := make([]*mvccpb.KeyValue, len(versions))
	for i := range versions {
		kvs[i] = keyValue(&versions[i], keysOnly)
	}
	return kvs
}

func previous(v *keyspace.Version) *mvccpb.KeyValue {
	if v == nil {
		return nil
	}
	return keyValue(v, false)
}

// txnAnswer builds the answer of a transaction from its result. The request tells which list was applied, and what was
// asked of each range in it.
func txnAnswer(r *pb.TxnRequest, result *statemachine.TxnResult, revision int64) *pb.TxnResponse {
	requests := r.GetSuccess()
	if !result.Succeeded {
		requests = r.GetFailure()
	}
	response := &pb.TxnResponse{
		Header:    &pb.ResponseHeader{Revision: revision},
		Succeeded: result.Succeeded,
	}
	if len(result.Operations) != len(requests) {
		return response // a replayed outcome, of which no more is remembered
	}
	response.Responses = make([]*pb.ResponseOp, len(requests))
	for i, request := range requests {
		response.Responses[i] = operationAnswer(request, &result.Operations[i], revision)
	}
	return response
}

// swapAnswer is what txnAnswer gives for a transaction that has put one key, as one object.
type swapAnswer struct {
	response  pb.TxnResponse
	header    pb.ResponseHeader
	responses [1]*pb.ResponseOp
	operation pb.ResponseOp
	union     pb.ResponseOp_ResponsePut
	put       pb.PutResponse
	putHeader pb.ResponseHeader
}

func newSwapAnswer(facts serving.Facts, replaced *keyspace.Version, revision int64) *pb.TxnResponse {
	a := &swapAnswer{}
	setHeader(&a.header, facts)
	a.putHeader.Revision = revision
	a.put.Header, a.put.PrevKv = &a.putHeader, previous(replaced)
	a.union.ResponsePut, a.operation.Response = &a.put, &a.union
	a.responses[0] = &a.operation
	a.response.Header, a.response.Succeeded, a.response.Responses = &a.header, true, a.responses[:]
	return &a.response
}

func operationAnswer(request *pb.RequestOp, result *statemachine.OperationResult, revision int64) *pb.ResponseOp {
	h := &pb.ResponseHeader{Revision: revision}
	switch r := request.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{
			Header: h,
			Kvs:    keyValues(result.Range.KVs, r.RequestRange.GetKeysOnly()),
			More:   result.Range.More,
			Count:  result.Range.Count,
		}}}
	case *pb.RequestOp_RequestPut:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{
			Header: h,
			PrevKv: previous(result.Put.Previous),
		}}}
	case *pb.RequestOp_RequestDeleteRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{
			Header:  h,
			Deleted: result.Delete.Deleted,
			PrevKvs: keyValues(result.Delete.Previous, false),
		}}}
	case *pb.RequestOp_RequestTxn:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{
			ResponseTxn: txnAnswer(r.RequestTxn, result.Txn, revision),
		}}
	default:
		return &pb.ResponseOp{}
	}
}

// rangeAnswer is a pb.RangeResponse whose key-values are encoded already.
type rangeAnswer struct {
	header    []byte // nil: none
	keyValues [][]byte
	one       [1][]byte // where keyValues is, if there is but one
	more      bool
	count     int64
}

func newRangeAnswer(header []byte, result statemachine.RangeResult, keysOnly bool) *rangeAnswer {
	a := &rangeAnswer{header: header, more: result.More, count: result.Count, keyValues: make([][]byte, len(result.KVs))}
	for i := range result.KVs {
		a.keyValues[i] = wire.KeyValue(result.KVs[i].Encoded, keysOnly)
	}
	return a
}

// Field numbers of pb.ResponseHeader.
const (
	headerClusterIDField protowire.Number = 1
	headerMemberIDField  protowire.Number = 2
	headerRevisionField  protowire.Number = 3
	headerTermField      protowire.Number = 4

	// headerBytesMax is what an encoded header has at most: four tags and numbers.
	headerBytesMax = 4 * (1 + 10)
)

// appendHeader appends an encoded header.
func appendHeader(b []byte, from *mirror.Identity, revision int64, term uint64) []byte {
	b = wire.AppendVarint(b, headerClusterIDField, from.ClusterID)
	b = wire.AppendVarint(b, headerMemberIDField, from.FrontendID)
	b = wire.AppendVarint(b, headerRevisionField, uint64(revision))
	return wire.AppendVarint(b, headerTermField, term)
}

// encodedHeader returns the header of an answer from the state that the facts describe, encoded.
func encodedHeader(facts *serving.Facts) []byte {
	return appendHeader(make([]byte, 0, headerBytesMax), &facts.Identity, facts.Revision, facts.Term)
}

// Field numbers of pb.RangeResponse and pb.RangeStreamResponse.
const (
	rangeHeaderField    protowire.Number = 1
	rangeKeyValuesField protowire.Number = 2
	rangeMoreField      protowire.Number = 3
	rangeCountField     protowire.Number = 4

	rangeStreamResponseField protowire.Number = 1
)

// EncodedSize implements wire.Message.
func (a *rangeAnswer) EncodedSize() int {
	size := wire.SizeVarint(rangeMoreField, wire.Bool(a.more)) + wire.SizeVarint(rangeCountField, uint64(a.count))
	if a.header != nil {
		size += wire.SizeElement(rangeHeaderField, a.header)
	}
	for _, kv := range a.keyValues {
		size += wire.SizeElement(rangeKeyValuesField, kv)
	}
	return size
}

// AppendEncoded implements wire.Message.
func (a *rangeAnswer) AppendEncoded(b []byte) []byte {
	if a.header != nil {
		b = wire.AppendElement(b, rangeHeaderField, a.header)
	}
	for _, kv := range a.keyValues {
		b = wire.AppendElement(b, rangeKeyValuesField, kv)
	}
	b = wire.AppendVarint(b, rangeMoreField, wire.Bool(a.more))
	return wire.AppendVarint(b, rangeCountField, uint64(a.count))
}

// rangeStreamAnswer is a pb.RangeStreamResponse.
type rangeStreamAnswer struct{ *rangeAnswer }

// EncodedSize implements wire.Message.
func (a *rangeStreamAnswer) EncodedSize() int {
	return protowire.SizeTag(rangeStreamResponseField) + protowire.SizeBytes(a.rangeAnswer.EncodedSize())
}

// AppendEncoded implements wire.Message.
func (a *rangeStreamAnswer) AppendEncoded(b []byte) []byte {
	b = protowire.AppendTag(b, rangeStreamResponseField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(a.rangeAnswer.EncodedSize()))
	return a.rangeAnswer.AppendEncoded(b)
}
