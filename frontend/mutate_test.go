package frontend

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

func mutation(key string, change any) *kvv1.Mutation {
	m := &kvv1.Mutation{Key: []byte(key)}
	switch change := change.(type) {
	case int:
		m.Change = &kvv1.Mutation_Add{Add: int64(change)}
	case *kvv1.Mutation_Insert:
		m.Change = &kvv1.Mutation_Insert_{Insert: change}
	case *kvv1.Mutation_Remove:
		m.Change = &kvv1.Mutation_Remove_{Remove: change}
	case *kvv1.Mutation_Append:
		m.Change = &kvv1.Mutation_Append_{Append: change}
	}
	return m
}

func TestMutate(t *testing.T) {
	c := newTestCluster(t)
	kv, ctx := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	mutate := func(m *kvv1.Mutation) *kvv1.MutateResponse {
		t.Helper()
		answer, err := kv.Mutate(ctx, &kvv1.MutateRequest{Mutation: m})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	answer := mutate(mutation("n", 5))
	r, current := answer.GetResult(), answer.GetResult().GetCurrent()
	if !r.GetChanged() || r.GetInteger() != 5 || answer.GetRevision() != 2 || string(current.GetValue()) != "5" ||
		current.GetModRevision() != 2 || answer.GetHeader().GetRevision() != 2 {
		t.Errorf("add answered %v", answer)
	}
	if answer = mutate(mutation("n", 0)); answer.GetResult().GetChanged() || answer.GetRevision() != 2 {
		t.Errorf("adding nothing answered %v", answer)
	}
	r = mutate(mutation("s", &kvv1.Mutation_Insert{Members: [][]byte{[]byte("b"), []byte("a")}})).GetResult()
	if r.GetMembers() != 2 || r.GetMembersChanged() != 2 || string(r.GetCurrent().GetValue()) != "a\nb" {
		t.Errorf("insert answered %v", r)
	}
	r = mutate(mutation("none", &kvv1.Mutation_Remove{Members: [][]byte{[]byte("b")}})).GetResult()
	if r.GetChanged() || r.GetCurrent() != nil {
		t.Errorf("remove of nothing answered %v", r)
	}

	// In a transaction, beside a read that sees it; the comparison decides which one is applied.
	operation := func(m *kvv1.Mutation) *kvv1.TxnOperation {
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Mutate{Mutate: m}}
	}
	read := &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: []byte("n")}}}
	txn, err := kv.Txn(ctx, &kvv1.TxnRequest{
		Compares: []*kvv1.Compare{{
			Key: []byte("s"), Relation: kvv1.Compare_RELATION_EQUAL, Target: &kvv1.Compare_Value{Value: []byte("a\nb")},
		}},
		Success: []*kvv1.TxnOperation{operation(mutation("n", 2)), read},
		Failure: []*kvv1.TxnOperation{operation(mutation("n", 9))},
	})
	if err != nil || txn.GetResults()[0].GetMutate().GetInteger() != 7 ||
		string(txn.GetResults()[1].GetRead().GetKeyValues()[0].GetValue()) != "7" {
		t.Fatalf("%v, %v", txn, err)
	}
	before := txn.GetRevision()
	if _, err := kv.Txn(ctx, &kvv1.TxnRequest{
		Success: []*kvv1.TxnOperation{operation(mutation("n", 1)), operation(mutation("s", 1))},
	}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `key "s"`) {
		t.Errorf("%v", err)
	}
	if answer = mutate(mutation("n", 0)); answer.GetResult().GetInteger() != 7 || answer.GetRevision() != before {
		t.Errorf("a part of a refused transaction was applied: %v", answer)
	}
	if _, err := kv.Txn(ctx, &kvv1.TxnRequest{
		Success: []*kvv1.TxnOperation{operation(mutation("n", 1)), operation(mutation("n", 1))},
	}); violation(err) != "success[1]" {
		t.Errorf("%v", err)
	}
}

func TestMutateRefuses(t *testing.T) {
	c := newTestCluster(t)
	kv, ctx := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("text"), Value: []byte("b\na")}); err != nil {
		t.Fatal(err)
	}
	top := &kvv1.Mutation{Key: []byte("top"), Change: &kvv1.Mutation_Max{Max: 1<<63 - 1}}
	if _, err := kv.Mutate(ctx, &kvv1.MutateRequest{Mutation: top}); err != nil {
		t.Fatal(err)
	}
	one := [][]byte{[]byte("m")}
	for _, test := range []struct {
		mutation *kvv1.Mutation
		code     codes.Code
		text     string // of the error, or the field that it names
	}{
		{nil, codes.InvalidArgument, "mutation.key"},
		{mutation("n", nil), codes.InvalidArgument, "mutation.change"},
		{mutation("n", &kvv1.Mutation_Insert{}), codes.InvalidArgument, "mutation.insert.members"},
		{mutation("n", &kvv1.Mutation_Insert{Members: one, MembersMax: -1}), codes.InvalidArgument, "mutation.insert.members_max"},
		{mutation("n", &kvv1.Mutation_Remove{Members: [][]byte{nil}}), codes.InvalidArgument, "mutation.remove.members"},
		{mutation("n", &kvv1.Mutation_Append{}), codes.InvalidArgument, "mutation.append.data"},
		{mutation("n", &kvv1.Mutation_Append{Data: one[0], BytesMax: -1}), codes.InvalidArgument, "mutation.append.bytes_max"},
		{mutation("text", 1), codes.FailedPrecondition, `key "text": value is not an integer`},
		{mutation("text", &kvv1.Mutation_Insert{Members: one}), codes.FailedPrecondition, `key "text": value is not a set`},
		{mutation("top", 1), codes.OutOfRange, `key "top": integer is out of range: 9223372036854775807 + 1`},
		{mutation("big", &kvv1.Mutation_Append{Data: make([]byte, 1<<20+1)}), codes.OutOfRange, "limit 1048576"},
		{mutation("text", &kvv1.Mutation_Append{Data: one[0], BytesMax: 3}), codes.FailedPrecondition, "4 bytes, limit 3"},
		{&kvv1.Mutation{Key: []byte("n"), Lease: 9, Change: top.Change}, codes.NotFound, "lease"},
	} {
		_, err := kv.Mutate(ctx, &kvv1.MutateRequest{Mutation: test.mutation})
		if status.Code(err) != test.code || !strings.Contains(err.Error()+violation(err), test.text) {
			t.Errorf("%v: %v", test.mutation, err)
		}
		if want := strings.Contains(test.text, "limit 3"); want != (reason(err) == reasonOverLimit) {
			t.Errorf("%v: reason %q", test.mutation, reason(err))
		}
	}
}
