package etcd

import (
	"context"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/statemachine"
)

// Each comparison means the same as a command: result and target by their names, and the range.
func TestComparesKeepTheirMeaning(t *testing.T) {
	for result, name := range pb.Compare_CompareResult_name {
		for target := range pb.Compare_CompareTarget_name {
			asked := &pb.Compare{Result: pb.Compare_CompareResult(result), Target: pb.Compare_CompareTarget(target), Key: []byte("a"), RangeEnd: []byte("c")}
			var have int64
			switch asked.Target {
			case pb.Compare_VERSION:
				asked.TargetUnion = &pb.Compare_Version{Version: 7}
			case pb.Compare_CREATE:
				asked.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: 7}
			case pb.Compare_MOD:
				asked.TargetUnion = &pb.Compare_ModRevision{ModRevision: 7}
			case pb.Compare_VALUE:
				asked.TargetUnion = &pb.Compare_Value{Value: []byte("7")}
			case pb.Compare_LEASE:
				asked.TargetUnion = &pb.Compare_Lease{Lease: 7}
			}
			got := compareCommand(asked)
			if string(got.GetKey()) != "a" || string(got.GetRangeEnd()) != "c" || got.GetResult().String() != "RESULT_"+name {
				t.Errorf("%v became %v", asked, got)
			}
			switch asked.Target {
			case pb.Compare_VERSION:
				have = got.GetVersion()
			case pb.Compare_CREATE:
				have = got.GetCreateRevision()
			case pb.Compare_MOD:
				have = got.GetModRevision()
			case pb.Compare_LEASE:
				have = got.GetLease()
			case pb.Compare_VALUE:
				if string(got.GetValue()) == "7" {
					have = 7
				}
			}
			if have != 7 {
				t.Errorf("%v became %v", asked, got)
			}
		}
	}
}

func TestPutsKeepTheirOptions(t *testing.T) {
	for _, asked := range []*pb.PutRequest{
		{Key: []byte("k"), Value: []byte("v"), Lease: 3, PrevKv: true}, {Key: []byte("k"), Value: []byte("v"), IgnoreLease: true},
		{Key: []byte("k"), Lease: 3, IgnoreValue: true},
	} {
		got := &putCommand(asked).put
		if string(got.GetKey()) != string(asked.GetKey()) || string(got.GetValue()) != string(asked.GetValue()) || got.GetLease() != asked.GetLease() ||
			got.GetPrevious() != asked.GetPrevKv() || got.GetIgnoreLease() != asked.GetIgnoreLease() || got.GetIgnoreValue() != asked.GetIgnoreValue() {
			t.Errorf("%v became %v", asked, got)
		}
	}
}

// The answers of a transaction are those of the list that was applied.
func TestTxnAnswersAreOfTheListApplied(t *testing.T) {
	r := &pb.TxnRequest{
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{}}}},
	}
	answer := txnAnswer(r, &statemachine.TxnResult{Succeeded: true, Operations: []statemachine.OperationResult{{Put: &statemachine.PutResult{}}}}, 5)
	if !answer.GetSucceeded() || len(answer.GetResponses()) != 1 || answer.GetResponses()[0].GetResponsePut() == nil {
		t.Errorf("the first list: %v", answer)
	}
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("the second list: %v", r)
		}
	}()
	answer = txnAnswer(r, &statemachine.TxnResult{Operations: []statemachine.OperationResult{{Delete: &statemachine.DeleteResult{Deleted: 2}}}}, 5)
	if answer.GetSucceeded() || len(answer.GetResponses()) != 1 || answer.GetResponses()[0].GetResponseDeleteRange().GetDeleted() != 2 {
		t.Errorf("the second list: %v", answer)
	}
}

// roundsMirror counts read rounds.
type roundsMirror struct {
	*stillMirror
	rounds int
}

func (m *roundsMirror) Linearize(ctx context.Context) (uint64, error) {
	m.rounds++
	return m.stillMirror.Linearize(ctx)
}

// A range costs a read round unless it asks for a serializable read.
func TestWhichRangesAskTheLog(t *testing.T) {
	m := &roundsMirror{stillMirror: newStillMirror(t)}
	server := &kvServer{services: &services{region: serving.New(m, statemachine.Limits{})}}
	ctx := grpc.NewContextWithServerTransportStream(t.Context(), &headerStream{})
	var got []string
	for _, asked := range []*pb.RangeRequest{{Key: []byte("key")}, {Key: []byte("key"), Serializable: true}, {Key: []byte("a"), RangeEnd: []byte("z")}} {
		before := m.rounds
		if _, err := server.rangeAnswer(ctx, asked); err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.Repeat("round", m.rounds-before))
	}
	if !slices.Equal(got, []string{"round", "", "round"}) {
		t.Errorf("%q", got)
	}
	if sorted := rangeCommand(&pb.RangeRequest{SortOrder: pb.RangeRequest_DESCEND}).GetSortOrder(); sorted != commandv1.Range_SORT_ORDER_DESCEND {
		t.Errorf("descending became %v", sorted)
	}
}
