// Command election-etcd does with etcd's client, unchanged, what election does with ours.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: election-etcd ENDPOINT PREFIX NAME")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:2], DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	session, err := concurrency.NewSession(c, concurrency.WithTTL(15))
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close() // resigns, too
	election := concurrency.NewElection(session, os.Args[2])
	if err := election.Campaign(ctx, os.Args[3]); err != nil {
		log.Print(err)
		return
	}
	fmt.Printf("%s leads since revision %d\n", os.Args[3], election.Rev())
	// What a leader writes names its election: it is refused once another leads.
	answer, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(election.Key()), "=", election.Rev())).
		Then(clientv3.OpPut("report", os.Args[3])).Commit()
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println("reported:", answer.Succeeded)
	select {
	case <-ctx.Done():
	case <-session.Done():
		fmt.Println("the session has ended")
	}
}
