package logservice

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// writer appends batches of one session through one member until they appear in the tail there, one after another, and
// hands them over again where they don't.
type writer struct {
	c       *testCluster
	region  string
	session uint64
	client  logv1.LogServiceClient
	// done counts the batches seen in the tail.
	done atomic.Uint64
	// slowest is the longest time from the first hand-over to the tail, in nanoseconds.
	slowest atomic.Int64
}

func (c *testCluster) writer(ctx context.Context, region string, session uint64) *writer {
	w := &writer{c: c, region: region, session: session}
	go w.run(ctx)
	return w
}

func (w *writer) run(ctx context.Context) {
	applied := make(chan uint64, 1000)
	go w.follow(ctx, applied)
	var a *appender
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		began := time.Now()
		for w.done.Load() < seq && ctx.Err() == nil {
			if a == nil || a.stream.Context().Err() != nil {
				var err error
				if a, err = w.open(ctx); err != nil {
					time.Sleep(50 * time.Millisecond)
					continue
				}
			}
			a.batch(w.session, seq, fmt.Sprintf("%s %d", w.region, seq))
			if !w.await(ctx, applied, seq, 500*time.Millisecond) {
				a.cancel() // another stream, in case this one is dead
			}
		}
		if took := int64(time.Since(began)); ctx.Err() == nil && took > w.slowest.Load() {
			w.slowest.Store(took)
		}
	}
}

// open gives up on a member that does not answer.
func (w *writer) open(parent context.Context) (*appender, error) {
	ctx, cancel := context.WithCancel(parent)
	if w.client == nil {
		w.client = w.c.client(w.region)
	}
	stream, err := w.client.Append(ctx)
	if err == nil {
		err = stream.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{}})
	}
	if err == nil {
		giveUp := time.AfterFunc(3*time.Second, cancel)
		_, err = stream.Recv()
		giveUp.Stop()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		for err == nil {
			_, err = stream.Recv()
		}
		cancel()
	}()
	return &appender{stream: stream, cancel: cancel}, nil
}

func (w *writer) await(ctx context.Context, applied <-chan uint64, seq uint64, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for w.done.Load() < seq {
		select {
		case <-applied:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// follow tails the member from the beginning again and again, and counts the session's batches as apply would: each seq
// once, in order.
func (w *writer) follow(ctx context.Context, applied chan<- uint64) {
	next, term := uint64(1), uint64(0)
	for ctx.Err() == nil {
		_ = w.c.tail(ctx, w.region, next, term, func(e *logv1.Entry) bool {
			next, term = e.Index+1, e.Term
			if h, ok := parseEnvelope(e.Envelope); ok && h.session == w.session && h.seq == w.done.Load()+1 {
				w.done.Store(h.seq)
				select {
				case applied <- h.seq:
				default:
				}
			}
			return true
		})
		time.Sleep(20 * time.Millisecond)
	}
}

// pause stops a member's loop, as a process that is stopped; the returned function lets it go on.
func (c *testCluster) pause(region string) (resume func()) {
	blocked, release := make(chan struct{}), make(chan struct{})
	go c.servers[region].query(context.Background(), func(*Member) { close(blocked); <-release })
	<-blocked
	return func() { close(release) }
}

// However the leader is lost, the others have a new one within two seconds, and what a frontend beside them writes goes
// on.
func TestFailover(t *testing.T) {
	for i, test := range []struct {
		name string
		lose func(c *testCluster) (heal func())
	}{
		{"killed", func(c *testCluster) func() { c.kill("us"); return func() { c.start("us") } }},
		{"paused", func(c *testCluster) func() { return c.pause("us") }},
		{"cut off", func(c *testCluster) func() { c.net.Isolate("us"); return func() { c.net.Rejoin("us") } }},
		{"can not be heard", func(c *testCluster) func() {
			c.net.CutOneWay("us", "eu")
			c.net.CutOneWay("us", "ap")
			return c.net.HealAll
		}},
		{"does not hear", func(c *testCluster) func() {
			c.net.CutOneWay("eu", "us")
			c.net.CutOneWay("ap", "us")
			return c.net.HealAll
		}},
		{"disk stalled", func(c *testCluster) func() { return c.stall("us") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			publications := []Publication{PublicationQuorum, PublicationLeader}
			if raceEnabled {
				publications = publications[i%2:][:1]
			}
			for _, publication := range publications {
				config := func(_ string, c *Config) { c.Publication = publication }
				bubble(t, config, func(t *testing.T, c *testCluster) {
					c.lead("us")
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					writers := map[string]*writer{}
					for i, region := range c.regions {
						writers[region] = c.writer(ctx, region, uint64(100+i))
					}
					time.Sleep(3 * time.Second)
					for _, region := range []string{"eu", "ap"} {
						if writers[region].done.Load() < 5 {
							t.Fatalf("%s wrote %d", region, writers[region].done.Load())
						}
					}
					heal := test.lose(c)
					leads := func(region string) bool {
						id := c.servers[region].Status().LeaderId
						return id == c.servers["eu"].id || id == c.servers["ap"].id
					}
					took := c.until(2*time.Second, "a new leader", func() bool { return leads("eu") && leads("ap") })
					t.Logf("%v: a new leader after %v", publication, took)
					before := writers["eu"].done.Load()
					time.Sleep(3 * time.Second)
					if writers["eu"].done.Load() < before+5 {
						t.Errorf("eu wrote %d in 3 s after the election", writers["eu"].done.Load()-before)
					}
					heal()
					time.Sleep(20 * time.Second)
					for region, w := range writers {
						before := w.done.Load()
						time.Sleep(3 * time.Second)
						if w.done.Load() < before+5 {
							t.Errorf("%s wrote %d in 3 s after the fault had ended", region, w.done.Load()-before)
						}
					}
				})
			}
		})
	}
}

// All members are killed at once and started again: every entry that was seen is there.
func TestKillAllAndRestart(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("eu")
		ctx, cancel := context.WithCancel(t.Context())
		writers := map[string]*writer{}
		for i, region := range c.regions {
			writers[region] = c.writer(ctx, region, uint64(100+i))
		}
		for range 3 {
			time.Sleep(5 * time.Second)
			for _, region := range c.regions {
				c.kill(region)
			}
			for _, region := range c.regions {
				c.start(region)
			}
		}
		time.Sleep(5 * time.Second)
		cancel()
		last := c.highestSeen()
		for _, region := range c.regions {
			// tail compares each entry with what was seen before.
			limit, stop := context.WithTimeout(t.Context(), 5*time.Second)
			seen := uint64(0)
			_ = c.tail(limit, region, 1, 0, func(e *logv1.Entry) bool { seen = e.Index; return seen < last })
			stop()
			if seen < last {
				t.Errorf("%s has %d entries, %d were seen", region, seen, last)
			}
			if writers[region].done.Load() < 20 {
				t.Errorf("%s wrote only %d", region, writers[region].done.Load())
			}
		}
	})
}

// A leader whose disk is full hands leadership over, though the policy wants it there, and gets it back with its room: writes
// go on in all regions, its own too.
func TestLeaderWithoutRoom(t *testing.T) {
	config := func(_ string, c *Config) { c.SegmentBytes, c.LeaderPolicy = 8192, LeaderPolicy{Region: "us"} }
	bubble(t, config, func(t *testing.T, c *testCluster) {
		c.lead("us")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		writers := map[string]*writer{}
		for i, region := range c.regions {
			writers[region] = c.writer(ctx, region, uint64(100+i))
		}
		time.Sleep(3 * time.Second)
		c.disks["us"].SetCapacity(1)
		c.until(time.Minute, "another leader", func() bool {
			id := c.servers["eu"].Status().LeaderId
			return id == c.servers["eu"].id || id == c.servers["ap"].id
		})
		term := c.servers["eu"].Status().Term
		time.Sleep(20 * time.Second)
		if now := c.servers["eu"].Status(); now.Term != term {
			t.Errorf("leadership moved on while one disk was full: term %d, was %d", now.Term, term)
		}
		for region, w := range writers {
			if slowest := time.Duration(w.slowest.Load()); slowest > 3*time.Second {
				t.Errorf("a write from %s took %v", region, slowest)
			}
		}
		c.disks["us"].SetCapacity(0)
		c.until(time.Minute, "leadership back in us", func() bool {
			return c.servers["eu"].Status().LeaderId == c.servers["us"].id
		})
	})
}
