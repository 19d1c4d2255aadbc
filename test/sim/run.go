package sim

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/test/check"
)

// Result is what one seed came to.
type Result struct {
	Seed    uint64
	Profile string
	// Failure is what must not be, empty for nothing; Story the last things that happened before it.
	Failure, Story string
	Counts         Counts
	// Virtual is how long the run was by its own time, Trace the sum of all that happened.
	Virtual time.Duration
	Trace   uint64
	// Operations, Events and Entries count what was checked; Undecided is 1 where porcupine found no answer in time.
	Operations, Events, Entries, Undecided int
}

const (
	warmUp        = 4 * time.Second
	troubledTime  = 35 * time.Second
	livenessBound = 35 * time.Second
	// leaseEnds is longer than the longest TTL and twice the session time after the last renewal.
	leaseEnds        = 45 * time.Second
	porcupineTimeout = 20 * time.Second
)

// Run runs a seed from its beginning to its checks.
func Run(seed uint64) Result {
	p := profileOf(seed)
	s := &Simulation{seed: seed, random: rand.New(rand.NewPCG(seed, 0x73696d)), profile: &p, trace: xxhash.New(),
		links: map[[2]int]*link{}, counts: Counts{}}
	s.truth, s.admin.s = newTruth(s), s
	s.guarded(s.all)
	r := Result{Seed: seed, Profile: p.name, Counts: s.counts, Virtual: s.now, Trace: s.trace.Sum64(), Entries: int(s.truth.last),
		Events: len(s.truth.changes), Operations: len(s.load.operations)}
	if s.failure == "" {
		r.Undecided = s.check()
	}
	if r.Failure = s.failure; r.Failure != "" {
		r.Story = strings.Join(s.story.lines, "\n")
	}
	return r
}

// all is the run: warm up, trouble, heal, work again, come to rest.
func (s *Simulation) all() {
	s.begin()
	s.startClients()
	s.every(50*time.Millisecond, 150*time.Millisecond, s.admin.act)
	s.after(2*time.Second, s.admin.useUpNodes)
	s.run(warmUp)
	s.trouble()
	s.run(troubledTime)
	if s.failure != "" {
		return
	}
	s.heal()
	s.until(livenessBound, "that everybody works again", func() bool {
		return s.admin.idle() && !slices.ContainsFunc(s.frontends, func(f *frontend) bool { return f.firstRead == 0 || f.firstWrite == 0 })
	})
	s.stopped = true
	s.run(leaseEnds)
	s.until(livenessBound, "that everybody has the whole log", s.atRest)
	if s.failure == "" {
		s.atEnd()
	}
}

// begin makes the members and the frontends.
func (s *Simulation) begin() {
	s.clusterID = s.random.Uint64() | 1
	s.voters = 3
	if s.one(3) {
		s.voters = 5
	}
	var initial []logservice.InitialMember
	for i := range s.voters {
		name := fmt.Sprintf("m%d", i)
		initial = append(initial, logservice.InitialMember{Name: name, Address: name + ":1"})
	}
	record, id, err := logservice.FirstRecord(initial)
	if err != nil {
		s.fail("first record: %v", err)
		return
	}
	regions := 3 + s.random.IntN(3)
	for i := range s.voters {
		s.newMember(id(initial[i].Name), initial[i].Name, i%regions, logservice.Group{Membership: record})
	}
	for i := range regions {
		s.newFrontend(i)
	}
}

// heal makes everything well.
func (s *Simulation) heal() {
	s.tell("all is healed")
	s.quiet, s.healed = true, s.now
	s.healLinks()
	for _, m := range s.members {
		m.slowUntil, m.shortUntil = 0, 0
		m.disk.SetCapacity(0)
		m.disk.SetHook(nil)
		m.disk.SetShortReads(false)
		m.resume()
		m.start()
	}
	for _, f := range s.frontends {
		f.resume()
		f.start()
	}
}

// until lets time pass until something is so.
func (s *Simulation) until(bound time.Duration, what string, so func() bool) {
	for end := s.now + bound; s.failure == "" && !so(); {
		if s.run(50 * time.Millisecond); s.now >= end {
			s.fail("%v after all was healed: %s has not come about%s", s.now-s.healed, what, s.state())
		}
	}
}

// state describes who is where, for a story.
func (s *Simulation) state() string {
	var b strings.Builder
	fmt.Fprintf(&b, " (the log ends at %d)", s.truth.last)
	for _, m := range s.members {
		if m.up {
			state := m.core.State()
			fmt.Fprintf(&b, "\n  %s: term %d, leader %x, first %d, published %d, last %d", m.name, state.Term, state.Leader, state.First, state.Published, state.Last)
		} else {
			fmt.Fprintf(&b, "\n  %s: down, retired %v", m.name, m.retired)
		}
	}
	for _, f := range s.frontends {
		if f.up {
			incarnation, session := f.mirror.Incarnation()
			fmt.Fprintf(&b, "\n  %s: at %q, applied %d, ready %v, incarnation %d, session %d, read %v, wrote %v", f.name, f.current, f.machine.Index(),
				f.mirror.Ready(), incarnation, session, f.firstRead, f.firstWrite)
		} else {
			fmt.Fprintf(&b, "\n  %s: down", f.name)
		}
	}
	fmt.Fprintf(&b, "\n  operator: %d to be replaced, %q fenced", len(s.admin.doomed), s.admin.fenced)
	return b.String()
}

// atRest tells whether all members and frontends have the whole log, and all watchers its events.
func (s *Simulation) atRest() bool {
	for _, m := range s.members {
		if m.up && m.published != s.truth.last {
			return false
		}
	}
	for _, f := range s.frontends {
		if f.machine.Index() != s.truth.last {
			return false
		}
	}
	return !slices.ContainsFunc(s.load.watchers, func(w *watcher) bool { return w.resume <= s.revision() })
}

func (s *Simulation) revision() int64 {
	if n := len(s.truth.changes); n > 0 {
		return s.truth.changes[n-1].Revision
	}
	return 0
}

// atEnd compares all logs and all states.
func (s *Simulation) atEnd() {
	for _, m := range s.members {
		if !m.up {
			continue
		}
		for next := m.log.FirstIndex(); next <= s.truth.last; {
			entries, err := m.log.Entries(next, s.truth.last+1, 1<<20)
			if err != nil {
				if !m.rotten {
					s.fail("%s: entry %d: %v", m.name, next, err)
				}
				break
			}
			for _, e := range entries {
				next = e.Index + 1
				if err := s.truth.logs.Claim(m.name, e.Index, fmt.Sprintf("%d %d %x", e.Term, e.Type, e.Data)); err != nil {
					s.fail("logs differ: %v", err)
				}
			}
		}
	}
	for _, f := range s.frontends {
		if err := s.truth.digest(f.name, f.machine); err != nil {
			s.fail("%s: %v", f.name, err)
		}
		scrubber := f.machine.NewScrubber()
		for done := false; !done; {
			var err error
			if done, err = scrubber.Step(1 << 20); err != nil {
				s.fail("%s: %v", f.name, err)
				break
			}
		}
		scrubber.Close()
	}
}

// check gives the histories to the models. It returns how many porcupine did not decide.
func (s *Simulation) check() (undecided int) {
	log, err := check.NewLog(s.truth.changes)
	if err != nil {
		s.fail("%v", err)
		return 0
	}
	judge := func(what string, err error) {
		if err != nil {
			s.fail("%s: %v", what, err)
		}
	}
	accounted := func(key string) bool {
		return strings.HasPrefix(key, "k") || strings.HasPrefix(key, "n") || key[0] == 'p' || key[0] == 'q' || key[0] == 'x'
	}
	judge("operations against the log", log.Operations(s.load.operations, accounted))
	judge("serializable reads", log.Reads(s.load.reads))
	judge("sessions", check.Sessions(s.load.steps))
	judge("request ids", check.Retries(s.load.retries))
	judge("locks", log.Locks(s.load.guarded))
	judge("ids", check.Unique(s.load.ids))
	var watches []check.Watch
	for _, w := range s.load.watchers {
		w.w.Through = log.Revision()
		watches = append(watches, w.w)
	}
	judge("watches", log.Watches(watches))
	var leases []check.Lease
	for _, id := range s.truth.leaseOrder {
		l := s.truth.leases[id].Lease
		l.EndsBy = s.now
		leases = append(leases, l)
	}
	if !s.profile.jumps {
		judge("leases", check.Leases(leases, 0.01))
	}
	var progress []check.Progress
	for _, f := range s.frontends {
		progress = append(progress, check.Progress{Who: f.name + " reads", Done: f.firstRead != 0, At: f.firstRead},
			check.Progress{Who: f.name + " writes", Done: f.firstWrite != 0, At: f.firstWrite})
	}
	judge("liveness", check.Liveness(s.healed, livenessBound, progress))
	if err := check.Linearizable(s.load.operations, porcupineTimeout); errors.Is(err, check.ErrInconclusive) {
		undecided++
	} else {
		judge("linearizability", err)
	}
	return undecided
}

// Summary lists counts by name.
func (c Counts) String() string {
	var b strings.Builder
	for i, kind := range slices.Sorted(maps.Keys(c)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", kind, c[kind])
	}
	return b.String()
}
