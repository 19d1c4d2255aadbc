package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/logmirror/logmirror/playground"
)

// stanzas returns the package database of this machine as key-values, or a small one where there is none.
func stanzas(t *testing.T) map[string]string {
	t.Helper()
	content, err := os.ReadFile("/var/lib/dpkg/status")
	if errors.Is(err, fs.ErrNotExist) {
		content, err = os.ReadFile("testdata/status")
	}
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for stanza := range strings.SplitSeq(string(content), "\n\n") {
		fields := make(map[string]string)
		for line := range strings.SplitSeq(stanza, "\n") {
			if name, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
				fields[name] = value
			}
		}
		if fields["Package"] != "" {
			all["package/"+fields["Package"]+":"+fields["Architecture"]] = stanza
		}
	}
	if len(all) < 10 {
		t.Fatalf("found only %d stanzas", len(all))
	}
	return all
}

// regionClient is etcd's client in one region of a playground.
type regionClient struct {
	*clientv3.Client
	region string
}

// startPlayground starts the default regions with their delays, over TCP.
func startPlayground(t *testing.T) []regionClient {
	t.Helper()
	cluster, err := playground.Start(playground.Config{
		DataDir: t.TempDir(), LeaderRegion: "us",
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := cluster.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-cluster.Ready():
	case <-cluster.Done():
		t.Fatal(cluster.Err())
	case <-time.After(patience):
		t.Fatal("the playground does not serve")
	}
	var clients []regionClient
	for _, region := range cluster.Info().Regions {
		clients = append(clients, regionClient{newClient(t, region.Frontend), region.Name})
	}
	return clients
}

// What users do with a cluster of three regions, with etcd's unmodified client.
func TestPackageDatabase(t *testing.T) {
	clients := startPlayground(t)
	t.Run("load", func(t *testing.T) { loadAndCompare(t, clients) })
	t.Run("at the same time", func(t *testing.T) {
		t.Run("compare and swap", func(t *testing.T) { t.Parallel(); raceCompareAndSwap(t, clients) })
		t.Run("mutex", func(t *testing.T) { t.Parallel(); shareMutex(t, clients) })
		t.Run("lease", func(t *testing.T) { t.Parallel(); keepLeaseElsewhere(t, clients) })
	})
}

// loadAndCompare puts the database through all regions at once and compares what each shows.
func loadAndCompare(t *testing.T, clients []regionClient) {
	want := stanzas(t)
	acknowledged := putAll(t, clients, want)

	for _, c := range clients {
		response, err := c.Get(t.Context(), "package/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		if len(response.Kvs) != len(want) || response.Header.Revision != int64(len(want))+1 {
			t.Errorf("%s: %d keys at revision %d after %d puts", c.region, len(response.Kvs), response.Header.Revision, len(want))
		}
		for _, kv := range response.Kvs {
			checkVersion(t, c.region, kv, want, acknowledged)
		}
		// Locally, too: what was acknowledged anywhere is here by now, because of the read before.
		local, err := c.Get(t.Context(), "package/", clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil || len(local.Kvs) != len(want) {
			t.Errorf("%s: serializable read of %d keys, %v", c.region, len(local.Kvs), err)
		}
	}

	// A last key after all others: whoever has seen it has seen everything.
	last, err := clients[0].Put(t.Context(), "package/~last", "last")
	if err != nil {
		t.Fatal(err)
	}
	want["package/~last"], acknowledged["package/~last"] = "last", last.Header.Revision
	var watching sync.WaitGroup
	for _, c := range clients {
		watching.Go(func() { watchFromTheBeginning(t, c, want, acknowledged) })
	}
	watching.Wait()
}

func checkVersion(t *testing.T, region string, kv *mvccpb.KeyValue, want map[string]string, acknowledged map[string]int64) {
	t.Helper()
	key := string(kv.Key)
	if value, ok := want[key]; !ok || string(kv.Value) != value {
		t.Errorf("%s: %s holds %d bytes that were not put (known key: %v)", region, key, len(kv.Value), ok)
	}
	if kv.ModRevision != acknowledged[key] || kv.CreateRevision != kv.ModRevision || kv.Version != 1 {
		t.Errorf("%s: %s acknowledged at revision %d is created at %d, modified at %d, version %d",
			region, key, acknowledged[key], kv.CreateRevision, kv.ModRevision, kv.Version)
	}
}

// putAll returns the revision at which each put was acknowledged.
func putAll(t *testing.T, clients []regionClient, all map[string]string) map[string]int64 {
	t.Helper()
	const writersPerRegion = 16
	keys := slices.Sorted(maps.Keys(all))
	var next atomic.Int64
	var mu sync.Mutex
	acknowledged := make(map[string]int64)
	var writers sync.WaitGroup
	for _, c := range clients {
		for range writersPerRegion {
			writers.Go(func() {
				for {
					i := int(next.Add(1)) - 1
					if i >= len(keys) {
						return
					}
					response, err := c.Put(t.Context(), keys[i], all[keys[i]])
					if err != nil {
						t.Errorf("%s: put %s: %v", c.region, keys[i], err)
						return
					}
					mu.Lock()
					acknowledged[keys[i]] = response.Header.Revision
					mu.Unlock()
				}
			})
		}
	}
	start := time.Now()
	writers.Wait()
	t.Logf("%d puts through %d regions in %v", len(keys), len(clients), time.Since(start))
	return acknowledged
}

// watchFromTheBeginning sees every put once and in order: revision 2, 3, 4 and so on without a gap.
func watchFromTheBeginning(t *testing.T, c regionClient, want map[string]string, acknowledged map[string]int64) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	next := int64(2)
	for response := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := response.Err(); err != nil {
			t.Errorf("%s: watch: %v", c.region, err)
			return
		}
		for _, event := range response.Events {
			if event.Type != clientv3.EventTypePut || event.Kv.ModRevision != next {
				t.Errorf("%s: event %v of %s at revision %d; want a put at %d",
					c.region, event.Type, event.Kv.Key, event.Kv.ModRevision, next)
				return
			}
			checkVersion(t, c.region, event.Kv, want, acknowledged)
			next++
		}
		if next == int64(len(want))+2 {
			return
		}
	}
	t.Errorf("%s: the watch ended before revision %d", c.region, next)
}

// raceCompareAndSwap lets clients of all regions create the same keys.
func raceCompareAndSwap(t *testing.T, clients []regionClient) {
	const races = 20
	for race := range races {
		key := fmt.Sprintf("race/%02d", race)
		var winners atomic.Int64
		var winner atomic.Value
		var racing sync.WaitGroup
		for _, c := range clients {
			racing.Go(func() {
				response, err := c.Txn(t.Context()).
					If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
					Then(clientv3.OpPut(key, c.region)).
					Else(clientv3.OpGet(key)).Commit()
				switch {
				case err != nil:
					t.Errorf("%s: %v", c.region, err)
				case response.Succeeded:
					winners.Add(1)
					winner.Store(c.region)
				case len(response.Responses[0].GetResponseRange().Kvs) != 1:
					t.Errorf("%s lost %s and is not told to whom", c.region, key)
				}
			})
		}
		racing.Wait()
		if winners.Load() != 1 {
			t.Errorf("%s has %d winners", key, winners.Load())
			continue
		}
		for _, c := range clients {
			response, err := c.Get(t.Context(), key)
			if err != nil || len(response.Kvs) != 1 || string(response.Kvs[0].Value) != winner.Load() {
				t.Errorf("%s: %s shows %v, %v; %v won", c.region, key, response, err, winner.Load())
			}
		}
	}
}

// shareMutex lets clients of all regions take turns with one mutex.
func shareMutex(t *testing.T, clients []regionClient) {
	const turns = 5
	var holders, taken atomic.Int64
	var sharing sync.WaitGroup
	for _, c := range clients {
		sharing.Go(func() {
			session, err := concurrency.NewSession(c.Client, concurrency.WithTTL(30))
			if err != nil {
				t.Errorf("%s: %v", c.region, err)
				return
			}
			defer session.Close()
			mutex := concurrency.NewMutex(session, "mutex/")
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for range turns {
				if err := mutex.Lock(ctx); err != nil {
					t.Errorf("%s: lock: %v", c.region, err)
					return
				}
				if holders.Add(1) != 1 {
					t.Errorf("%s has the mutex, and so has another", c.region)
				}
				taken.Add(1)
				// The work of the holder: long enough for another one to come in if it could.
				if _, err := c.Get(ctx, "mutex/", clientv3.WithPrefix()); err != nil {
					t.Errorf("%s: %v", c.region, err)
				}
				holders.Add(-1)
				if err := mutex.Unlock(ctx); err != nil {
					t.Errorf("%s: unlock: %v", c.region, err)
					return
				}
			}
		})
	}
	sharing.Wait()
	if want := int64(turns * len(clients)); taken.Load() != want {
		t.Errorf("the mutex was taken %d times, want %d", taken.Load(), want)
	}
}

// keepLeaseElsewhere grants a lease in one region and keeps it alive through another. In real time it only shows that it
// lives for longer than it would by itself, and ends; the exact times are shown in virtual time.
func keepLeaseElsewhere(t *testing.T, clients []regionClient) {
	const (
		ttl         = 2 * time.Second
		sessionTime = 10 * time.Second
	)
	granted, renewed, seen := clients[0], clients[1], clients[2]
	lease, err := granted.Grant(t.Context(), int64(ttl.Seconds()))
	if err != nil {
		t.Fatal(err)
	}
	lived := time.Duration(lease.TTL)*time.Second + sessionTime + 2*time.Second // without renewals it is gone by then
	put, err := granted.Put(t.Context(), "leased", "value", clientv3.WithLease(lease.ID))
	if err != nil {
		t.Fatal(err)
	}
	renewing, stop := context.WithCancel(t.Context())
	defer stop()
	answers, err := renewed.KeepAlive(renewing, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	enough := time.After(lived)
	for renewal := true; renewal; {
		select {
		case answer, ok := <-answers:
			if !ok {
				t.Fatal("the lease ended while it was renewed")
			}
			if answer.TTL != lease.TTL {
				t.Errorf("renewed for %d s, granted for %d s", answer.TTL, lease.TTL)
			}
		case <-enough:
			renewal = false
		}
	}
	if response, err := seen.Get(t.Context(), "leased"); err != nil || len(response.Kvs) != 1 {
		t.Errorf("%s: the key of a lease that is kept alive: %v, %v", seen.region, response, err)
	}
	stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for response := range seen.Watch(ctx, "leased", clientv3.WithRev(put.Header.Revision+1)) {
		for _, event := range response.Events {
			if event.Type == clientv3.EventTypeDelete {
				return
			}
		}
	}
	t.Errorf("%s: the key of a lease that is not renewed any more did not end", seen.region)
}
