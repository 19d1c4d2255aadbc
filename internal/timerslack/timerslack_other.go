//go:build !linux

package timerslack

import (
	"errors"
	"time"
)

func set(time.Duration) error { return errors.ErrUnsupported }

// Present returns the slack of the calling thread, which Linux alone has.
func Present() (time.Duration, error) { return 0, errors.ErrUnsupported }
