package mirror

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
)

// sessions is the shell around sessionCore: a lock, a timer, and the hands that do what a step asks for. Nothing
// that is done under the lock blocks.
type sessions struct {
	mirror *Mirror
	// persist carries incarnations to the goroutine that makes them durable; at most one is under way.
	persist chan uint64

	mu       sync.Mutex
	core     *sessionCore
	appender *logclient.Appender
	timer    *time.Timer
	// armed is when the timer fires, on Config.Clock; zero when it does not.
	armed time.Duration
}

func newSessions(m *Mirror) *sessions {
	c := &m.config
	return &sessions{
		mirror:  m,
		persist: make(chan uint64, 1),
		core: newSessionCore(sessionConfig{
			open:           m.openPayload,
			batchBytesMax:  c.BatchBytesMax,
			inFlightMax:    c.BatchesInFlight,
			inFlightBytes:  c.BytesInFlight,
			hold:           c.BatchHold,
			queueMax:       c.QueueCommands,
			queueBytesMax:  c.QueueBytes,
			failFastAfter:  c.FailFastAfter,
			unknownAfter:   c.UnknownAfter,
			stallAfter:     c.StallAfter,
			resendAfterMin: c.ResendAfterMin,
			resendAfterMax: c.ResendAfterMax,
			retryAfterMax:  c.ResendAfterMin,
			openRetry:      2 * time.Second,
		}, c.Clock()),
	}
}

func (s *sessions) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(time.Hour, func() { s.step(sessionEvent{kind: eventTimer}) })
	// The handler's first call waits for the lock.
	s.appender = s.mirror.client.Appender(s)
}

// step takes one event and does what it asks for.
func (s *sessions) step(event sessionEvent) {
	s.mu.Lock()
	s.do(s.core.step(event, s.mirror.config.Clock()))
	s.mu.Unlock()
}

// do carries out the effects of a step. The caller holds the lock.
func (s *sessions) do(effects *sessionEffects) {
	m := s.mirror
	if len(effects.send) > 0 {
		m.metrics.proposals.Add(float64(len(effects.send)))
		s.appender.Send(effects.send...)
	}
	if effects.resent != "" {
		m.metrics.resends.WithLabelValues(effects.resent).Inc()
		m.config.Logger.Info("proposals in flight are handed over again", "reason", effects.resent, "proposals", len(effects.send))
	}
	for _, a := range effects.applied {
		a.proposal.done <- proposalOutcome{result: a.result}
	}
	if effects.committed != 0 {
		m.metrics.commitSeconds.Observe(effects.committed.Seconds())
		m.metrics.batchCommands.Observe(float64(len(effects.applied)))
	}
	for _, f := range effects.finished {
		f.proposal.done <- proposalOutcome{err: f.err}
	}
	if effects.persist != 0 {
		s.persist <- effects.persist
	}
	if effects.fatal != nil {
		m.fail(effects.fatal)
	}
	if effects.wake != 0 && (s.armed == 0 || effects.wake < s.armed || s.core.now >= s.armed) {
		s.armed = effects.wake
		s.timer.Reset(effects.wake - s.core.now)
	}
}

func (s *sessions) propose(p *proposal) { s.step(sessionEvent{kind: eventPropose, proposal: p}) }
func (s *sessions) leave(p *proposal)   { s.step(sessionEvent{kind: eventLeave, proposal: p}) }

// stop ends every wait and closes the stream.
func (s *sessions) stop(reason error) {
	s.step(sessionEvent{kind: eventStop, err: reason})
	s.mu.Lock()
	s.timer.Stop()
	s.mu.Unlock()
	s.appender.Close()
}

// persistLoop makes incarnations durable. A disk that cannot ends the mirror: without it no session may be opened.
func (s *sessions) persistLoop() {
	m := s.mirror
	for {
		select {
		case <-m.ctx.Done():
			return
		case incarnation := <-s.persist:
			_, epoch := m.client.Identity()
			if err := m.directory.begin(incarnation, m.machine.ClusterID(), epoch); err != nil {
				m.fail(fmt.Errorf("make incarnation %d durable: %w", incarnation, err))
				return
			}
			m.config.Logger.Info("a session is opened", "incarnation", incarnation)
			s.step(sessionEvent{kind: eventPersisted, number: incarnation})
		}
	}
}

// AppendUp, AppendDown and AppendRejected are the handler of the log client's stream.
func (s *sessions) AppendUp()        { s.step(sessionEvent{kind: eventUp}) }
func (s *sessions) AppendDown(error) { s.step(sessionEvent{kind: eventDown}) }
func (s *sessions) AppendRejected(rejections []*logv1.AppendRejection) {
	for _, r := range rejections {
		s.mirror.metrics.rejections.WithLabelValues(r.GetReason().String()).Inc()
	}
	s.step(sessionEvent{kind: eventRejected, rejections: rejections})
}

func (s *sessions) identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Identity{Incarnation: s.core.incarnation, Session: s.core.session}
}

func (s *sessions) holder() (uint64, time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.holder()
}

// trouble says what keeps commands from being taken; empty for nothing.
func (s *sessions) trouble() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.mirror.config.Clock()
	switch {
	case s.core.phase != phaseOpen && s.core.refusedFor != "":
		return "the log refuses this frontend's session: " + s.core.refusedFor
	case s.core.blocked && now-s.core.blockedSince > s.mirror.config.FailFastAfter:
		return fmt.Sprintf("the log takes no commands since %s", (now - s.core.blockedSince).Round(time.Second))
	}
	return ""
}

func (s *sessions) waiting() (commands, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.queue.count, s.core.queue.bytes
}

// rounds is the shell around roundsCore: it makes the rounds, answers the readers, and keeps the age.
type rounds struct {
	mirror *Mirror
	// poke wakes the goroutine that starts rounds; one waiting signal is enough.
	poke chan struct{}

	mu     sync.Mutex
	core   roundsCore
	failed bool
	// answered are rounds whose index is not applied yet, in no order.
	answered []answeredRound
	// freshest is the latest start of a round whose index is applied.
	freshest time.Duration
	known    bool
}

type answeredRound struct {
	index uint64
	began time.Duration
}

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
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-r.poke:
		case <-timer.C:
		}
		for {
			now := m.config.Clock()
			r.mu.Lock()
			readers, ok, wake := r.core.start(now)
			timeout := m.config.ReadRoundTimeout
			if r.failed {
				// The last one found no answer: readers are told soon.
				timeout = min(timeout, m.config.FailFastAfter)
			}
			r.mu.Unlock()
			if !ok {
				if wake != 0 {
					timer.Reset(wake - now)
				}
				break
			}
			underWay.Go(func() { r.round(readers, now, timeout) })
		}
	}
}

// round makes one round and answers its readers.
func (r *rounds) round(readers []*reader, began, timeout time.Duration) {
	m := r.mirror
	_, roundTrip, _ := m.client.Current()
	ctx, cancel := context.WithTimeout(m.ctx, timeout+roundTrip)
	answer, err := m.client.ReadRound(ctx)
	cancel()
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	r.mu.Lock()
	r.core.ended()
	r.failed = err != nil
	if err == nil {
		if len(r.answered) >= answeredMax {
			r.answered = r.answered[1:]
		}
		r.answered = append(r.answered, answeredRound{index: answer.Index, began: began})
	}
	r.mu.Unlock()
	if err == nil {
		r.applied(m.AppliedIndex())
	}
	for _, reader := range readers {
		reader.done <- roundAnswer{index: answer.Index, err: err}
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
		r.freshest = max(r.freshest, a.began)
		if !r.known {
			r.known = true
			close(r.mirror.ready)
		}
	}
	r.answered = kept
}

func (r *rounds) age() (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mirror.config.Clock() - r.freshest, r.known
}

// ticks is the shell around ticker.
type ticks struct {
	mirror *Mirror
	mu     sync.Mutex
	core   ticker
	timer  *time.Timer
	ended  bool
}

// logTimeAdvanceMax is how far log time advances at most from one entry to the next: part of the log's contract.
const logTimeAdvanceMax = 5 * time.Second

func newTicks(m *Mirror) *ticks {
	t := &ticks{mirror: m}
	t.core = ticker{advanceMax: logTimeAdvanceMax, spread: func() time.Duration {
		return time.Duration(rand.Int64N(int64(m.config.TickSpread) + 1))
	}}
	t.timer = time.AfterFunc(time.Hour, t.fire)
	return t
}

// applied looks what is due next after the entry that was applied last, whose log time is stamp.
func (t *ticks) applied(stamp int64) {
	due, ok := t.mirror.machine.NextDue()
	t.mu.Lock()
	now := t.mirror.config.Clock()
	t.core.applied(stamp, due, ok, now)
	t.arm(now)
	t.mu.Unlock()
}

func (t *ticks) arm(now time.Duration) {
	propose, wake := t.core.next(now)
	if propose {
		t.mirror.session.tick()
	}
	if wake != 0 && !t.ended {
		t.timer.Reset(wake - now)
	}
}

func (t *ticks) fire() {
	t.mu.Lock()
	t.arm(t.mirror.config.Clock())
	t.mu.Unlock()
}

func (t *ticks) stop() {
	t.mu.Lock()
	t.ended = true
	t.timer.Stop()
	t.mu.Unlock()
}

// tick proposes an entry that carries nothing but log time.
func (s *sessions) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.stopped == nil {
		s.mirror.metrics.ticks.Inc()
		s.appender.Send(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_TICK})
	}
}
