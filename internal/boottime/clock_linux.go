package boottime

import "golang.org/x/sys/unix"

// clockWithSleep goes on while the machine sleeps, and is never set.
const clockWithSleep = unix.CLOCK_BOOTTIME
