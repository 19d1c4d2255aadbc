package idgen

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// distantLog takes a while for each proposal, as a log across an ocean does, and applies them in the order in which they came.
type distantLog struct {
	*frontendLog
	way time.Duration
}

func (l *distantLog) Propose(ctx context.Context, command *commandv1.Command) (statemachine.Result, error) {
	result, err := l.frontendLog.Propose(ctx, command)
	select {
	case <-time.After(l.way):
		return result, err
	case <-ctx.Done():
		return statemachine.Result{}, ctx.Err()
	}
}

// TestSequence: numbers come once each and without a gap, in the order of calls that do not overlap; a call alone takes one
// round trip and nothing more, and calls of one moment share commands for a wait of 2 ms at most.
func TestSequence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &distantLog{frontendLog: newFrontendLog(t), way: 80 * time.Millisecond}
		g := start(t, l)
		last := int64(0)
		for range 3 {
			began := time.Now()
			block, err := g.Sequence(t.Context(), "invoices", 2)
			if err != nil || block.First != last+1 || block.Count != 2 || block.Index == 0 || time.Since(began) != 80*time.Millisecond {
				t.Fatalf("%+v after %v, %v", block, time.Since(began), err)
			}
			last += 2
		}
		const callers, each = 50, 40
		l.proposals = 0
		var (
			mu     sync.Mutex
			given  = make(map[int64]bool)
			ended  int64 // the highest number of a call that has ended
			asking sync.WaitGroup
		)
		for range callers {
			asking.Go(func() {
				for range each {
					mu.Lock()
					floor := ended
					mu.Unlock()
					began := time.Now()
					block, err := g.Sequence(t.Context(), "invoices", 1+rand.Int64N(3))
					if took := time.Since(began); err != nil || took > 82*time.Millisecond {
						t.Errorf("%v after %v", err, took)
						return
					}
					mu.Lock()
					if block.First <= floor {
						t.Errorf("%d after %d was given", block.First, floor)
					}
					for i := range block.Count {
						if given[block.First+i] {
							t.Errorf("%d again", block.First+i)
						}
						given[block.First+i] = true
					}
					ended = max(ended, block.First+block.Count-1)
					mu.Unlock()
					time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
				}
			})
		}
		asking.Wait()
		for i := range int64(len(given)) {
			if !given[last+1+i] {
				t.Fatalf("%d is left out", last+1+i)
			}
		}
		if l.proposals > callers*each/4 {
			t.Errorf("%d commands for %d calls", l.proposals, callers*each)
		}
		synctest.Wait()
		g.sequencesMu.Lock()
		defer g.sequencesMu.Unlock()
		if len(g.sequences) != 0 || g.sequenceCalls != 0 {
			t.Errorf("%d sequences and %d calls are left", len(g.sequences), g.sequenceCalls)
		}
	})
}

// TestSequenceRefused: what is wrong with a call is said before it waits, what is wrong with the log to all who share the
// command; calls that wait are bounded, leave when their time is over and end with the generator.
func TestSequenceRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &distantLog{frontendLog: newFrontendLog(t), way: 80 * time.Millisecond}
		begin := time.Now()
		g := New(Config{Log: l, Clock: func() time.Duration { return time.Since(begin) }, MaxWaiting: 5})
		t.Cleanup(g.Close)
		for _, wrong := range []struct {
			name  string
			count int64
			want  error
		}{{"", 1, statemachine.ErrIDName}, {"x", 0, statemachine.ErrIDCount}, {"x", statemachine.MaxIDsPerCommand + 1, statemachine.ErrIDCount}} {
			if _, err := g.Sequence(t.Context(), wrong.name, wrong.count); !errors.Is(err, wrong.want) {
				t.Errorf("%+v: %v", wrong, err)
			}
		}
		away := errors.New("the log is away")
		l.set(func() { l.down = away })
		var asking sync.WaitGroup
		for range 5 {
			asking.Go(func() {
				if _, err := g.Sequence(t.Context(), "x", 1); !errors.Is(err, away) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if _, err := g.Sequence(t.Context(), "y", 1); !errors.Is(err, ErrTooManyWaiting) {
			t.Error(err)
		}
		asking.Wait()

		l.set(func() { l.down, l.way = nil, time.Hour })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Sequence(ctx, "x", 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := g.Sequence(t.Context(), "x", 1); !errors.Is(err, ErrUnavailable) { // by the time of the command
			t.Error(err)
		}
		asking.Go(func() {
			if _, err := g.Sequence(t.Context(), "x", 1); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		synctest.Wait()
		g.Close()
		asking.Wait()
		if _, err := g.Sequence(t.Context(), "z", 1); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}
