package keyspace

import (
	"math/rand/v2"
	"sync/atomic"
)

// readerShards spreads the registration of readers over cache lines. A power of two.
const readerShards = 16

// epochs tells the writer when all readers that could have seen something are gone, without either side waiting.
//
// A reader registers under the present epoch. The writer moves from epoch e to e+1 only when no reader of e-1
// is left, so readers are always of the present epoch or the one before.
//
// Invariant: what was made unreachable while the epoch was e is seen by no reader once the epoch is e+2.
// Readers that register in e+1 or later do so after it became unreachable; those of e or before are gone.
type epochs struct {
	current atomic.Uint64
	readers [3][readerShards]readerCount // by epoch modulo 3
}

type readerCount struct {
	n atomic.Int64
	_ [56]byte // a cache line each
}

// enter registers a reader and returns the counter that leave must be given.
func (e *epochs) enter() *atomic.Int64 {
	shard := rand.Uint32() & (readerShards - 1)
	for {
		if counter, ok := e.register(e.current.Load(), shard); ok {
			return counter
		}
	}
}

// register registers a reader under the epoch that it has found to be the present one. It fails if that has
// changed: only a registration that the writer can see before it leaves the epoch counts. The counter may
// already stand for another epoch, where the reader merely delays the writer until it is taken back.
func (e *epochs) register(epoch uint64, shard uint32) (*atomic.Int64, bool) {
	counter := &e.readers[epoch%3][shard].n
	counter.Add(1)
	if e.current.Load() != epoch {
		counter.Add(-1)
		return nil, false
	}
	return counter, true
}

func leave(counter *atomic.Int64) { counter.Add(-1) }

// advance moves to the next epoch if no reader of the one before is left. Writer only.
func (e *epochs) advance() bool {
	epoch := e.current.Load()
	before := &e.readers[(epoch+2)%3]
	for i := range before {
		if before[i].n.Load() != 0 {
			return false
		}
	}
	e.current.Store(epoch + 1)
	return true
}

// passed reports whether no reader is left that registered at or before the given epoch. Writer only.
func (e *epochs) passed(epoch uint64) bool { return e.current.Load() >= epoch+2 }

// retireKind says what a retired number is a number of.
type retireKind uint8

const (
	retiredSlot retireKind = iota
	retiredKey
	retiredSlab
)

type retiree struct {
	epoch  uint64
	number uint32
	kind   retireKind
}

// retirees is a queue of numbers that wait for their grace period, oldest epoch first.
type retirees struct {
	queue []retiree
	first int
}

func (q *retirees) push(r retiree) { q.queue = append(q.queue, r) }

func (q *retirees) peek() (retiree, bool) {
	if q.first == len(q.queue) {
		return retiree{}, false
	}
	return q.queue[q.first], true
}

func (q *retirees) pop() {
	q.first++
	switch {
	case q.first == len(q.queue):
		if cap(q.queue) > 4096 {
			q.queue = nil
		}
		q.queue, q.first = q.queue[:0], 0
	case q.first > 1024 && q.first > len(q.queue)/2:
		n := copy(q.queue, q.queue[q.first:])
		q.queue, q.first = q.queue[:n], 0
	}
}
