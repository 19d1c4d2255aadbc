package sim

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Simulation is one run of one seed. Its world is in this file: time, chance, processes and the links between them.
type Simulation struct {
	seed    uint64
	random  *rand.Rand
	profile *profile
	now     time.Duration
	queue   eventQueue
	order   uint64
	// trace sums up everything that happened, in order: the same seed gives the same one.
	trace *xxhash.Digest

	processes []*process
	members   []*member
	frontends []*frontend
	links     map[[2]int]*link
	clusterID uint64
	voters    int

	// loss is the chance that a frame between members is lost.
	loss float64
	// quiet is set once all faults are healed; stopped once clients make no new calls.
	quiet, stopped bool
	healed         time.Duration
	admin          admin
	truth          truth
	load           load
	counts         Counts
	story          story
	failure        string
}

// Counts says how often each kind of thing happened.
type Counts map[string]int

func (c Counts) add(kind string) { c[kind]++ }

// event is something that is going to happen.
type event struct {
	at    time.Duration
	order uint64
	do    func()
}

// eventQueue has the earliest first, and those of one instant in the order in which they were made.
type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return last
}

// after does something later, whatever becomes of processes.
func (s *Simulation) after(d time.Duration, do func()) {
	s.order++
	heap.Push(&s.queue, event{s.now + max(d, 0), s.order, do})
}

// every does something again and again until the run ends.
func (s *Simulation) every(least, most time.Duration, do func()) {
	s.after(s.between(least, most), func() {
		do()
		s.every(least, most, do)
	})
}

// run lets time pass.
func (s *Simulation) run(d time.Duration) {
	for end := s.now + d; s.failure == ""; {
		if len(s.queue) == 0 || s.queue[0].at > end {
			s.now = end
			return
		}
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		s.note(uint64(e.at), e.order)
		s.guarded(e.do)
	}
}

// guarded turns a panic into a failure of the run.
func (s *Simulation) guarded(do func()) {
	defer func() {
		if r := recover(); r != nil {
			s.fail("panic: %v\n%s", r, debug.Stack())
		}
	}()
	do()
}

// note adds to the trace.
func (s *Simulation) note(values ...uint64) {
	var b [8]byte
	for _, v := range values {
		binary.LittleEndian.PutUint64(b[:], v)
		_, _ = s.trace.Write(b[:]) // never fails
	}
}

// fail ends the run with the first thing that must not be.
func (s *Simulation) fail(format string, args ...any) {
	if s.failure == "" {
		s.failure = fmt.Sprintf("at %v: %s", s.now, fmt.Sprintf(format, args...))
	}
}

// between draws a duration.
func (s *Simulation) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.random.Int64N(int64(max(most-least, 1))))
}

// one draws true once in n.
func (s *Simulation) one(n int) bool { return s.random.IntN(n) == 0 }

// story remembers the last things that a person wants to know of a run.
type story struct{ lines []string }

const storyLines = 60

func (s *Simulation) tell(format string, args ...any) {
	line := fmt.Sprintf("%9.3fs  %s", s.now.Seconds(), fmt.Sprintf(format, args...))
	_, _ = s.trace.WriteString(line)
	if s.story.lines = append(s.story.lines, line); len(s.story.lines) > storyLines {
		s.story.lines = slices.Delete(s.story.lines, 0, 1)
	}
}

// process is a machine with its clocks, and the program that runs on it, if one does.
type process struct {
	s     *Simulation
	index int
	name  string
	// region is where it is: distances are between regions.
	region int
	up     bool
	// life tells the lives of the program apart: what was meant for an earlier one is lost.
	life     int
	paused   time.Duration
	deferred []func()
	// bootOffset and rate make the clock that never steps; wallJump is what the wall clock stepped by.
	bootOffset, wallJump time.Duration
	rate                 float64
}

func (s *Simulation) newProcess(name string, region int) process {
	return process{s: s, index: len(s.processes), name: name, region: region, rate: 1 + (s.random.Float64()-0.5)*0.01,
		bootOffset: s.between(time.Hour, 100*time.Hour)}
}

// boot is the clock that never steps and goes on while the program is paused. Clocks drift by at most half a per cent, so
// that two differ by at most the one per cent that leases assume.
func (p *process) boot() time.Duration {
	return p.bootOffset + time.Duration(float64(p.s.now)*p.rate)
}

// real is how long a duration on the process's clock takes.
func (p *process) real(d time.Duration) time.Duration {
	return time.Duration(float64(d)/p.rate) + time.Microsecond
}

// epochOfRun is when wall clocks say that the run began, but for their offsets.
var epochOfRun = time.Unix(1_800_000_000, 0)

// wall is the clock that people set.
func (p *process) wall() time.Time { return epochOfRun.Add(p.boot() - p.bootOffset + p.wallJump) }

// monotonic is the clock that never steps, as a time.
func (p *process) monotonic() time.Time { return epochOfRun.Add(p.boot()) }

// do runs something in a life of the program: now, when it goes on, or never.
func (p *process) do(life int, f func()) {
	switch {
	case !p.up || p.life != life:
	case p.paused > p.s.now:
		p.deferred = append(p.deferred, func() { p.do(life, f) })
	default:
		f()
	}
}

// after does something later in the present life.
func (p *process) after(d time.Duration, f func()) {
	life := p.life
	p.s.after(d, func() { p.do(life, f) })
}

// repeat does something again and again in the present life.
func (p *process) repeat(least, most time.Duration, f func()) {
	p.after(p.s.between(least, most), func() {
		f()
		p.repeat(least, most, f)
	})
}

// pause stops the program for a while; its clocks and its disk go on.
func (p *process) pause(d time.Duration) {
	p.paused = p.s.now + d
	life := p.life
	p.s.after(d, func() {
		if p.life == life {
			p.resume()
		}
	})
}

func (p *process) resume() {
	if p.paused == 0 {
		return
	}
	p.paused = 0
	deferred := p.deferred
	p.deferred = nil
	for _, f := range deferred {
		f()
	}
}

func (p *process) running() bool { return p.up && p.paused <= p.s.now }

// died ends the program's life.
func (p *process) died() {
	p.up, p.paused, p.deferred = false, 0, nil
	p.life++
}

// link is one direction between two processes.
type link struct {
	delay, arrival time.Duration
	cut            bool
	// isolatedUntil is when the isolation of one of its ends is over, which no healing of links ends sooner.
	isolatedUntil time.Duration
	// slowUntil is when a spike of its delay ends.
	slowUntil time.Duration
}

func (s *Simulation) link(from, to *process) *link {
	key := [2]int{from.index, to.index}
	l := s.links[key]
	if l == nil {
		l = &link{delay: s.between(200*time.Microsecond, 2*time.Millisecond)}
		if from.region != to.region {
			low, high := min(from.region, to.region), max(from.region, to.region)
			l.delay += time.Duration(7+(low*31+high*17+int(s.seed))%23) * time.Millisecond
		}
		s.links[key] = l
	}
	return l
}

// severed tells whether nothing gets through a link now.
func (s *Simulation) severed(l *link) bool { return l.cut || l.isolatedUntil > s.now }

// transit is how long a message takes now.
func (s *Simulation) transit(l *link) time.Duration {
	d := l.delay + s.between(0, l.delay/8+100*time.Microsecond)
	if l.slowUntil > s.now {
		d += s.between(100*time.Millisecond, 900*time.Millisecond)
		s.counts.add("delayed message")
	}
	return d
}

// datagram takes one message to the other side, or loses it.
func (s *Simulation) datagram(from, to *process, deliver func()) {
	l := s.link(from, to)
	if s.severed(l) {
		s.counts.add("message into a cut")
		return
	}
	life := to.life
	s.after(s.transit(l), func() {
		if !s.severed(l) {
			to.do(life, deliver)
		}
	})
}

// stream carries messages in order, in both directions, until one is lost: then nothing comes after it, and nobody is told.
type stream struct {
	s      *Simulation
	a, b   *process
	lives  [2]int
	broken bool
	// arrival is that of the last message to each side.
	arrival [2]time.Duration
}

func (s *Simulation) newStream(a, b *process) *stream {
	return &stream{s: s, a: a, b: b, lives: [2]int{a.life, b.life}}
}

// send carries a message from one side to the other.
func (st *stream) send(from *process, deliver func()) {
	s, to, side := st.s, st.b, 1
	if from == st.b {
		to, side = st.a, 0
	}
	l := s.link(from, to)
	if st.broken || s.severed(l) {
		if !st.broken {
			s.counts.add("stream broken")
		}
		st.broken = true
		return
	}
	at := max(s.now+s.transit(l), st.arrival[side]+1)
	st.arrival[side] = at
	s.after(at-s.now, func() {
		if s.severed(l) {
			st.broken = true
		}
		if st.broken || to.life != st.lives[side] || !to.up {
			st.broken = true
			return
		}
		to.do(st.lives[side], func() {
			if !st.broken {
				deliver()
			}
		})
	})
}

// cutBetween cuts all links from some processes to others; both ways if so wanted.
func (s *Simulation) cutBetween(from, to []*process, bothWays bool) {
	for _, a := range from {
		for _, b := range to {
			if a == b {
				continue
			}
			s.link(a, b).cut = true
			if bothWays {
				s.link(b, a).cut = true
			}
		}
	}
}

// healLinks makes every link well.
func (s *Simulation) healLinks() {
	for _, a := range s.processes {
		for _, b := range s.processes {
			if l := s.links[[2]int{a.index, b.index}]; l != nil {
				l.cut, l.slowUntil = false, 0
				if s.quiet {
					l.isolatedUntil = 0
				}
			}
		}
	}
	s.loss = 0
}
