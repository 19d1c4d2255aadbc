package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/logservice"
)

const (
	regionOpen    = kvv1.RegionState_REGION_STATE_OPEN
	regionDrained = kvv1.RegionState_REGION_STATE_DRAINED
	regionFenced  = kvv1.RegionState_REGION_STATE_FENCED
)

// dial connects to a region's frontend from within the region.
func (c *virtual) dial(name string) *grpc.ClientConn {
	c.t.Helper()
	for _, info := range c.Info().Regions {
		if info.Name != name {
			continue
		}
		connection, err := grpc.NewClient("passthrough:///"+info.Frontend,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return c.Network().Region(name).Dial(ctx, address)
			}))
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { connection.Close() })
		return connection
	}
	c.t.Fatalf("no region %s", name)
	return nil
}

// setRegion changes a region's state through the frontend of another, or the same, region.
func (c *virtual) setRegion(through, name string, state kvv1.RegionState) *kvv1.ResponseHeader {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	answer, err := kvv1.NewAdminServiceClient(c.dial(through)).SetRegionState(ctx,
		&kvv1.SetRegionStateRequest{Region: name, State: state})
	if err != nil {
		c.t.Fatalf("%s to %v through %s: %v", name, state, through, err)
	}
	if answer.GetRegion().GetState() != state || !answer.GetKnown() {
		c.t.Errorf("%s to %v: %v", name, state, answer)
	}
	return answer.GetHeader()
}

// seenBy is a serializable read of the state at a header or later.
func seenBy(h *kvv1.ResponseHeader) *kvv1.Consistency {
	return &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE, AtLeast: &kvv1.Token{
		ClusterId: h.GetClusterId(), Epoch: h.GetEpoch(), LogIndex: h.GetLogIndex(),
	}}
}

// tryPut returns the error of a put, and how long it took.
func (r *region) tryPut(t *testing.T, key string, o *kvv1.WriteOptions, timeout time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	start := time.Now()
	_, err := r.kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(r.name), Options: o})
	return time.Since(start), err
}

// keepAlive renews a lease through one stream, and sends what comes of each renewal; it ends with the stream.
func keepAlive(t *testing.T, connection *grpc.ClientConn, id int64, every time.Duration) <-chan error {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := kvv1.NewLeaseServiceClient(connection).KeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, 1000)
	go func() {
		defer close(answers)
		for {
			if err := stream.Send(&kvv1.KeepAliveRequest{Id: id}); err != nil {
				_, err = stream.Recv()
				answers <- err
				return
			}
			answer, err := stream.Recv()
			if err == nil && answer.GetTtlSeconds() == 0 {
				err = fmt.Errorf("lease %x has ended", id)
			}
			answers <- err
			if err != nil {
				return
			}
			select {
			case <-time.After(every):
			case <-ctx.Done():
				return
			}
		}
	}()
	return answers
}

// lastOf returns how the renewals of a stream ended.
func lastOf(renewals <-chan error) (last error) {
	enough := time.After(patience)
	for {
		select {
		case err, ok := <-renewals:
			if !ok {
				return last
			}
			last = err
		case <-enough:
			return errors.New("they go on")
		}
	}
}

// A region that is cut off and fenced meanwhile writes nothing late, whatever was on its way when the network heals; it
// goes on reading, and is back by itself once it is opened.
func TestFencedRegionCannotWriteLate(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		eu, us := c.regions["eu"], c.regions["us"]
		connection := c.dial("eu")
		eu.put(t, "key", "before")
		lease, err := kvv1.NewLeaseServiceClient(connection).Grant(t.Context(), &kvv1.GrantRequest{TtlSeconds: 60})
		if err != nil {
			t.Fatal(err)
		}
		renewals := keepAlive(t, connection, lease.GetId(), time.Second)

		// Some are on their way to the leader at the cut, others are handed to eu's own log member after it.
		var writes sync.WaitGroup
		const late = 20
		errs := make([]error, late)
		write := func(i int) {
			writes.Go(func() {
				options := &kvv1.WriteOptions{WaitForLog: i%2 == 0}
				_, errs[i] = eu.tryPut(t, fmt.Sprintf("late/%d", i), options, 30*time.Second)
			})
		}
		for i := range late {
			if i == 5 {
				c.Network().Isolate("eu")
			}
			write(i)
			time.Sleep(5 * time.Millisecond)
		}
		fence := c.setRegion("us", "eu", regionFenced)
		us.put(t, "key", "after the fence")
		if got := eu.get(t, "key", serializable); got != "before" {
			t.Errorf("a cut-off region reads %q", got)
		}
		c.Network().HealAll() // well before its session would have ended by time

		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		found, err := eu.kv.Get(ctx, &kvv1.GetRequest{Key: []byte("key"), Consistency: seenBy(fence)})
		if err != nil {
			t.Fatal(err)
		}
		if found.GetHeader().GetAgeMicroseconds() < 0 {
			t.Error("the age of a fenced region's state is not told")
		}
		if got := eu.get(t, "key", linearizable); got != "after the fence" {
			t.Errorf("a fenced region reads %q", got)
		}
		took, err := eu.tryPut(t, "late/refused", &kvv1.WriteOptions{WaitForLog: true}, patience)
		if code(err) != codes.Unavailable || !strings.Contains(err.Error(), "frontend-ap in ap") || took != 0 {
			t.Errorf("a write in a fenced region: %v after %v", err, took)
		}
		if _, err := eu.etcd.Put(ctx, "late/etcd", "v"); err == nil || !strings.Contains(err.Error(), "region eu is fenced") {
			t.Errorf("a write in a fenced region through etcd's client: %v", err)
		}
		if err := lastOf(renewals); code(err) != codes.Unavailable {
			t.Errorf("renewals in a fenced region end with %v", err)
		}
		writes.Wait()
		for i, err := range errs {
			wants := codes.DeadlineExceeded // it waits for the log
			if i%2 == 1 {
				wants = codes.Unavailable
			}
			if code(err) != wants || (i%2 == 1 && !strings.Contains(err.Error(), "is fenced")) {
				t.Errorf("late/%d: %v, want %v", i, err, wants)
			}
		}
		status, err := kvv1.NewClusterServiceClient(connection).Status(ctx, &kvv1.StatusRequest{})
		if err != nil || !strings.Contains(strings.Join(status.GetDegraded(), "\n"), "region eu is fenced") {
			t.Errorf("status: %v, %v", status.GetDegraded(), err)
		}
		c.restartFenced(eu)

		c.setRegion("ap", "eu", regionOpen)
		opened := time.Now()
		c.eventually("eu writes again", func() error {
			_, err := eu.tryPut(t, "key", nil, time.Second)
			return err
		})
		t.Logf("the first put in the opened region: after %v", time.Since(opened))
		if got := us.get(t, "key", linearizable); got != "eu" {
			t.Errorf("us reads %q", got)
		}
		for _, r := range c.regions {
			list, err := r.kv.List(ctx, &kvv1.ListRequest{Key: []byte("late/"), RangeEnd: []byte("late0")})
			if err != nil || len(list.GetKeyValues()) > 0 {
				t.Errorf("%s: written late: %v, %v", r.name, list.GetKeyValues(), err)
			}
		}
	})
}

// restartFenced restarts the frontend of a fenced region, which then reads and still refuses writes.
func (c *virtual) restartFenced(r *region) {
	c.t.Helper()
	if err := errors.Join(c.KillFrontend(r.name), c.RestartFrontend(r.name)); err != nil {
		c.t.Fatal(err)
	}
	c.eventually("a restarted frontend of a fenced region reads", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		_, err := r.tryGet(ctx, "key", linearizable)
		return err
	})
	if _, err := r.tryPut(c.t, "late/restarted", nil, patience); code(err) != codes.Unavailable ||
		!strings.Contains(err.Error(), "is fenced") {
		c.t.Errorf("a write after a restart in a fenced region: %v", err)
	}
}

// A drained region refuses clients' writes without a round trip, and does everything else.
func TestDrainedRegion(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		const ttl = 15 * time.Second
		eu, us := c.regions["eu"], c.regions["us"]
		connection := c.dial("eu")
		lease, err := kvv1.NewLeaseServiceClient(connection).Grant(t.Context(), &kvv1.GrantRequest{TtlSeconds: int64(ttl.Seconds())})
		if err != nil {
			t.Fatal(err)
		}
		unrenewed, err := kvv1.NewLeaseServiceClient(connection).Grant(t.Context(), &kvv1.GrantRequest{TtlSeconds: int64(ttl.Seconds())})
		if err != nil {
			t.Fatal(err)
		}
		granted := time.Now()
		for key, id := range map[string]int64{"held": lease.GetId(), "left": unrenewed.GetId()} {
			put := &kvv1.PutRequest{Key: []byte(key), Value: []byte("v"), Lease: id}
			if _, err := eu.kv.Put(t.Context(), put); err != nil {
				t.Fatal(err)
			}
		}
		left := eu.watchDelete(t, "left")
		renewals := keepAlive(t, connection, lease.GetId(), time.Second)

		c.setRegion("eu", "eu", regionDrained)
		took, err := eu.tryPut(t, "refused", nil, patience)
		if code(err) != codes.Unavailable || !strings.Contains(err.Error(), "frontend-ap in ap") || took != 0 {
			t.Errorf("a write in a drained region: %v after %v", err, took)
		}
		us.put(t, "key", "elsewhere")
		if got := eu.get(t, "key", linearizable); got != "elsewhere" {
			t.Errorf("a drained region reads %q", got)
		}
		// The drained region's keeper ends what its clients no longer renew, on time, and its watches tell of it.
		at, ok := <-left
		if lasted := at.Sub(granted); !ok || lasted < ttl || lasted > ttl+sessionTime {
			t.Errorf("a lease of a drained region: %v after its grant", lasted)
		}
		time.Sleep(3 * ttl)
		if got := us.get(t, "held", linearizable); got != "v" {
			t.Errorf("a lease that is renewed in a drained region ended: %q", got)
		}
		for len(renewals) > 0 {
			if err := <-renewals; err != nil {
				t.Errorf("a renewal in a drained region: %v", err)
			}
		}
		c.setRegion("eu", "eu", regionOpen) // an operator's command is taken there, too
		eu.put(t, "key", "again")
	})
}
