package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A frontend whose image rots on its disk finds it, stops serving from that state, builds it anew and serves again, all by
// itself; the others do not notice.
func TestDamagedImageIsRebuilt(t *testing.T) {
	c := newProcessCluster(t, "us", "eu", "ap")
	ap := c.frontends[2]
	ap.Arguments = append(ap.Arguments, "--scrub-interval", "1s")
	c.startAll(t)
	var clients []*clientv3.Client
	for _, p := range c.frontends {
		clients = append(clients, newClient(t, p.Address))
	}
	const value = "a value that is to rot"
	eventually(t, "a put", func(ctx context.Context) error {
		_, err := clients[2].Put(ctx, "key", value)
		return err
	})
	image := filepath.Join(dataDirectory(t, ap), "image")
	var at int
	eventually(t, "the value is in the image", func(context.Context) error {
		content, err := os.ReadFile(image)
		if at = bytes.Index(content, []byte(value)); err == nil && at < 0 {
			err = errors.New("it is not")
		}
		return err
	})
	file, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("A"), int64(at)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ap is quarantined", func(context.Context) error {
		output, err := os.ReadFile(ap.Output)
		if err == nil && !strings.Contains(string(output), "quarantined: the image is damaged") {
			err = errors.New("it is not")
		}
		return err
	})
	for i, client := range clients {
		eventually(t, c.regions[i]+" serves", func(ctx context.Context) error {
			answer, err := client.Get(ctx, "key")
			if err == nil && (len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != value) {
				t.Fatalf("%s reads %v", c.regions[i], answer.Kvs)
			}
			return err
		})
	}
	if _, err := os.Stat(image + ".bad"); err != nil {
		t.Errorf("the damaged image was not kept for those who want to look at it: %v", err)
	}
}

func dataDirectory(t *testing.T, p *process) string {
	t.Helper()
	for i, argument := range p.Arguments {
		if argument == "--data-dir" {
			return p.Arguments[i+1]
		}
	}
	t.Fatal(fmt.Errorf("%s has no data directory", p.Name))
	return ""
}
