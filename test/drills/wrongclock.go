package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/test/processes"
)

// The wall clock of a process that was built for it is right at first, then ahead, then behind: it jumps both ways.
const (
	clockOff        = time.Hour
	clockAheadAfter = 5 * time.Second
	clockBackAfter  = 15 * time.Second
)

// buildWithWrongClock builds the processes with a standard library whose time.Now has a wall clock that jumps. Nothing of
// ours is changed: production code has no seam for it, and the machine's clock is left alone.
func buildWithWrongClock(ctx context.Context, scratch, into string) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return err
	}
	const reading = "\tsec, nsec, mono := runtimeNow()\n"
	begin, now, found := strings.Cut(string(source), "\nfunc Now() Time {\n")
	if !found || !strings.HasPrefix(now, reading) {
		return skipped("this version of Go reads the clock in another way than the drill knows")
	}
	jump := fmt.Sprintf("\tif up := mono - startNano; up > %d {\n\t\tsec -= %d\n\t} else if up > %d {\n\t\tsec += %d\n\t}\n",
		clockBackAfter, int64(clockOff/time.Second), clockAheadAfter, int64(clockOff/time.Second))
	changed := filepath.Join(scratch, "time.go")
	text := begin + "\nfunc Now() Time {\n" + reading + jump + strings.TrimPrefix(now, reading)
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return err
	}
	file := filepath.Join(scratch, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return err
	}
	return build(ctx, into, "-overlay", file)
}

func wrongClock(ctx context.Context, e *environment, r *result) error {
	wrong := filepath.Join(e.scratch, "bin")
	if err := buildWithWrongClock(ctx, e.scratch, wrong); err != nil {
		return err
	}
	return withLoad(ctx, e, r, nil, func(w *world, o *watching) error {
		const region = 1
		member, frontend := w.Members[0], w.Frontends[region]
		for _, p := range []*processes.Process{member, frontend} {
			p.Arguments[0] = filepath.Join(wrong, filepath.Base(p.Arguments[0]))
			w.note("%s starts again, with a clock that will jump", p.Name)
			p.Kill()
			if err := p.Start(); err != nil {
				return err
			}
		}
		started := time.Now()
		if err := w.settle(ctx); err != nil {
			return err
		}
		lease, err := w.holdLease(ctx, region)
		if err != nil {
			return err
		}
		ids, err := collectIDs(ctx, frontend.Address)
		if err != nil {
			return err
		}
		began := time.Now()
		if began.After(started.Add(clockAheadAfter)) {
			w.note("the first jump came before the lease was held")
		}
		if err := pause(ctx, time.Until(started.Add(clockBackAfter+10*time.Second))); err != nil {
			return err
		}
		name := "wall clocks of the leader and of eu's frontend an hour ahead, then an hour behind"
		if err := o.noticed(ctx, r, name, began, w.clients); err != nil {
			return err
		}
		ids.end()
		r.count("snowflakes made in eu meanwhile", len(ids.seen))
		r.none("snowflakes made twice", ids.twice)
		r.count("refused calls for snowflakes (the clock is behind the times that were granted)", ids.refused)
		status, err := processes.MemberStatus(ctx, member.Address)
		if err != nil {
			return err
		}
		off := time.Since(time.Unix(0, int64(status.GetLogTimeNanoseconds()))).Abs()
		r.within("how far log time is from this machine's clock", off, clockOff/60)
		return lease.end(ctx, w, r)
	})
}

// heldLease is one that is renewed through a region, and its key.
type heldLease struct {
	region int
	id     clientv3.LeaseID
	stop   context.CancelFunc
	ended  chan struct{}
}

const (
	drillTTL    = 5 * time.Second
	sessionTime = 10 * time.Second
	leasedKey   = "leased"
)

func (w *world) holdLease(ctx context.Context, region int) (*heldLease, error) {
	c := w.clients[region].etcd
	granted, err := c.Grant(ctx, int64(drillTTL/time.Second))
	if err != nil {
		return nil, err
	}
	if _, err := c.Put(ctx, leasedKey, "", clientv3.WithLease(granted.ID)); err != nil {
		return nil, err
	}
	renewing, stop := context.WithCancel(ctx)
	answers, err := c.KeepAlive(renewing, granted.ID)
	if err != nil {
		stop()
		return nil, err
	}
	h := &heldLease{region: region, id: granted.ID, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(h.ended)
		for range answers { // until it ends, or nobody renews it
		}
	}()
	return h, nil
}

// end checks that the lease lives while it is renewed, stops that, and measures how long it lives on.
func (h *heldLease) end(ctx context.Context, w *world, r *result) error {
	gone := 0
	for _, c := range w.clients {
		answer, err := c.read(ctx, leasedKey)
		if err != nil {
			return err
		}
		if answer.GetKeyValue() == nil {
			gone++
		}
	}
	r.none("regions where a lease that was renewed has ended", gone)
	h.stop()
	<-h.ended
	silent := time.Now()
	if err := until(ctx, "the lease ends", func(ctx context.Context) error {
		answer, err := w.clients[0].read(ctx, leasedKey)
		if err == nil && answer.GetKeyValue() != nil {
			err = errors.New("its key is there")
		}
		return err
	}); err != nil {
		return err
	}
	// The last renewal came up to a third of the TTL before.
	took, early := time.Since(silent), 0
	if took < drillTTL-drillTTL/3-time.Second {
		early++
	}
	r.within(fmt.Sprintf("a lease of %v that nobody renews any more: until its key is gone", drillTTL), took, drillTTL+sessionTime)
	r.none("leases that ended before their time", early)
	return nil
}

// idCollector asks one frontend for snowflakes again and again.
type idCollector struct {
	stop    context.CancelFunc
	running sync.WaitGroup
	c       *client.Client
	// Written by its goroutine until end.
	seen           map[int64]bool
	twice, refused int
}

func collectIDs(ctx context.Context, address string) (*idCollector, error) {
	c, err := client.New(client.Config{Endpoints: []string{address}})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	i := &idCollector{stop: stop, c: c, seen: map[int64]bool{}}
	i.running.Go(func() {
		for ctx.Err() == nil {
			attempt, cancel := context.WithTimeout(ctx, time.Second)
			answer, err := c.Generate(attempt, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 10})
			cancel()
			if err != nil && ctx.Err() == nil {
				i.refused++
			}
			if err == nil {
				for id := range client.IDs(answer) {
					if i.seen[id] {
						i.twice++
					}
					i.seen[id] = true
				}
			}
			_ = pause(ctx, 20*time.Millisecond) // ends with the drill
		}
	})
	return i, nil
}

func (i *idCollector) end() {
	i.stop()
	i.running.Wait()
	_ = i.c.Close() // nothing hangs on it
}
