package frontend

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

func TestStopEndsStreamsAndIsQuick(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us")
	connection, ctx := c.connection(server), testContext(t)
	client := c.etcdClient(server)
	lease, err := client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.KeepAlive(ctx, lease.ID); err != nil {
		t.Fatal(err)
	}
	if created := <-client.Watch(ctx, "k", clientv3.WithCreatedNotify()); !created.Created {
		t.Fatalf("created: %v", created)
	}
	watch, err := kvv1.NewWatchServiceClient(connection).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Create_{
		Create: &kvv1.WatchRequest_Create{Key: []byte("k")},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	renewals, err := kvv1.NewLeaseServiceClient(connection).KeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := renewals.Send(&kvv1.KeepAliveRequest{Id: int64(lease.ID)}); err != nil {
		t.Fatal(err)
	}
	if kept, err := renewals.Recv(); err != nil || kept.GetTtlSeconds() != 60 {
		t.Fatalf("renewed: %v, %v", kept, err)
	}
	if told, err := healthv1.NewHealthClient(connection).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil ||
		told.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", told, err)
	}

	began := time.Now()
	server.Stop()
	if took := time.Since(began); took > stopCallsTimeout {
		t.Errorf("stopping took %v", took)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := renewals.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the renewals ended with %v", err)
	}
	if err := server.Err(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	server.Stop() // again does nothing
}

func TestAPortWithoutALogSaysThatItIsNotReady(t *testing.T) {
	c := newTestCluster(t)
	c.log.setAway(true)
	config := Config{Name: "us-1", Region: "us", DataDir: t.TempDir(), Listener: listen(t), Log: []string{c.log.address}}
	server, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	connection, ctx := c.connection(server), testContext(t)
	kv := kvv1.NewKvServiceClient(connection)
	for _, level := range []kvv1.Consistency_Level{kvv1.Consistency_LEVEL_SERIALIZABLE, kvv1.Consistency_LEVEL_LINEARIZABLE} {
		_, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Consistency: &kvv1.Consistency{Level: level}})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%v read: %v", level, err)
		}
	}
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k")}); status.Code(err) != codes.Unavailable {
		t.Errorf("put: %v", err)
	}
	if told, err := healthv1.NewHealthClient(connection).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil ||
		told.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v, %v", told, err)
	}
	told, err := kvv1.NewClusterServiceClient(connection).Status(ctx, &kvv1.StatusRequest{})
	if err != nil || len(told.GetDegraded()) == 0 {
		t.Errorf("status: %v, %v", told, err)
	}
}

func TestARestartKeepsEverythingAndRaisesTheIncarnation(t *testing.T) {
	c := newTestCluster(t)
	directory := t.TempDir()
	keep := func(config *Config) { config.DataDir = directory }
	first, ctx := c.frontend("us-1", "us", keep), testContext(t)
	stored, err := kvv1.NewKvServiceClient(c.connection(first)).Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v")})
	if err != nil {
		t.Fatal(err)
	}
	first.Kill()
	kv := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us", keep)))
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("other")}); err != nil {
		t.Fatal(err)
	}
	found, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	if string(found.GetKeyValue().GetValue()) != "v" || found.GetKeyValue().GetModRevision() != stored.GetRevision() {
		t.Errorf("after the restart: %v", found)
	}
	if before, after := stored.GetHeader().GetIncarnation(), found.GetHeader().GetIncarnation(); after != before+1 {
		t.Errorf("incarnation %d, then %d", before, after)
	}
}
