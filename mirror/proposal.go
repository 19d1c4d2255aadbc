package mirror

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// proposal is one command on its way. The core owns all fields but outcome and done, which are the shell's.
type proposal struct {
	// encoded is the command as an element of an encoded CommandBatch, tag and length included.
	encoded []byte
	// lent: encoded is the payload of a batch, which may be on its way still when the command is applied.
	lent       bool
	waitForLog bool
	// trace goes with the batch; nil for none.
	trace  *logv1.TraceContext
	course course
	state  proposalState
	// next and previous link the queue.
	next, previous *proposal

	// done is sent one token when outcome is there.
	outcome proposalOutcome
	done    chan struct{}
}

type proposalState uint8

const (
	proposalQueued proposalState = iota
	proposalHandedOver
	// proposalLeft: handed over, and nobody waits for its outcome any more.
	proposalLeft
	proposalFinished
)

// proposalPool keeps the proposals of one mirror that were applied: of these the core knows nothing any more.
type proposalPool struct{ unused sync.Pool }

func (l *proposalPool) get() *proposal {
	if p, ok := l.unused.Get().(*proposal); ok {
		return p
	}
	return &proposal{done: make(chan struct{}, 1)}
}

// encodedKeptMax bounds what is kept with a proposal that may be used again.
const encodedKeptMax = 4 << 10

// settle tells the caller. The proposal is the caller's from then on, as far as it was applied.
func (p *proposal) settle(outcome proposalOutcome) {
	p.outcome = outcome
	p.done <- struct{}{}
}

// put takes a proposal back whose caller has its outcome. One that was not applied may be part of a batch still.
func (l *proposalPool) put(p *proposal) {
	if !p.outcome.applied {
		return
	}
	encoded, done := p.encoded[:0], p.done
	if p.lent || cap(encoded) > encodedKeptMax {
		encoded = nil
	}
	*p = proposal{encoded: encoded, done: done}
	l.unused.Put(p)
}

// prepare makes a new proposal ready to be handed over, with a command. An error matches ErrNotApplied.
func (c *Config) prepare(p *proposal, command *commandv1.Command, o ProposeOptions) error {
	size := proto.Size(command)
	if size > c.CommandBytesMax {
		return fmt.Errorf("%w: %w: %d bytes, limit %d", ErrNotApplied, ErrTooLarge, size, c.CommandBytesMax)
	}
	p.waitForLog = o.WaitForLog
	var err error
	if p.encoded, err = encodeInBatch(p.encoded, size, command); err != nil {
		return fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	return nil
}

// encodeInBatch returns a command of a size, which proto.Size gave, as an element of an encoded CommandBatch, so that a batch is
// put together by concatenation. It takes b's memory if there is enough.
func encodeInBatch(b []byte, size int, command *commandv1.Command) ([]byte, error) {
	b = slices.Grow(b[:0], 1+protowire.SizeVarint(uint64(size))+size)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, command)
}

// proposalList is the queue: linked, so that a caller that leaves is taken out at once.
type proposalList struct {
	head, tail   *proposal
	count, bytes int
	// hasty counts those that do not wait for a log that is away, so that a long queue is not searched in vain.
	hasty int
}

func (l *proposalList) account(p *proposal, sign int) {
	l.count += sign
	l.bytes += sign * len(p.encoded)
	if !p.waitForLog {
		l.hasty += sign
	}
}

func (l *proposalList) pushBack(p *proposal) {
	p.previous, p.next = l.tail, nil
	if l.tail == nil {
		l.head = p
	} else {
		l.tail.next = p
	}
	l.tail = p
	l.account(p, 1)
}

func (l *proposalList) pushFront(p *proposal) {
	p.previous, p.next = nil, l.head
	if l.head == nil {
		l.tail = p
	} else {
		l.head.previous = p
	}
	l.head = p
	l.account(p, 1)
}

func (l *proposalList) remove(p *proposal) {
	if p.previous == nil {
		l.head = p.next
	} else {
		p.previous.next = p.next
	}
	if p.next == nil {
		l.tail = p.previous
	} else {
		p.next.previous = p.previous
	}
	p.previous, p.next = nil, nil
	l.account(p, -1)
}

// roundTripEstimate follows how long a batch takes from hand-over to apply, as TCP follows its round trips.
type roundTripEstimate struct {
	mean, deviation time.Duration
}

func (e *roundTripEstimate) sample(d time.Duration) {
	if e.mean == 0 {
		e.mean, e.deviation = d, d/2
		return
	}
	e.deviation += ((e.mean - d).Abs() - e.deviation) / 4
	e.mean += (d - e.mean) / 8
}

func (e *roundTripEstimate) timeout() time.Duration { return 2*e.mean + 4*e.deviation }
