package mirror

import (
	"testing"
	"time"
)

func TestConvergenceIsFromTheFirstAnswerToTheEntryThatItNames(t *testing.T) {
	var c convergence
	now := time.Duration(0)
	clock := func() time.Duration { return now }
	for _, s := range []struct {
		at              time.Duration
		answer, applied uint64
		want            time.Duration
		done            bool
	}{
		{at: 10 * time.Second, answer: 5, applied: 5},   // the first answer of all ends no cut
		{at: 12 * time.Second, answer: 7, applied: 7},   // two seconds are none
		{at: 20 * time.Second, answer: 100, applied: 7}, // healed
		{at: 20100 * time.Millisecond, answer: 120, applied: 60},
		{at: 20300 * time.Millisecond, answer: 140, applied: 100, want: 300 * time.Millisecond, done: true},
		{at: 20400 * time.Millisecond, answer: 140, applied: 140},
		{at: 30 * time.Second, answer: 140, applied: 140, done: true}, // nothing was missed
	} {
		now = s.at
		c.answered(now, s.answer)
		if took, done := c.applied(clock, s.applied); took != s.want || done != s.done {
			t.Errorf("at %v: %v, %v; want %v, %v", s.at, took, done, s.want, s.done)
		}
	}
}
