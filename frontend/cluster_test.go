package frontend

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// testCluster is a log with frontends on loopback.
type testCluster struct {
	t      *testing.T
	log    *fakeLog
	logger *slog.Logger
}

func newTestCluster(t *testing.T) *testCluster {
	t.Helper()
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	return &testCluster{
		t: t, log: newFakeLog(t),
		logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// frontend starts a frontend and waits until it serves.
func (c *testCluster) frontend(name, region string, change ...func(*Config)) *Server {
	c.t.Helper()
	config := Config{
		Name: name, Region: region, DataDir: c.t.TempDir(), Listener: listen(c.t), Log: []string{c.log.address}, Logger: c.logger,
	}
	config.Mirror.Log.RetryMin, config.Mirror.Log.RetryMax = 5*time.Millisecond, 50*time.Millisecond
	for _, f := range change {
		f(&config)
	}
	server, err := Start(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(server.Stop)
	select {
	case <-server.Ready():
	case <-time.After(20 * time.Second):
		c.t.Fatalf("frontend %s does not serve: %v", name, server.Degraded())
	}
	return server
}

// etcdClient connects etcd's own client.
func (c *testCluster) etcdClient(servers ...*Server) *clientv3.Client {
	c.t.Helper()
	var endpoints []string
	for _, server := range servers {
		endpoints = append(endpoints, server.config.Advertise)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop(), RejectOldCluster: true,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// connection connects for the native API.
func (c *testCluster) connection(server *Server) *grpc.ClientConn {
	c.t.Helper()
	connection, err := grpc.NewClient("passthrough:///"+server.config.Advertise,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { connection.Close() })
	return connection
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
