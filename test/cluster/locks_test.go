package cluster

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// neverDone is what the watches of etcd's client wait on beside their streams. It is made before any bubble, and to wait
// on it would keep virtual time from going on: each bubble gives the client one of its own.
//
//go:linkname neverDone go.etcd.io/etcd/client/v3.valCtxCh
var neverDone chan struct{}

// contender holds a lock again and again, through one region's frontend. It is as careless as a client can be: it never
// looks whether its session is done, and writes under the fence until a write is refused.
type contender struct {
	name   string
	client *clientv3.Client
	// acquire waits for the lock, and returns the comparison that fences it.
	acquire func(ctx context.Context, s *concurrency.Session) (fence clientv3.Cmp, release func(context.Context) error, err error)
	fenced  string

	mu           sync.Mutex
	held, writes int
	refused      int
}

const (
	lockTTL = 5 * time.Second
	// holdFor is longer than the TTL, so that a holder whose lease ended still thinks that it holds the lock.
	holdFor      = 8 * time.Second
	callPatience = 3 * time.Second
)

func (c *contender) contend(ctx context.Context) {
	for ctx.Err() == nil {
		c.hold(ctx)
		select {
		case <-time.After(500 * ms):
		case <-ctx.Done():
		}
	}
}

// hold goes for the lock once. Whatever fails, it begins again: with a new session.
func (c *contender) hold(ctx context.Context) {
	granting, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	granted, err := c.client.Grant(granting, int64(lockTTL/time.Second))
	if err != nil {
		return
	}
	session, err := concurrency.NewSession(c.client, concurrency.WithLease(granted.ID))
	if err != nil {
		return
	}
	defer session.Orphan()
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fence, release, err := c.acquire(waiting, session)
	if err != nil {
		return
	}
	token := fence.GetCompare().GetCreateRevision()
	c.mu.Lock()
	c.held++
	c.mu.Unlock()
	for end := time.Now().Add(holdFor); time.Now().Before(end); time.Sleep(200 * ms) {
		writing, cancel := context.WithTimeout(ctx, callPatience)
		response, err := c.client.Txn(writing).If(fence).Then(clientv3.OpPut(c.fenced, strconv.FormatInt(token, 10))).Commit()
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // whether it was written is not known
		}
		c.mu.Lock()
		if response.Succeeded {
			c.writes++
		} else {
			c.refused++
		}
		c.mu.Unlock()
		if !response.Succeeded {
			return
		}
	}
	releasing, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	_ = release(releasing) // else it ends with the lease
}

func mutex(ctx context.Context, s *concurrency.Session) (clientv3.Cmp, func(context.Context) error, error) {
	m := concurrency.NewMutex(s, "/mutex")
	err := m.Lock(ctx)
	return m.IsOwner(), m.Unlock, err
}

func election(ctx context.Context, s *concurrency.Session) (clientv3.Cmp, func(context.Context) error, error) {
	e := concurrency.NewElection(s, "/election")
	err := e.Campaign(ctx, "me")
	return clientv3.Compare(clientv3.CreateRevision(e.Key()), "=", e.Rev()), e.Resign, err
}

// contender makes a client of a region that goes for a lock.
func (l *leaseTest) contender(region, kind string) *contender {
	var address string
	for _, info := range l.Info().Regions {
		if info.Name == region {
			address = info.Frontend
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{address}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return l.Network().Region(clientsOf(region)).Dial(ctx, address)
		})},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { client.Close() })
	c := &contender{name: kind + " in " + region, client: client, fenced: "fenced/" + kind, acquire: mutex}
	if kind == "election" {
		c.acquire = election
	}
	return c
}

// lockFaults befall the cluster one after the other; each is undone before the next.
var lockFaults = []struct {
	name         string
	damage, heal func(s *scenario)
}{
	{"frontend killed", func(s *scenario) { s.must(s.KillFrontend("eu")) }, func(s *scenario) { s.must(s.RestartFrontend("eu")) }},
	{"frontend stopped", func(s *scenario) { s.must(s.StopFrontend("us")) }, func(s *scenario) { s.must(s.RestartFrontend("us")) }},
	{"paused", func(s *scenario) { s.pause("eu") }, func(s *scenario) { s.wake("eu") }},
	{"leader's region paused", func(s *scenario) { s.pause("us") }, func(s *scenario) { s.wake("us") }},
	{"cut off from the log", func(s *scenario) { s.cutFromLog("ap") }, func(s *scenario) { s.Network().HealAll() }},
	{"cut off from its clients", func(s *scenario) { s.Network().Cut(clientsOf("eu"), "eu") }, func(s *scenario) { s.Network().HealAll() }},
	{"clocks jump", func(s *scenario) {
		s.clocks["frontend-eu"].jump(time.Hour)
		s.clocks["log-us"].jump(time.Hour)
	}, func(*scenario) {}},
	{"leader killed", func(s *scenario) { s.must(s.KillMember("log-us")) }, func(s *scenario) { s.must(s.RestartMember("log-us")) }},
	{"fenced", func(s *scenario) { s.setRegion("us", "eu", regionFenced) }, func(s *scenario) { s.setRegion("us", "eu", regionOpen) }},
}

// Two holders of a lock never both write under its fence, whatever befalls the lock's leases, and however long a holder
// believes in its lock: in the order of the log, the fence's revision never goes back. Nor does a fault keep a lock held
// for good.
func TestLocksAreSafeThroughFaults(t *testing.T) {
	rates := map[string]float64{"frontend-us": 1.01, "frontend-eu": 0.99, "log-us": 1.01, "log-eu": 0.99}
	leaseBubble(t, rates, func(t *testing.T, l *leaseTest) {
		neverDone = make(chan struct{})
		s := &scenario{leaseTest: l, variant: variant{rates: rates}}
		ctx, cancel := context.WithCancel(t.Context())
		var contending sync.WaitGroup
		var contenders []*contender
		for _, region := range []string{"us", "eu", "ap"} {
			for _, kind := range []string{"mutex", "election"} {
				c := l.contender(region, kind)
				contenders = append(contenders, c)
				contending.Go(func() { c.contend(ctx) })
			}
		}
		defer func() {
			cancel()
			contending.Wait()
			for _, c := range contenders {
				c.client.Close()
			}
		}()
		time.Sleep(20 * time.Second)
		for _, fault := range lockFaults {
			from := l.referee.index() + 1
			fault.damage(s)
			time.Sleep(25 * time.Second)
			fault.heal(s)
			time.Sleep(20 * time.Second)
			for _, kind := range []string{"mutex", "election"} {
				writes, holders := l.fencedWrites(from, kind)
				t.Logf("%s: %s: %d writes of %d holders", fault.name, kind, writes, holders)
				if holders < 3 {
					t.Errorf("%s: %s: only %d holders", fault.name, kind, holders)
				}
			}
		}
		for _, c := range contenders {
			c.mu.Lock()
			t.Logf("%s: held %d times, wrote %d times, was refused %d times", c.name, c.held, c.writes, c.refused)
			c.mu.Unlock()
		}
		l.fencedWrites(1, "mutex")
		l.fencedWrites(1, "election")
		if _, err := l.regions["us"].kv.Get(ctx, &kvv1.GetRequest{Key: []byte("fenced/mutex"), Consistency: linearizable}); err != nil {
			t.Error(err)
		}
	})
}

// fencedWrites looks at all that was written under a fence from an entry on, whether or not its writer knows: holders
// follow each other, and none comes back.
func (l *leaseTest) fencedWrites(from uint64, kind string) (writes, holders int) {
	l.t.Helper()
	key := "fenced/" + kind
	var last int64
	var wrong error
	l.referee.find(from, func(d *decided) bool {
		for _, event := range d.Events {
			if !event.Put || string(event.KV.Key) != key {
				continue
			}
			token, err := strconv.ParseInt(string(event.KV.Value), 10, 64)
			if err != nil || token < last {
				wrong = fmt.Errorf("%s: entry %d: fence %s after %d", key, d.Index, event.KV.Value, last)
				return true
			}
			if writes++; token > last {
				holders++
			}
			last = token
		}
		return false
	})
	if wrong != nil {
		l.t.Error(wrong)
	}
	return writes, holders
}
