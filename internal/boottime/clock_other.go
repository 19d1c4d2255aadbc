//go:build !linux

package boottime

import "golang.org/x/sys/unix"

// clockWithSleep goes on while the machine sleeps, and is never set: on darwin that is its monotonic clock.
const clockWithSleep = unix.CLOCK_MONOTONIC
