package mirror

import (
	"fmt"
	"sync"
	"sync/atomic"
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

	// present is the core's incarnation and session, to be read without the lock.
	present atomic.Pointer[Identity]
}

func newSessions(m *Mirror) *sessions {
	return &sessions{mirror: m, persist: make(chan uint64, 1), core: newSessionCore(m.config.session(m.openPayload), m.config.Clock())}
}

// session is what the core is to know of the configuration. open builds the payload of the Open of an incarnation.
func (c *Config) session(open func(incarnation uint64) []byte) sessionConfig {
	return sessionConfig{
		open:           open,
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
	}
}

func (s *sessions) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(time.Hour, s.fire)
	// The handler's first call waits for the lock.
	s.appender = s.mirror.client.Appender(s)
}

// fire takes the time. Config.Clock may not have got as far as the timer: then the rest is waited for.
func (s *sessions) fire() {
	s.mu.Lock()
	s.armed = 0
	s.do(s.core.step(sessionEvent{kind: eventTimer}, s.mirror.config.Clock()))
	s.mu.Unlock()
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
	if id := s.identity(); id.Incarnation != s.core.incarnation || id.Session != s.core.session {
		s.present.Store(&Identity{Incarnation: s.core.incarnation, Session: s.core.session})
	}
	if len(effects.send) > 0 {
		m.metrics.proposals.Add(float64(len(effects.send)))
		s.appender.Send(effects.send...)
	}
	if effects.resent != "" {
		m.metrics.resends.WithLabelValues(effects.resent).Inc()
		m.config.Logger.Info("proposals in flight are handed over again", "reason", effects.resent, "proposals", len(effects.send))
	}
	for _, a := range effects.applied {
		a.proposal.settle(proposalOutcome{applied: true, result: a.result, sync: a.sync})
	}
	if effects.committed != 0 {
		m.metrics.commitSeconds.Observe(effects.committed.Seconds())
		m.metrics.batchCommands.Observe(float64(len(effects.applied)))
		m.metrics.batchBytes.Observe(float64(effects.committedBytes))
	}
	for _, f := range effects.finished {
		f.proposal.settle(proposalOutcome{err: f.err})
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
		s.mirror.metrics.rejections.WithLabelValues(labelOf("REASON_", r.GetReason())).Inc()
	}
	s.step(sessionEvent{kind: eventRejected, rejections: rejections})
}

func (s *sessions) identity() Identity {
	if present := s.present.Load(); present != nil {
		return *present
	}
	return Identity{}
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

// tick proposes an entry that carries nothing but log time.
func (s *sessions) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.stopped == nil {
		s.mirror.metrics.ticks.Inc()
		s.appender.Send(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_TICK})
	}
}
