package mirror

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// proposal is one command on its way. The core owns all fields but done, which is the shell's.
type proposal struct {
	// encoded is the command as an element of an encoded CommandBatch, tag and length included.
	encoded    []byte
	waitForLog bool
	// trace goes with the batch; nil for none.
	trace  *logv1.TraceContext
	course course
	state  proposalState
	// next and previous link the queue.
	next, previous *proposal

	done chan proposalOutcome
}

type proposalState uint8

const (
	proposalQueued proposalState = iota
	proposalHandedOver
	// proposalLeft: handed over, and nobody waits for its outcome any more.
	proposalLeft
	proposalFinished
)

// newProposal makes a command ready to be handed over. An error matches ErrNotApplied.
func (c *Config) newProposal(command *commandv1.Command, o ProposeOptions) (*proposal, error) {
	size := proto.Size(command)
	if size > c.CommandBytesMax {
		return nil, fmt.Errorf("%w: %w: %d bytes, limit %d", ErrNotApplied, ErrTooLarge, size, c.CommandBytesMax)
	}
	encoded, err := encodeInBatch(size, func(b []byte) ([]byte, error) {
		return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, command)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	return &proposal{encoded: encoded, waitForLog: o.WaitForLog, done: make(chan proposalOutcome, 1)}, nil
}

// encodeInBatch returns a command as an element of an encoded CommandBatch, so that a batch is put together by
// concatenation.
func encodeInBatch(size int, appendCommand func([]byte) ([]byte, error)) ([]byte, error) {
	encoded := make([]byte, 0, size+1+protowire.SizeVarint(uint64(size)))
	encoded = protowire.AppendTag(encoded, 1, protowire.BytesType)
	encoded = protowire.AppendVarint(encoded, uint64(size))
	return appendCommand(encoded)
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
