package mirror

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

var (
	simulationSeeds = flag.Int("simulation.seeds", 300, "how many seeds TestSessionSimulation tries")
	simulationSeed  = flag.Uint64("simulation.seed", 0, "the first seed that TestSessionSimulation tries")
)

// simulation runs the session core of one frontend, through its restarts, against a model of the log and the real
// state machine: streams break and lose a part of what they carry, proposals are delivered twice and late, leaders
// change and forget, members reject, callers leave, the process freezes, crashes and comes back.
type simulation struct {
	t      *testing.T
	random *rand.Rand
	now    time.Duration
	faults bool

	// The log: entries, and the state after all of them.
	entries []logclient.Entry
	truth   *statemachine.Machine
	term    uint64
	leader  bool
	logTime int64
	stamped time.Duration
	// wire is the stream to the member, in order; held is what members have taken and may deliver at any time, or never.
	wire []*logv1.Proposal
	held []*logv1.Proposal
	// pending is what the leader has appended and not committed.
	pending []*logv1.Proposal

	// The frontend.
	core        *sessionCore
	machine     *statemachine.Machine
	translator  translator
	applied     int
	durable     uint64
	persisting  uint64
	generation  int
	wake        time.Duration
	maxInFlight int

	commands []*simulatedCommand
}

// simulatedCommand is a put of a key of its own.
type simulatedCommand struct {
	key        string
	proposal   *proposal
	generation int
	oversized  bool
	left       bool
	// outcome is set once the caller was told; result where it is the one of apply.
	told   bool
	err    error
	result statemachine.Result
}

const simulatedFrontend = 7

func newSimulation(t *testing.T, seed uint64) *simulation {
	s := &simulation{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), now: time.Hour, faults: true,
		truth: statemachine.New(statemachine.Options{}), term: 1, leader: true, logTime: 1,
	}
	s.stamped = s.now
	genesis, err := proto.Marshal(&logv1.Genesis{ClusterId: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.commit(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_GENESIS, Payload: genesis})
	s.boot()
	return s
}

// boot starts the frontend with what is durable, and an empty state.
func (s *simulation) boot() {
	s.generation++
	s.core = newSessionCore(sessionConfig{
		open: func(incarnation uint64) []byte {
			if incarnation != s.durable {
				s.t.Errorf("an Open of incarnation %d is handed over while %d is durable", incarnation, s.durable)
			}
			payload, err := proto.Marshal(&logv1.OpenSession{FrontendId: simulatedFrontend, Incarnation: incarnation})
			if err != nil {
				s.t.Fatal(err)
			}
			return payload
		},
		batchBytesMax: 200, inFlightMax: 4, inFlightBytes: 400, hold: 3 * time.Millisecond,
		queueMax: 50, queueBytesMax: 10_000, failFastAfter: time.Second, unknownAfter: 10 * time.Second,
		stallAfter: 3 * time.Second, resendAfterMin: time.Second, resendAfterMax: 10 * time.Second,
		retryAfterMax: time.Second, openRetry: 2 * time.Second,
	}, s.now)
	s.machine = statemachine.New(statemachine.Options{})
	s.translator = translator{frontendID: simulatedFrontend}
	s.applied, s.persisting, s.wake = 0, 0, 0
}

// step gives the core an event and carries out what it asks for.
func (s *simulation) step(event sessionEvent) {
	effects := s.core.step(event, s.now)
	if effects.fatal != nil {
		s.t.Fatalf("fatal: %v", effects.fatal)
	}
	if s.core.up {
		s.wire = append(s.wire, effects.send...)
	} else if len(effects.send) > 0 {
		s.t.Fatalf("%d proposals are handed over without a stream", len(effects.send))
	}
	if effects.persist != 0 {
		s.persisting = effects.persist
	}
	s.wake = effects.wake
	s.maxInFlight = max(s.maxInFlight, len(s.core.inFlight))
	for _, f := range effects.finished {
		s.tell(f.proposal, statemachine.Result{}, f.err)
	}
	for _, a := range effects.applied {
		s.tell(a.proposal, a.result, nil)
	}
}

func (s *simulation) tell(p *proposal, result statemachine.Result, err error) {
	for _, c := range s.commands {
		if c.proposal == p {
			if c.told {
				s.t.Fatalf("%s is told twice: %v, then %v", c.key, c.err, err)
			}
			c.told, c.result, c.err = true, result, err
			return
		}
	}
}

// commit puts a proposal into the log, stamped by the leader's clock.
func (s *simulation) commit(p *logv1.Proposal) {
	advance := min(s.now-s.stamped, logTimeAdvanceMax)
	s.logTime += int64(advance)
	s.stamped = s.now
	s.append(p.GetKind(), &logv1.Envelope{
		Kind: p.GetKind(), LogTimeNanoseconds: uint64(s.logTime), Session: p.GetSession(), Seq: p.GetSeq(), Payload: p.GetPayload(),
	})
}

func (s *simulation) append(kind logv1.EntryKind, envelope *logv1.Envelope) {
	entry := logclient.Entry{Index: uint64(len(s.entries) + 1), Term: s.term, Kind: kind, Envelope: envelope}
	s.entries = append(s.entries, entry)
	applied, err := s.truth.Apply(entry.Index, entry.Term, entry.Kind, entry.Envelope, false)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.core == nil {
		return
	}
	for _, ended := range applied.SessionsEnded {
		session, until, ok := s.core.holder()
		if ended.Reason == statemachine.EndExpired && ok && session == ended.ID && until > s.now {
			s.t.Errorf("session %d ends %v before its frontend stops holding it", ended.ID, until-s.now)
		}
	}
}

// deliver gives the mirror the next entry of the tail.
func (s *simulation) deliver() {
	if s.applied == len(s.entries) {
		return
	}
	entry := &s.entries[s.applied]
	s.applied++
	own := s.translator.owns(entry)
	applied, err := s.machine.Apply(entry.Index, entry.Term, entry.Kind, entry.Envelope, own)
	if err != nil {
		s.t.Fatal(err)
	}
	s.translator.events(entry, applied, s.step)
	if s.applied == len(s.entries) {
		s.step(sessionEvent{kind: eventCaughtUp, number: s.durable})
	}
}

func (s *simulation) propose() {
	c := &simulatedCommand{key: fmt.Sprintf("%05d", len(s.commands)), generation: s.generation}
	value := "v"
	if s.random.IntN(60) == 0 {
		c.oversized = true
		value = "oversized" + string(make([]byte, 300))
	}
	command := put(c.key, value)
	encoded, err := encodeInBatch(nil, proto.Size(command), command)
	if err != nil {
		s.t.Fatal(err)
	}
	c.proposal = &proposal{encoded: encoded, waitForLog: s.random.IntN(3) > 0}
	s.commands = append(s.commands, c)
	s.step(sessionEvent{kind: eventPropose, proposal: c.proposal})
}

// reach lets a proposal reach the member: it is rejected, or comes to the leader.
func (s *simulation) reach(p *logv1.Proposal, stream bool) {
	reason := logv1.AppendRejection_REASON_UNSPECIFIED
	switch {
	case len(p.GetPayload()) > 250:
		reason = logv1.AppendRejection_REASON_TOO_LARGE
	case !s.leader:
		reason = logv1.AppendRejection_REASON_NO_LEADER
	case s.faults && s.random.IntN(50) == 0:
		reason = logv1.AppendRejection_REASON_OVERLOADED
	}
	if reason == logv1.AppendRejection_REASON_UNSPECIFIED {
		s.pending = append(s.pending, p)
		return
	}
	if stream && s.core.up {
		s.step(sessionEvent{kind: eventRejected, rejections: []*logv1.AppendRejection{{
			Kind: p.GetKind(), Session: p.GetSession(), Seq: p.GetSeq(), Reason: reason, RetryAfterMilliseconds: 100,
		}}})
	}
}

// breakStream loses the stream: of what it carried a first part arrives later, the rest is lost or held.
func (s *simulation) breakStream() {
	for _, p := range s.wire {
		if s.random.IntN(2) == 0 {
			s.held = append(s.held, p)
		}
	}
	s.wire = nil
	if s.core.up {
		s.step(sessionEvent{kind: eventDown})
	}
}

// changeLeader begins a term: of what the old leader had appended a first part survives.
func (s *simulation) changeLeader() {
	survives := s.random.IntN(len(s.pending) + 1)
	for _, p := range s.pending[:survives] {
		s.commit(p)
	}
	// What it had not appended in time may still be forwarded to the new one.
	for _, p := range s.pending[survives:] {
		if s.random.IntN(3) == 0 {
			s.held = append(s.held, p)
		}
	}
	s.pending = nil
	s.leader = false
}

func (s *simulation) elect() {
	if s.leader {
		return
	}
	s.leader = true
	s.term++
	s.append(logv1.EntryKind_ENTRY_KIND_UNSPECIFIED, nil)
}

// act does one thing at random.
func (s *simulation) act() {
	switch pick := s.random.IntN(100); {
	case pick < 18:
		s.propose()
	case pick < 36:
		if len(s.wire) > 0 {
			p := s.wire[0]
			s.wire = s.wire[1:]
			if s.random.IntN(40) == 0 {
				s.held = append(s.held, p)
			}
			if s.random.IntN(60) != 0 {
				s.reach(p, true)
			}
		}
	case pick < 54:
		if s.leader && len(s.pending) > 0 {
			s.commit(s.pending[0])
			s.pending = s.pending[1:]
		}
	case pick < 76:
		s.deliver()
	case pick < 80:
		if s.persisting != 0 {
			s.durable, s.persisting = s.persisting, 0
			s.step(sessionEvent{kind: eventPersisted, number: s.durable})
		}
	case pick < 84:
		if !s.core.up {
			s.wire = nil
			s.core.up = false
			s.up()
		}
	case pick < 90:
		s.now += time.Duration(s.random.Int64N(int64(100 * time.Millisecond)))
		if s.wake != 0 && s.now >= s.wake {
			s.step(sessionEvent{kind: eventTimer})
		}
	default:
		s.fault()
	}
}

func (s *simulation) up() {
	// Proposals of the step that brings the stream up travel on it.
	s.core.up = true
	s.step(sessionEvent{kind: eventUp})
}

func (s *simulation) fault() {
	switch s.random.IntN(24) {
	case 0, 1:
		s.breakStream()
	case 2, 3:
		s.changeLeader()
	case 4, 5, 6, 7:
		s.elect()
	case 8, 9, 10, 11:
		if len(s.held) > 0 {
			i := s.random.IntN(len(s.held))
			p := s.held[i]
			s.held = append(s.held[:i], s.held[i+1:]...)
			s.reach(p, false)
		}
	case 12, 13:
		if len(s.commands) > 0 {
			c := s.commands[s.random.IntN(len(s.commands))]
			if c.generation == s.generation && !c.told {
				c.left = true
				s.step(sessionEvent{kind: eventLeave, proposal: c.proposal})
			}
		}
	case 14:
		// The process is frozen, or nothing happens.
		s.now += time.Duration(s.random.Int64N(int64(15 * time.Second)))
	case 15, 16:
		if s.leader {
			s.commit(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_TICK})
		}
	case 17:
		if s.random.IntN(4) == 0 {
			s.breakStream()
			s.boot()
		}
	}
}

// heal ends the faults and lets everything come to rest.
func (s *simulation) heal() {
	s.faults = false
	s.elect()
	for range 20_000 {
		if !s.core.up {
			s.wire = nil
			s.up()
		}
		if s.persisting != 0 {
			s.durable, s.persisting = s.persisting, 0
			s.step(sessionEvent{kind: eventPersisted, number: s.durable})
		}
		for len(s.wire) > 0 {
			p := s.wire[0]
			s.wire = s.wire[1:]
			s.reach(p, true)
		}
		for _, p := range s.pending {
			s.commit(p)
		}
		s.pending = nil
		for s.applied < len(s.entries) {
			s.deliver()
		}
		if s.settled() {
			return
		}
		s.now += 20 * time.Millisecond
		s.step(sessionEvent{kind: eventTimer})
	}
	s.t.Fatalf("callers still wait after the faults ended: phase %d, session %d, %d in flight, %d queued, up %v, retry at %v, now %v",
		s.core.phase, s.core.session, len(s.core.inFlight), s.core.queue.count, s.core.up, s.core.retryAt, s.now)
}

func (s *simulation) settled() bool {
	for _, c := range s.commands {
		if c.generation == s.generation && !c.told {
			return false
		}
	}
	return s.core.phase == phaseOpen && len(s.core.inFlight) == 0
}

// check compares what callers were told with the log.
func (s *simulation) check() {
	// What members still hold may come at any later time.
	for _, p := range s.held {
		s.reach(p, false)
	}
	for _, p := range s.pending {
		s.commit(p)
	}
	snapshot := s.truth.Space().Acquire()
	defer snapshot.Release()
	last := map[int]int64{}
	for _, c := range s.commands {
		version, found, err := snapshot.Get([]byte(c.key), 0)
		if err != nil {
			s.t.Fatal(err)
		}
		if found && version.Version != 1 {
			s.t.Errorf("%s was applied %d times", c.key, version.Version)
		}
		if found && c.oversized {
			s.t.Errorf("%s is too large and was applied", c.key)
		}
		if found {
			if version.ModRevision <= last[c.generation] {
				s.t.Errorf("%s was applied at revision %d, after a later one at %d", c.key, version.ModRevision, last[c.generation])
			}
			last[c.generation] = version.ModRevision
		}
		switch {
		case !c.told:
			if c.generation == s.generation {
				s.t.Errorf("%s was never told its outcome", c.key)
			}
		case c.err == nil:
			if !found || version.ModRevision != c.result.Revision {
				s.t.Errorf("%s was told revision %d; found %v at %d", c.key, c.result.Revision, found, version.ModRevision)
			}
		case errors.Is(c.err, ErrUnknown) && errors.Is(c.err, ErrNotApplied):
			s.t.Errorf("%s was told both: %v", c.key, c.err)
		case errors.Is(c.err, ErrUnknown):
			if c.proposal.waitForLog && !c.left {
				s.t.Errorf("%s waits as long as it takes and was told %q", c.key, c.err)
			}
		case errors.Is(c.err, ErrNotApplied) || errors.Is(c.err, ErrTooLarge):
			if found {
				s.t.Errorf("%s was told %q and applied at revision %d", c.key, c.err, version.ModRevision)
			}
		default:
			s.t.Errorf("%s was told neither applied, not applied nor unknown: %v", c.key, c.err)
		}
	}
	if s.maxInFlight > 4 {
		s.t.Errorf("%d batches were in flight, at most 4", s.maxInFlight)
	}
}

// Whatever happens between a frontend and its log, each command is applied at most once, in order, and its caller is told
// the truth about it. -simulation.seed=N -simulation.seeds=1 repeats one run.
func TestSessionSimulation(t *testing.T) {
	outcomes := map[string]int{}
	for i := range *simulationSeeds {
		seed := *simulationSeed + uint64(i)
		s := newSimulation(t, seed)
		for range 3000 {
			s.act()
		}
		s.heal()
		s.check()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		for _, c := range s.commands {
			switch {
			case !c.told:
				outcomes["crashed"]++
			case c.err == nil:
				outcomes["applied"]++
			case errors.Is(c.err, ErrUnknown):
				outcomes["unknown"]++
			default:
				outcomes["not applied"]++
			}
		}
		outcomes["incarnations"] += int(s.durable)
		outcomes["terms"] += int(s.term)
	}
	t.Log(outcomes)
	for _, outcome := range []string{"crashed", "applied", "unknown", "not applied"} {
		if outcomes[outcome] == 0 && *simulationSeeds >= 100 {
			t.Errorf("the simulation never reached the outcome %q", outcome)
		}
	}
}
