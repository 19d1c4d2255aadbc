// Command election leads or waits: whoever makes the key leads while its lease lives.
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
		log.Fatal("usage: election ENDPOINT KEY NAME")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := client.New(client.Config{Endpoints: os.Args[1:2]})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for ctx.Err() == nil {
		if err := campaign(ctx, c, []byte(os.Args[2]), []byte(os.Args[3])); err != nil && ctx.Err() == nil {
			log.Print(err)
			time.Sleep(time.Second)
		}
	}
}

// campaign waits until it leads, leads until the lease has ended or ctx does, and resigns.
func campaign(ctx context.Context, c *client.Client, key, name []byte) error {
	lease, err := c.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 15})
	if err != nil {
		return err
	}
	leading, lost := context.WithCancel(ctx)
	go func() {
		defer lost()
		for _, err := range c.KeepAlive(ctx, lease.GetId()) {
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		resigning, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, _ = c.Revoke(resigning, &kvv1.RevokeRequest{Id: lease.GetId()})
	}()
	for {
		var swap *kvv1.CompareAndSwapResponse
		err := c.Once(leading, func(ctx context.Context, id string) (err error) {
			swap, err = c.CompareAndSwap(ctx, &kvv1.CompareAndSwapRequest{Key: key, Lease: lease.GetId(),
				Expect:  &kvv1.CompareAndSwapRequest_Absent{Absent: true},
				Change:  &kvv1.CompareAndSwapRequest_Put{Put: name},
				Options: &kvv1.WriteOptions{RequestId: id}})
			return err
		})
		if err != nil {
			return err
		}
		if swap.GetSucceeded() {
			fmt.Printf("%s leads since revision %d\n", name, swap.GetRevision())
			<-leading.Done() // the leader's work goes here, under leading
			return leading.Err()
		}
		fmt.Printf("%s waits for %s\n", name, swap.GetCurrent().GetValue())
		after := swap.GetHeader().GetRevision() + 1
		for _, err := range c.Watch(leading, &kvv1.WatchRequest_Create{Key: key, StartRevision: after, NoPuts: true}) {
			if err != nil {
				return err
			}
			break // the key was deleted: try
		}
	}
}
