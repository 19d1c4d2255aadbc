package mirror

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// roundsCore decides when a read round is made and who shares it. It is passive.
//
// Guarantee: a reader is given the answer of a round whose question was asked after the reader came.
type roundsCore struct {
	max     int
	spacing time.Duration
	// idleAfter is when a round is made although nobody waits.
	idleAfter time.Duration

	// waiting are the readers of the next round; nil for none.
	waiting   *crowd
	underWay  int
	started   bool
	startedAt time.Duration
}

// crowd are the readers that share a round. One channel wakes all of them.
type crowd struct {
	readers int
	// done is closed when the answer is there.
	done  chan struct{}
	index uint64
	err   error
}

func (c *crowd) answer(index uint64, err error) {
	c.index, c.err = index, err
	close(c.done)
}

// size is the number of readers; a round that is made for its own sake has no crowd.
func (c *crowd) size() int {
	if c == nil {
		return 0
	}
	return c.readers
}

// start returns the readers of the round that is to be made now, which may be none: ok tells whether one is to be made.
// wake tells when to ask again, if nothing happens before.
func (r *roundsCore) start(now time.Duration) (readers *crowd, ok bool, wake time.Duration) {
	due := r.startedAt + r.idleAfter
	if r.waiting != nil {
		due = now
		if r.underWay > 0 {
			due = r.startedAt + r.spacing
		}
	}
	if !r.started {
		due = now
	}
	if r.underWay >= r.max {
		// The end of a round asks again.
		return nil, false, 0
	}
	if r.waiting == nil && r.underWay > 0 {
		return nil, false, 0
	}
	if now < due {
		return nil, false, due
	}
	readers, r.waiting = r.waiting, nil
	r.underWay++
	r.started, r.startedAt = true, now
	return readers, true, now + r.idleAfter
}

// join takes one more reader into the crowd that waits.
func (r *roundsCore) join() *crowd {
	if r.waiting == nil {
		r.waiting = &crowd{done: make(chan struct{})}
	}
	r.waiting.readers++
	return r.waiting
}

// leave takes a reader out that does not wait any more; false if its round is under way. No round is made for nobody.
func (r *roundsCore) leave(c *crowd) bool {
	if c != r.waiting {
		return false
	}
	if c.readers--; c.readers == 0 {
		r.waiting = nil
	}
	return true
}

func (r *roundsCore) ended() { r.underWay-- }

// rounds is the shell around roundsCore: it makes the rounds, answers the readers, and keeps the age.
type rounds struct {
	mirror *Mirror
	// poke wakes the goroutine that starts rounds; one waiting signal is enough.
	poke chan struct{}

	mu   sync.Mutex
	core roundsCore
	// ended: no round is started any more.
	ended bool
	// failed: the last round that was given all its time found no answer, and none was found since. probing: one is under
	// way that has all its time nevertheless.
	failed, probing bool
	// answered are rounds whose index is not applied yet, in no order.
	answered []answeredRound
	// freshest is the latest start of a round whose index is applied, known whether there is one. Written under mu.
	freshest    atomic.Int64
	known       atomic.Bool
	convergence convergence
	// ready: at some time since the start the state was known to be fresh enough to serve.
	ready bool
}

type answeredRound struct {
	index uint64
	began time.Duration
}

// readRoundTimeoutAway bounds, on top of a round trip, how long readers wait for a round while the log is known to be away.
const readRoundTimeoutAway = 250 * time.Millisecond

// answeredMax bounds the rounds that wait to be applied. Any subset of them gives an age that is not too low.
const answeredMax = 256

func newRounds(m *Mirror) *rounds {
	return &rounds{mirror: m, poke: make(chan struct{}, 1), core: roundsCore{
		max: m.config.ReadRounds, spacing: m.config.ReadRoundSpacing, idleAfter: m.config.AgeInterval,
	}}
}

// join waits for the answer of a round that is asked from now on.
func (r *rounds) join(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	r.mu.Lock()
	if r.ended || r.core.waiting.size() >= r.mirror.config.Waiters {
		defer r.mu.Unlock()
		return 0, r.refusal()
	}
	crowd := r.core.join()
	first := crowd.readers == 1
	r.mu.Unlock()
	if first {
		r.wake() // on behalf of those who join until the round is started, too
	}
	select {
	case <-crowd.done:
		return crowd.index, crowd.err
	case <-ctx.Done():
		r.mu.Lock()
		r.core.leave(crowd)
		r.mu.Unlock()
		return 0, context.Cause(ctx)
	}
}

// refusal is why nobody may join. The caller holds mu.
func (r *rounds) refusal() error {
	if r.ended {
		return ErrStopped
	}
	return fmt.Errorf("%w: %d calls wait for a read round", ErrOverloaded, r.mirror.config.Waiters)
}

func (r *rounds) wake() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// run starts rounds when they are due, and waits for those under way at the end.
func (r *rounds) run() {
	m := r.mirror
	var underWay sync.WaitGroup
	defer underWay.Wait()
	defer r.end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for shared := 0; ; {
		select {
		case <-m.ctx.Done():
			return
		case <-r.poke:
		case <-timer.C:
		}
		if shared > 1 {
			// Whoever is about to ask joins first: on a busy machine many are.
			runtime.Gosched()
		}
		for {
			now := m.config.Clock()
			r.mu.Lock()
			readers, ok, wake := r.core.start(now)
			timing := r.timing()
			if ok {
				r.probing = r.probing || timing.probe
			}
			r.mu.Unlock()
			if !ok {
				if wake != 0 {
					timer.Reset(wake - now)
				}
				break
			}
			shared = readers.size()
			underWay.Go(func() { r.round(readers, now, timing) })
		}
	}
}

// end answers those whose round is not made any more.
func (r *rounds) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended = true; r.core.waiting != nil {
		r.core.waiting.answer(0, ErrStopped)
		r.core.waiting = nil
	}
}

// roundTiming is how long a round may take, and how long its readers wait for it; both on top of a round trip.
type roundTiming struct {
	timeout, patience time.Duration
	// probe marks the one round that finds out whether a log that was away is back.
	probe bool
}

// timing returns that of the next round. While the log is known to be away readers are told so after the time that an
// answer takes should it be back. But an answer that has a long way takes more than that: one round at a time goes on
// until its whole time is over, or a mirror far from all others would never see the log again. The caller holds mu.
func (r *rounds) timing() roundTiming {
	full := r.mirror.config.ReadRoundTimeout
	away := min(full, readRoundTimeoutAway)
	switch {
	case !r.failed:
		return roundTiming{timeout: full, patience: full}
	case !r.probing:
		return roundTiming{timeout: full, patience: away, probe: true}
	default:
		return roundTiming{timeout: away, patience: away}
	}
}

// round makes one round and answers its readers.
func (r *rounds) round(readers *crowd, began time.Duration, timing roundTiming) {
	m := r.mirror
	_, roundTrip, _ := m.client.Current()
	untold := func() bool { return readers != nil }
	if timing.patience < timing.timeout && readers != nil {
		untold = time.AfterFunc(timing.patience+roundTrip, func() {
			readers.answer(0, fmt.Errorf("%w: the log did not answer before, nor now within %v", ErrUnavailable, timing.patience))
		}).Stop
	}
	ctx, cancel := context.WithTimeout(m.ctx, timing.timeout+roundTrip)
	answer, err := m.client.ReadRound(ctx)
	cancel()
	switch {
	case err != nil && m.ctx.Err() != nil:
		err = ErrStopped
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	now := m.config.Clock()
	r.mu.Lock()
	r.core.ended()
	if timing.probe {
		r.probing = false
	}
	if err == nil {
		m.metrics.roundSeconds.Observe((now - began).Seconds())
		r.convergence.answered(now, answer.Index)
		r.failed = false
		if len(r.answered) >= answeredMax {
			r.answered = r.answered[1:]
		}
		r.answered = append(r.answered, answeredRound{index: answer.Index, began: began})
	} else if timing.timeout == m.config.ReadRoundTimeout {
		r.failed = true
	}
	r.mu.Unlock()
	if err == nil {
		r.applied(m.AppliedIndex())
	}
	if untold() {
		readers.answer(answer.Index, err)
	}
	m.metrics.readersPerRound.Observe(float64(readers.size()))
	r.wake()
}

// applied takes the answered rounds at or below index into the age.
func (r *rounds) applied(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.answered[:0]
	for _, a := range r.answered {
		if a.index > index {
			kept = append(kept, a)
			continue
		}
		r.freshest.Store(max(r.freshest.Load(), int64(a.began)))
		r.known.Store(true)
	}
	r.answered = kept
	if took, done := r.convergence.applied(r.mirror.config.Clock, index); done {
		r.mirror.metrics.convergenceSeconds.Observe(took.Seconds())
		r.mirror.config.Logger.Info("the state is whole again after a cut", "took", took, "index", index)
	}
	if r.known.Load() && !r.ready && r.mirror.config.Clock()-time.Duration(r.freshest.Load()) <= r.mirror.config.ReadyAgeMax {
		r.ready = true
		close(r.mirror.ready)
	}
}

func (r *rounds) age() (time.Duration, bool) {
	known := r.known.Load()
	return r.mirror.config.Clock() - time.Duration(r.freshest.Load()), known
}
