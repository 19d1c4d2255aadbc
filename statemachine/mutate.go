package statemachine

import (
	"bytes"
	"fmt"
	"math"
	"strconv"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// maxMutatedValueBytes bounds the value that a mutation makes larger: each change of it costs apply in proportion to the
// whole. Part of what every mirror must agree on.
const maxMutatedValueBytes = 1 << 20

// MutationError is a mutation that is refused for what its key holds.
type MutationError struct {
	Key []byte
	// Detail has the numbers: what was found, what was asked for, the limit.
	Detail string
	// Err is the sentinel.
	Err error
}

// Error names the key, the fault and the numbers.
func (e *MutationError) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("key %.64q: %v", e.Key, e.Err)
	}
	return fmt.Sprintf("key %.64q: %v: %s", e.Key, e.Err, e.Detail)
}

// Unwrap returns the sentinel.
func (e *MutationError) Unwrap() error { return e.Err }

// MutateResult is the outcome of a Mutate.
type MutateResult struct {
	// Changed: the key was written.
	Changed bool
	// Integer is what the key has after an add, a max or a min.
	Integer int64
	// Members is how many the set has after an insert or a remove, and MembersChanged how many of those named were put in
	// or taken out.
	Members, MembersChanged int64
	// Current is the key afterwards; nil where it does not exist.
	Current *keyspace.Version
}

// mutation is the outcome of a Mutate before it is written.
type mutation struct {
	value  []byte // nil where nothing changes
	lease  int64
	result MutateResult // without Current
}

// cost is what writing the outcome adds to the size, before it is encoded.
func (o *mutation) cost(key []byte) int64 {
	if !o.result.Changed {
		return 0
	}
	return putCost(&putCommand{key: key, value: o.value})
}

func validateMutate(c *commandv1.Mutate) error {
	if len(c.GetKey()) == 0 {
		return &InvalidError{Field: "mutate.key", Err: ErrEmptyKey}
	}
	members := func(field string, members [][]byte) error {
		if len(members) == 0 {
			return &InvalidError{Field: field, Err: ErrInvalidCommand}
		}
		for i, member := range members {
			if len(member) == 0 {
				return &InvalidError{Field: fmt.Sprintf("%s[%d]", field, i), Err: ErrEmptyMember}
			}
		}
		return nil
	}
	limit := func(field string, limit int64) error {
		if limit < 0 {
			return &InvalidError{Field: field, Limit: math.MaxInt64, Value: limit, Err: ErrInvalidCommand}
		}
		return nil
	}
	switch change := c.GetChange().(type) {
	case *commandv1.Mutate_Add, *commandv1.Mutate_Max, *commandv1.Mutate_Min:
		return nil
	case *commandv1.Mutate_Insert_:
		if err := limit("mutate.insert.members_max", change.Insert.GetMembersMax()); err != nil {
			return err
		}
		return members("mutate.insert.members", change.Insert.GetMembers())
	case *commandv1.Mutate_Remove_:
		return members("mutate.remove.members", change.Remove.GetMembers())
	case *commandv1.Mutate_Append_:
		if len(change.Append.GetData()) == 0 {
			return &InvalidError{Field: "mutate.append.data", Err: ErrInvalidCommand}
		}
		return limit("mutate.append.bytes_max", change.Append.GetBytesMax())
	default:
		return &InvalidError{Field: "mutate.change", Err: ErrInvalidCommand}
	}
}

func (m *Machine) executeMutate(e *entry, w *write, c *commandv1.Mutate, wanted bool) (*MutateResult, error) {
	if err := validateMutate(c); err != nil {
		return nil, err
	}
	if m.noSpace {
		return nil, ErrNoSpace
	}
	outcome, err := m.checkMutate(c, false)
	if err != nil {
		return nil, err
	}
	if err := m.charge(e, outcome.cost(c.Key)); err != nil {
		return nil, err
	}
	return m.mutate(e, w, c.Key, &outcome, wanted), nil
}

// checkMutate returns what a mutation makes of its key, or why it is refused. deleted says that the key will be gone when
// its turn comes.
func (m *Machine) checkMutate(c *commandv1.Mutate, deleted bool) (mutation, error) {
	if c.Lease != 0 && !m.leases.Exists(c.Lease) {
		return mutation{}, ErrLeaseNotFound
	}
	var present keyspace.Version
	exists := false
	if !deleted {
		present, exists = m.space.Latest(c.Key)
	}
	outcome, err := mutated(c, &present, exists)
	if err != nil {
		return mutation{}, err
	}
	if n := len(outcome.value); n > maxMutatedValueBytes && n > len(present.Value) {
		detail := fmt.Sprintf("%d bytes, limit %d", n, maxMutatedValueBytes)
		return mutation{}, &MutationError{Key: c.Key, Detail: detail, Err: ErrValueTooLarge}
	}
	if outcome.lease = present.Lease; c.Lease != 0 {
		outcome.lease = c.Lease
	}
	if exists {
		outcome.result.Changed = outcome.lease != present.Lease || !bytes.Equal(outcome.value, present.Value)
	} else {
		outcome.result.Changed = c.GetRemove() == nil // the others make the key
	}
	if !outcome.result.Changed {
		outcome.value = nil // what it is already need not be held
	}
	return outcome, nil
}

// mutated works out value and result of a mutation that has been validated.
func mutated(c *commandv1.Mutate, present *keyspace.Version, exists bool) (mutation, error) {
	refused := func(err error, format string, arguments ...any) (mutation, error) {
		return mutation{}, &MutationError{Key: c.Key, Detail: fmt.Sprintf(format, arguments...), Err: err}
	}
	var outcome mutation
	number := func(n int64) (mutation, error) {
		outcome.value, outcome.result.Integer = strconv.AppendInt(nil, n, 10), n
		return outcome, nil
	}
	set := func(members [][]byte, insert bool) (err error) {
		r := &outcome.result
		outcome.value, r.Members, r.MembersChanged, err = changeSet(present.Value, sortMembers(members), insert)
		return err
	}
	switch change := c.Change.(type) {
	case *commandv1.Mutate_Add, *commandv1.Mutate_Max, *commandv1.Mutate_Min:
		have, ok := int64(0), !exists
		if exists {
			have, ok = parseInteger(present.Value)
		}
		if !ok {
			return refused(ErrNotInteger, "%.64q", present.Value)
		}
		switch change := change.(type) {
		case *commandv1.Mutate_Add:
			sum := have + change.Add
			if (sum > have) != (change.Add > 0) && change.Add != 0 {
				return refused(ErrIntegerRange, "%d + %d, limits %d and %d", have, change.Add, math.MinInt64, math.MaxInt64)
			}
			return number(sum)
		case *commandv1.Mutate_Max:
			if exists {
				return number(max(have, change.Max))
			}
			return number(change.Max)
		case *commandv1.Mutate_Min:
			if exists {
				return number(min(have, change.Min))
			}
			return number(change.Min)
		}
	case *commandv1.Mutate_Insert_:
		if err := set(change.Insert.Members, true); err != nil {
			return refused(ErrNotSet, "")
		}
		r := &outcome.result
		if most := change.Insert.MembersMax; most > 0 && r.MembersChanged > 0 && r.Members > most {
			return refused(ErrOverLimit, "%d members, limit %d", r.Members, most)
		}
	case *commandv1.Mutate_Remove_:
		if err := set(change.Remove.Members, false); err != nil {
			return refused(ErrNotSet, "")
		}
	case *commandv1.Mutate_Append_:
		size := int64(len(present.Value) + len(change.Append.Data))
		if most := change.Append.BytesMax; most > 0 && size > most {
			return refused(ErrOverLimit, "%d bytes, limit %d", size, most)
		}
		outcome.value = append(append(make([]byte, 0, size), present.Value...), change.Append.Data...)
	}
	return outcome, nil
}

// parseInteger reads a value in the one form that an integer has.
func parseInteger(value []byte) (n int64, ok bool) {
	if len(value) == 0 || len(value) > len("-9223372036854775808") {
		return 0, false
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return 0, false
	}
	var canonical [20]byte
	return n, bytes.Equal(strconv.AppendInt(canonical[:0], n, 10), value)
}

// mutate writes the outcome of a mutation, unless it changes nothing.
func (m *Machine) mutate(e *entry, w *write, key []byte, outcome *mutation, wanted bool) *MutateResult {
	if outcome.result.Changed {
		m.put(e, w, &putCommand{key: key, value: outcome.value, lease: outcome.lease}, false)
	}
	if !wanted {
		return nil
	}
	result := outcome.result
	if current, exists := m.space.Latest(key); exists {
		result.Current = &current
	}
	return &result
}
