// Command discovery keeps an instance of a service registered while it runs, and prints all instances at every change.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: discovery ENDPOINT service/NAME/INSTANCE ADDRESS")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := client.New(client.Config{Endpoints: os.Args[1:2]})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	registered := make(chan error, 1)
	go func() { registered <- register(ctx, c, os.Args[2], os.Args[3]) }()
	if err := follow(ctx, c, "service/"); ctx.Err() == nil {
		log.Fatal(err)
	}
	if err := <-registered; ctx.Err() == nil {
		log.Fatal(err)
	}
}

// register keeps the key until ctx ends. A lease that ended all the same (cut off for too long) is followed by another.
func register(ctx context.Context, c *client.Client, key, address string) error {
	for {
		lease, err := c.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 15})
		if err != nil {
			return err
		}
		err = c.Once(ctx, func(ctx context.Context, id string) error {
			_, err := c.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(address), Lease: lease.GetId(),
				Options: &kvv1.WriteOptions{RequestId: id}})
			return err
		})
		if err != nil {
			return err
		}
		for _, err := range c.KeepAlive(ctx, lease.GetId()) {
			if err != nil { // the end of ctx: leave at once, not when the lease ends
				leaving, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				_, _ = c.Revoke(leaving, &kvv1.RevokeRequest{Id: lease.GetId()})
				return err
			}
		}
	}
}

// follow lists what there is and hears of every change after it: nothing is missed, nothing comes twice.
func follow(ctx context.Context, c *client.Client, prefix string) error {
	begin, end := []byte(prefix), client.PrefixEnd([]byte(prefix))
	instances, revision := map[string]string{}, int64(0)
	for page, err := range c.Pages(ctx, &kvv1.ListRequest{Key: begin, RangeEnd: end}) {
		if err != nil {
			return err
		}
		for _, kv := range page.GetKeyValues() {
			instances[string(kv.GetKey())] = string(kv.GetValue())
		}
		revision = page.GetRevision()
	}
	fmt.Println(instances)
	for answer, err := range c.Watch(ctx, &kvv1.WatchRequest_Create{Key: begin, RangeEnd: end, StartRevision: revision + 1}) {
		if err != nil {
			return err
		}
		for _, event := range answer.GetEvents() {
			if event.GetType() == kvv1.Event_EVENT_TYPE_DELETE {
				delete(instances, string(event.GetKv().GetKey()))
			} else {
				instances[string(event.GetKv().GetKey())] = string(event.GetKv().GetValue())
			}
		}
		fmt.Println(instances)
	}
	return ctx.Err()
}
