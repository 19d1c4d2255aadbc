package keyspace

import (
	"bytes"
	"sort"
	"sync/atomic"
)

const (
	leafKeys   = 64  // most keys of a leaf
	groupCells = 128 // most cells of a group
)

// index maps keys to ids in order. It has three levels: the root lists groups, a group lists cells, a cell
// holds one leaf. Root and groups are immutable and replaced whole; a new key is added behind those of its leaf or replaces the
// leaf, and only when a leaf is split or merged is a group, and rarely the root, replaced too.
//
// A cell stands for the keys from its low bound up to the low bound of the next cell. Which cell is next is
// part of the leaf, so that a split or a merge is one atomic store of the left cell's leaf. Readers that come
// through a root or group older than a split move right along the leaves.
//
// Invariant: a reader that was registered before a key was inserted does not look for it, and no key is removed
// that a registered reader can see. Hence a leaf that has been replaced, and a cell that has been merged away
// and is no longer kept up, still show all that the readers holding them may see, and lead on to the right.
//
// The index does not hold keys: it asks keyOf.
type index struct {
	root  atomic.Pointer[root]
	keyOf func(id uint32) []byte
	// The last id that was inserted, and how many were, each of them next to the one before. The writer's.
	lastID  uint32
	runKeys int
}

type root struct {
	fences
	groups []*group // ascending by low bound
}

type group struct {
	fences
	cells []*cell // ascending by low bound; never empty
}

type cell struct {
	low  []byte // constant; nil for the first cell, which is never merged away
	room atomic.Pointer[leafRoom]
}

// leaf is the keys that a leafRoom held at one moment.
type leaf struct {
	fences
	ids  []uint32 // ascending by key
	next *cell    // nil: last
}

// leafRoom is where the keys of a leaf stand. While it stands in its cell, the writer may add keys behind those that are
// there; nothing else of it ever changes.
type leafRoom struct {
	leaf // words and ids are as long as there is room
	keys atomic.Uint32

	packed atomic.Pointer[packedLeaf] // nil: none
	seen   atomic.Uint64              // changes when a range was here last
}

func (c *cell) leaf() leaf { return c.room.Load().filled() }

func (r *leafRoom) filled() leaf {
	n := r.keys.Load()
	lf := r.leaf
	lf.words, lf.ids = lf.words[:n:n], lf.ids[:n:n]
	return lf
}

// add puts a key behind the others. There must be room, and the key must have the common prefix.
func (r *leafRoom) add(key []byte, id uint32) {
	n := r.keys.Load()
	r.words[n], r.ids[n] = word(key, len(r.common)), id
	r.keys.Store(n + 1) // after what it counts
}

// A room and its arrays are one heap object, as large as the keys ask for. The numbers of keys are those that fill Go's size
// classes.
type (
	leafBlock15 struct {
		leafRoom
		wordArray [15]uint64
		idArray   [15]uint32
	}
	leafBlock31 struct {
		leafRoom
		wordArray [31]uint64
		idArray   [31]uint32
	}
	leafBlock39 struct {
		leafRoom
		wordArray [39]uint64
		idArray   [39]uint32
	}
	leafBlock44 struct {
		leafRoom
		wordArray [44]uint64
		idArray   [44]uint32
	}
	leafBlock50 struct {
		leafRoom
		wordArray [50]uint64
		idArray   [50]uint32
	}
	leafBlock55 struct {
		leafRoom
		wordArray [55]uint64
		idArray   [55]uint32
	}
	leafBlock64 struct {
		leafRoom
		wordArray [leafKeys]uint64
		idArray   [leafKeys]uint32
	}
)

// allocateLeaf returns room for n keys or some more. The first n are to be filled before it is published.
func allocateLeaf(n int, next *cell) *leafRoom {
	var r *leafRoom
	switch {
	case n <= 15:
		b := new(leafBlock15)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	case n <= 31:
		b := new(leafBlock31)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	case n <= 39:
		b := new(leafBlock39)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	case n <= 44:
		b := new(leafBlock44)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	case n <= 50:
		b := new(leafBlock50)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	case n <= 55:
		b := new(leafBlock55)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	default:
		b := new(leafBlock64)
		r, b.words, b.ids = &b.leafRoom, b.wordArray[:], b.idArray[:]
	}
	r.next = next
	r.keys.Store(uint32(n))
	return r
}

func (x *index) init(keyOf func(id uint32) []byte) {
	x.keyOf = keyOf
	first := &cell{}
	first.room.Store(allocateLeaf(0, nil))
	x.root.Store(newRoot([]*group{newGroup([]*cell{first})}))
}

func newGroup(cells []*cell) *group {
	return &group{cells: cells, fences: makeFences(len(cells), func(i int) []byte { return cells[i].low })}
}

func newRoot(groups []*group) *root {
	return &root{groups: groups, fences: makeFences(len(groups), func(i int) []byte { return groups[i].low() })}
}

func (g *group) low() []byte { return g.cells[0].low }

// child returns the last group whose low bound is not above key.
func (r *root) child(key []byte) int {
	lo, hi := r.narrow(key)
	n := lo + sort.Search(hi-lo, func(i int) bool { return bytes.Compare(r.groups[lo+i].low(), key) > 0 })
	return max(n-1, 0)
}

// child returns the last cell whose low bound is not above key.
func (g *group) child(key []byte) int {
	lo, hi := g.narrow(key)
	n := lo + sort.Search(hi-lo, func(i int) bool { return bytes.Compare(g.cells[lo+i].low, key) > 0 })
	return max(n-1, 0)
}

// seek returns the position in the leaf of the first key not below key, and whether it is key itself.
func (x *index) seek(lf leaf, key []byte) (position int, found bool) {
	lo, hi := lf.narrow(key)
	for lo < hi {
		middle := int(uint(lo+hi) >> 1)
		switch bytes.Compare(x.keyOf(lf.ids[middle]), key) {
		case -1:
			lo = middle + 1
		case 0:
			return middle, true
		default:
			hi = middle
		}
	}
	return lo, false
}

// place is where a key is, or would be.
type place struct {
	root        *root
	group, cell int // positions in root and group; of the cell as found there, before any move to the right
	owner       *cell
	room        *leafRoom
	leaf        leaf // what the room held
	position    int
	found       bool
}

// locate finds the place of the first key not below key within the cell that stands for key. The position may
// be one past the leaf's last.
func (x *index) locate(key []byte) (p place) {
	p.root = x.root.Load()
	p.group = p.root.child(key)
	g := p.root.groups[p.group]
	p.cell = g.child(key)
	p.owner = g.cells[p.cell]
	for {
		p.room = p.owner.room.Load()
		p.leaf = p.room.filled()
		p.position, p.found = x.seek(p.leaf, key)
		// Only a key beyond the leaf's last can belong to a cell that was split off.
		if p.position < len(p.leaf.ids) || p.leaf.next == nil || bytes.Compare(p.leaf.next.low, key) > 0 {
			return p
		}
		p.owner = p.leaf.next
	}
}

func (x *index) find(key []byte) (id uint32, found bool) {
	p := x.locate(key)
	if !p.found {
		return 0, false
	}
	return p.leaf.ids[p.position], true
}

// ascend visits the ids of the keys in [start, end) in order, a run from one leaf at a time, until visit
// returns false. end nil: no bound. A visited id may belong to a key that the reader cannot see. The runs are
// parts of leaves: read-only.
func (x *index) ascend(start, end []byte, visit func(run []uint32) bool) {
	x.ascendLeaves(start, end, func(_ *leafRoom, _ *leaf, run []uint32) bool { return visit(run) })
}

// ascendLeaves is ascend, and tells the leaf of each run and its room.
func (x *index) ascendLeaves(start, end []byte, visit func(room *leafRoom, lf *leaf, run []uint32) bool) {
	p := x.locate(start)
	room, lf, position := p.room, p.leaf, p.position
	for {
		stop, last := len(lf.ids), lf.next == nil
		if end != nil && (last || bytes.Compare(lf.next.low, end) >= 0) {
			stop, _ = x.seek(lf, end)
			last = true
		}
		if position < stop && !visit(room, &lf, lf.ids[position:stop]) || last {
			return
		}
		room = lf.next.room.Load()
		lf, position = room.filled(), 0
	}
}

// descend is ascend with the last run first. Within a run the ids ascend all the same.
func (x *index) descend(start, end []byte, visit func(run []uint32) bool) {
	for {
		p := x.before(end)
		first, last := 0, p.owner.low == nil || bytes.Compare(p.owner.low, start) <= 0
		if last {
			first, _ = x.seek(p.leaf, start)
		}
		if first < p.position && !visit(p.leaf.ids[first:p.position]) || last {
			return
		}
		end = p.owner.low
	}
}

// before finds the place just after the last key below end, in the last cell whose low bound is below end. end
// nil: no bound.
func (x *index) before(end []byte) (p place) {
	p.root = x.root.Load()
	p.group = len(p.root.groups) - 1
	if end != nil {
		p.group = p.root.child(end)
		if p.group > 0 && bytes.Equal(p.root.groups[p.group].low(), end) {
			p.group--
		}
	}
	g := p.root.groups[p.group]
	p.cell = len(g.cells) - 1
	if end != nil {
		p.cell = g.child(end)
		if p.cell > 0 && bytes.Equal(g.cells[p.cell].low, end) {
			p.cell--
		}
	}
	p.owner = g.cells[p.cell]
	for {
		p.room = p.owner.room.Load()
		p.leaf = p.room.filled()
		if p.leaf.next == nil || end != nil && bytes.Compare(p.leaf.next.low, end) >= 0 {
			break
		}
		p.owner = p.leaf.next
	}
	p.position = len(p.leaf.ids)
	if end != nil {
		p.position, _ = x.seek(p.leaf, end)
	}
	return p
}
