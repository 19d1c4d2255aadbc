package watch

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestIndexFindsWhatContainsTheKey compares the index with asking every span, over random insertions and
// removals.
func TestIndexFindsWhatContainsTheKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ix := newIndex()
		present := make(map[span]*group)
		key := rapid.StringOfN(rapid.SampledFrom([]rune("abc\x00")), 1, 3, -1)
		end := rapid.OneOf(rapid.Just(""), key)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			s := span{key: key.Draw(t, "key"), ranged: rapid.Bool().Draw(t, "ranged")}
			if s.ranged {
				s.end = end.Draw(t, "end")
			}
			g, ok := present[s]
			switch {
			case !ok:
				present[s] = ix.group(s, nil)
			case rapid.Bool().Draw(t, "remove"):
				ix.remove(g)
				delete(present, s)
			case ix.group(s, nil) != g:
				t.Fatalf("a second group for %+v", s)
			}
			if ix.empty() != (len(present) == 0) {
				t.Fatalf("empty() = %v with %d spans", ix.empty(), len(present))
			}
			checkTree(t, ix.ranges.root)
			k := key.Draw(t, "stab")
			var got, want []string
			ix.find([]byte(k), func(g *group) { got = append(got, fmt.Sprintf("%+v", g.span)) })
			for s := range present {
				if s.contains([]byte(k)) {
					want = append(want, fmt.Sprintf("%+v", s))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("find(%q) = %v, want %v", k, got, want)
			}
		}
	})
}

// checkTree verifies order, heap order and the augmentation of a subtree.
func checkTree(t *rapid.T, n *node) {
	if n == nil {
		return
	}
	most := n.group.span.end
	for i, child := range []*node{n.left, n.right} {
		if child == nil {
			continue
		}
		if c := compareSpans(child.group.span, n.group.span); c == 0 || (c < 0) != (i == 0) {
			t.Fatalf("%+v on the wrong side of %+v", child.group.span, n.group.span)
		}
		if child.priority > n.priority {
			t.Fatal("priorities out of order")
		}
		if endBelow(most, child.maxEnd) {
			most = child.maxEnd
		}
		checkTree(t, child)
	}
	if most != n.maxEnd {
		t.Fatalf("maxEnd of %+v is %q, want %q", n.group.span, n.maxEnd, most)
	}
}
