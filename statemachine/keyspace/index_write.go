package keyspace

import "bytes"

// The writer's half of the index. The writer finds each place through the present root, so locate never has to move
// right for it.

// sequentialKeys is how many keys must have come each next to the one before for more of them to be expected.
const sequentialKeys = 8

// insert puts a key that is not there at the place that locate gave for it. keyOf(id) must already be key.
func (x *index) insert(p place, key []byte, id uint32) {
	old := p.leaf
	if p.position > 0 && old.ids[p.position-1] == x.lastID {
		x.runKeys++
	} else {
		x.runKeys = 0
	}
	x.lastID = id
	if n := len(old.ids); n < leafKeys {
		if p.position == n && 0 < n && n < len(p.room.ids) && bytes.HasPrefix(key, old.common) {
			p.room.add(key, id)
			return
		}
		p.owner.room.Store(x.withKey(old, p.position, key, id))
		return
	}
	// Split. When the new key comes last, the left leaf stays full: keys that arrive in order fill their leaves. So do those
	// that arrive in order between others, if the left leaf ends with them.
	middle := len(old.ids) / 2
	switch {
	case p.position == len(old.ids):
		middle = len(old.ids)
	case x.runKeys >= sequentialKeys:
		middle = p.position + 1
	case p.position <= middle:
		middle++
	}
	ids := insertAt(old.ids, p.position, id)
	var words []uint64
	if bytes.HasPrefix(key, old.common) {
		words = insertAt(old.words, p.position, word(key, len(old.common)))
	}
	right := &cell{low: append([]byte(nil), x.keyOf(ids[middle])...)}
	right.room.Store(x.partOf(old, ids, words, middle, len(ids), old.next))
	p.owner.room.Store(x.partOf(old, ids, words, 0, middle, right))

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
	p.owner.room.Store(withoutKey(p.leaf, p.position))
	if len(p.leaf.ids)-1 > leafKeys/4 {
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
	a := left.leaf()
	if a.next == nil {
		return false
	}
	b := a.next.leaf()
	if len(a.ids)+len(b.ids) > leafKeys/2 {
		return false
	}
	ids := append(append(make([]uint32, 0, len(a.ids)+len(b.ids)), a.ids...), b.ids...)
	left.room.Store(x.newLeaf(ids, b.next))
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

func (x *index) newLeaf(ids []uint32, next *cell) *leafRoom {
	room := allocateLeaf(len(ids), next)
	copy(room.ids, ids)
	room.fill(func(i int) []byte { return x.keyOf(ids[i]) })
	return room
}

// fill computes the fences of the room's keys.
func (r *leafRoom) fill(key func(int) []byte) {
	lf := r.filled()
	lf.fill(key)
	r.common = lf.common
}

// partOf returns a leaf of ids[from:to], which are old's and one more. words are theirs after old's common prefix, nil if it is
// no longer that of all. They are kept as long as they tell the keys apart: longer prefixes would cost a look at each key.
func (x *index) partOf(old leaf, ids []uint32, words []uint64, from, to int, next *cell) *leafRoom {
	if words == nil || !strictlyAscending(words[from:to]) {
		return x.newLeaf(ids[from:to], next)
	}
	room := allocateLeaf(to-from, next)
	room.common = old.common
	copy(room.ids, ids[from:to])
	copy(room.words, words[from:to])
	return room
}

func strictlyAscending(words []uint64) bool {
	for i := 1; i < len(words); i++ {
		if words[i-1] >= words[i] {
			return false
		}
	}
	return true
}

// withKey is old with one key more. The fences of the others are copied unless the common prefix becomes shorter. Where the key
// comes last, there is room for others to follow it.
func (x *index) withKey(old leaf, position int, key []byte, id uint32) *leafRoom {
	n := len(old.ids) + 1
	room := allocateLeaf(n, old.next)
	if position == n-1 && n == len(room.ids) && n < leafKeys {
		room = allocateLeaf(n+n/4, old.next)
		room.keys.Store(uint32(n))
	}
	copyInserting(room.ids, old.ids, position, id)
	if n == 1 || !bytes.HasPrefix(key, old.common) {
		room.fill(func(i int) []byte { return x.keyOf(room.ids[i]) })
		return room
	}
	room.common = old.common
	copyInserting(room.words, old.words, position, word(key, len(old.common)))
	return room
}

// withoutKey is old with one key less. The common prefix may be shorter than it could be.
func withoutKey(old leaf, position int) *leafRoom {
	room := allocateLeaf(len(old.ids)-1, old.next)
	room.common = old.common
	copyRemoving(room.ids, old.ids, position)
	copyRemoving(room.words, old.words, position)
	return room
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
