package keyspace

import (
	"slices"
	"sync/atomic"
)

// slot is one version as the index and the history refer to it. It does not move when its record does.
//
// All words are atomic because the verifier looks at slots that nothing refers to. For other readers main is
// constant: written before the slot becomes reachable and not again before it has become unreachable.
type slot struct {
	ref  atomic.Uint64 // recordRef; zero: the slot is free
	main atomic.Int64
}

// slotRun is slots side by side: four of them share a cache line, and none lies across two.
type slotRun [slotChunk]slot

// prevRun is for each slot of a run the slot of the version before, zero for none. It is seldom looked at, and there is none where
// all versions are the first of their keys.
type prevRun [slotChunk]atomic.Uint32

const (
	slotChunk = 1 << 10
	headChunk = 1 << 12
	// changeGroup keys have a count of changes together. They have mostly come together, and stand in the same leaf.
	changeGroup = 16
)

// slots is a growing array of slots; numbers begin at 1 and are used again. Grown and shrunk by the writer only.
type slots struct {
	chunks atomic.Pointer[[]*slotRun]
	// prevs are those of chunks, and of some that are not there yet. Who finds none for a slot that can be read may rely on it: it
	// would have been there before the slot was.
	prevs atomic.Pointer[[]atomic.Pointer[prevRun]]
	next  uint32 // never used so far
	free  []uint32
}

func (s *slots) init() {
	s.chunks.Store(&[]*slotRun{})
	s.prevs.Store(&[]atomic.Pointer[prevRun]{})
	s.next = 1
}

func (s *slots) at(n uint32) *slot { return &(*s.chunks.Load())[n/slotChunk][n%slotChunk] }

// prev is the slot of the version before that of slot n; zero: none, or compacted.
func (s *slots) prev(n uint32) uint32 {
	runs, at := *s.prevs.Load(), n/slotChunk
	if at >= uint32(len(runs)) {
		return 0
	}
	run := runs[at].Load()
	if run == nil {
		return 0
	}
	return run[n%slotChunk].Load()
}

// setPrev may be called for several slots at once if reserve gave them.
func (s *slots) setPrev(n, prev uint32) {
	if prev == 0 && s.prev(n) == 0 {
		return
	}
	s.growPrevs(n)
	run := &(*s.prevs.Load())[n/slotChunk]
	if run.Load() == nil {
		run.CompareAndSwap(nil, new(prevRun))
	}
	run.Load()[n%slotChunk].Store(prev)
}

// growPrevs makes prevs long enough for slot n.
func (s *slots) growPrevs(n uint32) {
	runs := *s.prevs.Load()
	if n/slotChunk < uint32(len(runs)) {
		return
	}
	grown := make([]atomic.Pointer[prevRun], max(2*len(runs), int(n/slotChunk)+1))
	for i := range runs {
		grown[i].Store(runs[i].Load())
	}
	s.prevs.Store(&grown)
}

func (s *slots) allocate() uint32 {
	if n := len(s.free); n > 0 {
		number := s.free[n-1]
		s.free = s.free[:n-1]
		return number
	}
	number := s.next
	if number == 0 {
		panic("keyspace: more than 2^32 versions")
	}
	s.next++
	if chunks := *s.chunks.Load(); number/slotChunk >= uint32(len(chunks)) {
		grown := append(chunks[:len(chunks):len(chunks)], new(slotRun))
		s.chunks.Store(&grown)
	}
	return number
}

// reserve returns the first of n numbers that have never been used.
func (s *slots) reserve(n int) uint32 {
	first := s.next
	if uint64(first)+uint64(n) > 1<<32-1 {
		panic("keyspace: more than 2^32 versions")
	}
	s.next += uint32(n)
	chunks := slices.Clip(*s.chunks.Load())
	for uint32(len(chunks)) <= (s.next-1)/slotChunk {
		chunks = append(chunks, new(slotRun))
	}
	s.chunks.Store(&chunks)
	s.growPrevs(s.next - 1)
	return first
}

func (s *slots) release(number uint32) {
	s.at(number).ref.Store(0)
	s.free = append(s.free, number)
}

// heads is a growing array, by key id, of the slot of the key's newest version. Ids begin at 1 and are used again.
type heads struct {
	chunks atomic.Pointer[[]*headRun]
	next   uint32
	free   []uint32
}

// headRun is heads side by side, and how often those of changeGroup neighbours together were stored.
type headRun struct {
	slots   [headChunk]atomic.Uint32
	changes [headChunk / changeGroup]atomic.Uint64
}

func (h *heads) init() {
	h.chunks.Store(&[]*headRun{})
	h.next = 1
}

func (h *heads) at(id uint32) *atomic.Uint32 {
	return &(*h.chunks.Load())[id/headChunk].slots[id%headChunk]
}

// changes of the key and some others.
func (h *heads) changes(id uint32) *atomic.Uint64 {
	return &(*h.chunks.Load())[id/headChunk].changes[id%headChunk/changeGroup]
}

// store makes the slot the key's newest and counts that.
func (h *heads) store(id, slot uint32) {
	run := (*h.chunks.Load())[id/headChunk]
	run.slots[id%headChunk].Store(slot)
	run.changes[id%headChunk/changeGroup].Add(1) // after what it counts
}

func (h *heads) allocate() uint32 {
	if n := len(h.free); n > 0 {
		id := h.free[n-1]
		h.free = h.free[:n-1]
		return id
	}
	id := h.next
	if id == 0 {
		panic("keyspace: more than 2^32 keys")
	}
	h.next++
	if chunks := *h.chunks.Load(); id/headChunk >= uint32(len(chunks)) {
		grown := append(chunks[:len(chunks):len(chunks)], new(headRun))
		h.chunks.Store(&grown)
	}
	return id
}

// reserve returns the first of n ids that have never been used.
func (h *heads) reserve(n int) uint32 {
	first := h.next
	h.next += uint32(n) // there are no more keys than versions
	chunks := slices.Clip(*h.chunks.Load())
	for uint32(len(chunks)) <= (h.next-1)/headChunk {
		chunks = append(chunks, new(headRun))
	}
	h.chunks.Store(&chunks)
	return first
}

func (h *heads) release(id uint32) { h.free = append(h.free, id) }
