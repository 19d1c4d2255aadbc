// Command lock takes a lock, writes under its fence, loses the lock, and finds that it can write no more.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: lock ENDPOINT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.New(client.Config{Endpoints: os.Args[1:2]})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := run(ctx, c); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, c *client.Client) error {
	lease, err := c.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 15}) // held with c.KeepAlive: see leader election
	if err != nil {
		return err
	}
	fence, err := take(ctx, c, "lock", lease.GetId())
	if err != nil {
		return err
	}
	fmt.Println(write(ctx, c, "lock", fence, "report", "first"))
	// Now the lock is lost. This program knows; one that was paused in the meantime would not.
	if _, err := c.Revoke(ctx, &kvv1.RevokeRequest{Id: lease.GetId()}); err != nil {
		return err
	}
	fmt.Println(write(ctx, c, "lock", fence, "report", "second"))
	return nil
}

// take makes the lock's key and returns its fence: the revision at which it was made.
func take(ctx context.Context, c *client.Client, lock string, lease int64) (fence int64, err error) {
	var swap *kvv1.CompareAndSwapResponse
	err = c.Once(ctx, func(ctx context.Context, id string) (err error) {
		swap, err = c.CompareAndSwap(ctx, &kvv1.CompareAndSwapRequest{Key: []byte(lock), Lease: lease,
			Expect:  &kvv1.CompareAndSwapRequest_Absent{Absent: true},
			Change:  &kvv1.CompareAndSwapRequest_Put{Put: []byte("me")},
			Options: &kvv1.WriteOptions{RequestId: id}})
		return err
	})
	if err == nil && !swap.GetSucceeded() {
		err = errors.New("the lock is taken")
	}
	return swap.GetRevision(), err
}

// write writes if the lock is still the one that was taken at the fence, in one transaction.
func write(ctx context.Context, c *client.Client, lock string, fence int64, key, value string) string {
	var answer *kvv1.TxnResponse
	err := c.Once(ctx, func(ctx context.Context, id string) (err error) {
		answer, err = c.Txn(ctx, &kvv1.TxnRequest{
			Compares: []*kvv1.Compare{{Key: []byte(lock), Relation: kvv1.Compare_RELATION_EQUAL,
				Target: &kvv1.Compare_CreateRevision{CreateRevision: fence}}},
			Success: []*kvv1.TxnOperation{{Operation: &kvv1.TxnOperation_Put_{
				Put: &kvv1.TxnOperation_Put{Key: []byte(key), Value: []byte(value)}}}},
			Options: &kvv1.WriteOptions{RequestId: id}})
		return err
	})
	switch {
	case err != nil:
		return err.Error()
	case answer.GetSucceeded():
		return "written: " + value
	default:
		return "refused: " + value
	}
}
