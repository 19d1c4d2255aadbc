package timerslack

import (
	"time"

	"golang.org/x/sys/unix"
)

func set(slack time.Duration) error {
	return unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
}

// Present returns the slack of the calling thread.
func Present() (time.Duration, error) {
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	return time.Duration(slack), err
}
