package etcd

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// swaps are transactions of one comparison and one put, of every kind.
func swaps() (requests []*pb.TxnRequest) {
	puts := []*pb.PutRequest{
		{Key: []byte("a"), Value: []byte("value"), Lease: 9, PrevKv: true},
		{Key: []byte("b"), IgnoreValue: true, IgnoreLease: true},
	}
	unions := []*pb.Compare{
		{}, {TargetUnion: &pb.Compare_Version{Version: 7}}, {TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 8}},
		{TargetUnion: &pb.Compare_ModRevision{ModRevision: 9}}, {TargetUnion: &pb.Compare_Value{Value: []byte("v")}},
		{TargetUnion: &pb.Compare_Lease{Lease: 10}},
	}
	for result := range pb.Compare_CompareResult_name {
		for target := range pb.Compare_CompareTarget_name {
			for i, union := range unions {
				compare := proto.Clone(union).(*pb.Compare)
				compare.Result, compare.Target, compare.Key = pb.Compare_CompareResult(result), pb.Compare_CompareTarget(target), []byte("key")
				if i == 1 {
					compare.RangeEnd = []byte("kez")
				}
				put := puts[i%len(puts)]
				requests = append(requests, &pb.TxnRequest{
					Compare: []*pb.Compare{compare},
					Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
				})
			}
		}
	}
	return requests
}

// TestSwapsAreTransactions compares the short way with the general one, and keeps what is no swap away from it.
func TestSwapsAreTransactions(t *testing.T) {
	short := 0
	for _, request := range swaps() {
		want := &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: txnCommand(request)}}
		got := swapCommand(request)
		switch request.Compare[0].Target {
		case pb.Compare_VALUE, pb.Compare_LEASE:
			if got != nil {
				t.Errorf("%v became %v", request, got)
			}
			continue
		}
		if short++; !proto.Equal(got, want) {
			t.Errorf("%v became %v, not %v", request, got, want)
		}
	}
	if short != 4*3*6 {
		t.Errorf("%d swaps", short)
	}
	swap := swaps()[0]
	compare, put := swap.Compare, swap.Success
	deletion := []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("a")}}}}
	for _, request := range []*pb.TxnRequest{
		{}, {Success: put}, {Compare: compare}, {Compare: append(compare, compare...), Success: put},
		{Compare: compare, Success: append(put, put...)}, {Compare: compare, Success: put, Failure: put}, {Compare: compare, Success: deletion},
		{Compare: compare, Failure: put}, {Compare: compare, Success: []*pb.RequestOp{{}}},
	} {
		if got := swapCommand(request); got != nil {
			t.Errorf("%v became %v", request, got)
		}
	}
}

// The answer to a swap that took place is that of any transaction with a put.
func TestSwapAnswers(t *testing.T) {
	facts := serving.Facts{Identity: mirror.Identity{ClusterID: 3, FrontendID: 4}, Revision: 12, Term: 5}
	replaced := &keyspace.Version{Key: []byte("a"), Value: []byte("v"), CreateRevision: 3, ModRevision: 4, Version: 2, Lease: 6}
	for _, previous := range []*keyspace.Version{nil, replaced} {
		result := &statemachine.TxnResult{Succeeded: true, Operations: []statemachine.OperationResult{{Put: &statemachine.PutResult{Previous: previous}}}}
		want := txnAnswer(swaps()[0], result, 11)
		want.Header = header(facts)
		if got := newSwapAnswer(facts, previous, 11); !proto.Equal(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
	}
}

// What is wrong with a transaction is told whether it is a swap or not.
func TestSwapsAreChecked(t *testing.T) {
	for _, change := range []func(*pb.TxnRequest){
		func(r *pb.TxnRequest) { r.Compare[0].Key = nil },
		func(r *pb.TxnRequest) { r.Success[0].GetRequestPut().Key = nil },
		func(r *pb.TxnRequest) { r.Success[0].GetRequestPut().IgnoreValue = true },
		func(r *pb.TxnRequest) { r.Success = append(r.Success, r.Success[0]) },
		func(r *pb.TxnRequest) {
			r.Success[0] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{
				Success: []*pb.RequestOp{r.Success[0], r.Success[0]},
			}}}
		},
	} {
		request := proto.Clone(swaps()[0]).(*pb.TxnRequest)
		if err := checkTxn(request, 128); err != nil {
			t.Fatal(err)
		}
		if change(request); checkTxn(request, 128) == nil {
			t.Errorf("%v passed", request)
		}
	}
}
