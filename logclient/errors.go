package logclient

import (
	"errors"
	"fmt"
)

var (
	// ErrOtherLog says that what was reached is the log of another cluster or another epoch, or that its history is
	// not the one this caller has applied. It is final.
	ErrOtherLog = errors.New("this is another log")
	// ErrTrimmed says that no reachable member holds the wanted entry any more.
	ErrTrimmed = errors.New("log is trimmed above the wanted index")
	// ErrMalformedEntry says that a published entry cannot be decoded. It is final: every member would send the same.
	ErrMalformedEntry = errors.New("malformed log entry")
	// ErrUnreachable says that no member answered in time.
	ErrUnreachable = errors.New("no log member is reachable")
	// ErrTooManyRounds says that the bound on read rounds under way is reached.
	ErrTooManyRounds = errors.New("too many read rounds under way")
	// ErrCheckpointUnwanted says that the log does not want a checkpoint, or not this one.
	ErrCheckpointUnwanted = errors.New("the log does not want this checkpoint")
	// ErrNoCheckpoint says that no reachable member holds a sealed checkpoint.
	ErrNoCheckpoint = errors.New("no log member holds a checkpoint")
	// ErrClosed says that the client, tail or appender was closed.
	ErrClosed = errors.New("log client is closed")
)

// Reasons for leaving a member. They end a stream and never reach a caller.
var (
	errSilent        = errors.New("member is silent")
	errMemberChanged = errors.New("another member is preferred")
	errBehind        = errors.New("member is behind what this caller has applied")
	errQueueFull     = errors.New("proposals are not taken fast enough")
	errHandshake     = errors.New("stream did not begin with a handshake")
)

// DiscontinuityError says that a member sent something else than the next entry.
type DiscontinuityError struct {
	WantIndex, GotIndex uint64
	// Terms of the entry before and of the one received.
	PreviousTerm, GotTerm uint64
}

func (e *DiscontinuityError) Error() string {
	switch {
	case e.GotIndex > e.WantIndex:
		return fmt.Sprintf("gap in the tail: want index %d, got %d", e.WantIndex, e.GotIndex)
	case e.GotIndex < e.WantIndex:
		return fmt.Sprintf("repeated index in the tail: want %d, got %d", e.WantIndex, e.GotIndex)
	default:
		return fmt.Sprintf("term goes back in the tail at index %d: from %d to %d", e.GotIndex, e.PreviousTerm, e.GotTerm)
	}
}
