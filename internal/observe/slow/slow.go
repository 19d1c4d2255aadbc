// Package slow says which of many events took too long, without flooding a log.
//
// A Limit lets one warning through in each Interval and counts those between; the next one that it lets through is told how many
// there were. It may be used from any goroutine.
package slow

import (
	"sync"
	"time"
)

// Interval is the least time between two warnings of one Limit.
const Interval = time.Second

// Limit thins out warnings. The zero value lets the first one through.
type Limit struct {
	mu         sync.Mutex
	last       time.Time
	suppressed uint64
}

// Allow says whether a warning may be written at a time, and how many were not since the one before.
func (l *Limit) Allow(now time.Time) (suppressed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < Interval {
		l.suppressed++
		return 0, false
	}
	suppressed, l.suppressed, l.last = l.suppressed, 0, now
	return suppressed, true
}
