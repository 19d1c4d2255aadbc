package client_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/playground"
)

// real is a cluster in virtual time.
type real struct {
	*playground.Cluster
	t *testing.T
}

func cluster(t *testing.T, test func(t *testing.T, c real)) {
	data := t.TempDir() // outside of the bubble, which must not outlive it
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		running, err := playground.Start(playground.Config{
			Regions: []string{"us", "eu", "ap"}, InMemory: true, DataDir: data, FS: disk.NewMemory(1), LeaderRegion: "us",
			Clock: func() time.Duration { return time.Since(start) },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := running.Stop(ctx); err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-running.Ready():
		case <-time.After(time.Minute):
			t.Fatal("the cluster does not serve")
		}
		test(t, real{running, t})
	})
}

// connect returns a client of a region, from within it.
func (c real) connect(region string) *client.Client {
	c.t.Helper()
	for _, info := range c.Info().Regions {
		if info.Name == region {
			connection, err := client.New(client.Config{
				Endpoints: []string{info.Frontend}, Dial: c.Network().Region(region).Dial,
			})
			if err != nil {
				c.t.Fatal(err)
			}
			c.t.Cleanup(func() { connection.Close() })
			return connection
		}
	}
	c.t.Fatalf("there is no region %s", region)
	return nil
}

// restart kills a region's frontend and starts it again a while later.
func (c real) restart(region string, away time.Duration) {
	c.t.Helper()
	if err := c.KillFrontend(region); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(away)
	if err := c.RestartFrontend(region); err != nil {
		c.t.Fatal(err)
	}
}

// While its frontend is killed and comes back, twice: adds under request ids count once each, a watch sees each of them
// once and in order, a lease is kept, and ids are never given again.
func TestFrontendRestarts(t *testing.T) {
	cluster(t, func(t *testing.T, c real) {
		const adds = 100
		eu := c.connect("eu")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		granted, err := eu.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 30})
		if err != nil {
			t.Fatal(err)
		}
		var working sync.WaitGroup
		working.Go(func() {
			for i := range int64(adds) {
				var answer *kvv1.MutateResponse
				err := eu.Once(ctx, func(ctx context.Context, id string) (err error) {
					answer, err = eu.Mutate(ctx, &kvv1.MutateRequest{
						Mutation: client.Add("hits", 1), Options: &kvv1.WriteOptions{RequestId: id},
					})
					return err
				})
				if err != nil || answer.GetResult().GetInteger() != i+1 {
					t.Errorf("add %d: %v, %v", i+1, answer, err)
					return
				}
			}
		})
		working.Go(func() {
			seen := 0
			for answer, err := range eu.Watch(ctx, &kvv1.WatchRequest_Create{Key: []byte("hits"), StartRevision: 1}) {
				if err != nil {
					t.Errorf("after %d events: %v", seen, err)
					return
				}
				for _, e := range answer.GetEvents() {
					if seen++; string(e.GetKv().GetValue()) != fmt.Sprint(seen) {
						t.Errorf("event %d has %q", seen, e.GetKv().GetValue())
					}
				}
				if seen >= adds {
					return
				}
			}
		})
		working.Go(func() {
			given := make(map[int64]bool)
			for answer, err := range eu.GenerateBlocks(ctx, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 100}) {
				if err != nil {
					t.Error(err)
					return
				}
				for id := range client.IDs(answer) {
					if given[id] {
						t.Errorf("%d again", id)
					}
					given[id] = true
				}
				if answer.GetHeader().GetIncarnation() == 3 {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		keeping, stop := context.WithCancel(ctx)
		renewals := 0
		working.Go(func() {
			for _, err := range eu.KeepAlive(keeping, granted.GetId()) {
				if err != nil {
					if keeping.Err() == nil {
						t.Error(err)
					}
					return
				}
				renewals++
			}
			t.Error("the lease has ended")
		})
		for range 2 {
			time.Sleep(4 * time.Second)
			c.restart("eu", 3*time.Second)
		}
		time.Sleep(time.Minute)
		left, err := eu.TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: granted.GetId()})
		if err != nil || left.GetTtlSeconds() <= 0 {
			t.Errorf("%v, %v", left, err)
		}
		stop()
		working.Wait()
		if renewals < 6 {
			t.Errorf("%d renewals", renewals)
		}
	})
}

// In a region that is cut off from the log Once goes on until its time ends and leaves no doubt; what it could not do there
// it does when the region is back, and another region does it meanwhile.
func TestOnceInACutOffRegion(t *testing.T) {
	cluster(t, func(t *testing.T, c real) {
		add := func(region *client.Client, patience time.Duration) (*kvv1.MutateResponse, error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var answer *kvv1.MutateResponse
			err := region.Once(ctx, func(ctx context.Context, id string) (err error) {
				answer, err = region.Mutate(ctx, &kvv1.MutateRequest{
					Mutation: client.Add("hits", 1), Options: &kvv1.WriteOptions{RequestId: id},
				})
				return err
			})
			return answer, err
		}
		us, ap := c.connect("us"), c.connect("ap")
		if _, err := add(ap, time.Minute); err != nil {
			t.Fatal(err)
		}
		c.Network().Isolate("ap")
		time.Sleep(20 * time.Second) // the log is known to be away
		if _, err := add(ap, 5*time.Second); status.Code(err) != codes.Unavailable || !client.NotApplied(err) {
			t.Errorf("cut off: %v", err)
		}
		if answer, err := add(us, 5*time.Second); err != nil || answer.GetResult().GetInteger() != 2 {
			t.Errorf("elsewhere: %v, %v", answer, err)
		}
		healed := time.AfterFunc(10*time.Second, c.Network().HealAll)
		defer healed.Stop()
		if answer, err := add(ap, time.Minute); err != nil || answer.GetResult().GetInteger() != 3 {
			t.Errorf("back again: %v, %v", answer, err)
		}
	})
}
