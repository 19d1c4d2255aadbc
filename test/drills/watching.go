package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// watching is load in every region, and what its clients noticed: two writers, a reader and a watcher each.
type watching struct {
	regions []*regionWatch
	stop    context.CancelFunc
	running sync.WaitGroup
}

// regionWatch is what the clients of a region noticed. All of it is in the order of time.
type regionWatch struct {
	*clients
	mu      sync.Mutex
	writers [writersEach]timeline
	reads   timeline
	// acknowledged holds the time of each acknowledged revision, seen that at which the watcher had it.
	acknowledged, seen map[int64]time.Time
	// ends are when a watch stream ended; disorder counts events that came out of order.
	ends     []time.Time
	disorder int
	// usualLag is how far the region is behind while all is well; written before any harm is done.
	usualLag time.Duration
}

const writersEach = 2

// timeline is when attempts succeeded and failed.
type timeline struct {
	began, succeeded, failed []time.Time
	last                     error
}

// observe starts the load. The watchers begin at once, and observe returns when all of them are there.
func (w *world) observe(ctx context.Context) (*watching, error) {
	ctx, stop := context.WithCancel(ctx)
	o := &watching{stop: stop}
	for _, c := range w.clients {
		r := &regionWatch{clients: c, acknowledged: map[int64]time.Time{}, seen: map[int64]time.Time{}}
		o.regions = append(o.regions, r)
		ready := make(chan struct{})
		o.running.Go(func() { r.watch(ctx, ready) })
		select {
		case <-ready:
		case <-time.After(patience):
			stop()
			o.running.Wait()
			return nil, fmt.Errorf("%s: no watch within %v", c.region, patience)
		}
	}
	for _, r := range o.regions {
		for i := range r.writers {
			o.running.Go(func() { r.write(ctx, i) })
		}
		o.running.Go(func() { r.read(ctx) })
	}
	return o, nil
}

// write puts one key again and again.
func (r *regionWatch) write(ctx context.Context, writer int) {
	key := fmt.Sprintf("drill/%s/%d", r.region, writer)
	for n := 0; ctx.Err() == nil; n++ {
		began := time.Now()
		attempt, cancel := context.WithTimeout(ctx, 20*time.Second)
		revision, err := r.put(attempt, key, fmt.Sprint(n))
		cancel()
		r.mu.Lock()
		now := time.Now()
		r.writers[writer].add(began, now, err)
		if err == nil {
			r.acknowledged[revision] = now
		}
		r.mu.Unlock()
		_ = pause(ctx, 10*time.Millisecond) // ends with the load
	}
}

// add notes an attempt.
func (t *timeline) add(began, ended time.Time, err error) {
	if err == nil {
		t.began, t.succeeded = append(t.began, began), append(t.succeeded, ended)
		return
	}
	t.failed, t.last = append(t.failed, ended), err
}

// readAnswers is how soon a read of the own region's state must be answered, else it counts as failed.
const readAnswers = 500 * time.Millisecond

// read reads the region's own state again and again.
func (r *regionWatch) read(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		attempt, cancel := context.WithTimeout(ctx, readAnswers)
		_, err := r.clients.read(attempt, "settled/"+r.region)
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.reads.add(began, time.Now(), err)
		r.mu.Unlock()
		_ = pause(ctx, 5*time.Millisecond) // ends with the load
	}
}

// watch watches all that the writers put, and begins again after what it has seen where a stream ends.
func (r *regionWatch) watch(ctx context.Context, ready chan struct{}) {
	from := int64(0)
	for ctx.Err() == nil {
		_ = r.watchOnce(ctx, &from, ready) // an end is an end, whyever
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.ends = append(r.ends, time.Now())
		r.mu.Unlock()
		_ = pause(ctx, 20*time.Millisecond) // ends with the load
	}
}

func (r *regionWatch) watchOnce(ctx context.Context, from *int64, ready chan struct{}) error {
	stream, err := kvv1.NewWatchServiceClient(r.connection).Watch(ctx)
	if err != nil {
		return err
	}
	create := &kvv1.WatchRequest_Create{Key: []byte("drill/"), RangeEnd: []byte("drill0"), StartRevision: *from}
	if err := stream.Send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Create_{Create: create}}); err != nil {
		return err
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if answer.GetCanceled() {
			return errors.New(answer.GetCancelReason())
		}
		if answer.GetCreated() && *from == 0 {
			*from = answer.GetHeader().GetRevision() + 1
			close(ready)
		}
		r.mu.Lock()
		for _, event := range answer.GetEvents() {
			revision := event.GetKv().GetModRevision()
			if revision < *from {
				r.disorder++
			}
			r.seen[revision] = time.Now()
			*from = revision + 1
		}
		r.mu.Unlock()
	}
}

// of returns what was noticed in a region.
func (o *watching) of(region string) *regionWatch {
	return o.regions[slices.IndexFunc(o.regions, func(r *regionWatch) bool { return r.region == region })]
}

// writesAway is the longest time within [from, to] for which a writer of the region had no answer to a write. Where a write
// usually takes a round trip, that is in it.
func (r *regionWatch) writesAway(from, to time.Time) (longest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.writers {
		longest = max(longest, gap(r.writers[i].succeeded, from, to))
	}
	return longest
}

// gap is the longest time between two instants next to each other, of which the later lies after from, and from the last one
// until to.
func gap(instants []time.Time, from, to time.Time) (longest time.Duration) {
	last := from
	for _, at := range instants {
		if at.Before(from) || at.After(to) {
			continue
		}
		longest = max(longest, at.Sub(last))
		last = at
	}
	return max(longest, to.Sub(last))
}

// readsFailed counts reads that failed, or were not answered in time, within [from, to].
func (r *regionWatch) readsFailed(from, to time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return countWithin(r.reads.failed, from, to)
}

// watchesEnded counts the ends of watch streams.
func (r *regionWatch) watchesEnded(from, to time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return countWithin(r.ends, from, to)
}

func countWithin(instants []time.Time, from, to time.Time) (count int) {
	for _, at := range instants {
		if !at.Before(from) && !at.After(to) {
			count++
		}
	}
	return count
}

// written waits until every writer of these regions has had a write acknowledged that it began after an instant.
func (o *watching) written(ctx context.Context, after time.Time, among []*clients) error {
	for _, c := range among {
		r := o.of(c.region)
		if err := until(ctx, "writes go on in "+c.region, func(context.Context) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			for i := range r.writers {
				w := &r.writers[i]
				if n := len(w.began); n == 0 || !w.began[n-1].After(after) {
					return fmt.Errorf("writer %d waits: %w", i, errors.Join(errors.New("no answer"), w.last))
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// acknowledgedBy is the highest revision that any region had acknowledged until then.
func (o *watching) acknowledgedBy(then time.Time) (revision int64) {
	for _, r := range o.regions {
		r.mu.Lock()
		for acknowledged, at := range r.acknowledged {
			if !at.After(then) {
				revision = max(revision, acknowledged)
			}
		}
		r.mu.Unlock()
	}
	return revision
}

// lag is how long after its acknowledgement elsewhere a region's watch sees a write, of 99 in 100 within [from, to].
func (o *watching) lag(region string, from, to time.Time) time.Duration {
	here := o.of(region)
	here.mu.Lock()
	seen := make(map[int64]time.Time, len(here.seen))
	for revision, at := range here.seen {
		seen[revision] = at
	}
	here.mu.Unlock()
	var lags []time.Duration
	for _, r := range o.regions {
		if r == here {
			continue
		}
		r.mu.Lock()
		for revision, at := range r.acknowledged {
			if had, ok := seen[revision]; ok && !at.Before(from) && !at.After(to) {
				lags = append(lags, max(0, had.Sub(at)))
			}
		}
		r.mu.Unlock()
	}
	if len(lags) == 0 {
		return 0
	}
	slices.Sort(lags)
	return lags[len(lags)*99/100]
}

// watchesBehind is the longest that a watch in a region waited for a write that was acknowledged within [from, to] among some
// regions. One that it never told counts until now.
func (o *watching) watchesBehind(region string, among []*clients, from, to time.Time) (longest time.Duration) {
	here := o.of(region)
	acknowledged := map[int64]time.Time{}
	for _, c := range among {
		r := o.of(c.region)
		r.mu.Lock()
		for revision, at := range r.acknowledged {
			if !at.Before(from) && !at.After(to) {
				acknowledged[revision] = at
			}
		}
		r.mu.Unlock()
	}
	here.mu.Lock()
	defer here.mu.Unlock()
	for revision, at := range acknowledged {
		seen, ok := here.seen[revision]
		if !ok {
			seen = time.Now()
		}
		longest = max(longest, seen.Sub(at))
	}
	return longest
}

// end stops the load, and records what must never be: a watch that misses what was acknowledged, or tells it out of order,
// and regions that differ.
func (o *watching) end(ctx context.Context, r *result) error {
	all := o.acknowledgedBy(time.Now())
	missed, disorder, total := 0, 0, 0
	err := until(ctx, "every watch has every event", func(context.Context) error {
		missed, total = 0, 0
		for _, from := range o.regions {
			from.mu.Lock()
			acknowledged := make([]int64, 0, len(from.acknowledged))
			for revision := range from.acknowledged {
				if revision <= all {
					acknowledged = append(acknowledged, revision)
				}
			}
			from.mu.Unlock()
			total += len(acknowledged)
			for _, at := range o.regions {
				at.mu.Lock()
				for _, revision := range acknowledged {
					if _, ok := at.seen[revision]; !ok {
						missed++
					}
				}
				at.mu.Unlock()
			}
		}
		if missed > 0 {
			return fmt.Errorf("%d are missing", missed)
		}
		return nil
	})
	o.stop()
	o.running.Wait()
	for _, at := range o.regions {
		disorder += at.disorder
	}
	r.count("writes acknowledged, all regions", total)
	r.none("acknowledged writes that a watch did not tell, or out of order", missed+disorder)
	if err != nil {
		return err
	}
	for _, at := range o.regions[1:] {
		if _, err := equal(ctx, at.clients, o.regions[0].clients, all); err != nil {
			return err
		}
	}
	return nil
}

// equal waits until a region has the state that another has at a revision, and tells when.
func equal(ctx context.Context, here, there *clients, revision int64) (at time.Time, err error) {
	var want, got uint32
	if err := until(ctx, there.region+" has revision "+fmt.Sprint(revision), func(ctx context.Context) (err error) {
		want, err = there.digest(ctx, revision)
		return err
	}); err != nil {
		return at, err
	}
	if err := until(ctx, here.region+" has revision "+fmt.Sprint(revision), func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		got, err = here.digest(ctx, revision)
		return err
	}); err != nil {
		return at, err
	}
	if got != want {
		return at, fmt.Errorf("at revision %d %s has digest %08x, %s %08x", revision, here.region, got, there.region, want)
	}
	return time.Now(), nil
}
