package etcd

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// stillMirror is a mirror that has applied what it is made with and applies what it is given at once.
type stillMirror struct {
	serving.Mirror // the methods that are not called here
	machine        *statemachine.Machine
	ready          chan struct{}
	index, session uint64
	seq            uint64
	result         statemachine.Result // of what is proposed
}

func newStillMirror(t *testing.T) *stillMirror {
	t.Helper()
	m := &stillMirror{machine: statemachine.New(statemachine.Options{}), ready: make(chan struct{})}
	close(m.ready)
	m.apply(t, logv1.EntryKind_ENTRY_KIND_GENESIS, &logv1.Genesis{ClusterId: 1})
	m.apply(t, logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, &logv1.OpenSession{FrontendId: 1, Incarnation: 1, Region: "us"})
	m.session = m.index
	batch := &commandv1.CommandBatch{}
	for _, key := range append(rangeKeys(), "key") {
		batch.Commands = append(batch.Commands, &commandv1.Command{
			Operation: &commandv1.Command_Put{Put: &commandv1.Put{Key: []byte(key), Value: make([]byte, 256)}},
		})
	}
	m.apply(t, logv1.EntryKind_ENTRY_KIND_BATCH, batch)
	m.result = statemachine.Result{Index: m.index, Revision: 3, Txn: &statemachine.TxnResult{
		Succeeded: true, Operations: []statemachine.OperationResult{{Put: &statemachine.PutResult{}}},
	}}
	return m
}

// rangeKeys are 1,000 keys beginning with range/.
func rangeKeys() (keys []string) {
	for i := range 1000 {
		keys = append(keys, fmt.Sprintf("range/%08d", i))
	}
	return keys
}

func (m *stillMirror) apply(t *testing.T, kind logv1.EntryKind, payload proto.Message) {
	t.Helper()
	encoded, err := proto.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	m.index++
	envelope := &logv1.Envelope{Kind: kind, LogTimeNanoseconds: 1e9, Payload: encoded}
	if kind == logv1.EntryKind_ENTRY_KIND_BATCH {
		m.seq++
		envelope.Session, envelope.Seq = m.session, m.seq
	}
	if _, err := m.machine.Apply(m.index, 1, kind, envelope, false); err != nil {
		t.Fatal(err)
	}
}

func (m *stillMirror) Propose(context.Context, *commandv1.Command, mirror.ProposeOptions) (statemachine.Result, error) {
	return m.result, nil
}
func (m *stillMirror) Linearize(context.Context) (uint64, error) { return m.index, nil }
func (m *stillMirror) Age() (time.Duration, bool)                { return 5 * time.Millisecond, true }
func (m *stillMirror) Machine() *statemachine.Machine            { return m.machine }
func (m *stillMirror) Ready() <-chan struct{}                    { return m.ready }
func (m *stillMirror) Identity() mirror.Identity {
	return mirror.Identity{ClusterID: 1, Epoch: 1, FrontendID: 1, Incarnation: 1, Session: m.session, Name: "f", Region: "us"}
}

// headerStream takes the answer's metadata as gRPC's own stream does.
type headerStream struct{ header metadata.MD }

func (*headerStream) Method() string { return "" }
func (s *headerStream) SetHeader(md metadata.MD) error {
	s.header = metadata.Join(s.header, md)
	return nil
}
func (s *headerStream) SendHeader(md metadata.MD) error {
	s.header = md
	return nil
}
func (*headerStream) SetTrailer(metadata.MD) error { return nil }

// TestHandlerAllocations holds what a handler allocates between the decoded request and the encoded answer, with the
// metadata that etcd's client sends, where the answer before told the same facts.
func TestHandlerAllocations(t *testing.T) {
	m := newStillMirror(t)
	server := &kvServer{services: &services{region: serving.New(m, statemachine.Limits{})}}
	codec := wire.NewCodec()
	stream := &headerStream{}
	ctx := grpc.NewContextWithServerTransportStream(t.Context(), stream)
	ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(":authority", "a", "content-type", "application/grpc",
		"user-agent", "grpc-go", "client-api-version", "3.7.3", "grpc-accept-encoding", "gzip"))
	ranged := &pb.RangeRequest{Key: []byte("key"), Serializable: true}
	thousand := &pb.RangeRequest{Key: []byte("range/"), RangeEnd: []byte("range0"), Serializable: true}
	put := &pb.PutRequest{Key: []byte("key"), Value: make([]byte, 256)}
	swap := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("key"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 3}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
	}
	for _, test := range []struct {
		name   string
		handle func() (any, error)
		most   float64
	}{
		{"get", func() (any, error) { return server.rangeAnswer(ctx, ranged) }, 5},
		{"range of 1,000", func() (any, error) { return server.rangeAnswer(ctx, thousand) }, 11},
		{"put", func() (any, error) { return server.Put(ctx, put) }, 4},
		{"CAS", func() (any, error) { return server.Txn(ctx, swap) }, 4},
	} {
		got := testing.AllocsPerRun(1000, func() {
			stream.header = nil
			answer, err := test.handle()
			if err != nil {
				t.Fatal(err)
			}
			encoded, err := codec.Marshal(answer)
			if err != nil {
				t.Fatal(err)
			}
			encoded.Free()
		})
		if got > test.most+poolLosses {
			t.Errorf("%s: %v allocations, want at most %v", test.name, got, test.most+poolLosses)
		}
		if len(stream.header) != 2 {
			t.Errorf("%s: metadata %v", test.name, stream.header)
		}
	}
}
