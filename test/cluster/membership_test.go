package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/logservice"
)

// healing bounds the time from the first failure of a request to its success when it is made again and again.
const healing = 2 * time.Second

// replacementLoad writes keys and reads them again through every region, each until it succeeds.
type replacementLoad struct {
	t       *testing.T
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu     sync.Mutex
	keys   []string
	failed int
	// slowest is the longest time of any request with all its retries, worst the longest that one took to heal.
	slowest, worst time.Duration
}

func startReplacementLoad(c *virtual) *replacementLoad {
	ctx, stop := context.WithCancel(c.t.Context())
	l := &replacementLoad{t: c.t, stop: stop}
	for name, r := range c.regions {
		for worker := range 3 {
			l.workers.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					key := fmt.Sprintf("replacement/%s/%d/%05d", name, worker, n)
					if l.request(ctx, "put in "+name, func(ctx context.Context) error {
						_, err := r.kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(key)})
						return err
					}) {
						l.mu.Lock()
						l.keys = append(l.keys, key)
						l.mu.Unlock()
						l.request(ctx, "get in "+name, func(ctx context.Context) error {
							value, err := r.tryGet(ctx, key, linearizable)
							if err == nil && value != key {
								l.t.Errorf("get in %s: %s holds %q right after it was put", name, key, value)
							}
							return err
						})
					}
				}
			})
		}
	}
	return l
}

// request makes one request until it succeeds, and tells whether it did before the load was stopped.
func (l *replacementLoad) request(ctx context.Context, what string, do func(context.Context) error) bool {
	began, failedAt := time.Now(), time.Time{}
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, healing)
		err := do(attempt)
		cancel()
		l.mu.Lock()
		if err == nil {
			l.slowest = max(l.slowest, time.Since(began))
			if !failedAt.IsZero() {
				l.worst = max(l.worst, time.Since(failedAt))
			}
		} else if failedAt.IsZero() && ctx.Err() == nil {
			failedAt = time.Now()
			l.failed++
		}
		l.mu.Unlock()
		if err == nil {
			return true
		}
		if !failedAt.IsZero() && time.Since(failedAt) > healing && ctx.Err() == nil {
			l.t.Errorf("%s: %v after its first failure it still fails: %v", what, time.Since(failedAt), err)
			return false
		}
		time.Sleep(20 * time.Millisecond) // virtual: a client's pause before it tries again
	}
	return false
}

func (l *replacementLoad) end() {
	l.stop()
	l.workers.Wait()
}

// All three members of the log are replaced under load, the leader among them, one after another.
func TestRollingReplacementUnderLoad(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		load := startReplacementLoad(c)
		defer load.end()
		ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
		defer cancel()
		for _, region := range []string{"us", "eu", "ap"} {
			began := time.Now()
			if err := c.AddMember(ctx, "log-"+region+"2", region); err != nil {
				t.Fatal(err)
			}
			if err := c.PromoteMember(ctx, "log-"+region+"2"); err != nil {
				t.Fatal(err)
			}
			if err := c.RemoveMember(ctx, "log-"+region); err != nil {
				t.Fatal(err)
			}
			t.Logf("the member in %s was replaced in %v", region, time.Since(began))
			time.Sleep(3 * time.Second) // virtual
		}
		load.end()
		var names []string
		for _, m := range c.Info().Log {
			names = append(names, m.Name)
		}
		if slices.Sort(names); fmt.Sprint(names) != "[log-ap2 log-eu2 log-us2]" {
			t.Errorf("the members are %v", names)
		}
		t.Logf("%d keys, %d requests failed at first, healed within %v; the slowest request took %v", len(load.keys), load.failed,
			load.worst, load.slowest)
		if len(load.keys) < 300 {
			t.Errorf("only %d keys were put", len(load.keys))
		}
		check := func() {
			for _, r := range c.regions {
				for _, key := range load.keys {
					if got := r.get(t, key, serializable); got != key {
						t.Errorf("%s in %s: %q", key, r.name, got)
					}
				}
			}
		}
		for _, r := range c.regions {
			r.get(t, "settle", linearizable) // all of it has been applied there
		}
		check()

		// None of the first members is left, and nobody needs one: neither the members nor the frontends.
		for _, region := range []string{"us", "eu", "ap"} {
			if err := c.KillRegion(region); err != nil {
				t.Fatal(err)
			}
		}
		for _, region := range []string{"us", "eu", "ap"} {
			if err := c.StartRegion(region); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range c.regions {
			c.eventually(r.name+" serves again", func() error {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, err := r.tryGet(ctx, "settle", linearizable)
				return err
			})
		}
		check()
	})
}
