package mirror

import (
	"math/rand/v2"
	"sync"
	"time"
)

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

// ticks is the shell around ticker.
type ticks struct {
	mirror *Mirror
	mu     sync.Mutex
	core   ticker
	timer  *time.Timer
	ended  bool
}

// logTimeAdvanceMax is how far log time advances at most from one entry to the next: part of the log's contract.
const logTimeAdvanceMax = 5 * time.Second

func newTicks(m *Mirror) *ticks {
	t := &ticks{mirror: m}
	t.core = ticker{advanceMax: logTimeAdvanceMax, spread: func() time.Duration {
		return time.Duration(rand.Int64N(int64(m.config.TickSpread) + 1))
	}}
	t.timer = time.AfterFunc(time.Hour, t.fire)
	return t
}

// applied looks what is due next after the entry that was applied last, whose log time is stamp.
func (t *ticks) applied(stamp int64) {
	due, ok := t.mirror.machine.NextDue()
	t.mu.Lock()
	now := t.mirror.config.Clock()
	t.core.applied(stamp, due, ok, now)
	t.arm(now)
	t.mu.Unlock()
}

func (t *ticks) arm(now time.Duration) {
	propose, wake := t.core.next(now)
	if propose {
		t.mirror.session.tick()
	}
	if wake != 0 && !t.ended {
		t.timer.Reset(wake - now)
	}
}

func (t *ticks) fire() {
	t.mu.Lock()
	t.arm(t.mirror.config.Clock())
	t.mu.Unlock()
}

func (t *ticks) stop() {
	t.mu.Lock()
	t.ended = true
	t.timer.Stop()
	t.mu.Unlock()
}
