package watch

import "math/rand/v2"

// span is what a watch looks at: the one key, or [key, end), or everything from key on.
type span struct {
	key string
	// end is exclusive. Empty with ranged set means no end.
	end    string
	ranged bool
}

func (s span) contains(key []byte) bool {
	if !s.ranged {
		return s.key == string(key)
	}
	return s.key <= string(key) && (s.end == "" || string(key) < s.end)
}

// group holds the watches of one span in one index. What is worked out for one of them (which events match, and
// how they are encoded) serves all.
type group struct {
	span    span
	watches []*watch
	// slot is 1 + the group's place in the fanout under way, 0 while no event has matched.
	slot int32
}

// index finds the groups whose span contains a key: in a hash map where the span is one key, in an interval
// tree where it is a range. It is not safe for concurrent use.
type index struct {
	keys   map[string]*group
	ranges tree
}

func newIndex() *index { return &index{keys: make(map[string]*group)} }

func (ix *index) empty() bool { return len(ix.keys) == 0 && ix.ranges.root == nil }

// group returns the group of a span. If there is none, it puts the candidate in, or a new group if that is nil.
func (ix *index) group(s span, candidate *group) *group {
	if candidate == nil {
		candidate = &group{span: s}
	}
	if s.ranged {
		return ix.ranges.insert(candidate)
	}
	if g, ok := ix.keys[s.key]; ok {
		return g
	}
	ix.keys[s.key] = candidate
	return candidate
}

// groupOf returns the group of a span that is one key and has watches, else a new one that is not in the index.
func (ix *index) groupOf(s span) *group {
	if g, ok := ix.keys[s.key]; ok && !s.ranged {
		return g
	}
	return &group{span: s}
}

// remove takes a group out.
func (ix *index) remove(g *group) {
	if g.span.ranged {
		ix.ranges.remove(g.span)
		return
	}
	delete(ix.keys, g.span.key)
}

// find calls visit for every group whose span contains the key.
func (ix *index) find(key []byte, visit func(*group)) {
	if g, ok := ix.keys[string(key)]; ok {
		visit(g)
	}
	ix.ranges.root.stab(key, visit)
}

// tree is a treap over spans, ordered by (key, end), each node augmented with the greatest end below it. Equal
// spans share a node.
type tree struct{ root *node }

type node struct {
	group       *group
	left, right *node
	// maxEnd is the greatest end in this subtree; empty means that one of them has no end.
	maxEnd   string
	priority uint32
}

// insert returns the group that is in the tree under the candidate's span afterwards.
func (t *tree) insert(candidate *group) *group {
	var found *group
	t.root, found = t.root.insert(candidate)
	return found
}

func (t *tree) remove(s span) { t.root = t.root.remove(s) }

// compareSpans orders ranged spans; no end is greater than any end.
func compareSpans(a, b span) int {
	switch {
	case a.key < b.key:
		return -1
	case a.key > b.key:
		return 1
	case a.end == b.end:
		return 0
	case endBelow(a.end, b.end):
		return -1
	default:
		return 1
	}
}

func endBelow(a, b string) bool { return a != "" && (b == "" || a < b) }

func (n *node) update() {
	n.maxEnd = n.group.span.end
	for _, child := range [...]*node{n.left, n.right} {
		if child != nil && endBelow(n.maxEnd, child.maxEnd) {
			n.maxEnd = child.maxEnd
		}
	}
}

func (n *node) insert(candidate *group) (*node, *group) {
	if n == nil {
		return &node{group: candidate, maxEnd: candidate.span.end, priority: rand.Uint32()}, candidate
	}
	var found *group
	switch c := compareSpans(candidate.span, n.group.span); {
	case c == 0:
		return n, n.group
	case c < 0:
		n.left, found = n.left.insert(candidate)
		if n.left.priority > n.priority {
			return n.rotateRight(), found
		}
	default:
		n.right, found = n.right.insert(candidate)
		if n.right.priority > n.priority {
			return n.rotateLeft(), found
		}
	}
	n.update()
	return n, found
}

func (n *node) remove(s span) *node {
	if n == nil {
		return nil
	}
	switch c := compareSpans(s, n.group.span); {
	case c < 0:
		n.left = n.left.remove(s)
	case c > 0:
		n.right = n.right.remove(s)
	default:
		return merge(n.left, n.right)
	}
	n.update()
	return n
}

// merge joins two subtrees of which every span in a is below every span in b.
func merge(a, b *node) *node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		a.right = merge(a.right, b)
		a.update()
		return a
	default:
		b.left = merge(a, b.left)
		b.update()
		return b
	}
}

func (n *node) rotateRight() *node {
	l := n.left
	n.left, l.right = l.right, n
	n.update()
	l.update()
	return l
}

func (n *node) rotateLeft() *node {
	r := n.right
	n.right, r.left = r.left, n
	n.update()
	r.update()
	return r
}

// stab calls visit for every span that contains the key, in O(log n) plus the number of hits.
func (n *node) stab(key []byte, visit func(*group)) {
	for n != nil && (n.maxEnd == "" || string(key) < n.maxEnd) {
		n.left.stab(key, visit)
		if string(key) < n.group.span.key {
			return
		}
		if n.group.span.contains(key) {
			visit(n.group)
		}
		n = n.right
	}
}
