package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// load puts keys of its own through every frontend until it is stopped. Each key is put once, whatever comes of it, so
// that a put that took effect twice shows in the key's version.
type load struct {
	stop    context.CancelFunc
	writers sync.WaitGroup
	regions []*regionLoad
}

type regionLoad struct {
	region       string
	client       *clientv3.Client
	attempted    atomic.Int64
	acknowledged atomic.Int64

	mu     sync.Mutex
	puts   map[string]int64 // acknowledged: key -> revision
	errors map[string]int   // what clients were told -> how often
}

const writersPerRegion = 4

func startLoad(t *testing.T, c *processCluster) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop}
	for i, region := range c.regions {
		r := &regionLoad{
			region: region, client: newClient(t, c.frontends[i].Address),
			puts: make(map[string]int64), errors: make(map[string]int),
		}
		l.regions = append(l.regions, r)
		for writer := range writersPerRegion {
			l.writers.Go(func() { r.write(ctx, writer) })
		}
	}
	t.Cleanup(l.end)
	return l
}

// end stops the writers and waits for them; their last puts are cut off, with any outcome.
func (l *load) end() {
	l.stop()
	l.writers.Wait()
}

func (r *regionLoad) write(ctx context.Context, writer int) {
	pause := time.NewTicker(10 * time.Millisecond) // after an error, so that clients leave the machine to the servers
	defer pause.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("load/%s/%d/%06d", r.region, writer, n)
		r.attempted.Add(1)
		putCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		response, err := r.client.Put(putCtx, key, "value of "+key)
		cancel()
		r.mu.Lock()
		if err == nil {
			r.puts[key] = response.Header.Revision
			r.acknowledged.Add(1)
		} else if ctx.Err() == nil {
			r.errors[err.Error()]++
		}
		r.mu.Unlock()
		if err != nil {
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	}
}

// awaitProgress waits until every region has had more puts acknowledged.
func (l *load) awaitProgress(t *testing.T, more int64) {
	t.Helper()
	for _, r := range l.regions {
		want := r.acknowledged.Load() + more
		eventually(t, "puts through "+r.region+" go on", func(context.Context) error {
			if got := r.acknowledged.Load(); got < want {
				return fmt.Errorf("%d acknowledged, waiting for %d", got, want)
			}
			return nil
		})
	}
}

// check compares what every frontend shows with what was acknowledged.
func (l *load) check(t *testing.T, clients []*clientv3.Client) {
	t.Helper()
	l.checkBeside(t, clients, nil)
}

// checkBeside is check where other keys, at most others of them, were written once each as well; nil for none.
func (l *load) checkBeside(t *testing.T, clients []*clientv3.Client, others func() int) {
	t.Helper()
	acknowledged := make(map[string]int64)
	var attempted int64
	for _, r := range l.regions {
		r.mu.Lock()
		for key, revision := range r.puts {
			acknowledged[key] = revision
		}
		t.Logf("%s: %d puts, %d acknowledged, errors %v", r.region, r.attempted.Load(), len(r.puts), r.errors)
		r.mu.Unlock()
		attempted += r.attempted.Load()
	}
	for i, client := range clients {
		region := l.regions[i].region
		var found *clientv3.GetResponse
		eventually(t, "linearizable read in "+region, func(ctx context.Context) (err error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			found, err = client.Get(ctx, "load/", clientv3.WithPrefix())
			return err
		})
		if int64(len(found.Kvs)) > attempted {
			t.Errorf("%s: %d keys of %d puts", region, len(found.Kvs), attempted)
		}
		revisions := make(map[int64]string)
		shown := make(map[string]bool)
		for _, kv := range found.Kvs {
			key := string(kv.Key)
			shown[key] = true
			if kv.Version != 1 || kv.CreateRevision != kv.ModRevision {
				t.Errorf("%s: %s was put once and has version %d", region, key, kv.Version)
			}
			if other, taken := revisions[kv.ModRevision]; taken {
				t.Errorf("%s: %s and %s share revision %d", region, key, other, kv.ModRevision)
			}
			revisions[kv.ModRevision] = key
			if want, ok := acknowledged[key]; ok && kv.ModRevision != want {
				t.Errorf("%s: %s was acknowledged at revision %d and is at %d", region, key, want, kv.ModRevision)
			}
			if !strings.HasSuffix(string(kv.Value), key) {
				t.Errorf("%s: %s holds %q", region, key, kv.Value)
			}
		}
		for key, revision := range acknowledged {
			if !shown[key] {
				t.Errorf("%s: %s was acknowledged at revision %d and is gone", region, key, revision)
			}
		}
		l.checkOrder(t, region, shownAt(found))
		// Nothing else was written, so every revision above the first is one of these keys.
		if want := int64(len(found.Kvs)) + 1; found.Header.Revision < want ||
			others == nil && found.Header.Revision != want || others != nil && found.Header.Revision > want+int64(others()) {
			t.Errorf("%s: revision %d after %d puts took effect; want %d", region, found.Header.Revision, len(found.Kvs), want)
		}
	}
}

func shownAt(found *clientv3.GetResponse) map[string]int64 {
	revisions := make(map[string]int64)
	for _, kv := range found.Kvs {
		revisions[string(kv.Key)] = kv.ModRevision
	}
	return revisions
}

// checkOrder checks that what each writer had acknowledged, one after the other, took effect in that order.
func (l *load) checkOrder(t *testing.T, region string, revisions map[string]int64) {
	t.Helper()
	for _, r := range l.regions {
		for writer := range writersPerRegion {
			last, lastKey := int64(0), ""
			for n := range int(r.attempted.Load()) {
				key := fmt.Sprintf("load/%s/%d/%06d", r.region, writer, n)
				if _, acknowledged := r.puts[key]; !acknowledged {
					continue
				}
				if revisions[key] <= last {
					t.Errorf("%s: %s at revision %d follows %s at %d", region, key, revisions[key], lastKey, last)
				}
				last, lastKey = revisions[key], key
			}
		}
	}
}

// The leader's process is killed under load, twice; then every process at once.
func TestKilledUnderLoad(t *testing.T) {
	c := newProcessCluster(t, "us", "eu", "ap")
	c.startAll(t)
	var clients []*clientv3.Client
	for _, p := range c.frontends {
		clients = append(clients, newClient(t, p.Address))
	}
	l := startLoad(t, c)
	l.awaitProgress(t, 100)

	for range 2 {
		var leader *process
		eventually(t, "a leader", func(ctx context.Context) (err error) {
			leader, err = c.leader(ctx)
			return err
		})
		leader.Kill()
		killed := time.Now()
		l.awaitProgress(t, 100)
		t.Logf("killed %s; 100 more puts in every region after %v", leader.Name, time.Since(killed))
		leader.start(t)
		l.awaitProgress(t, 100)
	}

	// A frontend of its own: another life of it, and nothing twice.
	c.frontends[0].Kill()
	c.frontends[0].start(t)
	l.awaitProgress(t, 100)

	c.killAll()
	c.startAll(t)
	l.awaitProgress(t, 100)
	l.end()
	l.check(t, clients)

	// And once more with nobody writing: all is there after a restart.
	c.killAll()
	c.startAll(t)
	l.check(t, clients)
}
