// Command ids prints numbers of each kind.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: ids ENDPOINT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.New(client.Config{Endpoints: os.Args[1:2]})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for name, request := range map[string]*kvv1.GenerateRequest{
		"snowflakes": {Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 3},
		"orders":     {Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "orders", Count: 3},
		"invoices":   {Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "invoices", Count: 3},
	} {
		answer, err := c.Generate(ctx, request)
		if err != nil {
			log.Fatal(err)
		}
		for id := range client.IDs(answer) {
			fmt.Println(name, id)
		}
	}
	// Many: a block is asked for ahead while the one before is used.
	many := 0
	for answer, err := range c.GenerateBlocks(ctx, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 1000}) {
		if err != nil {
			log.Fatal(err)
		}
		for range client.IDs(answer) {
			many++
		}
		if many >= 10_000 {
			break
		}
	}
	fmt.Println(many, "more")
}
