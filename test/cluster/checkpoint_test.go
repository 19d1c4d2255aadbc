package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/playground"
)

// smallLog keeps so little log that it is trimmed every few seconds of load.
func smallLog(config *playground.Config) {
	config.Member = func(c *logservice.Config) {
		c.SegmentBytes, c.CheckpointLogBytes, c.TailBytes = 256<<10, 384<<10, 512<<10
	}
}

// load puts to the same few keys from one region, one put at a time, until it is ended.
type load struct {
	stop  chan struct{}
	ended chan struct{}
	acked map[string]string
	puts  int
	err   error
}

const loadKeys = 20

func (c *virtual) load(from string) *load {
	ctx := c.t.Context()
	l := &load{stop: make(chan struct{}), ended: make(chan struct{}), acked: map[string]string{}}
	client := c.regions[from].etcd
	go func() {
		defer close(l.ended)
		for ; l.err == nil; l.puts++ {
			select {
			case <-l.stop:
				return
			default:
			}
			key, value := fmt.Sprintf("load/%d", l.puts%loadKeys), fmt.Sprintf("%d-%04000d", l.puts, 0)
			put, err := client.Put(ctx, key, value)
			if err == nil && l.puts%200 == 199 { // so that checkpoints stay small
				_, err = client.Compact(ctx, put.Header.Revision-100)
			}
			l.acked[key], l.err = value, err
		}
	}()
	return l
}

func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	<-l.ended
	if l.err != nil {
		t.Errorf("the load ended after %d puts: %v", l.puts, l.err)
	}
	t.Logf("%d puts", l.puts)
}

// trimmedBeyond waits until no member of the named regions holds the entry at index.
func (c *virtual) trimmedBeyond(index uint64, regions ...string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("the log is trimmed beyond %d", index), func() error {
		for _, name := range regions {
			status, err := c.MemberStatus("log-" + name)
			if err != nil {
				return err
			}
			if status.GetFirstIndex() <= index {
				return fmt.Errorf("%s holds %d to %d; %v, %v", name, status.GetFirstIndex(), status.GetLastIndex(),
					status.GetCheckpoints(), status.GetCheckpointProgress())
			}
		}
		return nil
	})
}

func (c *virtual) published() uint64 {
	c.t.Helper()
	status, err := c.MemberStatus("log-us")
	if err != nil {
		c.t.Fatal(err)
	}
	return status.GetPublishedIndex()
}

// serves waits until a region's frontend answers a linearizable read.
func (c *virtual) serves(name string) {
	c.t.Helper()
	c.eventually(name+" serves", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		_, err := c.regions[name].tryGet(ctx, "load/0", linearizable)
		return err
	})
}

// sameEverywhere compares keys and history of all regions with each other and with what was acknowledged.
func (c *virtual) sameEverywhere(l *load) {
	c.t.Helper()
	var want *clientv3.GetResponse
	for name, r := range c.regions {
		got, err := r.etcd.Get(c.t.Context(), "load/", clientv3.WithPrefix())
		if err != nil {
			c.t.Fatal(err)
		}
		for _, kv := range got.Kvs {
			if l.acked[string(kv.Key)] != string(kv.Value) {
				c.t.Errorf("%s: %s is not what was acknowledged last", name, kv.Key)
			}
		}
		if len(got.Kvs) != len(l.acked) {
			c.t.Errorf("%s: %d keys, %d were acknowledged", name, len(got.Kvs), len(l.acked))
		}
		if want == nil {
			want = got
		}
		for i, kv := range got.Kvs {
			if w := want.Kvs[i]; kv.ModRevision != w.ModRevision || kv.Version != w.Version || !bytes.Equal(kv.Value, w.Value) {
				c.t.Errorf("%s: %v, elsewhere %v", name, kv, w)
			}
		}
	}
}

// TestFrontendsComeBackFromCheckpoints trims the log again and again under load, while frontends are away for longer than
// what is kept: killed, without an image, with a damaged one, cut off while they run. The load goes on throughout.
func TestFrontendsComeBackFromCheckpoints(t *testing.T) {
	bubbleWith(t, smallLog, func(t *testing.T, c *virtual) {
		l := c.load("us")
		for range 2 {
			c.trimmedBeyond(c.published(), "us", "eu", "ap")
		}

		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		image := filepath.Join(c.DataDir(), "frontend", "frontend-eu", "image")
		for _, fault := range []struct {
			name string
			do   func()
		}{
			{"away", func() {}},
			{"without an image", func() { must(os.Remove(image)) }},
			{"with a damaged image", func() {
				content, err := os.ReadFile(image)
				must(err)
				content[len(content)/2] ^= 1
				content[len(content)/3] ^= 1
				must(os.WriteFile(image, content, 0o600))
			}},
			{"with an image cut short", func() { must(os.Truncate(image, 8192)) }},
			{"as a new one", func() { must(os.RemoveAll(filepath.Dir(image))) }},
		} {
			must(c.KillFrontend("eu"))
			c.trimmedBeyond(c.published(), "us", "eu", "ap")
			fault.do()
			must(c.RestartFrontend("eu"))
			c.serves("eu")
			t.Logf("%s: back at %d", fault.name, c.published())
		}

		// A region that is cut off finds the log trimmed when it comes back; its frontend has been running all the time.
		c.Network().Isolate("eu")
		time.Sleep(15 * time.Second) // it can have no session any more
		c.trimmedBeyond(c.published(), "us", "ap")
		c.Network().HealAll()
		c.serves("eu")

		l.end(t)
		c.sameEverywhere(l)
	})
}

// TestBootstrapSurvivesCrashes kills what a bootstrap stands on, and the bootstrapping frontend, over and over.
func TestBootstrapSurvivesCrashes(t *testing.T) {
	bubbleWith(t, smallLog, func(t *testing.T, c *virtual) {
		l := c.load("us")
		c.trimmedBeyond(c.published(), "us", "eu", "ap")
		for round := range 6 {
			if err := c.KillFrontend("eu"); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(c.DataDir(), "frontend", "frontend-eu", "image")); err != nil {
				t.Fatal(err)
			}
			// The frontend is killed some time after its start, at a different step each time; once the member it uses too.
			if err := c.RestartFrontend("eu"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(round*round) * 40 * time.Millisecond)
			if round%3 == 2 {
				if err := c.KillMember("log-eu"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if err := c.RestartMember("log-eu"); err != nil {
					t.Fatal(err)
				}
			}
			// So is one that builds checkpoints for the log.
			if err := c.KillFrontend("ap"); err != nil {
				t.Fatal(err)
			}
			if err := c.RestartFrontend("ap"); err != nil {
				t.Fatal(err)
			}
		}
		c.serves("eu")
		c.serves("ap")
		c.trimmedBeyond(c.published(), "us", "eu", "ap")
		l.end(t)
		c.sameEverywhere(l)
	})
}
