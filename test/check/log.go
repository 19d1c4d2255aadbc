package check

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"
)

// Change is one change of one key, as the log decided it.
type Change struct {
	Revision int64
	Key      string
	// Value is the key's from then on; empty with Deleted.
	Value   string
	Deleted bool
}

// Log is the truth: all changes of keys in their order.
type Log struct {
	changes []Change
	byKey   map[string][]int
	byValue map[string]int
}

// NewLog takes the changes of a log, from its first one on, in order: of revision, and within one revision in the order in
// which they were made. Compacted history must not be missing.
func NewLog(changes []Change) (*Log, error) {
	l := &Log{changes: changes, byKey: map[string][]int{}, byValue: map[string]int{}}
	for i, c := range changes {
		if i > 0 && c.Revision < changes[i-1].Revision {
			return nil, fmt.Errorf("the log's revision %d comes after %d", c.Revision, changes[i-1].Revision)
		}
		earlier := l.byKey[c.Key]
		if n := len(earlier); n > 0 && changes[earlier[n-1]].Revision == c.Revision {
			return nil, fmt.Errorf("the log changes %q twice at revision %d", c.Key, c.Revision)
		}
		if n := len(earlier); c.Deleted && (n == 0 || changes[earlier[n-1]].Deleted) {
			return nil, fmt.Errorf("the log deletes %q at revision %d, where it does not exist", c.Key, c.Revision)
		}
		l.byKey[c.Key] = append(earlier, i)
	}
	return l, nil
}

// Len returns the number of changes.
func (l *Log) Len() int { return len(l.changes) }

// Revision returns the last one that changed something.
func (l *Log) Revision() int64 {
	if len(l.changes) == 0 {
		return 0
	}
	return l.changes[len(l.changes)-1].Revision
}

// At returns the last change of a key at or below a revision; false where there is none.
func (l *Log) At(key string, revision int64) (Change, bool) {
	indexes := l.byKey[key]
	n := sort.Search(len(indexes), func(i int) bool { return l.changes[indexes[i]].Revision > revision })
	if n == 0 {
		return Change{}, false
	}
	return l.changes[indexes[n-1]], true
}

// value is what a key has at a revision, empty for nothing.
func (l *Log) value(key string, revision int64) string {
	c, _ := l.At(key, revision)
	return c.Value
}

// changed returns the change of a key at exactly a revision.
func (l *Log) changed(key string, revision int64) (Change, bool) {
	c, ok := l.At(key, revision)
	return c, ok && c.Revision == revision
}

// Operations checks a history against the log:
//
//   - each answer is the one that the log gives at its revision
//   - what was acknowledged is in the log, at its revision, and is of this operation alone
//   - what was said not to be applied is not in the log; what is unknown is there at most once
//   - revisions follow real time: an operation sees all that was answered before it was called
//   - nothing is in the log that nobody wrote, for the keys that accounted returns true of; nil for no such check
func (l *Log) Operations(operations []Operation, accounted func(key string) bool) error {
	c := operationCheck{log: l, owner: map[int]*Operation{}}
	for i := range operations {
		if o := &operations[i]; o.Outcome == Done {
			c.answered(o)
		}
	}
	c.refused(operations)
	c.order(operations)
	if accounted != nil {
		c.unaccounted(operations, accounted)
	}
	return c.v.err()
}

type operationCheck struct {
	log *Log
	// owner is the operation that a change is of, by the change's place.
	owner map[int]*Operation
	v     violations
}

// answered compares one answer with the log.
func (c *operationCheck) answered(o *Operation) {
	l := c.log
	if !o.writes() {
		var want string
		switch value := l.value(o.Key, o.Revision); o.Kind {
		case Get:
			if value == o.Read {
				return
			}
			want = fmt.Sprintf("the value is %q", value)
		case CompareAndSwap:
			if value != o.Expect {
				return
			}
			want = "the key had what it wanted"
		case Delete:
			if value == "" {
				return
			}
			want = fmt.Sprintf("the key had %q", value)
		}
		c.v.addf("%v: in the log at that revision %s", *o, want)
		return
	}
	change, ok := l.changed(o.Key, o.Revision)
	switch {
	case !ok:
		c.v.addf("%v: acknowledged, and the log has no such change", *o)
		return
	case change.Deleted != (o.Kind == Delete), o.Kind == Add && change.Value != o.Read, o.Value != "" && change.Value != o.Value:
		c.v.addf("%v: the log has another change there: %+v", *o, change)
		return
	}
	next, want := model(l.value(o.Key, o.Revision-1), o)
	if next != change.Value || want.applied != o.Applied && o.Kind != Put && o.Kind != Add {
		c.v.addf("%v: the value before was %q", *o, l.value(o.Key, o.Revision-1))
	}
	place := l.place(o.Key, o.Revision)
	if other := c.owner[place]; other != nil {
		c.v.addf("%v: the same change was answered to another operation: %v", *o, *other)
		return
	}
	c.owner[place] = o
}

func (l *Log) place(key string, revision int64) int {
	indexes := l.byKey[key]
	return indexes[sort.Search(len(indexes), func(i int) bool { return l.changes[indexes[i]].Revision >= revision })]
}

// refused looks for values in the log: those that must not be there, and those that are there twice.
func (c *operationCheck) refused(operations []Operation) {
	refused := map[string]*Operation{}
	for i := range operations {
		if o := &operations[i]; o.Outcome == NotApplied && o.Value != "" {
			refused[o.Value] = o
		}
	}
	written := map[string]bool{}
	for i := range operations {
		if v := operations[i].Value; v != "" {
			written[v] = true
		}
	}
	seen := map[string]int64{}
	for _, change := range c.log.changes {
		if !written[change.Value] {
			continue
		}
		if o := refused[change.Value]; o != nil {
			c.v.addf("%v: the log has it at revision %d", *o, change.Revision)
		}
		if before, twice := seen[change.Value]; twice {
			c.v.addf("value %q of key %q was applied at revision %d and again at %d", change.Value, change.Key, before, change.Revision)
		}
		seen[change.Value] = change.Revision
	}
}

// order compares revisions with real time: whoever calls after an answer came sees at least the revision of that answer,
// and a write has a higher one.
func (c *operationCheck) order(operations []Operation) {
	var done []*Operation
	for i := range operations {
		if operations[i].Outcome == Done {
			done = append(done, &operations[i])
		}
	}
	byCall := slices.Clone(done)
	slices.SortStableFunc(byCall, func(a, b *Operation) int { return cmp.Compare(a.Call, b.Call) })
	slices.SortStableFunc(done, func(a, b *Operation) int { return cmp.Compare(a.Return, b.Return) })
	var highest *Operation
	next := 0
	for _, o := range byCall {
		for ; next < len(done) && done[next].Return < o.Call; next++ {
			if highest == nil || done[next].Revision > highest.Revision {
				highest = done[next]
			}
		}
		if highest == nil {
			continue
		}
		if o.Revision < highest.Revision || o.writes() && o.Revision == highest.Revision {
			c.v.addf("%v: began after the answer to: %v", *o, *highest)
		}
	}
}

// unaccounted looks for changes that are of no operation.
func (c *operationCheck) unaccounted(operations []Operation, accounted func(key string) bool) {
	// What is unknown may be in the log: by its value, or, where it has none, by its kind and number.
	values := map[string]bool{}
	type loose struct {
		key string
		sum int64
	}
	spare := map[loose]int{}
	for i := range operations {
		o := &operations[i]
		switch {
		case o.Outcome != Unknown:
		case o.Value != "":
			values[o.Value] = true
		case o.Kind == Delete:
			spare[loose{o.Key, 0}]++
		case o.Kind == Add:
			spare[loose{o.Key, o.Delta}]++
		}
	}
	for i, change := range c.log.changes {
		if !accounted(change.Key) || c.owner[i] != nil || !change.Deleted && values[change.Value] {
			continue
		}
		delta := int64(0)
		if !change.Deleted {
			now, err := strconv.ParseInt(change.Value, 10, 64)
			if err != nil {
				c.v.addf("the log has %+v, which nobody wrote", change)
				continue
			}
			before, _ := strconv.ParseInt(c.log.value(change.Key, change.Revision-1), 10, 64)
			delta = now - before
		}
		if spare[loose{change.Key, delta}]--; spare[loose{change.Key, delta}] < 0 {
			c.v.addf("the log has %+v, which nobody wrote", change)
		}
	}
}

// Read is a serializable read of several keys at once.
type Read struct {
	// Frontend and Life are who answered: of one life of a frontend reads never go backwards.
	Frontend, Life uint64
	Call, Return   time.Duration
	Revision       int64
	// Values are what was read, empty for no key.
	Values map[string]string
}

// Reads checks serializable reads: each shows the state at one revision, and in one life of a frontend no read shows an
// older one than a read that was answered before it was called.
func (l *Log) Reads(reads []Read) error {
	var v violations
	type life struct{ frontend, life uint64 }
	lives := map[life][]*Read{}
	var order []life
	for i := range reads {
		r := &reads[i]
		keys := make([]string, 0, len(r.Values))
		for key := range r.Values {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		for _, key := range keys {
			if want := l.value(key, r.Revision); want != r.Values[key] {
				v.addf("frontend %d read %q = %q at revision %d, the log has %q", r.Frontend, key, r.Values[key], r.Revision, want)
			}
		}
		at := life{r.Frontend, r.Life}
		if lives[at] == nil {
			order = append(order, at)
		}
		lives[at] = append(lives[at], r)
	}
	for _, at := range order {
		byCall := lives[at]
		slices.SortStableFunc(byCall, func(a, b *Read) int { return cmp.Compare(a.Call, b.Call) })
		byReturn := slices.Clone(byCall)
		slices.SortStableFunc(byReturn, func(a, b *Read) int { return cmp.Compare(a.Return, b.Return) })
		highest, next := int64(0), 0
		for _, r := range byCall {
			for ; next < len(byReturn) && byReturn[next].Return < r.Call; next++ {
				highest = max(highest, byReturn[next].Revision)
			}
			if r.Revision < highest {
				v.addf("frontend %d in life %d went back from revision %d to %d at %v", at.frontend, at.life, highest, r.Revision, r.Return)
			}
		}
	}
	return v.err()
}
