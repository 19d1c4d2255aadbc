package check

import (
	"cmp"
	"slices"
	"time"
)

// IDs is a run of ids that one call was given.
type IDs struct {
	// Space is the kind, and the name where the kind has named ranges: within it no id comes twice.
	Space string
	// Generator is who gave them, where ids of one generator ascend from call to call.
	Generator string
	// Global: ids of all generators ascend with real time (sequences).
	Global       bool
	First, Count int64
	Call, Return time.Duration
}

func (b IDs) last() int64 { return b.First + b.Count - 1 }

// Unique checks ids: none twice in a space, those of one generator ascending in the order of the calls that it answered one
// after the other, those that are global ascending with real time.
func Unique(ids []IDs) error {
	var v violations
	ordered := slices.Clone(ids)
	slices.SortStableFunc(ordered, func(a, b IDs) int {
		return cmp.Or(cmp.Compare(a.Space, b.Space), cmp.Compare(a.First, b.First))
	})
	for i, b := range ordered {
		if b.Count <= 0 {
			v.addf("%s: %d ids from %d on", b.Space, b.Count, b.First)
		}
		if i > 0 && ordered[i-1].Space == b.Space && ordered[i-1].last() >= b.First {
			v.addf("%s: %d was given twice, by %s at %v and by %s at %v", b.Space, b.First, ordered[i-1].Generator, ordered[i-1].Return,
				b.Generator, b.Return)
		}
	}
	ascending(&v, ids, func(b IDs) (string, bool) { return b.Space + " of " + b.Generator, b.Generator != "" })
	ascending(&v, ids, func(b IDs) (string, bool) { return b.Space, b.Global })
	return v.err()
}

// ascending checks that what was called after an answer is above it, within each group.
func ascending(v *violations, ids []IDs, group func(IDs) (string, bool)) {
	groups := map[string][]IDs{}
	var names []string
	for _, b := range ids {
		if name, in := group(b); in {
			if groups[name] == nil {
				names = append(names, name)
			}
			groups[name] = append(groups[name], b)
		}
	}
	for _, name := range names {
		byCall := groups[name]
		slices.SortStableFunc(byCall, func(a, b IDs) int { return cmp.Compare(a.Call, b.Call) })
		byReturn := slices.Clone(byCall)
		slices.SortStableFunc(byReturn, func(a, b IDs) int { return cmp.Compare(a.Return, b.Return) })
		highest, next := int64(-1), 0
		for _, b := range byCall {
			for ; next < len(byReturn) && byReturn[next].Return < b.Call; next++ {
				highest = max(highest, byReturn[next].last())
			}
			if b.First <= highest {
				v.addf("%s: %d was given at %v, after %d", name, b.First, b.Return, highest)
			}
		}
	}
}
