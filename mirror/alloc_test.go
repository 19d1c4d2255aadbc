package mirror

import (
	"fmt"
	"testing"
	"time"

	"github.com/logmirror/logmirror/statemachine"
)

// A proposal whose outcome is known is used again for the next command, but not its bytes where they are the payload of a
// batch: a copy of that may be on its way still.
func TestProposalsAreUsedAgain(t *testing.T) {
	config, command, pool := &Config{CommandBytesMax: 1 << 20}, put("key", "value"), &proposalPool{}
	propose := func(lent, applied bool) []byte {
		p := pool.get()
		if err := config.prepare(p, command, ProposeOptions{}); err != nil {
			t.Fatal(err)
		}
		p.lent = lent
		p.settle(proposalOutcome{applied: applied})
		<-p.done
		encoded := p.encoded
		pool.put(p)
		return encoded
	}
	if allocations := testing.AllocsPerRun(1000, func() { propose(false, true) }); allocations > 0 {
		t.Errorf("%v allocations", allocations)
	}
	for _, own := range []struct{ lent, applied bool }{{true, true}, {false, false}, {true, false}} {
		kept := propose(own.lent, own.applied)
		want := string(kept)
		for i := range 100 {
			command = put(fmt.Sprint("k", i), "other")
			propose(false, true)
		}
		if command = put("key", "value"); string(kept) != want {
			t.Errorf("%+v: %q became %q", own, want, kept)
		}
	}
}

// TestBatchAllocations holds what the session's core allocates for a batch of commands, from their proposal to their
// outcome, without the proposals themselves.
func TestBatchAllocations(t *testing.T) {
	const commands = 32
	core := newSessionCore(sessionConfig{
		open:          func(uint64) []byte { return nil },
		batchBytesMax: 1 << 20, inFlightMax: 16, inFlightBytes: 1 << 20, hold: 3 * time.Millisecond, queueMax: 1000,
		queueBytesMax: 1 << 20, failFastAfter: time.Second, unknownAfter: 10 * time.Second, stallAfter: 3 * time.Second,
		resendAfterMin: time.Second, resendAfterMax: 10 * time.Second, retryAfterMax: time.Second, openRetry: time.Second,
	}, 0)
	now, seq := time.Duration(0), uint64(0)
	core.step(sessionEvent{kind: eventUp}, now)
	core.step(sessionEvent{kind: eventCaughtUp}, now)
	core.step(sessionEvent{kind: eventPersisted, number: 1}, now)
	core.step(sessionEvent{kind: eventOpened, number: 1, session: 7, sessionTime: time.Minute}, now)

	proposals := make([]*proposal, commands)
	for i := range proposals {
		proposals[i] = &proposal{encoded: make([]byte, 300)}
	}
	// One of the first in flight holds the others until it is applied: they then make one batch.
	results := make([]statemachine.Result, commands)
	allocations := testing.AllocsPerRun(1000, func() {
		now += 100 * time.Microsecond
		for _, p := range proposals {
			p.state = proposalQueued
			core.step(sessionEvent{kind: eventPropose, proposal: p}, now)
		}
		for _, size := range []int{1, commands - 1} {
			seq++
			effects := core.step(sessionEvent{kind: eventApplied, session: 7, seq: seq, results: results[:size]}, now)
			if len(effects.applied) != size {
				t.Fatalf("%d commands of %d were applied", len(effects.applied), size)
			}
		}
	})
	// Two batches: each with its list of proposals and its message, the second with its payload, and the list of both.
	if allocations > 9 {
		t.Errorf("%v allocations for two batches with %d commands", allocations, commands)
	}
}
