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
	// Logical bytes that a compaction at this revision frees, together with all before it: what this version
	// and those before it superseded, and the tombstones among them.
	freedBytes int64
	slot       uint32
}

// history lists every version at or above the compact revision, and for a while some that are no longer. Changes are
// numbered from zero and never renumbered. The writer appends and trims; readers look only at changes below the
// count that was published to them, which nobody writes any more.
type history struct {
	view  atomic.Pointer[historyView]
	count uint64 // changes so far; writer only
}

type historyView struct {
	firstChunk uint64
	chunks     []changeChunk
}

// changeChunk is historyChunk changes. A history of millions holds each in half of its size, as what it adds to the first one
// of its chunk.
type changeChunk struct {
	first change
	added *[historyChunk]addedChange
	// whole is in place of added where a change is too far from the first one.
	whole *[historyChunk]change
}

type addedChange struct{ main, freedBytes, slot uint32 }

// put returns false if the change is too far from the first one.
func (k *changeChunk) put(at uint64, c change) bool {
	if k.whole != nil {
		k.whole[at] = c
		return true
	}
	main, freedBytes := c.main-k.first.main, c.freedBytes-k.first.freedBytes
	if uint64(main) > math.MaxUint32 || uint64(freedBytes) > math.MaxUint32 {
		return false
	}
	k.added[at] = addedChange{main: uint32(main), freedBytes: uint32(freedBytes), slot: c.slot}
	return true
}

func (k *changeChunk) at(at uint64) change {
	if k.whole != nil {
		return k.whole[at]
	}
	a := &k.added[at]
	return change{main: k.first.main + int64(a.main), freedBytes: k.first.freedBytes + int64(a.freedBytes), slot: a.slot}
}

// widened is the chunk with its first n changes held whole.
func (k *changeChunk) widened(n uint64) changeChunk {
	w := changeChunk{first: k.first, whole: new([historyChunk]change)}
	for i := range n {
		w.whole[i] = k.at(i)
	}
	return w
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

func (h *history) append(c change) {
	v, at := h.view.Load(), h.count%historyChunk
	if h.count/historyChunk-v.firstChunk == uint64(len(v.chunks)) {
		// Appending may write to memory that older views share, but only beyond their length.
		v = &historyView{
			firstChunk: v.firstChunk,
			chunks:     append(v.chunks, changeChunk{first: c, added: new([historyChunk]addedChange)}),
		}
		h.view.Store(v)
	}
	if last := len(v.chunks) - 1; !v.chunks[last].put(at, c) {
		wide := v.chunks[last].widened(at)
		wide.put(at, c)
		h.view.Store(&historyView{firstChunk: v.firstChunk, chunks: append(v.chunks[:last:last], wide)})
	}
	h.count++
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
}
