package frontend

import (
	"runtime"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// TestAStalledReaderIsItsOwnBusiness: a client that does not read, and more of them than there are workers, costs a bounded buffer and delays nobody, then its watch
// waits with history; compacted under it, the watch is canceled and told where history begins.
func TestAStalledReaderIsItsOwnBusiness(t *testing.T) {
	c := newTestCluster(t)
	server, ctx := c.frontend("us-1", "us"), testContext(t)
	open := func() pb.Watch_WatchClient {
		stream, err := pb.NewWatchClient(c.connection(server)).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		create := &pb.WatchCreateRequest{Key: []byte("k")}
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); err != nil || !r.Created {
			t.Fatalf("created: %v, %v", r, err)
		}
		return stream
	}
	reading := open()
	var stalled []pb.Watch_WatchClient
	for range runtime.GOMAXPROCS(0) + 2 {
		stalled = append(stalled, open())
	}
	kv := kvv1.NewKvServiceClient(c.connection(server))
	const puts = 80
	value := []byte(strings.Repeat("v", 64<<10)) // far more than what gRPC and the hub's buffer take
	var first, last int64
	for i := range puts {
		put, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: value})
		if err != nil {
			t.Fatal(err)
		}
		if last = put.GetRevision(); i == 0 {
			first = last
		}
		// Each event is read before the next one is written: nothing of the stalled reader's comes in between.
		r, err := reading.Recv()
		if err != nil || len(r.Events) != 1 || r.Events[0].Kv.ModRevision != last {
			t.Fatalf("put %d: %v", last, err)
		}
		progress := &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
		if err := reading.Send(&pb.WatchRequest{RequestUnion: progress}); err != nil {
			t.Fatal(err)
		}
		if r, err := reading.Recv(); err != nil || len(r.Events) != 0 || r.Header.Revision != last {
			t.Fatalf("progress at %d: %v, %v", last, r, err)
		}
	}
	if st := server.present().hub.Stats(); st.Watches != 1+len(stalled) || st.Lagging != len(stalled) || st.Slow != len(stalled) {
		t.Errorf("with %d readers stalled: %+v", len(stalled), st)
	}

	compacted := last - 2
	if _, err := kv.Compact(ctx, &kvv1.CompactRequest{Revision: compacted}); err != nil {
		t.Fatal(err)
	}
	for _, stream := range stalled {
		readUntilCompacted(t, stream, first, compacted)
	}
	eventually(t, "the canceled watch is gone", func() bool {
		st := server.present().hub.Stats()
		return st.Watches == 1 && st.Lagging == 0 && st.Slow == 0
	})
}

// readUntilCompacted reads what a stalled client has, until its watch is canceled.
func readUntilCompacted(t *testing.T, stream pb.Watch_WatchClient, first, compacted int64) {
	t.Helper()
	next := first
	for {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.Canceled {
			if r.CompactRevision != compacted {
				t.Errorf("canceled with %v, want the compact revision %d", r, compacted)
			}
			break
		}
		for _, event := range r.Events {
			if event.Kv.ModRevision != next {
				t.Fatalf("event of revision %d, want %d", event.Kv.ModRevision, next)
			}
			next++
		}
	}
	// What was buffered: the hub's 1 MiB, what was taken of it for one write, and what gRPC had.
	if buffered := next - first; buffered < 10 || buffered > 40 {
		t.Errorf("%d events of 64 KiB were buffered", buffered)
	}
}
