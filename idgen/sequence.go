package idgen

import (
	"context"
	"fmt"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

const (
	// sequenceHold is how long a request for numbers of a sequence waits for others to share its command, while another
	// command of the sequence is under way. With none under way nothing waits.
	sequenceHold = 2 * time.Millisecond
	// sequenceCommandsMax bounds the commands under way for one sequence.
	sequenceCommandsMax = 64
)

// sequence is those who ask for numbers of one sequence. Under Generator.sequencesMu.
//
// A command is proposed only after every call that shares it has begun, and its numbers are given in the order in which they
// began: so a call that begins after another has ended gets higher ones, as with a command each.
type sequence struct {
	name string
	// waiting have no command yet, in the order in which they came.
	waiting []*sequenceCall
	// underWay counts commands that were proposed and not decided; held says that a timer will propose what waits.
	underWay int
	held     bool
}

type sequenceCall struct {
	count int64
	done  chan SequenceBlock
	// failure is set before done is closed, in place of an answer.
	failure error
}

// SequenceBlock is the numbers of one call, and where in the log they were given.
type SequenceBlock struct {
	Block
	// Index and Revision are those of the entry.
	Index    uint64
	Revision int64
}

// Sequence returns the next count numbers of a sequence, by a command to the log that is shared with other calls of the
// moment. The error is ErrClosed, ErrTooManyWaiting, that of ctx, or what became of the command: whatever it is, the numbers
// are only a gap. Numbers are also given to calls that have gone meanwhile.
func (g *Generator) Sequence(ctx context.Context, name string, count int64) (SequenceBlock, error) {
	if err := statemachine.ValidateCommand(sequenceCommand(name, count), statemachine.Limits{}); err != nil {
		return SequenceBlock{}, err
	}
	call := &sequenceCall{count: count, done: make(chan SequenceBlock, 1)}
	if err := g.enqueue(name, call); err != nil {
		return SequenceBlock{}, err
	}
	select {
	case block, decided := <-call.done:
		if !decided {
			return SequenceBlock{}, call.failure
		}
		return block, nil
	case <-ctx.Done():
		return SequenceBlock{}, context.Cause(ctx)
	case <-g.ctx.Done():
		return SequenceBlock{}, ErrClosed
	}
}

func sequenceCommand(name string, count int64) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_IdSequenceNext{
		IdSequenceNext: &commandv1.IdSequenceNext{Name: name, Count: count},
	}}
}

func (g *Generator) enqueue(name string, call *sequenceCall) error {
	g.sequencesMu.Lock()
	defer g.sequencesMu.Unlock()
	if g.sequenceCalls >= g.config.MaxWaiting {
		return ErrTooManyWaiting
	}
	s, ok := g.sequences[name]
	if !ok {
		s = &sequence{name: name}
		g.sequences[name] = s
	}
	g.sequenceCalls++
	s.waiting = append(s.waiting, call)
	switch {
	case s.underWay == 0:
		g.proposeSequence(s)
	case !s.held && s.underWay < sequenceCommandsMax:
		s.held = true
		time.AfterFunc(sequenceHold, func() {
			g.sequencesMu.Lock()
			defer g.sequencesMu.Unlock()
			s.held = false
			g.proposeSequence(s)
		})
	}
	return nil
}

// proposeSequence makes commands of all that wait, as far as commands may be under way.
func (g *Generator) proposeSequence(s *sequence) {
	for len(s.waiting) > 0 && s.underWay < sequenceCommandsMax {
		count, calls := int64(0), 0
		for calls < len(s.waiting) && count+s.waiting[calls].count <= statemachine.MaxIDsPerCommand {
			count += s.waiting[calls].count
			calls++
		}
		sharing := s.waiting[:calls:calls]
		s.waiting = s.waiting[calls:]
		s.underWay++
		if !g.start(func() { g.decideSequence(s, count, sharing) }) {
			return // closed: everyone who waits is told by the context
		}
	}
}

// decideSequence carries a command to the log and gives out what it brings.
func (g *Generator) decideSequence(s *sequence, count int64, calls []*sequenceCall) {
	ctx, cancel := context.WithTimeout(g.ctx, g.config.ProposalTimeout)
	defer cancel()
	result, err := g.config.ProposeSequence(ctx, sequenceCommand(s.name, count))
	switch {
	case err != nil && ctx.Err() != nil: // by the time of the command, which is not that of any caller
		err = fmt.Errorf("%w: %v", ErrUnavailable, err)
	case err != nil:
	case result.Err != nil:
		err = result.Err
	case result.ID == nil || result.ID.Count != count:
		err = fmt.Errorf("%w: the decision says nothing of ids", ErrUnavailable)
	}
	g.metrics.sequenceDecided(count, err)
	next := int64(0)
	if err == nil {
		next = result.ID.First
	}
	for _, call := range calls {
		if call.failure = err; err == nil {
			call.done <- SequenceBlock{Block: Block{First: next, Count: call.count}, Index: result.Index, Revision: result.Revision}
			next += call.count
		}
		close(call.done)
	}
	g.sequencesMu.Lock()
	defer g.sequencesMu.Unlock()
	g.sequenceCalls -= len(calls)
	s.underWay--
	if s.underWay == 0 || !s.held {
		g.proposeSequence(s)
	}
	if s.underWay == 0 && !s.held && len(s.waiting) == 0 {
		delete(g.sequences, s.name)
	}
}
