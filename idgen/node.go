package idgen

import (
	"errors"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// reading is one look at the clocks.
type reading struct {
	// wall is in nanoseconds since 1970. It may step either way.
	wall int64
	// elapsed is of a clock that never steps and that goes on while the machine sleeps.
	elapsed time.Duration
}

// nodeCore makes the ids of one kind from the number that the log granted. It is stepped by one goroutine at a time.
//
// Invariant: every id given has the number of the grant that was in force and a time in (after, until] of it, and is above
// the one before. The log never grants a time of a number twice, so nothing else is needed for ids to be unique.
type nodeCore struct {
	kind   commandv1.IdKind
	layout statemachine.IDLayout
	// ahead is how many units ids may run ahead of the clock, window how many more are asked for at once.
	ahead, window int64

	// clock is the time since the epoch in nanoseconds.
	clock int64
	// floor is the clock when the last ids were given, and floorElapsed the reading of the clock that never steps then.
	floor        int64
	floorElapsed time.Duration
	started      bool

	held        bool
	node, until int64
	// time and sequence are of the next id, unless the clock is beyond time; last is the highest time of an id given.
	time, sequence, last int64
}

func newNodeCore(kind statemachine.IDKind, ahead, window time.Duration) *nodeCore {
	c := &nodeCore{layout: kind.Layout(), kind: commandv1.IdKind_ID_KIND_SNOWFLAKE}
	if kind == statemachine.IDRaindrop {
		c.kind = commandv1.IdKind_ID_KIND_RAINDROP
	}
	c.ahead = max(int64(ahead/c.layout.Unit), 1)
	c.window = max(int64(window/c.layout.Unit), 1)
	return c
}

// observe takes the time: the wall clock's, unless that has stepped back since ids were given. Then time goes on from there
// at the pace of the clock that never steps. A wall clock before the epoch is such a one.
func (c *nodeCore) observe(now reading) {
	if !c.started {
		c.started, c.floorElapsed = true, now.elapsed
	}
	c.clock = max(now.wall-statemachine.IDEpoch, c.floor+max(int64(now.elapsed-c.floorElapsed), 0))
}

// unit is the present time in units.
func (c *nodeCore) unit() int64 { return c.clock / int64(c.layout.Unit) }

// take appends at most count ids to blocks and returns how many are still wanted and, where time alone brings more, how
// long that takes.
func (c *nodeCore) take(now reading, count int64, blocks []Block) (taken []Block, left int64, wait time.Duration) {
	c.observe(now)
	if !c.held {
		return blocks, count, 0
	}
	if unit := min(c.unit(), c.until+1); unit > c.time {
		c.time, c.sequence = unit, 0
	}
	highest := min(c.unit()+c.ahead, c.until)
	for count > 0 && c.time <= highest {
		run := min(count, c.layout.PerUnit()-c.sequence)
		first := Compose(c.layout, ID{Time: c.time, Node: c.node, Sequence: c.sequence})
		blocks = append(blocks, Block{First: first, Count: run})
		count -= run
		c.last, c.floor, c.floorElapsed = c.time, c.clock, now.elapsed
		if c.sequence += run; c.sequence == c.layout.PerUnit() {
			c.time, c.sequence = c.time+1, 0
		}
	}
	if count > 0 {
		wait = max(time.Duration((c.time-c.ahead)*int64(c.layout.Unit)-c.clock), 0)
	}
	return blocks, count, wait
}

// holding returns the number that is held, and for how long ids can be given with it.
func (c *nodeCore) holding(now reading) (number int64, left time.Duration, held bool) {
	if !c.held {
		return 0, 0, false
	}
	c.observe(now)
	return c.node, time.Duration(max(c.until-max(c.unit(), c.time-1), 0)) * c.layout.Unit, true
}

// propose returns what to propose at the time last observed, if anything. Then decided must follow, whatever comes of it,
// before the next call.
func (c *nodeCore) propose() (*commandv1.Command, bool) {
	until := min(c.unit()+c.ahead+c.window, c.layout.MaxTime())
	switch {
	case !c.held:
		return &commandv1.Command{Operation: &commandv1.Command_IdNodeGrant{
			IdNodeGrant: &commandv1.IdNodeGrant{Kind: c.kind, Until: until},
		}}, true
	case c.until-c.unit()-c.ahead > c.window/2 || until <= c.until:
		return nil, false
	default:
		return &commandv1.Command{Operation: &commandv1.Command_IdNodeExtend{
			IdNodeExtend: &commandv1.IdNodeExtend{Kind: c.kind, Node: uint32(c.node), From: c.until, Until: until},
		}}, true
	}
}

// decided takes what became of a proposal: the log's decision, or an error that says that there is none. It returns the
// error that those who wait should get.
func (c *nodeCore) decided(command *commandv1.Command, result *statemachine.IDResult, err error) error {
	switch {
	case errors.Is(err, statemachine.ErrIDNodeNotHeld):
		// The session that held it has ended, or an extension whose outcome was unknown was applied. What is left of the
		// grant is given up, and another number is asked for.
		c.held = false
		return nil
	case err != nil:
		return err
	case command.GetIdNodeGrant() != nil:
		c.held, c.node, c.until = true, result.Node, result.Until
		c.time, c.sequence = max(result.After, c.last)+1, 0
	default:
		c.until = result.Until
	}
	return nil
}

// giveBack takes ids that nobody has seen. They are a gap: giving them again would need a record of them.
func (c *nodeCore) giveBack([]Block) {}

// want is for cores that ask for as many as are waited for.
func (c *nodeCore) want(int64) {}
