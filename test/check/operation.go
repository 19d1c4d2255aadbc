package check

import (
	"fmt"
	"time"
)

// Kind says what an operation is.
type Kind uint8

// The kinds of operations.
const (
	// Get is a linearizable read of one key.
	Get Kind = iota + 1
	// Put writes a value.
	Put
	// Delete takes a key away.
	Delete
	// CompareAndSwap writes a value if the key has another one, or none.
	CompareAndSwap
	// Add adds to a counter, which a key that is missing begins at zero.
	Add
)

// String returns the kind as stories show it.
func (k Kind) String() string {
	names := [...]string{"?", "get", "put", "delete", "cas", "add"}
	if int(k) < len(names) {
		return names[k]
	}
	return names[0]
}

// Outcome says what is known of an operation.
type Outcome uint8

// The outcomes.
const (
	// Unknown: it may have happened, may happen later, or never.
	Unknown Outcome = iota
	// Done: it was answered.
	Done
	// NotApplied: it has not happened and never will.
	NotApplied
)

// String returns the outcome as stories show it.
func (o Outcome) String() string { return [...]string{"unknown", "done", "not applied"}[o] }

// Operation is one call of one client.
type Operation struct {
	// Client is whose it is. The operations of one client do not overlap.
	Client int
	Kind   Kind
	Key    string
	// Value is what a Put or a CompareAndSwap writes, never empty. Expect is what a CompareAndSwap wants to find, empty for
	// no key. Delta is what an Add adds.
	Value, Expect string
	Delta         int64
	// Call and Return are when it began and was answered. Return counts only with Done.
	Call, Return time.Duration
	Outcome      Outcome

	// What follows is the answer, and counts only with Done.

	// Applied: a CompareAndSwap found what it wanted, a Delete found the key. Put and Add are always applied.
	Applied bool
	// Read is what a Get read, empty for no key, and the sum after an Add.
	Read string
	// Revision is that of the state that the answer is of; of an applied write, its own.
	Revision int64
}

// writes tells whether the operation, as far as it was answered, changed something.
func (o *Operation) writes() bool {
	switch o.Kind {
	case Put, Add:
		return true
	case Delete, CompareAndSwap:
		return o.Applied
	default:
		return false
	}
}

// String describes the operation in one line.
func (o Operation) String() string {
	what := fmt.Sprintf("%v %q", o.Kind, o.Key)
	switch o.Kind {
	case Put:
		what += fmt.Sprintf(" = %q", o.Value)
	case CompareAndSwap:
		what += fmt.Sprintf(" %q -> %q", o.Expect, o.Value)
	case Add:
		what += fmt.Sprintf(" + %d", o.Delta)
	}
	if o.Outcome != Done {
		return fmt.Sprintf("client %d: %s at %v: %v", o.Client, what, o.Call, o.Outcome)
	}
	return fmt.Sprintf("client %d: %s from %v to %v: applied %v, read %q, revision %d", o.Client, what, o.Call, o.Return, o.Applied,
		o.Read, o.Revision)
}
