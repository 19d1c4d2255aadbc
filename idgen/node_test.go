package idgen

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

var kinds = []statemachine.IDKind{statemachine.IDSnowflake, statemachine.IDRaindrop}

// TestLayouts: an id is its parts, in order of time, then node, then sequence; a snowflake is never negative and a raindrop
// is exact in a double.
func TestLayouts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
		l := kind.Layout()
		draw := func(name string) ID {
			return ID{
				Time:     rapid.Int64Range(0, l.MaxTime()).Draw(rt, name+" time"),
				Node:     rapid.Int64Range(0, int64(l.Nodes())-1).Draw(rt, name+" node"),
				Sequence: rapid.Int64Range(0, l.PerUnit()-1).Draw(rt, name+" sequence"),
			}
		}
		a, b := draw("a"), draw("b")
		x, y := Compose(l, a), Compose(l, b)
		if Split(l, x) != a {
			rt.Fatalf("%+v came back as %+v", a, Split(l, x))
		}
		before := a.Time < b.Time || a.Time == b.Time && (a.Node < b.Node || a.Node == b.Node && a.Sequence < b.Sequence)
		if (x < y) != before || (x == y) != (a == b) {
			rt.Fatalf("%+v is %d, %+v is %d", a, x, b, y)
		}
		if x < 0 || kind == statemachine.IDRaindrop && int64(float64(x)) != x {
			rt.Fatalf("%+v is %d", a, x)
		}
	})
	for kind, bits := range map[statemachine.IDKind]uint{statemachine.IDSnowflake: 63, statemachine.IDRaindrop: 53} {
		l := kind.Layout()
		highest := Compose(l, ID{Time: l.MaxTime(), Node: int64(l.Nodes()) - 1, Sequence: l.PerUnit() - 1})
		if highest != 1<<bits-1 {
			t.Errorf("the highest %s is %d", kind, highest)
		}
	}
}

// process is one frontend's process: a core with clocks of its own.
type process struct {
	frontend uint64
	core     *nodeCore
	session  uint64
	wall     int64
	elapsed  time.Duration
	last     int64
	// read is the reading that was used last.
	read reading
	// pending is a proposal that was made and whose outcome is not there yet.
	pending *commandv1.Command
}

// world is many processes, one log, and every id that was ever given.
type world struct {
	t         *rapid.T
	log       *testLog
	kind      statemachine.IDKind
	processes []*process
	// used is, by node number and time, the first sequence that was not given.
	used map[ID]int64
	ids  int64
}

func (w *world) restart(p *process) {
	p.core = newNodeCore(w.kind, 2*w.kind.Layout().Unit, 4*w.kind.Layout().Unit)
	p.session, p.pending, p.last = w.log.open(p.frontend), nil, -1
	p.elapsed, p.read = 0, reading{wall: p.wall}
}

// take lets a process give ids at a reading of its clocks, and checks that nobody gave them before.
func (w *world) take(p *process, now reading, count int64) {
	blocks, left, wait := p.core.take(now, count, nil)
	l := w.kind.Layout()
	for _, b := range blocks {
		id := Split(l, b.First)
		place := ID{Time: id.Time, Node: id.Node}
		if id.Sequence < w.used[place] || id.Sequence+b.Count > l.PerUnit() || b.Count <= 0 {
			w.t.Fatalf("%+v of %d ids: %d of that time and number were given before", id, b.Count, w.used[place])
		}
		w.used[place] = id.Sequence + b.Count
		if b.First <= p.last {
			w.t.Fatalf("%d after %d", b.First, p.last)
		}
		p.last = b.First + b.Count - 1
		count -= b.Count
		w.ids += b.Count
	}
	if count != left {
		w.t.Fatalf("%d ids are said to be missing, %d are", left, count)
	}
	if wait < 0 || left == 0 && wait != 0 {
		w.t.Fatalf("wait %v for %d ids", wait, left)
	}
}

// propose makes the proposal that is due, if none is under way.
func (w *world) propose(p *process) {
	if p.pending == nil {
		if command, due := p.core.propose(); due {
			p.pending = command
		}
	}
}

// decide applies the proposal under way, or drops it, and tells the process the outcome or that nobody knows it.
func (w *world) decide(p *process) {
	if p.pending == nil {
		return
	}
	command := p.pending
	p.pending = nil
	unknown := rapid.IntRange(0, 9).Draw(w.t, "outcome")
	if unknown == 0 {
		p.core.decided(command, nil, ErrUnavailable)
		return
	}
	result, err := w.log.propose(p.session, command)
	if err == nil {
		err = result.Err
	}
	switch {
	case errors.Is(err, errSkipped):
		// The frontend goes on under a new session, and its process with the core that it has.
		p.session = w.log.open(p.frontend)
		p.core.decided(command, nil, ErrUnavailable)
	case unknown == 1: // applied, and nobody hears of it
		p.core.decided(command, nil, ErrUnavailable)
	default:
		p.core.decided(command, result.ID, err)
	}
}

// TestNoIDTwice: many processes with clocks that step, stand still and leap; restarts, processes frozen in the middle of
// anything, sessions that end, proposals whose outcome is unknown: no id is given twice, and each process's ids ascend. All
// numbers but a few are held by others, so that these change hands all the time, and run out.
func TestNoIDTwice(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) { testNoIDTwice(t, kind) })
	}
}

func testNoIDTwice(t *testing.T, kind statemachine.IDKind) {
	most := int64(0)
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{t: rt, log: newTestLog(t), kind: kind, used: make(map[ID]int64)}
		unit := int64(w.kind.Layout().Unit)
		for i := range rapid.IntRange(2, 4).Draw(rt, "processes") {
			p := &process{frontend: uint64(i + 1), wall: int64(w.log.logTime)}
			w.restart(p)
			w.processes = append(w.processes, p)
		}
		w.holdAllBut(rapid.IntRange(1, 3).Draw(rt, "numbers"))
		for range rapid.IntRange(50, 400).Draw(rt, "steps") {
			p := rapid.SampledFrom(w.processes).Draw(rt, "process")
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				w.restart(p)
			case 1:
				p.wall += rapid.Int64Range(-10, 10).Draw(rt, "clock steps") * unit
			case 2:
				w.log.logTime += uint64(rapid.Int64Range(0, int64(6*time.Second)).Draw(rt, "log time"))
			case 3, 4:
				passes := rapid.Int64Range(0, 3*unit).Draw(rt, "passes")
				p.wall, p.elapsed = p.wall+passes, p.elapsed+time.Duration(passes)
			case 5:
				w.decide(p)
			default:
				now := reading{wall: p.wall, elapsed: p.elapsed}
				if rapid.IntRange(0, 5).Draw(rt, "frozen") == 0 {
					now = p.read // before it was frozen, and used after
				}
				p.read = now
				w.take(p, now, rapid.Int64Range(1, 3*w.kind.Layout().PerUnit()).Draw(rt, "count"))
				w.propose(p)
				if rapid.Bool().Draw(rt, "at once") {
					w.decide(p)
				}
			}
		}
		most = max(most, w.ids)
	})
	if most < 10_000 {
		t.Errorf("the busiest run gave only %d ids: the test tests nothing", most)
	}
}

// holdAllBut has sessions of other frontends hold every number but n, far ahead, so that these are used again and again.
func (w *world) holdAllBut(n int) {
	l := w.kind.Layout()
	for i := range l.Nodes() - n {
		command, _ := newNodeCore(w.kind, time.Second, time.Hour).propose()
		if _, err := w.log.propose(w.log.open(uint64(1000+i)), command); err != nil {
			w.t.Fatal(err)
		}
	}
}

// granted gives a core a number, for the tests and benchmarks of what follows.
func granted(kind statemachine.IDKind, until int64) *nodeCore {
	c := newNodeCore(kind, time.Second, time.Minute)
	c.decided(&commandv1.Command{Operation: &commandv1.Command_IdNodeGrant{IdNodeGrant: &commandv1.IdNodeGrant{}}},
		&statemachine.IDResult{Node: 5, Until: until}, nil)
	return c
}

func at(d time.Duration) reading {
	return reading{wall: statemachine.IDEpoch + int64(d), elapsed: d}
}

// TestIDsFollowTheClock: ids carry the time of the clock, run ahead of it when more are asked for than a unit holds, by so
// much and no more, and go on from where they were when the wall clock steps back.
func TestIDsFollowTheClock(t *testing.T) {
	l := statemachine.IDSnowflake.Layout()
	c := granted(statemachine.IDSnowflake, 1<<40)
	times := func(blocks []Block) (first, last int64) {
		return Split(l, blocks[0].First).Time, Split(l, blocks[len(blocks)-1].First).Time
	}
	blocks, _, _ := c.take(at(5*time.Second), 4096+1, nil)
	if first, last := times(blocks); first != 5000 || last != 5001 || len(blocks) != 2 {
		t.Fatalf("%+v", blocks)
	}
	blocks, left, wait := c.take(at(5*time.Second), 5_000_000, nil)
	if first, last := times(blocks); first != 5001 || last != 6000 || left == 0 || wait != time.Millisecond {
		t.Fatalf("times %d to %d, %d left, wait %v", first, last, left, wait)
	}
	back := reading{wall: at(-time.Hour).wall, elapsed: 5500 * time.Millisecond}
	blocks, left, _ = c.take(back, 5_000_000, nil)
	if first, last := times(blocks); first != 6001 || last != 6500 || left == 0 {
		t.Fatalf("after a step back: times %d to %d, %d left", first, last, left)
	}
	blocks, _, _ = c.take(at(time.Hour), 1, nil)
	if first, _ := times(blocks); first != 3_600_000 {
		t.Fatalf("after a leap: time %d", first)
	}
}

// TestGrantIsTheBound: nothing is given beyond the until of the grant, whatever the clock says, until it is extended.
func TestGrantIsTheBound(t *testing.T) {
	c := granted(statemachine.IDRaindrop, 10)
	blocks, left, _ := c.take(at(10*time.Second), 40_000, nil)
	if len(blocks) != 1 || left != 40_000-16_384 {
		t.Fatalf("%+v, %d left", blocks, left)
	}
	if blocks, _, _ = c.take(at(time.Hour), 1, nil); len(blocks) != 0 {
		t.Fatalf("after waking up: %+v", blocks)
	}
	command, due := c.propose()
	extend := command.GetIdNodeExtend()
	if !due || extend.GetFrom() != 10 || extend.GetUntil() != 3600+1+60 || extend.GetNode() != 5 {
		t.Fatalf("%v", command)
	}
	c.decided(command, nil, ErrUnavailable)
	if blocks, _, _ = c.take(at(time.Hour), 1, nil); len(blocks) != 0 {
		t.Fatalf("without knowing: %+v", blocks)
	}
	command, _ = c.propose()
	c.decided(command, nil, statemachine.ErrIDNodeNotHeld)
	if command, _ = c.propose(); command.GetIdNodeGrant() == nil {
		t.Fatalf("after the number is lost: %v", command)
	}
	c.decided(command, &statemachine.IDResult{Node: 6, After: 3601, Until: 3661}, nil)
	blocks, _, _ = c.take(at(time.Hour), 1, nil)
	if len(blocks) != 0 {
		t.Fatalf("%+v is more than a second ahead", blocks)
	}
	blocks, _, _ = c.take(at(time.Hour+time.Second), 1, nil)
	if len(blocks) != 1 || Split(statemachine.IDRaindrop.Layout(), blocks[0].First) != (ID{Time: 3602, Node: 6}) {
		t.Fatalf("%+v", blocks)
	}
}

// BenchmarkNodeCore makes ids one by one and in blocks of 1,000 as fast as the core can, the clock running along twice as
// fast as the layout needs.
func BenchmarkNodeCore(b *testing.B) {
	for _, kind := range kinds {
		for _, count := range []int64{1, 1000} {
			b.Run(fmt.Sprintf("%s/%d", kind, count), func(b *testing.B) {
				l := kind.Layout()
				c := granted(kind, l.MaxTime())
				pace := 2 * int64(l.Unit) / l.PerUnit() * count
				var blocks []Block
				var left int64
				now := time.Duration(0)
				for b.Loop() {
					blocks, left, _ = c.take(at(now), count, blocks[:0])
					if now += time.Duration(pace); left > 0 {
						b.Fatal("the core fell behind")
					}
				}
				b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "ids/s")
			})
		}
	}
}
