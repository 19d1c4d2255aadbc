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

	waiting   []*reader
	underWay  int
	started   bool
	startedAt time.Duration
}

// reader waits for a round; done takes one answer.
type reader struct {
	done chan roundAnswer
}

type roundAnswer struct {
	index uint64
	err   error
}

// start returns the readers of the round that is to be made now, which may be none: ok tells whether one is to be made.
// wake tells when to ask again, if nothing happens before.
func (r *roundsCore) start(now time.Duration) (readers []*reader, ok bool, wake time.Duration) {
	due := r.startedAt + r.idleAfter
	if len(r.waiting) > 0 {
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
	if len(r.waiting) == 0 && r.underWay > 0 {
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

func (r *roundsCore) join(reader *reader) { r.waiting = append(r.waiting, reader) }

// leave takes a reader out that does not wait any more; false if its round is under way.
func (r *roundsCore) leave(reader *reader) bool {
	for i, w := range r.waiting {
		if w == reader {
			r.waiting = append(r.waiting[:i], r.waiting[i+1:]...)
			return true
		}
	}
	return false
}

func (r *roundsCore) ended() { r.underWay-- }

// rounds is the shell around roundsCore: it makes the rounds, answers the readers, and keeps the age.
type rounds struct {
	mirror *Mirror
	// poke wakes the goroutine that starts rounds; one waiting signal is enough.
	poke chan struct{}

	mu   sync.Mutex
	core roundsCore
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
	one := &reader{done: make(chan roundAnswer, 1)}
	r.mu.Lock()
	if len(r.core.waiting) >= r.mirror.config.Waiters {
		r.mu.Unlock()
		return 0, fmt.Errorf("%w: %d calls wait for a read round", ErrOverloaded, r.mirror.config.Waiters)
	}
	r.core.join(one)
	r.mu.Unlock()
	r.wake()
	select {
	case answer := <-one.done:
		return answer.index, answer.err
	case <-ctx.Done():
		r.mu.Lock()
		r.core.leave(one)
		r.mu.Unlock()
		return 0, context.Cause(ctx)
	case <-r.mirror.ctx.Done():
		return 0, ErrStopped
	}
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
			shared = len(readers)
			underWay.Go(func() { r.round(readers, now, timing) })
		}
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
func (r *rounds) round(readers []*reader, began time.Duration, timing roundTiming) {
	m := r.mirror
	_, roundTrip, _ := m.client.Current()
	tell := func(answer roundAnswer) {
		for _, reader := range readers {
			reader.done <- answer
		}
	}
	untold := func() bool { return true }
	if timing.patience < timing.timeout {
		untold = time.AfterFunc(timing.patience+roundTrip, func() {
			tell(roundAnswer{err: fmt.Errorf("%w: the log did not answer before, nor now within %v", ErrUnavailable, timing.patience)})
		}).Stop
	}
	ctx, cancel := context.WithTimeout(m.ctx, timing.timeout+roundTrip)
	answer, err := m.client.ReadRound(ctx)
	cancel()
	if err != nil {
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
		tell(roundAnswer{index: answer.Index, err: err})
	}
	m.metrics.readersPerRound.Observe(float64(len(readers)))
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
