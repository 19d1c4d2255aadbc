package cluster

import (
	"sync"
	"time"
)

// clock is one process's clock in a bubble: it may run at another rate than the others, stand still and jump.
type clock struct {
	mu sync.Mutex
	// read is what the clock showed at the moment at.
	read time.Duration
	at   time.Time
	rate float64
	// stoppedAt is when it was stopped; zero while it runs.
	stoppedAt time.Time
}

func newClock(rate float64) *clock { return &clock{at: time.Now(), rate: rate} }

func (c *clock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.stoppedAt.IsZero() {
		now = c.stoppedAt
	}
	// Always from the same moment: what is rounded off must not add up.
	return c.read + time.Duration(float64(now.Sub(c.at))*c.rate)
}

// jump moves the clock ahead at once.
func (c *clock) jump(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read += by
}

// stop lets the clock stand still in the eyes of its process, as it does for a process that does not run.
func (c *clock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stoppedAt = time.Now()
}

// resume lets the process see that the clock went on meanwhile.
func (c *clock) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stoppedAt = time.Time{}
}
