package mirror

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

// Stepper is what a Mirror decides, as a value that starts nothing and reads no clock: for a simulation, which brings time,
// network and disk itself. Applying entries, the session with its batches and resends, the sharing of read rounds and the
// ticks are the Mirror's own code. The image, checkpoints, reports on applies, comparison of digests and the age are not
// part of it.
//
// One goroutine uses it. Times are those of one clock that does not go back. After each call, Take says what is to be done.
type Stepper struct {
	config  Config
	id      uint64
	durable uint64
	apply   applyCore
	session *sessionCore
	ticks   ticker
	rounds  roundsCore
	now     time.Duration

	calls map[*proposal]*Call
	// reads are those of each crowd, in the order in which they came.
	reads map[*crowd][]*Read
	// underWay are the readers of each round that is asked, by its number.
	underWay  map[uint64]*crowd
	lastRound uint64
	// waiting reads have their answer and wait for its apply.
	waiting []*Read
	// sessionAt, tickAt and roundAt are when each wants to be woken; zero for not before something happens.
	sessionAt, tickAt, roundAt time.Duration
	ready                      bool
	effects                    StepperEffects
}

// StepperConfig says whose decisions they are.
type StepperConfig struct {
	// Config's Name, Region and bounds count.
	Config     Config
	FrontendID uint64
	// Incarnation is the last one that is durable.
	Incarnation uint64
	Machine     *statemachine.Machine
	Observers   []Observer
	// Spread returns the random while between zero and Config.TickSpread by which ticks of mirrors are spread.
	Spread func() time.Duration
}

// StepperEffects is what is to be done, since it was taken the last time. The receiver owns it.
type StepperEffects struct {
	// Send is to be handed to the member in use, in this order; where there is no stream, it is dropped.
	Send []*logv1.Proposal
	// Persist, if not zero, is an incarnation that is to be made durable, answered by Persisted.
	Persist uint64
	// Rounds are read rounds to ask, by number, each answered by RoundAnswered.
	Rounds []uint64
	// Calls and Reads have come to an end.
	Calls []*Call
	Reads []*Read
	// Checkpoint: the entry applied last asks this frontend's session for a checkpoint of the state as it is now.
	Checkpoint *logv1.CheckpointRequest
	// Resends counts how often what was in flight was handed over again.
	Resends int
	// Wake is when Timer is to be called at the latest; zero for not before something happens.
	Wake time.Duration
	// Fatal ends the mirror.
	Fatal error
}

// Call is one command on its way.
type Call struct {
	proposal *proposal
	// Done: Result or Err is set, as those of Mirror.Propose.
	Done   bool
	Result statemachine.Result
	Err    error
}

// Read is one linearizable read that waits.
type Read struct {
	// Done: the state may be read now, at or above Index, or Err says why not.
	Done  bool
	Index uint64
	Err   error
}

// NewStepper begins the life of a mirror at now.
func NewStepper(config StepperConfig, now time.Duration) (*Stepper, error) {
	c, err := config.Config.withDefaults()
	if err != nil {
		return nil, err
	}
	if _, err := c.openPayload(config.FrontendID, config.Incarnation, config.Machine.Understands()); err != nil {
		return nil, err
	}
	s := &Stepper{config: c, id: config.FrontendID, durable: config.Incarnation, now: now,
		calls: map[*proposal]*Call{}, reads: map[*crowd][]*Read{}, underWay: map[uint64]*crowd{},
		rounds: roundsCore{max: c.ReadRounds, spacing: c.ReadRoundSpacing, idleAfter: c.AgeInterval},
		ticks:  ticker{advanceMax: logTimeAdvanceMax, spread: config.Spread}}
	s.session = newSessionCore(c.session(func(incarnation uint64) []byte {
		payload, _ := c.openPayload(s.id, incarnation, config.Machine.Understands()) // it was tried above
		return payload
	}), now)
	s.apply = applyCore{machine: config.Machine, translator: translator{frontendID: config.FrontendID, understands: config.Machine.Understands()}, observers: config.Observers,
		region: c.Region, logTime: config.Machine.LogTime(), tell: applySeam{
			requested: s.requested,
			reached:   func(*statemachine.Applied) {},
			gathered:  func(*statemachine.Applied, bool) *syncEntry { return nil },
			session:   s.step,
			applied:   func(*statemachine.Applied) error { return nil },
		}}
	s.startRounds()
	return s, nil
}

// Take returns what is to be done since it was called last.
func (s *Stepper) Take() StepperEffects {
	effects := s.effects
	s.effects = StepperEffects{}
	for _, at := range []time.Duration{s.sessionAt, s.tickAt, s.roundAt} {
		if at != 0 && (effects.Wake == 0 || at < effects.Wake) {
			effects.Wake = at
		}
	}
	return effects
}

// step takes one event of the session and gathers what it asks for.
func (s *Stepper) step(event sessionEvent) {
	effects := s.session.step(event, s.now)
	s.effects.Send = append(s.effects.Send, effects.send...)
	if effects.persist != 0 {
		s.effects.Persist = effects.persist
	}
	if effects.resent != "" {
		s.effects.Resends++
	}
	for _, a := range effects.applied {
		s.settle(a.proposal, a.result, nil)
	}
	for _, f := range effects.finished {
		s.settle(f.proposal, statemachine.Result{}, f.err)
	}
	s.effects.Fatal = errors.Join(s.effects.Fatal, effects.fatal)
	s.sessionAt = effects.wake
}

func (s *Stepper) settle(p *proposal, result statemachine.Result, err error) {
	c := s.calls[p]
	delete(s.calls, p)
	c.Done, c.Result, c.Err = true, result, err
	s.effects.Calls = append(s.effects.Calls, c)
}

// Propose hands a command to the log; see Mirror.Propose. What it comes to is among the Calls of a later Take, or at once.
func (s *Stepper) Propose(now time.Duration, command *commandv1.Command, o ProposeOptions) *Call {
	s.now = now
	p := &proposal{}
	c := &Call{proposal: p}
	if err := s.config.prepare(p, command, o); err != nil {
		c.Done, c.Err = true, err
		return c
	}
	s.calls[p] = c
	s.step(sessionEvent{kind: eventPropose, proposal: p})
	return c
}

// Leave says that nobody waits for a call any more, which gets its end by that.
func (s *Stepper) Leave(now time.Duration, c *Call) {
	if s.now = now; !c.Done {
		s.step(sessionEvent{kind: eventLeave, proposal: c.proposal})
	}
}

// Persisted says that an incarnation is durable.
func (s *Stepper) Persisted(now time.Duration, incarnation uint64) {
	s.now, s.durable = now, incarnation
	s.step(sessionEvent{kind: eventPersisted, number: incarnation})
}

// AppendUp, AppendDown and AppendRejected tell of the stream for proposals, as logclient.AppendHandler is told.
func (s *Stepper) AppendUp(now time.Duration) {
	s.now = now
	s.step(sessionEvent{kind: eventUp})
}

// AppendDown says that the stream is lost.
func (s *Stepper) AppendDown(now time.Duration) {
	s.now = now
	s.step(sessionEvent{kind: eventDown})
}

// AppendRejected hands on what the member rejected.
func (s *Stepper) AppendRejected(now time.Duration, rejections []*logv1.AppendRejection) {
	s.now = now
	s.step(sessionEvent{kind: eventRejected, rejections: rejections})
}

// Apply takes the next entries of the tail and how far the member that sent them has published.
func (s *Stepper) Apply(now time.Duration, entries []logclient.Entry, published uint64) error {
	s.now = now
	for i := range entries {
		if err := s.apply.apply(&entries[i]); err != nil {
			return err
		}
	}
	s.answerReads()
	s.apply.catchUp(published, s.durable)
	if s.apply.caughtUp && len(entries) > 0 {
		due, waiting := s.apply.machine.NextDue()
		s.ticks.applied(s.apply.logTime, due, waiting, now)
		s.tick()
	}
	return nil
}

func (s *Stepper) tick() {
	propose, wake := s.ticks.next(s.now)
	if s.tickAt = wake; propose {
		s.effects.Send = append(s.effects.Send, &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_TICK})
	}
}

// Timer says what time it is.
func (s *Stepper) Timer(now time.Duration) {
	s.now = now
	s.step(sessionEvent{kind: eventTimer})
	s.tick()
	s.startRounds()
}

// requested looks whether this frontend's session is asked for a checkpoint.
func (s *Stepper) requested(entry *logclient.Entry, applied *statemachine.Applied) {
	request := &logv1.CheckpointRequest{}
	if proto.Unmarshal(entry.Envelope.GetPayload(), request) != nil || applied.Skipped != statemachine.SkipNone {
		return
	}
	if session := s.session.session; session != 0 && slices.Contains(request.GetBuilderSessions(), session) {
		s.effects.Checkpoint = request
	}
}

// Linearize begins a linearizable read; see Mirror.Linearize. It is among the Reads of a later Take.
func (s *Stepper) Linearize(now time.Duration) *Read {
	s.now = now
	read, crowd := &Read{}, s.rounds.join()
	s.reads[crowd] = append(s.reads[crowd], read)
	s.startRounds()
	return read
}

func (s *Stepper) startRounds() {
	for {
		readers, ok, wake := s.rounds.start(s.now)
		if s.roundAt = wake; !ok {
			return
		}
		s.lastRound++
		s.underWay[s.lastRound] = readers
		s.effects.Rounds = append(s.effects.Rounds, s.lastRound)
	}
}

// RoundAnswered takes the answer to a read round, or why there is none.
func (s *Stepper) RoundAnswered(now time.Duration, round, index uint64, err error) {
	readers, ok := s.underWay[round]
	if s.now = now; !ok {
		return
	}
	delete(s.underWay, round)
	s.rounds.ended()
	reads := s.reads[readers]
	delete(s.reads, readers)
	for _, read := range reads {
		if read.Index, read.Err = index, err; err != nil {
			read.Done = true
			s.effects.Reads = append(s.effects.Reads, read)
			continue
		}
		s.waiting = append(s.waiting, read)
	}
	if err == nil && !s.ready {
		s.waiting = append(s.waiting, &Read{Index: index}) // the one that the mirror is ready by
	}
	s.answerReads()
	s.startRounds()
}

// answerReads ends the reads whose index has been applied. The first one makes the mirror ready.
func (s *Stepper) answerReads() {
	applied := s.apply.machine.Index()
	s.waiting = slices.DeleteFunc(s.waiting, func(read *Read) bool {
		if read.Index > applied {
			return false
		}
		read.Done, s.ready = true, true
		s.effects.Reads = append(s.effects.Reads, read)
		return true
	})
}

// Ready tells whether a read round has been applied in this life: before, nothing may be served.
func (s *Stepper) Ready() bool { return s.ready }

// SessionHolder is that of Mirror.
func (s *Stepper) SessionHolder() (session uint64, until time.Duration, ok bool) {
	return s.session.holder()
}

// Incarnation returns the last one that is durable or being made so, and its session, zero for none.
func (s *Stepper) Incarnation() (incarnation, session uint64) {
	return s.session.incarnation, s.session.session
}
