package cluster

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/logservice"
)

// etcdWatch is one watch on a stream of its own, through etcd's protocol: the watcher of etcd's client library keeps a
// channel that belongs to no bubble.
type etcdWatch struct {
	cancel    context.CancelFunc
	responses chan *pb.WatchResponse
	err       error // of the stream, once responses is closed
}

func (r *region) openWatch(t *testing.T, ctx context.Context, create *pb.WatchCreateRequest) *etcdWatch {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	stream, err := pb.NewWatchClient(r.etcd.ActiveConnection()).Watch(ctx)
	if err == nil {
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &etcdWatch{cancel: cancel, responses: make(chan *pb.WatchResponse, 1000)}
	go func() {
		defer close(w.responses)
		for {
			response, err := stream.Recv()
			if err != nil {
				w.err = err
				return
			}
			w.responses <- response
		}
	}()
	if created := <-w.responses; created == nil || !created.Created || created.Canceled {
		t.Fatalf("a watch in %s was answered with %v, %v", r.name, created, w.err)
	}
	return w
}

// A watch that asked for a leader ends when its region has lost the log for long, and not before; one that did not goes on,
// and has everything when the region is back.
func TestWatchThatRequiresALeader(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		eu, us := c.regions["eu"], c.regions["us"]
		create := &pb.WatchCreateRequest{Key: []byte("key")}
		strict := eu.openWatch(t, clientv3.WithRequireLeader(t.Context()), create)
		patient := eu.openWatch(t, t.Context(), create)
		defer strict.cancel()
		defer patient.cancel()
		has := func(w *etcdWatch, value string) {
			t.Helper()
			select {
			case r := <-w.responses:
				if len(r.GetEvents()) != 1 || string(r.Events[0].Kv.Value) != value {
					t.Fatalf("got %v, %v; want the put of %s", r, w.err, value)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("no put of %s", value)
			}
		}

		// A short loss ends nothing.
		c.Network().Isolate("eu")
		time.Sleep(4 * time.Second)
		c.Network().HealAll()
		us.put(t, "key", "1")
		has(strict, "1")
		has(patient, "1")
		time.Sleep(10 * time.Second) // the loss is over once a read round has succeeded

		c.Network().Isolate("eu")
		lost := time.Now()
		if response, open := <-strict.responses; open {
			t.Fatalf("cut off, the watch said %v", response)
		}
		took := time.Since(lost)
		want := status.Convert(rpctypes.ErrGRPCNoLeader)
		if got := status.Convert(strict.err); got.Code() != want.Code() || got.Message() != want.Message() {
			t.Errorf("the watch ended with %v, want %v", got, want)
		}
		t.Logf("ended %v after the loss", took)
		if took < 9*time.Second || took > 12*time.Second {
			t.Errorf("the watch ended %v after the loss", took)
		}
		refused, err := pb.NewWatchClient(eu.etcd.ActiveConnection()).Watch(clientv3.WithRequireLeader(t.Context()))
		if err == nil {
			_, err = refused.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("a new watch: %v", err)
		}

		us.put(t, "key", "2")
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if len(patient.responses) > 0 {
			t.Fatal("a watch heard something while its region was cut off")
		}
		c.Network().HealAll()
		has(patient, "2")
		c.eventually("a watch that asks for a leader is taken again", func() error {
			stream, err := pb.NewWatchClient(eu.etcd.ActiveConnection()).Watch(clientv3.WithRequireLeader(t.Context()))
			if err != nil {
				return err
			}
			if err := stream.Send(&pb.WatchRequest{
				RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create},
			}); err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		})
	})
}

// A client that goes from region to region in the middle of a stream of events, each time with the revision after the last
// it saw, sees each event once, while a region is cut off and then behind.
func TestWatchMovesBetweenRegions(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		const events = 300
		next := c.regions["us"].put(t, "moves/begin", "x").GetRevision() + 1
		wrote := make(chan []int64, 1)
		go func() { wrote <- c.writeSteadily(t, events) }()
		go func() {
			time.Sleep(5 * time.Second)
			c.Network().Isolate("eu")
			time.Sleep(7 * time.Second)
			c.Network().HealAll()
		}()
		var seen []int64
		moves, silent := 0, 0
		for names := []string{"us", "eu", "ap", "eu"}; len(seen) < events; moves++ {
			some := c.watchSome(t, names[moves%len(names)], next, min(1+moves%17, events-len(seen)))
			if seen = append(seen, some...); len(some) > 0 {
				next = seen[len(seen)-1] + 1
			} else {
				silent++
			}
		}
		if want := <-wrote; !slices.Equal(seen, want) {
			t.Fatalf("saw %d events %v,\nwant %d %v", len(seen), seen, len(want), want)
		}
		t.Logf("%d events, %d moves, %d times nothing for 2 s", len(seen), moves, silent)
		if silent == 0 {
			t.Error("the partition was not met")
		}
	})
}

// writeSteadily puts keys under one prefix from us and returns the revisions.
func (c *virtual) writeSteadily(t *testing.T, n int) (revisions []int64) {
	for i := range n {
		response := c.regions["us"].put(t, fmt.Sprintf("moves/key-%d", i%3), fmt.Sprint(i))
		revisions = append(revisions, response.GetRevision())
		time.Sleep(20 * time.Millisecond)
	}
	return revisions
}

// watchSome watches in one region until some events have come, or nothing for 2 s.
func (c *virtual) watchSome(t *testing.T, name string, from int64, some int) (revisions []int64) {
	w := c.regions[name].openWatch(t, t.Context(), &pb.WatchCreateRequest{
		Key: []byte("moves/key"), RangeEnd: []byte("moves/kez"), StartRevision: from,
	})
	defer w.cancel()
	for len(revisions) < some {
		select {
		case response, open := <-w.responses:
			if !open || response.Canceled {
				t.Fatalf("the watch in %s ended: %v, %v", name, response, w.err)
			}
			for _, event := range response.Events {
				revisions = append(revisions, event.Kv.ModRevision)
			}
		case <-time.After(2 * time.Second):
			return revisions
		}
	}
	return revisions
}
