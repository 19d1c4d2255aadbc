package main

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// clients are those of one region, all on one connection that nothing retries for: what fails is counted.
type clients struct {
	region     string
	connection *grpc.ClientConn
	kv         kvv1.KvServiceClient
	etcd       *clientv3.Client
	endpoint   string
}

func newClients(region, address string) (*clients, error) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 50 * time.Millisecond}}))
	if err != nil {
		return nil, err
	}
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	return &clients{region: region, connection: connection, kv: kvv1.NewKvServiceClient(connection), etcd: etcd, endpoint: address}, nil
}

func (c *clients) close() {
	_ = c.connection.Close() // nothing hangs on it
	_ = c.etcd.Close()
}

func (c *clients) put(ctx context.Context, key, value string) (revision int64, err error) {
	answer, err := c.kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(value)})
	return answer.GetRevision(), err
}

// read is one of the region's own state.
func (c *clients) read(ctx context.Context, key string) (*kvv1.GetResponse, error) {
	return c.kv.Get(ctx, &kvv1.GetRequest{Key: []byte(key),
		Consistency: &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE}})
}

// digest sums up all keys at a revision, the same in every region.
func (c *clients) digest(ctx context.Context, revision int64) (uint32, error) {
	answer, err := c.etcd.HashKV(ctx, c.endpoint, revision)
	if err != nil {
		return 0, err
	}
	return answer.Hash, nil
}
