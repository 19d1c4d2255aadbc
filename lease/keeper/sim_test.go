package keeper

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine"
)

const (
	simStep        = 10 * time.Millisecond
	simSessionTime = 10 * time.Second
	simDelay       = 50 * time.Millisecond // one way, between a frontend and the log
)

// world is a log, its clock, and frontends that stand around a real state machine each, in virtual time and on
// one goroutine. Messages of one link keep their order; a cut link holds them back.
type world struct {
	now       time.Duration
	logRate   float64
	stamp     int64
	entries   []*simEntry
	reference *statemachine.Machine
	frontends []*simFrontend

	// confirmed is when each lease was last confirmed, granted counting as that.
	confirmed map[int64]time.Duration
	ttl       map[int64]time.Duration
	ended     map[int64]time.Duration
	trace     strings.Builder
	fail      func(format string, arguments ...any)
}

// simEntry is one entry of the log and when it was appended.
type simEntry struct {
	at       time.Duration
	envelope *logv1.Envelope
}

// simFrontend is a mirror and a keeper's core.
type simFrontend struct {
	world *world
	name  string
	id    uint64
	// rate is how fast its clock runs, offset where it started.
	rate        float64
	offset      time.Duration
	incarnation uint64

	machine *statemachine.Machine
	core    *core
	applied int
	// seen is when the next entry arrived at the frontend; a cut holds it back.
	session  uint64
	holdFrom time.Duration
	held     bool
	seq      uint64
	sent     []*simBatch // in flight, by seq
	nextBeat time.Duration
	opening  bool

	cutOut, cutIn, frozen, dead bool
	// wants are renewals that wait for a decision.
	wants []simWant
}

type simWant struct {
	id   int64
	wait *decision
}

type simBatch struct {
	open      bool
	seq       uint64
	session   uint64
	firstSent time.Duration // on the frontend's clock
	arrives   time.Duration
	commands  []*commandv1.Command
	delivered bool
}

func newWorld(fail func(string, ...any)) *world {
	w := &world{
		logRate: 1, reference: statemachine.New(statemachine.Options{}), fail: fail,
		confirmed: make(map[int64]time.Duration), ttl: make(map[int64]time.Duration), ended: make(map[int64]time.Duration),
	}
	w.append(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, &logv1.Genesis{ClusterId: 7})
	return w
}

func (w *world) tracef(format string, arguments ...any) {
	fmt.Fprintf(&w.trace, "%8.2fs ", w.now.Seconds())
	fmt.Fprintf(&w.trace, format+"\n", arguments...)
}

func (w *world) append(kind logv1.EntryKind, session, seq uint64, payload proto.Message) {
	var b []byte
	if payload != nil {
		var err error
		if b, err = proto.Marshal(payload); err != nil {
			w.fail("marshal: %v", err)
		}
	}
	// As the log does: between two entries log time advances by at most half the session time.
	stamp := int64(float64(w.now) * w.logRate)
	if n := len(w.entries); n > 0 {
		elapsed := time.Duration(float64(w.now-w.entries[n-1].at) * w.logRate)
		stamp = w.stamp + int64(min(elapsed, simSessionTime/2))
	}
	w.stamp = stamp
	e := &simEntry{at: w.now, envelope: &logv1.Envelope{
		Kind: kind, LogTimeNanoseconds: uint64(stamp), Session: session, Seq: seq, Payload: b,
	}}
	w.entries = append(w.entries, e)
	a, err := w.reference.Apply(uint64(len(w.entries)), 1, kind, e.envelope, false)
	if err != nil {
		w.fail("apply: %v", err)
	}
	for _, c := range a.LeaseChanges {
		w.tracef("log: lease %d %s, owner %d", c.ID, c.Kind, c.Owner)
		switch c.Kind {
		case lease.Granted:
			w.confirmed[c.ID], w.ttl[c.ID] = w.now, c.TTL
			delete(w.ended, c.ID)
		case lease.Expired:
			w.ended[c.ID] = w.now
			// 1 % of drift, and the granularity of the simulation.
			if lived := w.now - w.confirmed[c.ID]; lived < time.Duration(float64(c.TTL)/1.01)-2*simStep {
				w.fail("lease %d with TTL %v ended %v after its last confirmed renewal\n%s", c.ID, c.TTL, lived, w.trace.String())
			}
		}
	}
	for _, s := range a.SessionsEnded {
		w.tracef("log: session %d of %s ended: %s", s.ID, s.Name, s.Reason)
	}
}

func (w *world) frontend(name string, rate float64, offset time.Duration) *simFrontend {
	f := &simFrontend{world: w, name: name, id: uint64(len(w.frontends) + 1), rate: rate, offset: offset}
	w.frontends = append(w.frontends, f)
	f.start()
	return f
}

// start begins the frontend's next incarnation.
func (f *simFrontend) start() {
	f.incarnation++
	f.machine, f.applied = statemachine.New(statemachine.Options{}), 0
	f.core = newCore(limits{
		expirations: 2, adoptions: 2, waitingAdoptions: 100, retryMinimum: 250 * time.Millisecond, retryMaximum: time.Second,
	})
	f.session, f.held, f.seq, f.sent, f.wants, f.dead = 0, false, 0, nil, nil, false
	f.open()
}

func (f *simFrontend) open() {
	f.opening = true
	f.sent = []*simBatch{{open: true, firstSent: f.clock(), arrives: f.world.now + simDelay}}
}

func (f *simFrontend) clock() time.Duration {
	return f.offset + time.Duration(float64(f.world.now)*f.rate)
}

func (f *simFrontend) moment() moment {
	return moment{now: f.clock(), session: f.session, until: f.holdFrom + simSessionTime*9/10, held: f.held}
}

func (f *simFrontend) step(e event) effects {
	done := f.core.step(e, f.moment())
	for _, id := range done.adopt {
		f.propose(&commandv1.Command{Operation: &commandv1.Command_LeaseAdopt{LeaseAdopt: &commandv1.LeaseAdopt{Id: id}}})
	}
	for _, x := range done.expire {
		f.propose(&commandv1.Command{Operation: &commandv1.Command_LeaseExpire{
			LeaseExpire: &commandv1.LeaseExpire{Id: x.id, OwnerIndex: x.ownerIndex},
		}})
	}
	return done
}

// propose hands a batch to the log.
func (f *simFrontend) propose(commands ...*commandv1.Command) {
	if f.session == 0 {
		// The mirror has no session to propose under: nothing becomes known of the proposal.
		f.decide(commands, nil)
		return
	}
	f.seq++
	f.sent = append(f.sent, &simBatch{
		session: f.session, seq: f.seq, firstSent: f.clock(), arrives: f.world.now + simDelay, commands: commands,
	})
	f.nextBeat = f.clock() + simSessionTime/3
}

func (f *simFrontend) grant(id, ttlSeconds int64) {
	f.propose(&commandv1.Command{Operation: &commandv1.Command_LeaseGrant{
		LeaseGrant: &commandv1.LeaseGrant{Id: id, TtlSeconds: ttlSeconds},
	}})
}

// renew is a client's renewal. It returns what the client hears at once.
func (f *simFrontend) renew(id int64) string {
	if f.dead || f.frozen {
		return "silence"
	}
	return f.heard(id, f.step(event{kind: eventRenew, id: id}))
}

func (f *simFrontend) heard(id int64, done effects) string {
	switch done.verdict {
	case verdictConfirmed:
		f.world.confirmed[id] = f.world.now
		if at, ok := f.world.ended[id]; ok {
			f.world.fail("lease %d confirmed %v after its end\n%s", id, f.world.now-at, f.world.trace.String())
		}
		return "confirmed"
	case verdictUnavailable:
		return "unavailable"
	case verdictWait:
		f.wants = append(f.wants, simWant{id, done.wait})
		return "waits"
	case verdictElsewhere:
		if _, ok := f.machine.Lease(id); !ok {
			return "not found here"
		}
		return f.heard(id, f.step(event{kind: eventAdopt, id: id}))
	}
	return "nothing"
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	for end := w.now + d; w.now < end; {
		w.now += simStep
		for _, f := range w.frontends {
			f.deliver()
		}
		// Frontends propose a tick where something is due and no entry comes.
		if w.now-w.entries[len(w.entries)-1].at >= time.Second {
			w.append(logv1.EntryKind_ENTRY_KIND_TICK, 0, 0, nil)
		}
		for _, f := range w.frontends {
			f.live()
		}
	}
}

// deliver brings what the frontend sent to the log.
func (f *simFrontend) deliver() {
	if f.cutOut || f.dead {
		return
	}
	for _, b := range f.sent {
		if b.delivered || b.arrives > f.world.now {
			continue
		}
		b.delivered = true
		if b.open {
			f.world.append(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, 0, &logv1.OpenSession{
				FrontendId: f.id, Incarnation: f.incarnation, FrontendName: f.name, Region: f.name,
				ApplyVersionMin: 1, ApplyVersionMax: 1,
			})
			continue
		}
		f.world.append(logv1.EntryKind_ENTRY_KIND_BATCH, b.session, b.seq, &commandv1.CommandBatch{Commands: b.commands})
	}
}

// live is what the frontend does at one moment: apply what has come, tick, renew its session.
func (f *simFrontend) live() {
	if f.frozen || f.dead {
		return
	}
	for !f.cutIn && f.applied < len(f.world.entries) && f.world.entries[f.applied].at+simDelay <= f.world.now {
		f.apply(f.world.entries[f.applied])
	}
	if at, ok := f.core.next(); ok && at <= f.clock() {
		f.step(event{kind: eventTick})
	}
	if f.session != 0 && f.clock() >= f.nextBeat {
		f.propose()
	}
	wants := f.wants
	f.wants = nil
	for _, want := range wants {
		select {
		case <-want.wait.done:
			said := "unavailable"
			if want.wait.outcome == outcomeApplied {
				said = f.heard(want.id, f.step(event{kind: eventRenew, id: want.id}))
			} else if want.wait.outcome == outcomeNotFound {
				said = "not found"
			}
			f.world.tracef("%s: renewal of %d: %s", f.name, want.id, said)
		default:
			f.wants = append(f.wants, want)
		}
	}
}

// apply applies one entry as a mirror does: the state machine, then the keeper, then whoever proposed.
func (f *simFrontend) apply(e *simEntry) {
	f.applied++
	a, err := f.machine.Apply(uint64(f.applied), 1, e.envelope.Kind, e.envelope, true)
	if err != nil {
		f.world.fail("apply: %v", err)
		return
	}
	for _, s := range a.SessionsOpened {
		if s.FrontendID == f.id && s.Incarnation == f.incarnation {
			f.session, f.seq, f.held = s.ID, 0, false
			f.opening = false
			f.nextBeat = f.clock()
		}
	}
	for i := range a.LeaseChanges {
		f.step(event{kind: eventChanged, change: changeOf(&a.LeaseChanges[i])})
	}
	if a.Session == f.session && a.Kind == logv1.EntryKind_ENTRY_KIND_BATCH && a.Skipped == statemachine.SkipNone {
		f.acknowledge(a)
	}
	for _, s := range a.SessionsEnded {
		if s.ID == f.session {
			lost := f.sent
			f.session, f.held = 0, false
			f.incarnation++
			f.open()
			for _, b := range lost {
				f.decide(b.commands, nil)
			}
		}
	}
}

// acknowledge takes note of an own batch that was applied.
func (f *simFrontend) acknowledge(a *statemachine.Applied) {
	kept := f.sent[:0]
	for _, b := range f.sent {
		if b.seq != a.Seq || b.open {
			if !b.open {
				kept = append(kept, b)
			}
			continue
		}
		f.held, f.holdFrom = true, max(f.holdFrom, b.firstSent)
		f.decide(b.commands, a.Results)
	}
	f.sent = kept
}

// decide tells the core what became of proposals; results nil: it is unknown.
func (f *simFrontend) decide(commands []*commandv1.Command, results []statemachine.Result) {
	for i, c := range commands {
		o := outcomeUnknown
		if results != nil {
			o = outcomeOf(results[i].Err)
		}
		switch x := c.Operation.(type) {
		case *commandv1.Command_LeaseAdopt:
			f.step(event{kind: eventAdoptDecided, id: x.LeaseAdopt.Id, outcome: o})
		case *commandv1.Command_LeaseExpire:
			f.step(event{kind: eventExpireDecided, id: x.LeaseExpire.Id, ownerIndex: x.LeaseExpire.OwnerIndex, outcome: o})
		}
	}
}
