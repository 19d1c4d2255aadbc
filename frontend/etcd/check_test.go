package etcd

import (
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func put(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func remove(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)},
	}}
}

func get(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func nested(success, failure []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: success, Failure: failure}}}
}

func list(operations ...*pb.RequestOp) []*pb.RequestOp { return operations }

func repeat(n int, operation *pb.RequestOp) []*pb.RequestOp {
	operations := make([]*pb.RequestOp, n)
	for i := range operations {
		operations[i] = operation
	}
	return operations
}

func TestTxnsAreRefusedAsEtcdRefusesThem(t *testing.T) {
	deep := list(get("k"))
	for range 130 {
		deep = list(nested(deep, nil))
	}
	for _, test := range []struct {
		name string
		txn  *pb.TxnRequest
		want error
	}{
		{"empty", &pb.TxnRequest{}, nil},
		{"128 operations", &pb.TxnRequest{Success: repeat(128, get("k")), Failure: repeat(128, get("k"))}, nil},
		{"129 operations", &pb.TxnRequest{Failure: repeat(129, get("k"))}, rpctypes.ErrGRPCTooManyOps},
		{"129 comparisons", &pb.TxnRequest{Compare: make([]*pb.Compare, 129)}, rpctypes.ErrGRPCTooManyOps},
		{"nested within what is left", &pb.TxnRequest{Success: list(nested(repeat(127, get("k")), nil))}, nil},
		{"nested beyond what is left", &pb.TxnRequest{Success: list(nested(repeat(128, get("k")), nil))},
			rpctypes.ErrGRPCTooManyOps},
		{"nested too deep", &pb.TxnRequest{Success: deep}, rpctypes.ErrGRPCTooManyOps},
		{"nested too wide", &pb.TxnRequest{Success: repeat(64, nested(repeat(64, get("k")), nil))},
			rpctypes.ErrGRPCTooManyOps},
		{"comparison without a key", &pb.TxnRequest{Compare: []*pb.Compare{{}}}, rpctypes.ErrGRPCEmptyKey},
		{"put without a key", &pb.TxnRequest{Success: list(put(""))}, rpctypes.ErrGRPCEmptyKey},
		{"get without a key", &pb.TxnRequest{Success: list(nested(list(get("")), nil))}, rpctypes.ErrGRPCEmptyKey},
		{"operation that says nothing", &pb.TxnRequest{Success: list(&pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},

		{"one key in both lists", &pb.TxnRequest{Success: list(put("a")), Failure: list(put("a"))}, nil},
		{"two puts", &pb.TxnRequest{Success: list(put("a"), put("a"))}, rpctypes.ErrGRPCDuplicateKey},
		{"two puts in failure", &pb.TxnRequest{Failure: list(put("a"), put("a"))}, rpctypes.ErrGRPCDuplicateKey},
		{"put and delete", &pb.TxnRequest{Success: list(put("a"), remove("a", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"put in a deleted range", &pb.TxnRequest{Success: list(remove("a", "c"), put("b"))}, rpctypes.ErrGRPCDuplicateKey},
		{"put at the end of a deleted range", &pb.TxnRequest{Success: list(remove("a", "c"), put("c"))}, nil},
		{"overlapping deletes", &pb.TxnRequest{Success: list(remove("a", "c"), remove("b", "d"))}, nil},
		{"put beside a nested put", &pb.TxnRequest{Success: list(nested(list(put("a")), nil), put("a"))},
			rpctypes.ErrGRPCDuplicateKey},
		{"both branches put", &pb.TxnRequest{Success: list(nested(list(put("a")), list(put("a"))))}, nil},
		{"two nested put", &pb.TxnRequest{Success: list(nested(list(put("a")), nil), nested(nil, list(put("a"))))},
			rpctypes.ErrGRPCDuplicateKey},
		{"nested delete over a put", &pb.TxnRequest{Success: list(nested(list(remove("a", "z")), nil), put("m"))},
			rpctypes.ErrGRPCDuplicateKey},
		{"delete over a nested put", &pb.TxnRequest{Success: list(nested(nil, list(put("m"))), remove("a", "z"))},
			rpctypes.ErrGRPCDuplicateKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := checkTxn(test.txn, 128); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestWhichTxnsAreReads(t *testing.T) {
	for _, test := range []struct {
		name string
		txn  *pb.TxnRequest
		want bool
	}{
		{"empty", &pb.TxnRequest{}, true},
		{"gets", &pb.TxnRequest{Success: list(get("a")), Failure: list(get("b"))}, true},
		{"put in failure", &pb.TxnRequest{Success: list(get("a")), Failure: list(put("b"))}, false},
		{"nested", &pb.TxnRequest{Success: list(nested(list(get("a")), nil))}, false},
	} {
		if got := readOnly(test.txn); got != test.want {
			t.Errorf("%s: read only %v, want %v", test.name, got, test.want)
		}
	}
}
