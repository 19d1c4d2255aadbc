package lease

// orphanHeap is a binary heap of the leases without an owner, the one that ends first on top. A row knows its own
// place, so that an adopted lease is taken out in the logarithm of the heap's length.
type orphanHeap []*lease

func (h orphanHeap) before(a, b int) bool {
	endA, endB := h[a].endsAt(), h[b].endsAt()
	if endA != endB {
		return endA < endB
	}
	return h[a].id < h[b].id
}

func (h orphanHeap) swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].heapPosition, h[b].heapPosition = int32(a), int32(b)
}

func (h *orphanHeap) push(l *lease) {
	l.heapPosition = int32(len(*h))
	*h = append(*h, l)
	h.up(len(*h) - 1)
}

func (h *orphanHeap) remove(l *lease) {
	position, last := int(l.heapPosition), len(*h)-1
	if position != last {
		h.swap(position, last)
	}
	(*h)[last] = nil
	*h = (*h)[:last]
	l.heapPosition = -1
	if position < last {
		h.down(position)
		h.up(position)
	}
}

func (h orphanHeap) up(child int) {
	for child > 0 {
		parent := (child - 1) / 2
		if !h.before(child, parent) {
			return
		}
		h.swap(child, parent)
		child = parent
	}
}

func (h orphanHeap) down(parent int) {
	for {
		child := 2*parent + 1
		if child >= len(h) {
			return
		}
		if right := child + 1; right < len(h) && h.before(right, child) {
			child = right
		}
		if !h.before(child, parent) {
			return
		}
		h.swap(parent, child)
		parent = child
	}
}
