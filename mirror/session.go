package mirror

import (
	"fmt"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/observe/tracing"
	"github.com/logmirror/logmirror/statemachine"
)

// sessionCore turns commands into the entries of one session after another, such that each command is applied at most
// once whatever the streams, the members and this process's sessions go through. It is passive: step takes what happened
// and when, and returns what is to be done. Times are those of Config.Clock.
//
// Guarantees:
//  1. What is under a seq never changes once it was handed over: a batch is built once and its payload is kept
//     until it is seen applied or its session is seen ended.
//  2. Batches are handed over in the order of their seq; a copy is only made from the lowest unapplied seq on, of
//     all that is in flight, in order.
//  3. A command is in at most one batch of sessions that may still apply it: it is put into another only after the
//     entry that ended the session of the first was applied here, without the batch having been.
//  4. A command whose outcome is reported as not applied was never handed over, or guarantee 3 held for it and it
//     was not handed over again.
//  5. Commands are applied in the order in which they were proposed.
//  6. An incarnation is durable before its Open is handed over.
type sessionCore struct {
	config sessionConfig
	phase  sessionPhase

	// incarnation is the last one that is durable, or being made so.
	incarnation uint64
	// session is the id of the session in which inFlight was handed over; zero for none.
	session     uint64
	sessionTime time.Duration
	nextSeq     uint64
	// heldFrom: the session was alive, in the eyes of all, at this time or later.
	heldFrom time.Duration

	up   bool
	term uint64
	// inFlight holds the batches handed over and not yet seen applied. Invariant: their seqs are contiguous and end at
	// nextSeq-1.
	inFlight      []*batch
	inFlightBytes int
	queue         proposalList
	// retryAt: nothing is handed over before, because a member rejected something; zero for no such wait.
	retryAt time.Duration
	// sentAt is when something was last handed over, movedAt when something was last seen applied, openSentAt when this
	// incarnation's Open was first handed over.
	sentAt     time.Duration
	movedAt    time.Duration
	openSentAt time.Duration
	openSent   bool
	// openCopies of this incarnation's Open were handed over, of which openRefusals were seen skipped.
	openCopies, openRefusals int
	// fenced: this frontend's region is fenced as far as the log was applied here, so that no Open would be taken.
	fenced bool
	// refusedFor is why the last Open was skipped; empty for no reason.
	refusedFor string
	timeouts   int
	estimate   roundTripEstimate
	// blocked: nothing has moved since blockedSince although something should.
	blocked      bool
	blockedSince time.Duration
	stopped      error

	now     time.Duration
	effects sessionEffects
}

type sessionConfig struct {
	// open builds the payload of the Open of an incarnation.
	open func(incarnation uint64) []byte

	batchBytesMax  int
	inFlightMax    int
	inFlightBytes  int
	hold           time.Duration
	queueMax       int
	queueBytesMax  int
	failFastAfter  time.Duration
	unknownAfter   time.Duration
	stallAfter     time.Duration
	resendAfterMin time.Duration
	resendAfterMax time.Duration
	retryAfterMax  time.Duration
	openRetry      time.Duration
}

type sessionPhase uint8

const (
	// phaseWaiting: the mirror has not caught up; no session is wanted yet.
	phaseWaiting sessionPhase = iota
	// phasePersisting: the next incarnation is being made durable.
	phasePersisting
	// phaseOpening: the Open may be handed over; it has not been seen applied.
	phaseOpening
	// phaseOpen: batches may be handed over.
	phaseOpen
)

// batch is what is under one seq.
type batch struct {
	seq       uint64
	payload   []byte
	proposals []*proposal
	// traces are those of the first proposals that have one.
	traces    []*logv1.TraceContext
	firstSent time.Duration
	// copies were handed over; skips were seen in the tail as skipped for a gap.
	copies, skips int
	// refused: the log will never take this payload.
	refused error
}

func newSessionCore(config sessionConfig, now time.Duration) *sessionCore {
	return &sessionCore{config: config, blocked: true, blockedSince: now}
}

// step takes one event. The effects are valid until the next step.
func (s *sessionCore) step(event sessionEvent, now time.Duration) *sessionEffects {
	s.now = now
	s.effects = sessionEffects{
		send: s.effects.send[:0], finished: s.effects.finished[:0], applied: s.effects.applied[:0],
	}
	switch event.kind {
	case eventTimer:
	case eventCaughtUp:
		if s.phase == phaseWaiting {
			s.incarnation = event.number
			s.persistNext()
		}
	case eventPersisted:
		if s.phase == phasePersisting && event.number == s.incarnation {
			s.phase = phaseOpening
			s.openSent, s.openCopies, s.openRefusals = false, 0, 0
			s.sendOpen()
		}
	case eventFenced, eventUnfenced:
		s.regionChanged(event.kind == eventFenced)
	case eventUp:
		s.up = true
		s.retryAt = 0
		s.resend("stream")
	case eventDown:
		s.up = false
		s.retryAt = 0
	case eventRejected:
		for _, rejection := range event.rejections {
			s.rejected(rejection)
		}
	case eventTerm:
		if event.number > s.term {
			s.term = event.number
			s.resend("term")
		}
	case eventOpened:
		s.opened(event)
	case eventOpenRefused:
		s.openRefused(event)
	case eventApplied:
		s.applied(event)
	case eventGap:
		s.gap(event)
	case eventEnded:
		s.ended(event.session)
	case eventPropose:
		s.propose(event.proposal)
	case eventLeave:
		s.leave(event.proposal)
	case eventStop:
		s.stop(event.err)
	}
	s.run()
	return &s.effects
}

// run does what is due and says when the next thing will be.
func (s *sessionCore) run() {
	if s.stopped != nil {
		return
	}
	if s.retryAt != 0 && s.now >= s.retryAt {
		s.retryAt = 0
		s.resend("rejection")
	}
	s.resendIfLate()
	s.fill()
	s.renew()
	s.judge()
	s.expire()
	s.schedule()
}

func (s *sessionCore) persistNext() {
	s.phase = phasePersisting
	s.incarnation++
	s.effects.persist = s.incarnation
}

func (s *sessionCore) sendOpen() {
	if !s.up || s.retryAt != 0 || s.fenced {
		return
	}
	if !s.openSent {
		s.openSent = true
		s.openSentAt = s.now
	}
	s.openCopies++
	s.send(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, Payload: s.config.open(s.incarnation)})
}

func (s *sessionCore) send(p *logv1.Proposal) {
	s.effects.send = append(s.effects.send, p)
	s.sentAt = s.now
}

func (s *sessionCore) sendBatch(b *batch) {
	b.copies++
	s.send(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: s.session, Seq: b.seq, Payload: b.payload, Traces: b.traces})
}

// resend hands over again what is not known to be in the log.
func (s *sessionCore) resend(reason string) {
	if !s.up || s.stopped != nil {
		return
	}
	s.retryAt = 0
	for _, b := range s.inFlight {
		if b.refused != nil {
			break
		}
		s.sendBatch(b)
		s.effects.resent = reason
	}
	if s.phase == phaseOpening && !s.fenced {
		s.sendOpen()
		s.effects.resent = reason
	}
}

// regionChanged notes whether this frontend's region is fenced. Opened again, it need not wait for anything.
func (s *sessionCore) regionChanged(fenced bool) {
	if fenced == s.fenced {
		return
	}
	s.fenced = fenced
	if fenced {
		s.refusedFor = statemachine.SkipRegionFenced.String()
		return
	}
	s.refusedFor = ""
	if s.phase == phaseOpening {
		s.retryAt = 0
		s.sendOpen()
	}
}

// waitingForLog tells whether something was handed over whose fate is not known.
func (s *sessionCore) waitingForLog() bool {
	return len(s.inFlight) > 0 || (s.phase == phaseOpening && s.openSent && !s.fenced)
}

func (s *sessionCore) resendDue() time.Duration {
	after := min(max(s.estimate.timeout(), s.config.resendAfterMin)<<min(s.timeouts, 6), s.config.resendAfterMax)
	return max(s.sentAt, s.movedAt) + after
}

func (s *sessionCore) resendIfLate() {
	if !s.up || s.retryAt != 0 {
		return
	}
	if s.phase == phaseOpening && !s.openSent {
		s.sendOpen()
		return
	}
	if s.waitingForLog() && s.now >= s.resendDue() {
		s.timeouts++
		s.resend("timeout")
	}
}

func (s *sessionCore) rejected(r *logv1.AppendRejection) {
	switch r.GetKind() {
	case logv1.EntryKind_ENTRY_KIND_OPEN_SESSION:
		if s.phase != phaseOpening {
			return
		}
	case logv1.EntryKind_ENTRY_KIND_BATCH:
		b := s.find(r.GetSession(), r.GetSeq())
		if b == nil {
			return
		}
		switch r.GetReason() {
		case logv1.AppendRejection_REASON_TOO_LARGE:
			s.refuse(b, fmt.Errorf("%w: %w", ErrNotApplied, ErrTooLarge))
			return
		case logv1.AppendRejection_REASON_INVALID:
			s.refuse(b, fmt.Errorf("%w: the log refuses the proposal as invalid", ErrNotApplied))
			return
		}
	default:
		return
	}
	wait := time.Duration(r.GetRetryAfterMilliseconds()) * time.Millisecond
	if wait <= 0 {
		wait = s.config.resendAfterMin
	}
	s.retryAt = max(s.retryAt, s.now+min(wait, s.config.retryAfterMax))
}

// refuse gives up a batch that the log will never take. Its seq cannot be used for anything else, so the session is
// closed by opening the next; once that is seen, nothing in flight can apply any more.
func (s *sessionCore) refuse(b *batch, reason error) {
	b.refused = reason
	if s.phase == phaseOpen {
		s.persistNext()
	}
}

func (s *sessionCore) find(session, seq uint64) *batch {
	if session != s.session || len(s.inFlight) == 0 || seq < s.inFlight[0].seq || seq >= s.nextSeq {
		return nil
	}
	return s.inFlight[seq-s.inFlight[0].seq]
}

func (s *sessionCore) opened(event sessionEvent) {
	if s.phase != phaseOpening || event.number != s.incarnation {
		return
	}
	// The entry that opens a session ends the one before it.
	s.requeue()
	s.phase = phaseOpen
	s.refusedFor = ""
	s.session = event.session
	s.sessionTime = event.sessionTime
	s.nextSeq = 1
	s.heldFrom = s.openSentAt
	s.moved()
}

func (s *sessionCore) openRefused(event sessionEvent) {
	if s.phase != phaseOpening || event.number != s.incarnation {
		return
	}
	if event.err != nil {
		s.effects.fatal = event.err
		return
	}
	if s.openRefusals++; s.openRefusals >= s.openCopies {
		// No copy is left that could be applied: the session will have been alive from the next one on.
		s.openSent = false
	}
	if s.fenced {
		return // until eventUnfenced
	}
	s.refusedFor = event.reason
	s.retryAt = s.now + s.config.openRetry
}

func (s *sessionCore) applied(event sessionEvent) {
	b := s.find(event.session, event.seq)
	if b == nil || b != s.inFlight[0] {
		return
	}
	s.inFlight[0] = nil
	s.inFlight = s.inFlight[1:]
	s.inFlightBytes -= len(b.payload)
	s.heldFrom = max(s.heldFrom, b.firstSent)
	if b.copies == 1 {
		// Of a batch that was sent twice nobody knows which copy was applied.
		s.estimate.sample(s.now - b.firstSent)
	}
	if len(b.proposals) != len(event.results) {
		s.effects.fatal = fmt.Errorf("batch %d of session %d: %d results for %d commands", b.seq, s.session, len(event.results), len(b.proposals))
		return
	}
	for i, p := range b.proposals {
		if p.state == proposalHandedOver {
			p.course.copies, p.course.seenAt, p.course.endedAt = b.copies, event.seenAt, s.now
			s.effects.applied = append(s.effects.applied, appliedProposal{p, event.results[i], event.sync})
		}
		p.state = proposalFinished
	}
	if len(b.proposals) > 0 {
		s.effects.committed, s.effects.committedBytes = max(s.now-b.firstSent, 1), len(b.payload)
	}
	s.moved()
}

// gap counts a skipped copy. When every copy of a batch was skipped, none is left that could apply once the missing one
// has been.
func (s *sessionCore) gap(event sessionEvent) {
	b := s.find(event.session, event.seq)
	if b == nil {
		return
	}
	b.skips++
	if b.skips >= b.copies && s.retryAt == 0 {
		s.resend("gap")
	}
}

func (s *sessionCore) ended(session uint64) {
	if session == 0 || session != s.session {
		return
	}
	s.requeue()
	if s.phase == phaseOpen {
		s.persistNext()
	}
}

// requeue puts what is in flight back before the queue: its session has ended, so that none of it can apply any more.
func (s *sessionCore) requeue() {
	for i := len(s.inFlight) - 1; i >= 0; i-- {
		b := s.inFlight[i]
		for j := len(b.proposals) - 1; j >= 0; j-- {
			p := b.proposals[j]
			switch {
			case p.state != proposalHandedOver:
			case b.refused != nil:
				s.finish(p, b.refused)
			default:
				p.state = proposalQueued
				s.queue.pushFront(p)
			}
		}
	}
	s.inFlight = nil
	s.inFlightBytes = 0
	s.session = 0
	s.retryAt = 0
	s.timeouts = 0
}

func (s *sessionCore) propose(p *proposal) {
	p.course.queuedAt = s.now
	switch {
	case s.stopped != nil:
		s.finish(p, fmt.Errorf("%w: %w", ErrNotApplied, s.stopped))
	case !p.waitForLog && s.failsFast():
		s.finish(p, errFailFast)
	case s.queue.count >= s.config.queueMax || s.queue.bytes+len(p.encoded) > s.config.queueBytesMax:
		s.finish(p, fmt.Errorf("%w: %w", ErrNotApplied, ErrOverloaded))
	default:
		s.queue.pushBack(p)
	}
}

var errFailFast = fmt.Errorf("%w: %w", ErrUnavailable, ErrNotApplied)

func (s *sessionCore) leave(p *proposal) {
	switch p.state {
	case proposalQueued:
		s.queue.remove(p)
		s.finish(p, ErrNotApplied)
	case proposalHandedOver:
		s.end(p, proposalLeft, ErrUnknown)
	}
}

func (s *sessionCore) finish(p *proposal, err error) { s.end(p, proposalFinished, err) }

// end gives a proposal an outcome other than a result. Its course is its caller's from then on.
func (s *sessionCore) end(p *proposal, state proposalState, err error) {
	p.state = state
	p.course.endedAt = s.now
	if b := s.find(p.course.session, p.course.seq); b != nil {
		p.course.copies = b.copies
	}
	s.effects.finished = append(s.effects.finished, finishedProposal{p, err})
}

func (s *sessionCore) stop(reason error) {
	if s.stopped != nil {
		return
	}
	s.stopped = reason
	for _, b := range s.inFlight {
		for _, p := range b.proposals {
			if p.state == proposalHandedOver {
				s.finish(p, fmt.Errorf("%w: %w", ErrUnknown, reason))
			}
		}
	}
	for p := s.queue.head; p != nil; p = s.queue.head {
		s.queue.remove(p)
		s.finish(p, fmt.Errorf("%w: %w", ErrNotApplied, reason))
	}
}

// mayHandOver tells whether a new batch may go out.
func (s *sessionCore) mayHandOver() bool {
	return s.phase == phaseOpen && s.up && s.retryAt == 0 && s.stopped == nil
}

// carriesCommands tells whether a batch with commands is in flight.
func (s *sessionCore) carriesCommands() bool {
	for _, b := range s.inFlight {
		if len(b.proposals) > 0 {
			return true
		}
	}
	return false
}

// holding tells whether the queue waits for company: only while another batch with commands is in flight, and only for
// a while.
func (s *sessionCore) holding() bool {
	return s.queue.bytes < s.config.batchBytesMax && s.now < s.queue.head.course.queuedAt+s.config.hold && s.carriesCommands()
}

func (s *sessionCore) fill() {
	for s.mayHandOver() && s.queue.head != nil && len(s.inFlight) < s.config.inFlightMax &&
		s.inFlightBytes < s.config.inFlightBytes && !s.holding() {
		s.handOver(s.pack())
	}
}

// pack takes the front of the queue into a batch: all of it, or as much as fits, and at least one command.
func (s *sessionCore) pack() *batch {
	count, bytes := 0, 0
	for p := s.queue.head; p != nil && (count == 0 || bytes+len(p.encoded) <= s.config.batchBytesMax); p = p.next {
		count++
		bytes += len(p.encoded)
	}
	b := &batch{proposals: make([]*proposal, count)}
	if count > 1 {
		b.payload = make([]byte, 0, bytes)
	}
	for i := range b.proposals {
		p := s.queue.head
		s.queue.remove(p)
		p.state = proposalHandedOver
		b.proposals[i] = p
		if p.trace != nil && len(b.traces) < tracing.ContextsMax {
			b.traces = append(b.traces, p.trace)
		}
		if count == 1 {
			b.payload, p.lent = p.encoded, true
		} else {
			b.payload = append(b.payload, p.encoded...)
		}
	}
	return b
}

func (s *sessionCore) handOver(b *batch) {
	b.seq = s.nextSeq
	b.firstSent = s.now
	for _, p := range b.proposals {
		if p.course.seq == 0 {
			p.course.handedAt = s.now
		}
		p.course.session, p.course.seq = s.session, b.seq
	}
	s.nextSeq++
	s.inFlight = append(s.inFlight, b)
	s.inFlightBytes += len(b.payload)
	s.sendBatch(b)
}

// renew keeps an idle session alive by an empty batch.
func (s *sessionCore) renew() {
	if s.mayHandOver() && len(s.inFlight) == 0 && s.now >= s.sentAt+s.sessionTime/3 {
		s.handOver(&batch{})
	}
}

// moved notes that the log took something from this session.
func (s *sessionCore) moved() {
	s.blocked = false
	s.timeouts = 0
	s.movedAt = s.now
}

// judge notes since when nothing moves. Only what moves ends that, so that a member which rejects every copy is not
// taken for one that works between two rejections.
func (s *sessionCore) judge() {
	stuck := !s.mayHandOver() || (len(s.inFlight) > 0 && s.now >= s.inFlight[0].firstSent+s.config.stallAfter)
	switch {
	case stuck && !s.blocked:
		s.blocked, s.blockedSince = true, s.now
	case !stuck && len(s.inFlight) == 0:
		s.blocked = false
	}
}

func (s *sessionCore) failsFast() bool {
	return s.blocked && s.now >= s.blockedSince+s.config.failFastAfter
}

// expire ends what does not want to wait for a log that is away: at once where it was not handed over, and after a
// bound where it was.
func (s *sessionCore) expire() {
	if s.queue.hasty > 0 && s.failsFast() {
		for p := s.queue.head; p != nil; {
			next := p.next
			if !p.waitForLog {
				s.queue.remove(p)
				s.finish(p, errFailFast)
			}
			p = next
		}
	}
	for _, b := range s.inFlight {
		if s.now < b.firstSent+s.config.unknownAfter {
			return
		}
		for _, p := range b.proposals {
			if p.state == proposalHandedOver && !p.waitForLog {
				s.end(p, proposalLeft, fmt.Errorf("%w: %w", ErrUnknown, ErrUnavailable))
			}
		}
	}
}

// schedule says when the next step is due if nothing happens before.
func (s *sessionCore) schedule() {
	wake := func(at time.Duration) {
		if at > s.now && (s.effects.wake == 0 || at < s.effects.wake) {
			s.effects.wake = at
		}
	}
	if s.retryAt != 0 {
		wake(s.retryAt)
	}
	if s.up && s.waitingForLog() {
		wake(s.resendDue())
	}
	if s.mayHandOver() {
		if s.queue.head != nil && len(s.inFlight) < s.config.inFlightMax {
			wake(s.queue.head.course.queuedAt + s.config.hold)
		}
		if len(s.inFlight) == 0 {
			wake(s.sentAt + s.sessionTime/3)
		}
	}
	if s.blocked && s.queue.hasty > 0 {
		wake(s.blockedSince + s.config.failFastAfter)
	}
	if len(s.inFlight) > 0 {
		wake(s.inFlight[0].firstSent + s.config.stallAfter)
		for _, b := range s.inFlight {
			wake(b.firstSent + s.config.unknownAfter)
		}
	}
}

// holder returns the session and until when this process may act as its holder.
func (s *sessionCore) holder() (session uint64, until time.Duration, ok bool) {
	if s.session == 0 {
		return 0, 0, false
	}
	return s.session, s.heldFrom + s.sessionTime/10*9, true
}
