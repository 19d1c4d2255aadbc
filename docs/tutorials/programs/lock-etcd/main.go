// Command lock-etcd does with etcd's client, unchanged, what lock does with ours.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: lock-etcd ENDPOINT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:2], DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := run(ctx, c); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, c *clientv3.Client) error {
	session, err := concurrency.NewSession(c, concurrency.WithTTL(15))
	if err != nil {
		return err
	}
	mutex := concurrency.NewMutex(session, "/locks/report")
	if err := mutex.Lock(ctx); err != nil {
		return err
	}
	if err := write(ctx, c, mutex, "first"); err != nil {
		return err
	}
	// Now the lock is lost. This program knows; one that was paused in the meantime would not.
	if err := session.Close(); err != nil {
		return err
	}
	return write(ctx, c, mutex, "second")
}

// write writes if the lock is still the one that was taken, in one transaction.
func write(ctx context.Context, c *clientv3.Client, mutex *concurrency.Mutex, value string) error {
	answer, err := c.Txn(ctx).If(mutex.IsOwner()).Then(clientv3.OpPut("report", value)).Commit()
	if err != nil {
		return err
	}
	if answer.Succeeded {
		fmt.Println("written:", value)
	} else {
		fmt.Println("refused:", value)
	}
	return nil
}
