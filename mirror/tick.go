package mirror

import "time"

// ticker decides when to propose an entry that carries nothing but log time: when something is due in log time and no
// entry comes by itself. It is passive.
//
// It cannot know the leader's clock: it counts from the last entry's stamp by its own, as far as one entry may advance
// log time. All frontends count alike, so each waits a random while longer; the first one's entry calms the others.
type ticker struct {
	// spread returns the random while; advanceMax is how far one entry may advance log time.
	spread     func() time.Duration
	advanceMax time.Duration

	due    bool
	tickAt time.Duration
}

// applied notes an entry: its stamp and the log time at which something is due next, both in nanoseconds; waiting is
// false where nothing is.
func (t *ticker) applied(stamp, due int64, waiting bool, now time.Duration) {
	t.due = waiting
	if !t.due {
		return
	}
	wait := min(max(time.Duration(due-stamp), 0), t.advanceMax)
	t.tickAt = now + wait + t.spread()
}

// next tells whether to propose a tick now, and when to ask again; zero for not before the next entry.
func (t *ticker) next(now time.Duration) (propose bool, wake time.Duration) {
	if !t.due {
		return false, 0
	}
	if now < t.tickAt {
		return false, t.tickAt
	}
	// It may be lost: propose another one later if no entry comes.
	t.tickAt = now + t.advanceMax/2 + t.spread()
	return true, t.tickAt
}
