package keyspace

import (
	"math"
	"sort"
	"sync/atomic"
)

const historyChunk = 1 << 10

// change is one entry of the history: one version, in the order of (main, sub).
type change struct {
	main int64
	slot uint32
}

// history lists every version at or above the compact revision, and for a while some that are no longer. Changes are
// numbered from zero and never renumbered. The writer appends and trims; readers look only at changes below the
// count that was published to them, which nobody writes any more.
type history struct {
	view  atomic.Pointer[historyView]
	count uint64     // changes so far; writer only
	freed []freedRun // of the chunks of the view; writer only
}

type historyView struct {
	firstChunk uint64
	chunks     []changeChunk
}

// changeChunk is historyChunk changes. A history of millions holds their revisions as what they add to the first one of the
// chunk.
type changeChunk struct {
	firstMain int64
	near      *nearChanges
	// far is in place of near where a change is too far from the first one.
	far *[historyChunk]change
}

type nearChanges struct {
	slots [historyChunk]uint32
	added [historyChunk]uint16
}

// put returns false if the change is too far from the first one.
func (k *changeChunk) put(at uint64, c change) bool {
	if k.far != nil {
		k.far[at] = c
		return true
	}
	added := c.main - k.firstMain
	if uint64(added) > math.MaxUint16 {
		return false
	}
	k.near.slots[at], k.near.added[at] = c.slot, uint16(added)
	return true
}

func (k *changeChunk) at(at uint64) change {
	if k.far != nil {
		return k.far[at]
	}
	return change{main: k.firstMain + int64(k.near.added[at]), slot: k.near.slots[at]}
}

// widened is the chunk with its first n changes held whole.
func (k *changeChunk) widened(n uint64) changeChunk {
	w := changeChunk{far: new([historyChunk]change)}
	for i := range n {
		w.far[i] = k.at(i)
	}
	return w
}

// freedRun tells for each change of a chunk the logical bytes that a compaction at its revision frees, together with all
// before it: what its version and those before it superseded, and the tombstones among them. Where keys are only ever added,
// that is the same for all.
type freedRun struct {
	first int64
	added *[historyChunk]uint32 // to first; nil: nothing
	// whole is in place of both where a sum is too far from the first one.
	whole *[historyChunk]int64
}

func (f *freedRun) put(at uint64, sum int64) {
	added := sum - f.first
	switch {
	case f.whole != nil:
	case added == 0 && f.added == nil:
		return
	case added > math.MaxUint32:
		whole := new([historyChunk]int64)
		for i := range at {
			whole[i] = f.at(i)
		}
		*f = freedRun{whole: whole}
	default:
		if f.added == nil {
			f.added = new([historyChunk]uint32)
		}
		f.added[at] = uint32(added)
		return
	}
	f.whole[at] = sum
}

func (f *freedRun) at(at uint64) int64 {
	switch {
	case f.whole != nil:
		return f.whole[at]
	case f.added == nil:
		return f.first
	}
	return f.first + int64(f.added[at])
}

func (h *history) init() { h.view.Store(&historyView{}) }

func (v *historyView) at(n uint64) change {
	return v.chunks[n/historyChunk-v.firstChunk].at(n % historyChunk)
}

// after returns the number of the first change below count whose main revision is above the given one.
func (v *historyView) after(main int64, count uint64) uint64 {
	first := v.firstChunk * historyChunk
	if first >= count {
		return count
	}
	return first + uint64(sort.Search(int(count-first), func(i int) bool { return v.at(first+uint64(i)).main > main }))
}

// append adds a change; freedBytes is its sum.
func (h *history) append(c change, freedBytes int64) {
	v, at := h.view.Load(), h.count%historyChunk
	if h.count/historyChunk-v.firstChunk == uint64(len(v.chunks)) {
		// Appending may write to memory that older views share, but only beyond their length.
		v = &historyView{
			firstChunk: v.firstChunk,
			chunks:     append(v.chunks, changeChunk{firstMain: c.main, near: new(nearChanges)}),
		}
		h.view.Store(v)
		h.freed = append(h.freed, freedRun{first: freedBytes})
	}
	last := len(v.chunks) - 1
	if !v.chunks[last].put(at, c) {
		wide := v.chunks[last].widened(at)
		wide.put(at, c)
		h.view.Store(&historyView{firstChunk: v.firstChunk, chunks: append(v.chunks[:last:last], wide)})
	}
	h.freed[last].put(at, freedBytes)
	h.count++
}

// freedBytes is the sum of a change that has not been trimmed.
func (h *history) freedBytes(n uint64) int64 {
	return h.freed[n/historyChunk-h.view.Load().firstChunk].at(n % historyChunk)
}

// trim forgets whole chunks below the given number, which no reader may need any more.
func (h *history) trim(below uint64) {
	v := h.view.Load()
	n := below/historyChunk - v.firstChunk
	if n == 0 {
		return
	}
	// Copied, so that the trimmed chunks are not kept by the array beneath.
	h.view.Store(&historyView{
		firstChunk: v.firstChunk + n,
		chunks:     append([]changeChunk(nil), v.chunks[n:]...),
	})
	h.freed = append([]freedRun(nil), h.freed[n:]...)
}
