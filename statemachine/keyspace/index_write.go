package keyspace

import "bytes"

// The writer's half of the index. The writer finds each place through the present root, so locate never has to move
// right for it.

// insert puts a key that is not there at the place that locate gave for it. keyOf(id) must already be key.
func (x *index) insert(p place, key []byte, id uint32) {
	old := p.leaf
	if len(old.ids) < leafKeys {
		p.owner.leaf.Store(x.withKey(old, p.position, key, id))
		return
	}
	// Split. When the new key comes last, the left leaf stays full: keys that arrive in order fill their leaves.
	middle := len(old.ids) / 2
	switch {
	case p.position == len(old.ids):
		middle = len(old.ids)
	case p.position <= middle:
		middle++
	}
	ids := insertAt(old.ids, p.position, id)
	var words []uint64
	if bytes.HasPrefix(key, old.common) {
		words = insertAt(old.words, p.position, word(key, len(old.common)))
	}
	right := &cell{low: append([]byte(nil), x.keyOf(ids[middle])...)}
	right.leaf.Store(x.partOf(old, ids, words, middle, len(ids), old.next))
	p.owner.leaf.Store(x.partOf(old, ids, words, 0, middle, right))

	cells := insertAt(p.root.groups[p.group].cells, p.cell+1, right)
	if len(cells) <= groupCells {
		x.replaceGroup(p.root, p.group, newGroup(cells))
		return
	}
	middle = len(cells) / 2
	if p.cell+2 == len(cells) {
		middle = len(cells) - 1
	}
	x.replaceGroup(p.root, p.group, newGroup(cells[:middle:middle]), newGroup(cells[middle:]))
}

// remove takes a key out that locate found.
func (x *index) remove(p place) {
	shrunk := withoutKey(p.leaf, p.position)
	p.owner.leaf.Store(shrunk)
	if len(shrunk.ids) > leafKeys/4 {
		return
	}
	// Merge with the right neighbour, or else with the left one, if the two are half a leaf together.
	if x.mergeRight(p.root, p.group, p.cell) {
		return
	}
	group, cell := p.group, p.cell-1
	if cell < 0 {
		group--
		if group < 0 {
			return
		}
		cell = len(p.root.groups[group].cells) - 1
	}
	x.mergeRight(p.root, group, cell)
}

// mergeRight moves the keys of the cell after the given one into it. Readers that already hold the cell merged away
// go on with its last leaf.
func (x *index) mergeRight(r *root, group, position int) bool {
	left := r.groups[group].cells[position]
	a := left.leaf.Load()
	if a.next == nil {
		return false
	}
	b := a.next.leaf.Load()
	if len(a.ids)+len(b.ids) > leafKeys/2 {
		return false
	}
	ids := append(append(make([]uint32, 0, len(a.ids)+len(b.ids)), a.ids...), b.ids...)
	left.leaf.Store(x.newLeaf(ids, b.next))
	position++
	if position == len(r.groups[group].cells) {
		group, position = group+1, 0
	}
	cells := removeAt(r.groups[group].cells, position)
	if len(cells) == 0 {
		x.replaceGroup(r, group)
	} else {
		x.replaceGroup(r, group, newGroup(cells))
	}
	return true
}

// replaceGroup publishes a root that has the given groups, or none, in place of one.
func (x *index) replaceGroup(r *root, at int, with ...*group) {
	if len(with) == 1 && bytes.Equal(r.groups[at].low(), with[0].low()) {
		groups := append([]*group(nil), r.groups...)
		copy(groups[at:], with)
		x.root.Store(&root{groups: groups, fences: r.fences})
		return
	}
	groups := make([]*group, 0, len(r.groups)-1+len(with))
	groups = append(append(append(groups, r.groups[:at]...), with...), r.groups[at+1:]...)
	x.root.Store(newRoot(groups))
}

func (x *index) newLeaf(ids []uint32, next *cell) *leaf {
	lf := allocateLeaf(len(ids), next)
	copy(lf.ids, ids)
	lf.fill(func(i int) []byte { return x.keyOf(lf.ids[i]) })
	return lf
}

// partOf returns a leaf of ids[from:to], which are old's and one more. words are theirs after old's common prefix, nil if it is
// no longer that of all. They are kept as long as they tell the keys apart: longer prefixes would cost a look at each key.
func (x *index) partOf(old *leaf, ids []uint32, words []uint64, from, to int, next *cell) *leaf {
	if words == nil || !strictlyAscending(words[from:to]) {
		return x.newLeaf(ids[from:to], next)
	}
	lf := allocateLeaf(to-from, next)
	lf.common = old.common
	copy(lf.ids, ids[from:to])
	copy(lf.words, words[from:to])
	return lf
}

func strictlyAscending(words []uint64) bool {
	for i := 1; i < len(words); i++ {
		if words[i-1] >= words[i] {
			return false
		}
	}
	return true
}

// withKey is old with one key more. The fences of the others are copied unless the common prefix becomes shorter.
func (x *index) withKey(old *leaf, position int, key []byte, id uint32) *leaf {
	lf := allocateLeaf(len(old.ids)+1, old.next)
	copyInserting(lf.ids, old.ids, position, id)
	if len(old.ids) == 0 || !bytes.HasPrefix(key, old.common) {
		lf.fill(func(i int) []byte { return x.keyOf(lf.ids[i]) })
		return lf
	}
	lf.common = old.common
	copyInserting(lf.words, old.words, position, word(key, len(old.common)))
	return lf
}

// withoutKey is old with one key less. The common prefix may be shorter than it could be.
func withoutKey(old *leaf, position int) *leaf {
	lf := allocateLeaf(len(old.ids)-1, old.next)
	lf.common = old.common
	copyRemoving(lf.ids, old.ids, position)
	copyRemoving(lf.words, old.words, position)
	return lf
}

func insertAt[T any](s []T, at int, v T) []T {
	grown := make([]T, len(s)+1)
	copyInserting(grown, s, at, v)
	return grown
}

func removeAt[T any](s []T, at int) []T {
	shrunk := make([]T, len(s)-1)
	copyRemoving(shrunk, s, at)
	return shrunk
}

func copyInserting[T any](to, from []T, at int, v T) {
	copy(to, from[:at])
	to[at] = v
	copy(to[at+1:], from[at:])
}

func copyRemoving[T any](to, from []T, at int) {
	copy(to, from[:at])
	copy(to[at:], from[at+1:])
}
