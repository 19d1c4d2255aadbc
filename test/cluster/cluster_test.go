// Package cluster runs a whole cluster of three regions in virtual time, where a round trip of 80 ms takes 80 ms to the
// nanosecond and none of the tests' own: what is claimed of round trips, expiry and partitions is shown here.
//
// Only the network is of a testing/synctest bubble; the log members write to disks in memory, the frontends keep their
// identity in a temporary directory. Timers of one instant fire in any order, so a run is not reproducible from a seed.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/playground"
)

// patience bounds, in virtual time, what must happen at all.
const patience = time.Minute

// virtual is a cluster in a bubble, with a client of each API in each region.
type virtual struct {
	*playground.Cluster
	t       *testing.T
	regions map[string]*region
}

type region struct {
	name  string
	kv    kvv1.KvServiceClient
	watch kvv1.WatchServiceClient
	etcd  *clientv3.Client
}

// bubble runs a test against a cluster of us, eu and ap, led from us, that has settled.
func bubble(t *testing.T, publication logservice.Publication, test func(t *testing.T, c *virtual)) {
	bubbleWith(t, func(config *playground.Config) { config.Publication = publication }, test)
}

// bubbleWith lets the test change what the cluster is made of; it is called within the bubble.
func bubbleWith(t *testing.T, change func(*playground.Config), test func(t *testing.T, c *virtual)) {
	data := t.TempDir() // outside of the bubble, which must not outlive it
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		config := playground.Config{
			InMemory:     true,
			DataDir:      data,
			FS:           disk.NewMemory(1),
			LeaderRegion: "us",
			Clock:        func() time.Duration { return time.Since(start) },
			Logger:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		}
		change(&config)
		cluster, err := playground.Start(config)
		if err != nil {
			t.Fatal(err)
		}
		c := &virtual{Cluster: cluster, t: t, regions: make(map[string]*region)}
		defer func() {
			for _, r := range c.regions {
				r.etcd.Close()
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := cluster.Stop(ctx); err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-cluster.Ready():
		case <-cluster.Done():
			t.Fatal(cluster.Err())
		case <-time.After(patience):
			t.Fatal("the cluster does not serve")
		}
		for _, info := range cluster.Info().Regions {
			c.regions[info.Name] = c.connect(info.Name, info.Frontend)
		}
		c.settle()
		test(t, c)
		if err := cluster.Err(); err != nil {
			t.Error(err)
		}
	})
}

// connect makes the clients of a region, which are in it.
func (c *virtual) connect(name, address string) *region {
	dial := grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return c.Network().Region(name).Dial(ctx, address)
	})
	connection, err := grpc.NewClient("passthrough:///"+address, dial,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { connection.Close() })
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints: []string{address}, DialOptions: []grpc.DialOption{dial}, Logger: zap.NewNop(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return &region{
		name: name, etcd: etcd,
		kv: kvv1.NewKvServiceClient(connection), watch: kvv1.NewWatchServiceClient(connection),
	}
}

// settle waits until us leads and every frontend has found its nearest member, and warms every connection.
func (c *virtual) settle() {
	c.eventually("us leads", func() error {
		if leader, _ := c.Leader(); leader != "log-us" {
			return fmt.Errorf("%q leads", leader)
		}
		return nil
	})
	time.Sleep(30 * time.Second) // virtual: longer than anything is preferred or put off
	for _, r := range c.regions {
		r.put(c.t, "settle/"+r.name, "x")
		r.get(c.t, "settle/"+r.name, linearizable)
		ctx, cancel := context.WithTimeout(c.t.Context(), patience)
		if _, err := r.etcd.Get(ctx, "settle"); err != nil {
			c.t.Error(err)
		}
		cancel()
	}
}

// eventually looks every 10 ms of virtual time.
func (c *virtual) eventually(what string, condition func() error) {
	c.t.Helper()
	start := time.Now()
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Since(start) > patience {
			c.t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

var (
	linearizable = &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_LINEARIZABLE}
	serializable = &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE}
)

func (r *region) put(t *testing.T, key, value string) *kvv1.PutResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	response, err := r.kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatalf("put in %s: %v", r.name, err)
	}
	return response
}

func (r *region) get(t *testing.T, key string, consistency *kvv1.Consistency) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	value, err := r.tryGet(ctx, key, consistency)
	if err != nil {
		t.Fatalf("get in %s: %v", r.name, err)
	}
	return value
}

func (r *region) tryGet(ctx context.Context, key string, consistency *kvv1.Consistency) (string, error) {
	response, err := r.kv.Get(ctx, &kvv1.GetRequest{Key: []byte(key), Consistency: consistency})
	return string(response.GetKeyValue().GetValue()), err
}

func code(err error) codes.Code { return status.Code(err) }
