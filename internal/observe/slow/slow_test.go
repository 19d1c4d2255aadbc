package slow

import (
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	var l Limit
	start := time.Unix(100, 0)
	for i, c := range []struct {
		after      time.Duration
		ok         bool
		suppressed uint64
	}{
		{0, true, 0},
		{time.Millisecond, false, 0},
		{Interval - 1, false, 0},
		{Interval, true, 2},
		{Interval + time.Millisecond, false, 0},
		{5 * Interval, true, 1},
		{6 * Interval, true, 0},
	} {
		if suppressed, ok := l.Allow(start.Add(c.after)); ok != c.ok || suppressed != c.suppressed {
			t.Errorf("warning %d: %v with %d before it; want %v, %d", i, ok, suppressed, c.ok, c.suppressed)
		}
	}
}
