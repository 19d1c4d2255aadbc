package frontend

import (
	"time"

	"golang.org/x/sys/unix"
)

// boottime reads the clock that goes on while the machine sleeps. Mirror and keeper are given the same one: the keeper
// compares its own readings with the time until which the mirror's session is held.
func boottime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(clockWithSleep, &now); err != nil {
		// Without it there is no telling how long this process slept; the kernel has had it since 2.6.39.
		panic("frontend: CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(now.Nano())
}
