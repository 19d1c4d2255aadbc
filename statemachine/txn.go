package statemachine

import (
	"bytes"
	"cmp"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// txnPath is what the comparisons of a transaction, nested ones included, have chosen. As in etcd, all of them are
// decided by the state before the transaction.
type txnPath struct {
	succeeded  bool
	operations []*commandv1.TxnOperation
	nested     []*txnPath // of the operations that are transactions, in order
	mutations  []mutation // what becomes of the operations that are mutations, in order
}

func choosePath(sn *keyspace.Snapshot, t *commandv1.Txn) *txnPath {
	p := &txnPath{succeeded: true, operations: t.Success}
	for _, c := range t.Compares {
		if !holds(sn, c) {
			p.succeeded, p.operations = false, t.Failure
			break
		}
	}
	for _, o := range p.operations {
		if nested, ok := o.Operation.(*commandv1.TxnOperation_Txn); ok {
			p.nested = append(p.nested, choosePath(sn, nested.Txn))
		}
	}
	return p
}

// holds evaluates one comparison. Over a range it has to hold for every key. A key that does not exist, or a range
// without keys, compares as zeros, except for the value, for which no comparison holds.
func holds(sn *keyspace.Snapshot, c *commandv1.Compare) bool {
	if len(c.RangeEnd) == 0 {
		v, ok, err := sn.Get(c.Key, 0)
		if err != nil {
			return false
		}
		return compareAbsentOr(c, &v, ok)
	}
	result, found := true, false
	err := sn.Range(c.Key, rangeEnd(c.RangeEnd), 0, func(v keyspace.Version) bool {
		found = true
		result = compareVersion(c, &v)
		return result
	})
	if err != nil {
		return false
	}
	if !found {
		return compareAbsentOr(c, &keyspace.Version{}, false)
	}
	return result
}

func compareAbsentOr(c *commandv1.Compare, v *keyspace.Version, exists bool) bool {
	if exists {
		return compareVersion(c, v)
	}
	if _, ok := c.Target.(*commandv1.Compare_Value); ok {
		return false
	}
	return compareVersion(c, &keyspace.Version{})
}

func compareVersion(c *commandv1.Compare, v *keyspace.Version) bool {
	var order int
	switch target := c.Target.(type) {
	case *commandv1.Compare_Version:
		order = cmp.Compare(v.Version, target.Version)
	case *commandv1.Compare_CreateRevision:
		order = cmp.Compare(v.CreateRevision, target.CreateRevision)
	case *commandv1.Compare_ModRevision:
		order = cmp.Compare(v.ModRevision, target.ModRevision)
	case *commandv1.Compare_Value:
		order = bytes.Compare(v.Value, target.Value)
	case *commandv1.Compare_Lease:
		order = cmp.Compare(v.Lease, target.Lease)
	}
	switch c.Result {
	case commandv1.Compare_RESULT_EQUAL:
		return order == 0
	case commandv1.Compare_RESULT_NOT_EQUAL:
		return order != 0
	case commandv1.Compare_RESULT_GREATER:
		return order > 0
	case commandv1.Compare_RESULT_LESS:
		return order < 0
	default:
		return false
	}
}

// checkRange checks that a range within a transaction names a revision that exists before the transaction.
func checkRange(revision, compacted int64, r *commandv1.Range) error {
	switch {
	case r.Revision > revision:
		return ErrFutureRevision
	case r.Revision != 0 && r.Revision < compacted:
		return ErrCompacted
	}
	return nil
}

// executeTxn applies a transaction: it checks everything that could fail on the chosen path, then writes.
func (m *Machine) executeTxn(e *entry, w *write, t *commandv1.Txn, wanted bool) (*TxnResult, error) {
	if err := validateTxn(t, applyLimits); err != nil {
		return nil, err
	}
	cost := txnCost(t)
	if cost > 0 && m.noSpace {
		return nil, ErrNoSpace
	}
	view := m.space.WriterView()
	path := choosePath(&view, t)
	check := pathCheck{entry: e, cost: cost}
	if err := m.checkPath(path, &check); err != nil {
		return nil, err
	}
	if err := m.charge(e, check.cost); err != nil {
		return nil, err
	}
	return m.executePath(e, w, path, wanted)
}

// deletedRanges are the ranges that a transaction deletes before the operation that is looked at.
type deletedRanges []*commandv1.DeleteRange

// cover reports whether the key is in one of the ranges.
func (d deletedRanges) cover(key []byte) bool {
	for _, r := range d {
		if len(r.RangeEnd) == 0 {
			if bytes.Equal(r.Key, key) {
				return true
			}
			continue
		}
		end := rangeEnd(r.RangeEnd)
		if bytes.Compare(r.Key, key) <= 0 && (end == nil || bytes.Compare(key, end) < 0) {
			return true
		}
	}
	return false
}

// pathCheck is what is known of a path up to the operation that is looked at.
type pathCheck struct {
	entry   *entry
	deleted deletedRanges
	cost    int64
}

// checkPath checks, in their order, what the operations on a path need, and works out what becomes of its mutations. What
// a key holds when its turn comes is what it holds now, unless an earlier operation deletes it: none can make it anew,
// because no path puts a key twice.
func (m *Machine) checkPath(p *txnPath, check *pathCheck) error {
	nested := p.nested
	for _, o := range p.operations {
		switch o := o.Operation.(type) {
		case *commandv1.TxnOperation_Range:
			if err := checkRange(m.revision, m.compacted, o.Range); err != nil {
				return err
			}
		case *commandv1.TxnOperation_Put:
			put := putOf(o.Put)
			if err := m.checkPut(&put); err != nil {
				return err
			}
			if (put.ignoreValue || put.ignoreLease) && check.deleted.cover(put.key) {
				return ErrKeyNotFound
			}
		case *commandv1.TxnOperation_DeleteRange:
			check.deleted = append(check.deleted, o.DeleteRange)
		case *commandv1.TxnOperation_Mutate:
			outcome, err := m.checkMutate(o.Mutate, check.deleted.cover(o.Mutate.Key))
			if err != nil {
				return err
			}
			p.mutations = append(p.mutations, outcome)
			// At once, so that outcomes are never larger together than what is left of the quota.
			check.cost += int64(len(outcome.value))
			if err := m.charge(check.entry, check.cost); err != nil {
				return err
			}
		case *commandv1.TxnOperation_Txn:
			if err := m.checkPath(nested[0], check); err != nil {
				return err
			}
			nested = nested[1:]
		}
	}
	return nil
}

// executePath applies the operations of a checked path, each seeing the writes before it. Without wanted only the
// writes are done, and the result has nothing but whether the comparisons held.
func (m *Machine) executePath(e *entry, w *write, p *txnPath, wanted bool) (*TxnResult, error) {
	result := &TxnResult{Succeeded: p.succeeded}
	if wanted {
		result.Operations = make([]OperationResult, len(p.operations))
	}
	nested, mutations := p.nested, p.mutations
	for i, o := range p.operations {
		var r OperationResult
		switch o := o.Operation.(type) {
		case *commandv1.TxnOperation_Range:
			if wanted {
				view := m.space.WriterView()
				answer, err := EvaluateRange(&view, o.Range)
				if err != nil {
					return nil, err // cannot be: the revision was checked before the first write
				}
				r.Range = &answer
			}
		case *commandv1.TxnOperation_Put:
			put := putOf(o.Put)
			r.Put = m.put(e, w, &put, wanted)
		case *commandv1.TxnOperation_DeleteRange:
			r.Delete = m.deleteRange(e, w, o.DeleteRange, wanted)
		case *commandv1.TxnOperation_Mutate:
			r.Mutate = m.mutate(e, w, o.Mutate.Key, &mutations[0], wanted)
			mutations = mutations[1:]
		case *commandv1.TxnOperation_Txn:
			var err error
			if r.Txn, err = m.executePath(e, w, nested[0], wanted); err != nil {
				return nil, err
			}
			nested = nested[1:]
		}
		if wanted {
			result.Operations[i] = r
		}
	}
	return result, nil
}
