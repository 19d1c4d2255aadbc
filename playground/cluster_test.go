package playground

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/internal/wan"
)

const patience = time.Minute

func startCluster(t *testing.T, config Config) *Cluster {
	t.Helper()
	config.Logger = testLogger(t)
	c, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Ready():
	case <-c.Done():
		c.Kill()
		t.Fatal(c.Err())
	case <-time.After(patience):
		c.Kill()
		t.Fatal("the cluster does not serve")
	}
	return c
}

func newKV(t *testing.T, address string) kvv1.KvServiceClient {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return kvv1.NewKvServiceClient(connection)
}

func put(t *testing.T, address, key, value string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	response, err := newKV(t, address).Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(value)}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return response.GetRevision()
}

func get(t *testing.T, address, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	response, err := newKV(t, address).Get(ctx, &kvv1.GetRequest{Key: []byte(key)}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return string(response.GetKeyValue().GetValue())
}

// holdWatch opens a watch that stays until the cluster ends: no client may hold up the end.
func holdWatch(t *testing.T, address string) {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	stream, err := kvv1.NewWatchServiceClient(connection).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request := &kvv1.WatchRequest_Create_{Create: &kvv1.WatchRequest_Create{Key: []byte("key")}}
	if err := stream.Send(&kvv1.WatchRequest{Request: request}); err != nil {
		t.Fatal(err)
	}
	if response, err := stream.Recv(); err != nil || !response.GetCreated() {
		t.Fatalf("watch: %v, %v", response, err)
	}
}

func stop(t *testing.T, c *Cluster) {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

func TestRestartWithOtherPorts(t *testing.T) {
	config := Config{
		Regions:      []string{"us", "eu"},
		RoundTrips:   map[wan.Pair]time.Duration{{A: "us", B: "eu"}: 10 * time.Millisecond},
		LeaderRegion: "eu",
		DataDir:      t.TempDir(),
	}
	c := startCluster(t, config)
	info := c.Info()
	if len(info.Regions) != 2 || len(info.Log) != 3 {
		t.Fatalf("started %+v", info)
	}
	revision := put(t, info.Regions[0].Frontend, "key", "value")
	if _, err := Start(config); !errors.Is(err, ErrDataDirInUse) {
		t.Errorf("a second cluster on the same data: %v", err)
	}
	// A port in use is said, and nothing is left behind that would keep it.
	inUse := config
	inUse.DataDir, inUse.Listen = t.TempDir(), info.Regions[1].Frontend
	if _, err := Start(inUse); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("a second cluster on the same port: %v", err)
	}
	stop(t, c)

	// Somebody else takes one of the ports of the log meanwhile.
	thief, err := net.Listen("tcp", info.Log[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	c = startCluster(t, config)
	defer stop(t, c)
	again := c.Info()
	if again.Log[0].Address == info.Log[0].Address {
		t.Errorf("%s is at %s, which is taken", again.Log[0].Name, again.Log[0].Address)
	}
	if again.Log[1].Address != info.Log[1].Address {
		t.Errorf("%s moved from %s to %s", again.Log[1].Name, info.Log[1].Address, again.Log[1].Address)
	}
	for _, region := range again.Regions {
		if got := get(t, region.Frontend, "key"); got != "value" {
			t.Errorf("%s: read %q after the restart", region.Name, got)
		}
	}
	if next := put(t, again.Regions[1].Frontend, "key", "other"); next != revision+1 {
		t.Errorf("revision %d after %d", next, revision)
	}
}

func TestParts(t *testing.T) {
	c := startCluster(t, Config{
		Regions:    []string{"us", "eu", "ap"},
		RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: 5 * time.Millisecond},
		DataDir:    t.TempDir(),
	})
	defer stop(t, c)
	regions := c.Info().Regions
	holdWatch(t, regions[0].Frontend)
	leader, ok := c.Leader()
	if !ok {
		t.Fatal("a cluster that serves has no leader")
	}
	steps := []struct {
		name string
		do   error
	}{
		{"kill the leader", c.KillMember(leader)},
		{"restart it", c.RestartMember(leader)},
		{"kill a frontend", c.KillFrontend("eu")},
		{"restart it", c.RestartFrontend("eu")},
		{"stop a region", c.StopRegion("ap")},
		{"stop it again", c.StopRegion("ap")},
		{"start it", c.StartRegion("ap")},
		{"start it again", c.StartRegion("ap")},
	}
	for _, step := range steps {
		if step.do != nil {
			t.Fatalf("%s: %v", step.name, step.do)
		}
	}
	for i, region := range regions {
		ready, err := c.RegionReady(region.Name)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-ready:
		case <-time.After(patience):
			t.Fatalf("%s does not serve", region.Name)
		}
		if revision := put(t, region.Frontend, "key", region.Name); revision != int64(i)+2 {
			t.Errorf("put in %s made revision %d", region.Name, revision)
		}
	}
	for _, failing := range []error{
		c.KillMember("nobody"), c.RestartMember(leader), c.RestartFrontend("us"), c.KillFrontend("mars"),
	} {
		if failing == nil {
			t.Error("what makes no sense was taken")
		}
	}
	if c.Err() != nil {
		t.Errorf("parts that were ended count as failed: %v", c.Err())
	}
}
