package idgen

import (
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// Stepper gives ids of one kind, or of one range, as a Generator does, and starts nothing and reads no clock: for a
// simulation that brings clocks and the log itself. One goroutine uses it.
type Stepper struct {
	core      core
	proposing *commandv1.Command
}

// NewNodeStepper gives snowflakes or raindrops.
func NewNodeStepper(kind statemachine.IDKind, config Config) *Stepper {
	config = config.withDefaults()
	ahead := config.SnowflakeAhead
	if kind == statemachine.IDRaindrop {
		ahead = config.RaindropAhead
	}
	return &Stepper{core: newNodeCore(kind, ahead, config.Window)}
}

// NewSegmentStepper gives the numbers of a range.
func NewSegmentStepper(name string, config Config) *Stepper {
	return &Stepper{core: &segmentCore{name: name, blockSize: config.withDefaults().BlockSize}}
}

// Take returns at most count ids at a time of both clocks, as many as can be had, and what is to be proposed, nil for
// nothing; Decided takes what becomes of it. Ids that the caller does not give to anybody are a gap.
func (s *Stepper) Take(wall time.Time, elapsed time.Duration, count int64) (blocks []Block, propose *commandv1.Command) {
	blocks, left, _ := s.core.take(reading{wall: wall.UnixNano(), elapsed: elapsed}, count, nil)
	if s.proposing != nil {
		return blocks, nil
	}
	s.core.want(left)
	command, due := s.core.propose()
	if s.core.want(-left); due {
		s.proposing = command
	}
	return blocks, s.proposing
}

// Decided takes the decision on what was to be proposed, or an error where none is known.
func (s *Stepper) Decided(result statemachine.Result, err error) {
	if err == nil {
		err = result.Err
	}
	_ = s.core.decided(s.proposing, result.ID, err) // who asks again learns of it
	s.proposing = nil
}
