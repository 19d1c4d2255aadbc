package check

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
)

// answer is what porcupine's model compares.
type answer struct {
	known, applied bool
	read           string
}

// register is the model of one key: its state is the value, empty for no key. It is told nothing of revisions.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		value, operation, got := state.(string), input.(*Operation), output.(answer)
		next, want := model(value, operation)
		return !got.known || got == want, next
	},
	DescribeOperation: func(input, _ any) string { return input.(*Operation).String() },
}

// model is what one operation does to a key and answers.
func model(value string, o *Operation) (next string, a answer) {
	a.known = true
	switch o.Kind {
	case Get:
		a.read = value
		return value, a
	case Put:
		a.applied = true
		return o.Value, a
	case Delete:
		a.applied = value != ""
		return "", a
	case CompareAndSwap:
		if a.applied = value == o.Expect; a.applied {
			return o.Value, a
		}
		return value, a
	case Add:
		sum, _ := strconv.ParseInt(value, 10, 64) // a counter, or absent: zero
		a.applied, a.read = true, strconv.FormatInt(sum+o.Delta, 10)
		return a.read, a
	}
	return value, answer{}
}

// Linearizable searches for one order of the operations of each key that explains every answer and keeps to real time.
// An operation of unknown outcome may take its place anywhere after its call, or after everything. What was said not to be
// applied must not be needed. The time is for all keys together; without a decision the error is ErrInconclusive.
//
// The search grows with the number of operations under way at once: 8 clients and 3,000 operations take a second, 16 with
// many unknown outcomes may take minutes.
func Linearizable(operations []Operation, timeout time.Duration) error {
	keys := map[string][]porcupine.Operation{}
	var names []string
	for i := range operations {
		o := &operations[i]
		p := porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call)}
		switch {
		case o.Outcome == NotApplied, o.Outcome == Unknown && o.Kind == Get:
			continue
		case o.Outcome == Unknown:
			p.Return, p.Output = math.MaxInt64, answer{}
		case o.Kind == Put:
			p.Return, p.Output = int64(o.Return), answer{known: true, applied: true}
		case o.Kind == Add:
			p.Return, p.Output = int64(o.Return), answer{known: true, applied: true, read: o.Read}
		case o.Kind == Get:
			p.Return, p.Output = int64(o.Return), answer{known: true, read: o.Read}
		default:
			p.Return, p.Output = int64(o.Return), answer{known: true, applied: o.Applied}
		}
		if keys[o.Key] == nil {
			names = append(names, o.Key)
		}
		keys[o.Key] = append(keys[o.Key], p)
	}
	slices.Sort(names)
	var v violations
	undecided, deadline := "", time.Now().Add(timeout)
	for _, key := range names {
		switch porcupine.CheckOperationsTimeout(register, keys[key], max(time.Until(deadline), time.Millisecond)) {
		case porcupine.Illegal:
			v.addf("key %q: no order of its %d operations explains their answers", key, len(keys[key]))
		case porcupine.Unknown:
			undecided = key
		}
	}
	if err := v.err(); err != nil {
		return err
	}
	if undecided != "" {
		return fmt.Errorf("%w: key %q, %d operations", ErrInconclusive, undecided, len(keys[undecided]))
	}
	return nil
}
