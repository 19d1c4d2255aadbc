package etcd

import (
	"bytes"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
	"github.com/logmirror/logmirror/watch"
)

// sameBytes fails unless a wire message encodes to exactly what the generated marshaller makes of want.
func sameBytes(t *testing.T, got wire.Message, want proto.Message) {
	t.Helper()
	generated, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	encoded := got.AppendEncoded(nil)
	if len(encoded) != got.EncodedSize() {
		t.Errorf("announced %d bytes, appended %d", got.EncodedSize(), len(encoded))
	}
	if !bytes.Equal(encoded, generated) {
		t.Errorf("encoded\n%x\nwant\n%x", encoded, generated)
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

func TestRangeAnswerIsByteForByteThatOfEtcd(t *testing.T) {
	kvs := []*mvccpb.KeyValue{
		{Key: []byte("a"), Value: []byte("1"), CreateRevision: 2, ModRevision: 3, Version: 4, Lease: 5},
		{Key: []byte("b"), CreateRevision: 1 << 50, ModRevision: 1 << 50, Version: 1},
		{Key: bytes.Repeat([]byte("k"), 300), Value: bytes.Repeat([]byte("v"), 70_000), ModRevision: 9},
	}
	var result statemachine.RangeResult
	for _, kv := range kvs {
		result.KVs = append(result.KVs, keyspace.Version{Key: kv.Key, Encoded: marshal(t, kv)})
	}
	facts := serving.Facts{Identity: mirror.Identity{ClusterID: 1 << 63, FrontendID: 7}, Revision: 8, Term: 2}
	h := header(facts)
	for _, more := range []bool{false, true} {
		for _, count := range []int64{0, 3, 1 << 33} {
			result.More, result.Count = more, count
			want := &pb.RangeResponse{Header: h, Kvs: kvs, More: more, Count: count}
			sameBytes(t, newRangeAnswer(encodedHeader(&facts), result, false), want)
			sameBytes(t, &rangeStreamAnswer{newRangeAnswer(encodedHeader(&facts), result, false)}, &pb.RangeStreamResponse{RangeResponse: want})
		}
	}
	sameBytes(t, newRangeAnswer(nil, statemachine.RangeResult{}, false), &pb.RangeResponse{})
	sameBytes(t, newRangeAnswer(encodedHeader(&serving.Facts{}), statemachine.RangeResult{}, false),
		&pb.RangeResponse{Header: &pb.ResponseHeader{}})

	keysOnly := &pb.RangeResponse{Header: h, More: true, Count: 1 << 33}
	for _, kv := range kvs {
		kv = proto.Clone(kv).(*mvccpb.KeyValue)
		kv.Value = nil
		keysOnly.Kvs = append(keysOnly.Kvs, kv)
	}
	sameBytes(t, newRangeAnswer(encodedHeader(&facts), result, true), keysOnly)
}

func TestWatchAnswerIsByteForByteThatOfEtcd(t *testing.T) {
	facts := serving.Facts{Identity: mirror.Identity{ClusterID: 1, FrontendID: 1 << 63}}
	encoder := &watchEncoder{identity: facts.Identity, term: func() uint64 { return facts.Term }}
	events := []*mvccpb.Event{
		{Kv: &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("v"), ModRevision: 5}},
		{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte("b"), ModRevision: 6}, PrevKv: &mvccpb.KeyValue{Key: []byte("b")}},
	}
	encoded := [][]byte{marshal(t, events[0]), marshal(t, events[1])}
	for i, r := range []watch.Response{
		{Revision: 4, Created: true},
		{WatchID: 1, Revision: 6, Events: encoded},
		{WatchID: 1, Revision: 6, Events: encoded, Fragment: true},
		{WatchID: -1, Revision: 6, Progress: true},
		{WatchID: 2, Revision: 6, Canceled: true, CompactRevision: 3, Err: watch.ErrCompacted, Reason: "x"},
		{WatchID: -1, Created: true, Canceled: true, Err: watch.ErrDuplicateID, Reason: "x"},
		{WatchID: 3, Canceled: true, Reason: "why"},
	} {
		facts.Revision, facts.Term = r.Revision, facts.Term+uint64(i)%2
		want := &pb.WatchResponse{
			Header: header(facts), WatchId: r.WatchID, Created: r.Created, Canceled: r.Canceled,
			CompactRevision: r.CompactRevision, CancelReason: cancelReason(&r), Fragment: r.Fragment,
		}
		if r.Events != nil {
			want.Events = events
		}
		if got := encoder.AppendEncoded(nil, &r); !bytes.Equal(got, marshal(t, want)) {
			t.Errorf("encoded\n%x\nwant\n%x", got, marshal(t, want))
		}
	}
}
