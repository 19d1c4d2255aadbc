// Command configuration doubles a number that others may change at the same time, and prints who had it last.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: configuration ENDPOINT KEY")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.New(client.Config{Endpoints: os.Args[1:2]})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := double(ctx, c, []byte(os.Args[2])); err != nil {
		log.Fatal(err)
	}
}

func double(ctx context.Context, c *client.Client, key []byte) error {
	answer, err := c.Get(ctx, &kvv1.GetRequest{Key: key})
	if err != nil {
		return err
	}
	for current := answer.GetKeyValue(); ; {
		number, err := strconv.Atoi(string(current.GetValue()))
		if err != nil {
			return fmt.Errorf("%s: %w", key, err) // no such key, too
		}
		var swap *kvv1.CompareAndSwapResponse
		// Once sends it again under one request id while its outcome is not known: it is applied once.
		err = c.Once(ctx, func(ctx context.Context, id string) (err error) {
			swap, err = c.CompareAndSwap(ctx, &kvv1.CompareAndSwapRequest{Key: key,
				Expect:  &kvv1.CompareAndSwapRequest_ModRevision{ModRevision: current.GetModRevision()},
				Change:  &kvv1.CompareAndSwapRequest_Put{Put: []byte(strconv.Itoa(2 * number))},
				Options: &kvv1.WriteOptions{RequestId: id, SyncRegions: []string{"*"}}})
			return err
		})
		if err != nil {
			return err
		}
		if swap.GetSucceeded() {
			fmt.Printf("%s is %d since revision %d, in every region\n", key, 2*number, swap.GetRevision())
			return nil
		}
		current = swap.GetCurrent() // somebody was faster: once more, from theirs
	}
}
