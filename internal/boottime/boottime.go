// Package boottime reads the clock that goes on while the machine sleeps and is never set: CLOCK_BOOTTIME on Linux. A frontend
// that was frozen must not wake up believing that its session is young.
//
// Asking the kernel for it takes a system call, which is a fiftieth of what a small request costs. So Now asks seldom and adds
// the time that the machine has slept, by the last answer, to Go's monotonic clock, which is read without one. A sleep since then
// shows at once: it puts the wall clock forward and the monotonic clock not. Whenever the two have moved apart the kernel is asked
// anew, and every checkInterval in any case, since somebody might set the wall clock back by just as much.
package boottime

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// apartMax is how far wall clock and monotonic clock may have moved apart before the kernel is asked: more than two
	// readings of one moment usually lie apart, and less than any sleep.
	apartMax = time.Millisecond
	// checkInterval is how long a sleep can stay unnoticed that the wall clock was set back by.
	checkInterval = 100 * time.Millisecond
	// An answer is believed where it came within closeEnough, or else the quickest of a few.
	closeEnough = 20 * time.Microsecond
	attempts    = 10
)

var system = sync.OnceValue(func() *clock { return newClock(goClocks(), kernelClock) })

// Now returns the time since the machine was started. It never goes back.
func Now() time.Duration { return system().now() }

// instant is one moment by both of Go's clocks, which have different zeros.
type instant struct{ monotonic, wall time.Duration }

// clock may be used by many at once.
type clock struct {
	read   func() instant
	kernel func() time.Duration
	// slept is what the kernel's clock is ahead of the monotonic one. It only grows, and is never more than the truth.
	slept atomic.Int64
	// checked is a moment before the kernel's last answer.
	checked atomic.Pointer[instant]
}

func newClock(read func() instant, kernel func() time.Duration) *clock {
	c := &clock{read: read, kernel: kernel}
	c.slept.Store(math.MinInt64 / 2)
	c.ask()
	return c
}

func (c *clock) now() time.Duration {
	present, checked := c.read(), c.checked.Load()
	since := present.monotonic - checked.monotonic
	apart := present.wall - checked.wall - since
	if apart > apartMax || apart < -apartMax || since > checkInterval {
		present.monotonic = c.ask()
	}
	return present.monotonic + time.Duration(c.slept.Load())
}

// ask learns from the kernel how long the machine has slept, and returns the monotonic time after that.
func (c *clock) ask() time.Duration {
	var checked instant
	var slept time.Duration
	narrowest := time.Duration(math.MaxInt64)
	before := c.read()
	for n := 0; n < attempts && narrowest > closeEnough; n++ {
		kernel := c.kernel()
		after := c.read()
		if width := after.monotonic - before.monotonic; width < narrowest {
			narrowest, checked, slept = width, before, kernel-after.monotonic
		}
		before = after
	}
	for known := c.slept.Load(); int64(slept) > known && !c.slept.CompareAndSwap(known, int64(slept)); {
		known = c.slept.Load()
	}
	c.checked.Store(&checked)
	return before.monotonic
}

// goClocks returns a function that reads Go's clocks.
func goClocks() func() instant {
	begin := time.Now()
	return func() instant {
		now := time.Now()
		return instant{now.Sub(begin), time.Duration(now.UnixNano())}
	}
}

func kernelClock() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(clockWithSleep, &now); err != nil {
		// Without it there is no telling how long this process slept; the kernel has had it since 2.6.39.
		panic("boottime: " + err.Error())
	}
	return time.Duration(now.Nano())
}
