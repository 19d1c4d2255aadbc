package keyspace

import (
	"fmt"
	"testing"
)

// TestHistoryAcrossLeaps writes at revisions that are too far from each other for the short form of changes, while readers
// hold what was before.
func TestHistoryAcrossLeaps(t *testing.T) {
	s := New(Options{SlabBytes: 1 << 12})
	var mains []int64
	main := int64(0)
	type reader struct {
		snapshot *Snapshot
		changes  int
	}
	var readers []reader
	for n := range 3 * historyChunk {
		main++
		if n%700 == 699 {
			main += 1 << 33
			readers = append(readers, reader{s.Acquire(), n})
		}
		s.Put(fmt.Append(nil, n%50), make([]byte, 10), 0, main, 0)
		s.Publish(uint64(n+1), main)
		mains = append(mains, main)
	}
	readers = append(readers, reader{s.Acquire(), len(mains)})
	for _, r := range readers {
		n := 0
		err := r.snapshot.History(0, 0, func(v Version) bool {
			if v.ModRevision != mains[n] || string(v.Key) != fmt.Sprint(n%50) {
				t.Fatalf("change %d: %q at %d instead of %d", n, v.Key, v.ModRevision, mains[n])
			}
			n++
			return true
		})
		if err != nil || n != r.changes {
			t.Fatalf("%d changes, %v, not %d", n, err, r.changes)
		}
		r.snapshot.Release()
	}
	for _, n := range []int{100, 699, 700, 1400, historyChunk, 2*historyChunk - 1, 3*historyChunk - 1} {
		s.Compact(mains[n])
		for s.CompactSome(1 << 20) {
		}
		if err := s.CheckInvariants(); err != nil {
			t.Fatalf("compacted at change %d: %v", n, err)
		}
	}
}

// Sums of freed bytes may leap too.
func TestHistoryChunkOfManyFreedBytes(t *testing.T) {
	var h history
	h.init()
	sum := func(n int64) int64 {
		switch { // nothing, then little, then much
		case n < 10:
			return 7
		case n < 20:
			return 7 + n
		}
		return n * n << 14
	}
	for n := range int64(2*historyChunk + 10) {
		h.append(change{main: n, slot: uint32(n)}, sum(min(n, historyChunk+5)))
	}
	v := h.view.Load()
	for n := range int64(2*historyChunk + 10) {
		if got, want := v.at(uint64(n)), (change{main: n, slot: uint32(n)}); got != want {
			t.Fatalf("change %d: %+v, not %+v", n, got, want)
		}
		if got, want := h.freedBytes(uint64(n)), sum(min(n, historyChunk+5)); got != want {
			t.Fatalf("change %d: %d bytes freed, not %d", n, got, want)
		}
	}
	if h.freed[0].whole == nil || h.freed[1].whole != nil || h.freed[1].added == nil || h.freed[2].added != nil {
		t.Errorf("the first run is to be whole, the second short, the third of one sum: %+v", h.freed)
	}
}
