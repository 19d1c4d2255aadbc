package keyspace

import (
	"slices"
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
	chunks     []*[historyChunk]change
}

func (h *history) init() { h.view.Store(&historyView{}) }

func (v *historyView) at(n uint64) *change {
	return &v.chunks[n/historyChunk-v.firstChunk][n%historyChunk]
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
	v := h.view.Load()
	if h.count/historyChunk-v.firstChunk == uint64(len(v.chunks)) {
		// Appending may write to memory that older views share, but only beyond their length.
		v = &historyView{firstChunk: v.firstChunk, chunks: append(v.chunks, new([historyChunk]change))}
		h.view.Store(v)
	}
	*v.at(h.count) = c
	h.count++
}

// reserve makes room for n changes more, which count from now on and are to be filled in before they are published.
func (h *history) reserve(n int) {
	v := h.view.Load()
	h.count += uint64(n)
	chunks := slices.Clip(v.chunks)
	for v.firstChunk+uint64(len(chunks)) < (h.count+historyChunk-1)/historyChunk {
		chunks = append(chunks, new([historyChunk]change))
	}
	h.view.Store(&historyView{firstChunk: v.firstChunk, chunks: chunks})
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
		chunks:     append([]*[historyChunk]change(nil), v.chunks[n:]...),
	})
}
