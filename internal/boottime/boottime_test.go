package boottime

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// machine is one whose clocks go as the test says: each reading takes a microsecond.
type machine struct {
	awake, slept, set time.Duration
	asked             int
	// during is called in the middle of a system call.
	during func()
}

const (
	startedAt = 1000 * time.Hour // by the monotonic clock
	wallAt    = 1_700_000_000 * time.Second
)

func (m *machine) read() instant {
	m.awake += time.Microsecond
	return instant{startedAt + m.awake, wallAt + m.awake + m.slept + m.set}
}

func (m *machine) kernel() time.Duration {
	m.asked++
	m.awake += time.Microsecond
	now := m.awake + m.slept
	if m.during != nil {
		m.during()
	}
	return now
}

// off returns how far a reading is from the truth.
func (m *machine) off(t *testing.T, c *clock) time.Duration {
	t.Helper()
	read := c.now()
	behind := m.awake + m.slept - read
	if behind < 0 {
		t.Errorf("%v ahead of the truth", -behind)
	}
	return behind
}

func TestTimeIsReadWithoutTheKernel(t *testing.T) {
	m := new(machine)
	c := newClock(m.read, m.kernel)
	m.asked = 0
	for range 1000 {
		m.awake += 10 * time.Microsecond
		if off := m.off(t, c); off > 10*time.Microsecond {
			t.Fatalf("%v behind", off)
		}
	}
	if m.asked > 0 {
		t.Errorf("the kernel was asked %d times in 10 ms", m.asked)
	}
	m.awake += time.Second
	m.off(t, c)
	if m.asked != 1 {
		t.Errorf("the kernel was asked %d times after a second, not once", m.asked)
	}
}

func TestSleepIsNoticedAtOnce(t *testing.T) {
	m := new(machine)
	c := newClock(m.read, m.kernel)
	for _, sleep := range []time.Duration{2 * time.Millisecond, time.Second, 8 * time.Hour} {
		m.slept += sleep
		if off := m.off(t, c); off > 10*time.Microsecond {
			t.Errorf("%v behind after a sleep of %v", off, sleep)
		}
	}
}

// What sets the wall clock must not be taken for time.
func TestWallClockIsSet(t *testing.T) {
	m := new(machine)
	c := newClock(m.read, m.kernel)
	for _, step := range []time.Duration{time.Hour, -3 * time.Hour, 5 * time.Millisecond, -2 * time.Millisecond} {
		m.set += step
		if off := m.off(t, c); off > 10*time.Microsecond {
			t.Errorf("%v behind after the clock was set by %v", off, step)
		}
	}
}

func TestWallClockIsSetBackFurtherThanTheSleep(t *testing.T) {
	m := new(machine)
	c := newClock(m.read, m.kernel)
	m.slept, m.set = time.Minute, -3*time.Minute
	if off := m.off(t, c); off > 10*time.Microsecond {
		t.Errorf("%v behind", off)
	}
}

// The one case that the two clocks do not show.
func TestSleepThatTheWallClockIsSetBackBy(t *testing.T) {
	m := new(machine)
	c := newClock(m.read, m.kernel)
	m.slept, m.set = time.Minute, -time.Minute
	m.off(t, c)
	m.awake += checkInterval
	if off := m.off(t, c); off > 10*time.Microsecond {
		t.Errorf("%v behind, %v after the sleep", off, checkInterval)
	}
}

func TestSleepWhileTheKernelIsAsked(t *testing.T) {
	m := new(machine)
	m.during = func() { m.slept += time.Hour; m.during = nil }
	c := newClock(m.read, m.kernel)
	if off := m.off(t, c); off > 10*time.Microsecond {
		t.Errorf("%v behind", off)
	}
}

// A process that the system takes the processor from while it asks learns less than the truth, and asks again.
func TestInterruptedWhileTheKernelIsAsked(t *testing.T) {
	m := new(machine)
	interruptions := 3
	m.during = func() {
		if interruptions--; interruptions >= 0 {
			m.awake += 7 * time.Millisecond
		}
	}
	c := newClock(m.read, m.kernel)
	if off := m.off(t, c); off > 10*time.Microsecond {
		t.Errorf("%v behind", off)
	}
	m.slept += time.Hour
	longer := 7 * time.Millisecond
	m.during = func() { m.awake += longer; longer = 50 * time.Millisecond }
	if off := m.off(t, c); off > 8*time.Millisecond {
		t.Errorf("%v behind where the quickest answer took 7 ms", off)
	}
}

// One that learns less than another already knows must not take it back.
func TestAnotherAsksMeanwhile(t *testing.T) {
	m := new(machine)
	c := newClock(m.read, m.kernel)
	var other time.Duration
	var interrupt func()
	interrupt = func() {
		m.awake += 5 * time.Millisecond
		m.during = nil
		other = c.now()
		m.during = interrupt
	}
	m.awake += 2 * checkInterval
	m.during = interrupt
	c.ask()
	m.during = nil
	if now := c.now(); now < other {
		t.Errorf("%v after another was told %v", now, other)
	}
}

// Whatever happens, time goes on, is never ahead of the truth, and is right within checkInterval.
func TestAnyHistory(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		some := func() time.Duration { return time.Duration(random.Int64N(int64(300 * time.Millisecond))) }
		m := new(machine)
		busy := random.IntN(10) // of ten answers so many are interrupted
		m.during = func() {
			if random.IntN(10) < busy {
				m.awake += some()
			}
			if random.IntN(8) == 0 {
				m.slept += some()
			}
		}
		c := newClock(m.read, m.kernel)
		var before time.Duration
		for range 500 {
			switch random.IntN(4) {
			case 0:
				m.awake += some()
			case 1:
				m.slept += some()
			case 2:
				m.set += 2*some() - 300*time.Millisecond
			}
			truth := m.awake + m.slept
			now := c.now()
			if now < before {
				t.Fatalf("seed %d: %v after %v", seed, now, before)
			}
			if now > m.awake+m.slept {
				t.Fatalf("seed %d: %v at %v", seed, now, truth)
			}
			before = now
		}
		m.during = nil
		m.awake += 2 * checkInterval
		if off := m.off(t, c); off > 10*time.Microsecond {
			t.Fatalf("seed %d: %v behind at the end", seed, off)
		}
	}
}

func TestKernelsClock(t *testing.T) {
	var reading sync.WaitGroup
	for range 8 {
		reading.Go(func() {
			var before time.Duration
			for range 20_000 {
				now := Now()
				if now < before {
					t.Errorf("%v after %v", now, before)
					return
				}
				before = now
			}
		})
	}
	reading.Wait()
	earliest := kernelClock()
	now := Now()
	latest := kernelClock()
	if now < earliest-10*time.Millisecond || now > latest {
		t.Errorf("%v, the kernel says %v to %v", now, earliest, latest)
	}
}

func BenchmarkNow(b *testing.B) {
	for b.Loop() {
		Now()
	}
}

func BenchmarkKernel(b *testing.B) {
	for b.Loop() {
		kernelClock()
	}
}
