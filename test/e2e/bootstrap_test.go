package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/logmirror/logmirror/test/processes"
)

// A frontend that is killed and loses its data directory comes back from a checkpoint once the log no longer reaches back,
// with everything that was acknowledged.
func TestFrontendComesBackFromACheckpoint(t *testing.T) {
	c := newProcessCluster(t, "us", "eu", "ap")
	for _, member := range c.members {
		member.Arguments = append(member.Arguments, "--checkpoint-log-bytes", "8388608", "--log-tail-bytes", "1048576")
	}
	c.startAll(t)
	client, eu := newClient(t, c.frontends[0].Address), c.frontends[1]
	eventually(t, "a put", func(ctx context.Context) error {
		_, err := client.Put(ctx, "before", "the log was trimmed")
		return err
	})
	// A segment of the log is 64 MiB, and is removed as a whole.
	value := strings.Repeat("x", 1<<20)
	for puts := 0; ; puts++ {
		var put *clientv3.PutResponse
		eventually(t, "a put", func(ctx context.Context) (err error) {
			put, err = client.Put(ctx, "large", value)
			return err
		})
		if puts%10 != 9 {
			continue
		}
		eventually(t, "a compaction", func(ctx context.Context) error {
			_, err := client.Compact(ctx, put.Header.Revision)
			return err
		})
		trimmed := 0
		for _, member := range c.members {
			if status, err := processes.MemberStatus(t.Context(), member.Address); err == nil && status.GetFirstIndex() > 1 {
				trimmed++
			}
		}
		if trimmed == len(c.members) {
			break
		}
		if puts > 1000 {
			t.Fatal("the log is not trimmed")
		}
	}
	eu.Kill()
	if err := os.RemoveAll(dataDirectory(t, eu)); err != nil {
		t.Fatal(err)
	}
	eu.start(t)
	again := newClient(t, eu.Address)
	eventually(t, "eu serves", func(ctx context.Context) error {
		answer, err := again.Get(ctx, "before")
		if err == nil && (len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != "the log was trimmed") {
			err = fmt.Errorf("eu reads %v", answer.Kvs)
		}
		return err
	})
	eventually(t, "eu writes", func(ctx context.Context) error {
		_, err := again.Put(ctx, "after", "a bootstrap")
		return err
	})
	output, err := os.ReadFile(eu.Output)
	if err == nil && !strings.Contains(string(output), "the state was built from a checkpoint") {
		err = errors.New("it came back without one")
	}
	if err != nil {
		t.Error(err)
	}
}
