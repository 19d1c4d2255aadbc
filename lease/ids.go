package lease

import "slices"

// idsPerChunk bounds a chunk of the ordered ids: an insertion moves at most so many of them.
const idsPerChunk = 1024

// orderedIDs holds the ids of all leases in order, for lists that are read a page at a time. It is a sorted list of sorted
// chunks: 8 bytes an id, and an insertion costs two searches and a short move.
//
// Invariant: no chunk is empty; every id of a chunk is below every id of the next.
type orderedIDs struct{ chunks [][]int64 }

// chunkOf returns the chunk that id is in or would be put into.
func (o *orderedIDs) chunkOf(id int64) int {
	at, found := slices.BinarySearchFunc(o.chunks, id, func(chunk []int64, id int64) int { return compareInt64(chunk[0], id) })
	if !found && at > 0 {
		at--
	}
	return at
}

// add puts in an id that is not there.
func (o *orderedIDs) add(id int64) {
	if len(o.chunks) == 0 {
		o.chunks = [][]int64{{id}}
		return
	}
	at := o.chunkOf(id)
	place, _ := slices.BinarySearch(o.chunks[at], id)
	chunk := slices.Insert(o.chunks[at], place, id)
	o.chunks[at] = chunk
	if len(chunk) <= idsPerChunk {
		return
	}
	half := len(chunk) / 2
	upper := make([]int64, len(chunk)-half, idsPerChunk+1)
	copy(upper, chunk[half:])
	o.chunks[at] = chunk[:half]
	o.chunks = slices.Insert(o.chunks, at+1, upper)
}

// remove takes out an id that is there.
func (o *orderedIDs) remove(id int64) {
	at := o.chunkOf(id)
	place, _ := slices.BinarySearch(o.chunks[at], id)
	if chunk := slices.Delete(o.chunks[at], place, place+1); len(chunk) > 0 {
		o.chunks[at] = chunk
		return
	}
	o.chunks = slices.Delete(o.chunks, at, at+1)
}

func (o *orderedIDs) has(id int64) bool {
	if len(o.chunks) == 0 {
		return false
	}
	_, found := slices.BinarySearch(o.chunks[o.chunkOf(id)], id)
	return found
}

// from calls take with each id at or above first, in order, until it returns false.
func (o *orderedIDs) from(first int64, take func(id int64) bool) {
	if len(o.chunks) == 0 {
		return
	}
	at := o.chunkOf(first)
	place, _ := slices.BinarySearch(o.chunks[at], first)
	for ; at < len(o.chunks); at, place = at+1, 0 {
		for _, id := range o.chunks[at][place:] {
			if !take(id) {
				return
			}
		}
	}
}
