package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/test/check"
	"github.com/logmirror/logmirror/test/processes"
)

var (
	duration = flag.Duration("chaos.duration", 15*time.Second, "how long TestChaos does harm")
	seed     = flag.Uint64("chaos.seed", 1, "of what TestChaos does")
)

const (
	// long is a duration in which each kind of harm must have come, whatever the machine.
	long = 3 * time.Minute
	// backWithin bounds the time to the first answers after the last harm: far longer than it takes, on a busy machine too.
	backWithin = 90 * time.Second
	// searchTimeout bounds the search for an order of all operations.
	searchTimeout = 2 * time.Minute
)

// TestChaos does harm to real processes under load and then checks all that clients saw.
func TestChaos(t *testing.T) {
	c, links := newCluster(t)
	disks := mountDisks(t, c)
	t.Cleanup(func() { processes.KillAll(c.All()) }) // before the disks go
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := populate(t, c)
	p.awaitProgress(t)
	h := &harm{t: t, cluster: c, links: links, random: rand.New(rand.NewPCG(*seed, 1)), disks: disks, done: map[string]int{}}
	h.run(*duration)
	healed := p.h.now()
	p.awaitProgress(t)
	t.Logf("every region answers %v after the last harm", p.h.now()-healed)
	last := p.end(t)
	p.check(t, last)
	stop(t, c)
	for _, kind := range h.kinds() {
		if h.done[kind.name] == 0 && *duration >= long {
			t.Errorf("%s: it never came to that", kind.name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.done)) {
		t.Logf("%s: %d", name, h.done[name])
	}
	if t.Failed() {
		processes.Show(t.Output(), c.All())
	}
}

func newCluster(t *testing.T) (*processes.Cluster, *processes.Links) {
	t.Helper()
	binaries := t.TempDir()
	command := exec.Command("go", "build", "-o", binaries+string(filepath.Separator), "../../cmd/logsvc", "../../cmd/frontend")
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	links := processes.NewLinks(map[wan.Pair]time.Duration{{A: "us", B: "eu"}: 8 * time.Millisecond,
		{A: "us", B: "ap"}: 15 * time.Millisecond, {A: "eu", B: "ap"}: 10 * time.Millisecond})
	t.Cleanup(links.Close)
	c, err := processes.New(binaries, t.TempDir(), links, "us", "eu", "ap")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Members {
		// Logs that are trimmed all the time, in small files.
		p.Arguments = append(p.Arguments, "--segment-bytes", "131072", "--checkpoint-log-bytes", "524288", "--log-tail-bytes", "262144")
	}
	return c, links
}

// mountDisks gives each process a small disk to be filled, where that is allowed.
func mountDisks(t *testing.T, c *processes.Cluster) map[*processes.Process]*processes.SmallDisk {
	t.Helper()
	disks := map[*processes.Process]*processes.SmallDisk{}
	for _, p := range c.All() {
		disk, err := c.MountSmall(p)
		if errors.Is(err, processes.ErrNoMount) {
			t.Logf("no disk will be full: %v", err)
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		disks[p] = disk
		t.Cleanup(func() {
			if err := disk.Unmount(); err != nil {
				t.Errorf("%s: unmount its disk: %v", p.Name, err)
			}
		})
	}
	return disks
}

// population is all clients of all regions.
type population struct {
	h       *history
	stop    context.CancelFunc
	running sync.WaitGroup
	// etcd are clients that are sure of their region, in its order.
	etcd []*clientv3.Client
	// watching outlives the others: watchers have to come to the end.
	stopWatching context.CancelFunc
	watching     sync.WaitGroup
}

func populate(t *testing.T, c *processes.Cluster) *population {
	t.Helper()
	p := &population{h: newHistory()}
	var ctx, watchContext context.Context
	ctx, p.stop = context.WithCancel(t.Context())
	watchContext, p.stopWatching = context.WithCancel(t.Context())
	t.Cleanup(func() { p.stop(); p.stopWatching(); p.running.Wait(); p.watching.Wait() })
	number := 0
	for region, frontend := range c.Frontends {
		etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{frontend.Address}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = etcd.Close() }) // says that its context has ended
		p.etcd = append(p.etcd, etcd)
		own := p.connect(t, frontend.Address)
		live := func(begin func(*inhabitant, context.Context)) {
			number++
			i := &inhabitant{h: p.h, number: number, region: region, random: rand.New(rand.NewPCG(*seed, uint64(number))), client: own, etcd: etcd}
			p.running.Go(func() { begin(i, ctx) })
		}
		live((*inhabitant).operate)
		live((*inhabitant).operate)
		live((*inhabitant).read)
		live((*inhabitant).takeIDs)
		live((*inhabitant).lock)
		live((*inhabitant).lease)
		// Watchers go on at other regions' frontends where their own is away.
		var addresses []string
		for n := range c.Frontends {
			addresses = append(addresses, c.Frontends[(region+n)%len(c.Frontends)].Address)
		}
		moving := p.connect(t, addresses...)
		for _, span := range [][2]string{{"\x00", "\x00"}, {"value/", "value0"}} {
			w := &watcher{name: fmt.Sprintf("from %s of %q", c.Regions[region], span[0]), key: span[0], end: span[1], h: p.h, client: moving}
			p.h.watches = append(p.h.watches, w)
			p.watching.Go(func() { w.follow(watchContext) })
		}
	}
	return p
}

func (p *population) connect(t *testing.T, addresses ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Endpoints: addresses})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually asks again and again until the condition holds.
func eventually(t *testing.T, what string, condition func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), backWithin)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, backWithin, err)
		}
	}
}

// awaitProgress waits until each client that operates has had answers from now on: liveness within a bound.
func (p *population) awaitProgress(t *testing.T) {
	t.Helper()
	since := p.h.now()
	eventually(t, "answers to all clients", func(context.Context) error {
		answered, clients := map[int]int{}, 0
		p.h.note(func() {
			for _, o := range p.h.operations {
				if _, known := answered[o.Client]; !known {
					answered[o.Client] = 0
				}
				if o.Outcome == check.Done && o.Call >= since {
					answered[o.Client]++
				}
			}
			clients = len(answered)
		})
		for number, n := range answered {
			if n < 10 {
				return fmt.Errorf("client %d had %d answers", number, n)
			}
		}
		if clients < 2*len(p.etcd) {
			return fmt.Errorf("%d clients have begun", clients)
		}
		return nil
	})
}

// end lets all come to their end: clients, leases, watchers. It returns the last revision.
func (p *population) end(t *testing.T) (last int64) {
	t.Helper()
	p.stop()
	p.running.Wait()
	eventually(t, "the end of all leases", func(ctx context.Context) error {
		asking, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		answer, err := p.etcd[0].Get(asking, "leased/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err == nil && len(answer.Kvs) > 0 {
			err = fmt.Errorf("%d keys are left, %q among them", len(answer.Kvs), answer.Kvs[0].Key)
		}
		return err
	})
	// A sentinel that each watcher has to see, so that all that came before has come.
	eventually(t, "the last write", func(ctx context.Context) error {
		asking, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		answer, err := p.etcd[0].Put(asking, "value/end", "end")
		if err == nil {
			last = answer.Header.Revision
		}
		return err
	})
	for _, w := range p.h.watches {
		eventually(t, "watch "+w.name, func(context.Context) error {
			bookmark, err := w.reached()
			if err != nil {
				t.Fatalf("watch %s: %v", w.name, err)
			}
			if bookmark < last {
				return fmt.Errorf("it is at %d of %d", bookmark, last)
			}
			return nil
		})
	}
	hashes := map[uint32]bool{}
	for _, etcd := range p.etcd {
		eventually(t, "the hash of all keys", func(ctx context.Context) error {
			asking, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			answer, err := etcd.HashKV(asking, etcd.Endpoints()[0], last)
			if err == nil {
				hashes[answer.Hash] = true
			}
			return err
		})
	}
	if len(hashes) != 1 {
		t.Errorf("the regions differ at revision %d: %v", last, hashes)
	}
	p.stopWatching()
	p.watching.Wait()
	return last
}

// check holds what was seen against the models.
func (p *population) check(t *testing.T, last int64) {
	t.Helper()
	h := p.h
	// Three watchers saw everything, each by itself; the check of watches compares the others with the first.
	log, err := check.NewLog(h.watches[0].changes())
	if err != nil {
		t.Fatal(err)
	}
	var watches []check.Watch
	for _, w := range h.watches {
		watches = append(watches, w.seen(last))
	}
	var leases []check.Lease
	for _, key := range slices.Sorted(maps.Keys(h.leases)) {
		leases = append(leases, *h.leases[key])
	}
	counts := map[check.Outcome]int{}
	for _, o := range h.operations {
		counts[o.Outcome]++
	}
	t.Logf("%d operations (%d done, %d not applied, %d unknown), %d reads, %d runs of ids, %d guarded writes, %d leases, %d changes",
		len(h.operations), counts[check.Done], counts[check.NotApplied], counts[check.Unknown], len(h.reads), len(h.ids), len(h.guarded),
		len(leases), log.Len())
	if len(h.reads) == 0 || len(h.ids) == 0 || len(h.guarded) == 0 || len(leases) == 0 {
		t.Error("some kind of client has done nothing")
	}
	accounted := func(key string) bool {
		return len(key) > 6 && (key[:6] == "value/" && key != "value/end" || key[:6] == "counte")
	}
	for what, err := range map[string]error{
		"operations and the log": log.Operations(h.operations, accounted),
		"linearizable":           check.Linearizable(h.operations, searchTimeout),
		"reads":                  log.Reads(h.reads),
		"watches":                log.Watches(watches),
		"ids":                    check.Unique(h.ids),
		"locks":                  log.Locks(h.guarded),
		"leases":                 check.Leases(leases, leaseAllowance),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// stop ends all processes in order and compares what the members have on their disks.
func stop(t *testing.T, c *processes.Cluster) {
	t.Helper()
	for _, p := range c.All() {
		if err := p.Stop(); err != nil {
			t.Errorf("stop %s: %v", p.Name, err)
		}
	}
	compared, err := processes.CompareLogs(c.Members)
	if err != nil {
		t.Error(err)
	}
	if compared == 0 {
		t.Error("no entry could be compared")
	}
	t.Logf("%d entries of the logs compared", compared)
}
