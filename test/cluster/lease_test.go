package cluster

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/logservice"
)

// sessionTime is the least and the default session time: how late a lease may end without a failure.
const sessionTime = 10 * time.Second

// A lease that is granted in one region and kept alive through another lives as long as it is renewed, then ends: never
// before its time to live after the last renewal, and at most a session time late, everywhere.
func TestLeaseAcrossRegions(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		const ttl = 15 * time.Second
		us, eu := c.regions["us"], c.regions["eu"]
		lease, err := us.etcd.Grant(t.Context(), int64(ttl.Seconds()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := us.etcd.Put(t.Context(), "held", "by lease", clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		renewing, stop := context.WithCancel(t.Context())
		answers, err := eu.etcd.KeepAlive(renewing, lease.ID)
		if err != nil {
			t.Fatal(err)
		}
		lastRenewal := keepAliveFor(t, answers, 10*ttl)
		if got := c.regions["ap"].get(t, "held", linearizable); got != "by lease" {
			t.Errorf("a lease that is renewed ended: %q", got)
		}

		stop()
		for range answers { // until the client has stopped; a renewal may have been on its way
			lastRenewal = time.Now()
		}
		ends := make(map[*region]<-chan time.Time)
		for _, r := range c.regions {
			ends[r] = r.watchDelete(t, "held")
		}
		for r, end := range ends {
			at, ok := <-end
			if !ok {
				t.Fatalf("%s did not see the lease end", r.name)
			}
			lasted := at.Sub(lastRenewal)
			t.Logf("%s saw the lease end %v after its last renewal", r.name, lasted)
			if lasted < ttl || lasted > ttl+sessionTime {
				t.Errorf("%s: the lease of %v ended %v after its last renewal", r.name, ttl, lasted)
			}
		}
		if _, err := eu.etcd.KeepAliveOnce(t.Context(), lease.ID); err == nil {
			t.Error("a lease that ended was renewed")
		}
	})
}

// keepAliveFor takes renewals for that long and returns when the last one was confirmed.
func keepAliveFor(t *testing.T, answers <-chan *clientv3.LeaseKeepAliveResponse, long time.Duration) (last time.Time) {
	t.Helper()
	enough := time.After(long)
	for {
		select {
		case answer, ok := <-answers:
			if !ok {
				t.Fatal("the lease ended while it was renewed")
			}
			if answer.TTL <= 0 {
				t.Fatalf("renewed for %d s", answer.TTL)
			}
			last = time.Now()
		case <-enough:
			return last
		}
	}
}

// watchDelete tells when this region shows a key, which is there now, as deleted. It speaks the native API: the watch of
// etcd's client waits on a channel made outside of every bubble, which stops virtual time.
func (r *region) watchDelete(t *testing.T, key string) <-chan time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	current, err := r.kv.Get(ctx, &kvv1.GetRequest{Key: []byte(key), Consistency: serializable})
	if err != nil || current.GetKeyValue() == nil {
		t.Fatalf("%s: the key to watch: %v, %v", r.name, current, err)
	}
	stream, err := r.watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	create := &kvv1.WatchRequest_Create{Key: []byte(key), StartRevision: current.GetHeader().GetRevision() + 1}
	if err := stream.Send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Create_{Create: create}}); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan time.Time, 1)
	go func() {
		defer close(deleted)
		for {
			response, err := stream.Recv()
			if err != nil {
				return
			}
			for _, event := range response.GetEvents() {
				if event.GetType() == kvv1.Event_EVENT_TYPE_DELETE {
					deleted <- time.Now()
					return
				}
			}
		}
	}()
	return deleted
}
