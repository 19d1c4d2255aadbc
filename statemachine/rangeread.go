package statemachine

import (
	"bytes"
	"cmp"
	"slices"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// RangeResult is the outcome of a Range.
type RangeResult struct {
	// KVs are the key-values in the order asked for. With keys_only they have neither Value nor Encoded.
	KVs []keyspace.Version
	// More: the limit cut the answer short.
	More bool
	// Count is the number of keys in the range at the revision, whatever limit and filters say.
	Count int64
}

// EvaluateRange reads a range as etcd does, with every option of it, at the snapshot's revision or the older one that r
// names. r must have passed ValidateRange. It returns ErrCompacted or ErrFutureRevision for a revision that the
// snapshot does not have.
func EvaluateRange(sn *keyspace.Snapshot, r *commandv1.Range) (RangeResult, error) {
	revision, err := readRevision(sn, r.Revision)
	if err != nil {
		return RangeResult{}, err
	}
	if len(r.RangeEnd) == 0 {
		return readOne(sn, r, revision)
	}
	end := rangeEnd(r.RangeEnd)
	if r.CountOnly {
		count, err := sn.Count(r.Key, end, revision)
		return RangeResult{Count: count}, err
	}
	c := collector{request: r}
	if r.Limit > 0 && inKeyOrder(r) && !filters(r) {
		c.limit = r.Limit // no need to hold more than is answered
	}
	if err := sn.Range(r.Key, end, revision, c.visit); err != nil {
		return RangeResult{}, err
	}
	result := c.result()
	if c.rest != nil {
		rest, err := sn.Count(c.rest, end, revision)
		if err != nil {
			return RangeResult{}, err
		}
		result.Count += rest
	}
	return result, nil
}

// EvaluateGet is EvaluateRange for a range that is one key, with nothing else asked for: it returns the key's version at the
// snapshot's revision, or at the older one that is named. False where the key did not exist.
func EvaluateGet(sn *keyspace.Snapshot, key []byte, revision int64) (keyspace.Version, bool, error) {
	revision, err := readRevision(sn, revision)
	if err != nil {
		return keyspace.Version{}, false, err
	}
	return sn.Get(key, revision)
}

// readRevision is the revision to read at: as the snapshot takes it, and one that it has.
func readRevision(sn *keyspace.Snapshot, revision int64) (int64, error) {
	revision = max(revision, 0)
	switch {
	case revision > sn.Revision():
		return 0, ErrFutureRevision
	case revision != 0 && revision < sn.CompactRevision():
		return 0, ErrCompacted
	}
	return revision, nil
}

// Gatherable reports whether the key-values that answer r are those of a range as they stand, in the order of keys, from
// the first one on: GatherRange has them then, without holding any.
func Gatherable(r *commandv1.Range) bool {
	return len(r.RangeEnd) > 0 && !r.CountOnly && inKeyOrder(r) && !filters(r)
}

// GatherRange is EvaluateRange for a range that is Gatherable: it visits the encodings of the key-values that answer it, and
// returns the rest of the answer. The encodings are as Version.Encoded, whatever KeysOnly says. visit ends the range early by
// returning false; count and more mean nothing then. tag and packed are as those of Snapshot.RangeEncoded.
func GatherRange(sn *keyspace.Snapshot, r *commandv1.Range, visit func(encoded []byte) bool, tag byte,
	packed func(elements []byte, count int) bool,
) (count int64, more bool, err error) {
	revision, err := readRevision(sn, r.Revision)
	if err != nil {
		return 0, false, err
	}
	end := rangeEnd(r.RangeEnd)
	within := packed
	if packed != nil {
		within = func(elements []byte, n int) bool {
			if r.Limit > 0 && count+int64(n) > r.Limit || !packed(elements, n) {
				return false
			}
			count += int64(n)
			return true
		}
	}
	var rest []byte // the first key beyond the limit
	err = sn.RangeEncoded(r.Key, end, revision, func(key, encoded []byte) bool {
		if r.Limit > 0 && count == r.Limit {
			rest = key
			return false
		}
		count++
		return visit(encoded)
	}, tag, within)
	if err != nil || rest == nil {
		return count, false, err
	}
	beyond, err := sn.Count(rest, end, revision)
	return count + beyond, true, err
}

// readOne reads a range that is one key.
func readOne(sn *keyspace.Snapshot, r *commandv1.Range, revision int64) (RangeResult, error) {
	v, ok, err := sn.Get(r.Key, revision)
	if err != nil || !ok {
		return RangeResult{}, err
	}
	if r.CountOnly {
		return RangeResult{Count: 1}, nil
	}
	c := collector{request: r}
	c.visit(v)
	return c.result(), nil
}

// collector gathers what a range visits.
type collector struct {
	request *commandv1.Range
	// limit is where the walk ends; zero for nowhere.
	limit int64
	// rest is the first key that was not taken because of limit; it and what follows are not counted.
	rest  []byte
	count int64
	kvs   []keyspace.Version
}

func (c *collector) visit(v keyspace.Version) bool {
	if c.limit > 0 && int64(len(c.kvs)) == c.limit {
		c.rest = v.Key
		return false
	}
	c.count++
	if !filteredOut(c.request, &v) {
		c.kvs = append(c.kvs, v)
	}
	return true
}

func (c *collector) result() RangeResult {
	r := c.request
	sortVersions(c.kvs, r)
	more := c.rest != nil
	if r.Limit > 0 && int64(len(c.kvs)) > r.Limit {
		clear(c.kvs[r.Limit:])
		c.kvs, more = c.kvs[:r.Limit], true
	}
	if r.KeysOnly {
		for i := range c.kvs {
			c.kvs[i].Value, c.kvs[i].Encoded = nil, nil
		}
	}
	return RangeResult{KVs: c.kvs, More: more, Count: c.count}
}

func filters(r *commandv1.Range) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

func filteredOut(r *commandv1.Range, v *keyspace.Version) bool {
	return r.MaxModRevision != 0 && v.ModRevision > r.MaxModRevision ||
		r.MinModRevision != 0 && v.ModRevision < r.MinModRevision ||
		r.MaxCreateRevision != 0 && v.CreateRevision > r.MaxCreateRevision ||
		r.MinCreateRevision != 0 && v.CreateRevision < r.MinCreateRevision
}

// inKeyOrder reports whether the answer is in ascending order of keys. As in etcd, a target other than the key means
// ascending order where none is given.
func inKeyOrder(r *commandv1.Range) bool {
	return r.SortTarget == commandv1.Range_SORT_TARGET_UNSPECIFIED &&
		r.SortOrder != commandv1.Range_SORT_ORDER_DESCEND
}

// sortVersions sorts key-values that are in key order. Equal ones stay in key order, descending or not.
func sortVersions(kvs []keyspace.Version, r *commandv1.Range) {
	if inKeyOrder(r) || len(kvs) < 2 {
		return
	}
	var compare func(a, b keyspace.Version) int
	switch r.SortTarget {
	case commandv1.Range_SORT_TARGET_VERSION:
		compare = func(a, b keyspace.Version) int { return cmp.Compare(a.Version, b.Version) }
	case commandv1.Range_SORT_TARGET_CREATE_REVISION:
		compare = func(a, b keyspace.Version) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }
	case commandv1.Range_SORT_TARGET_MOD_REVISION:
		compare = func(a, b keyspace.Version) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	case commandv1.Range_SORT_TARGET_VALUE:
		compare = func(a, b keyspace.Version) int { return bytes.Compare(a.Value, b.Value) }
	default:
		slices.Reverse(kvs)
		return
	}
	if r.SortOrder == commandv1.Range_SORT_ORDER_DESCEND {
		ascending := compare
		compare = func(a, b keyspace.Version) int { return ascending(b, a) }
	}
	slices.SortStableFunc(kvs, compare)
}

// rangeEnd translates etcd's end of a range that is not one key: "\0" means no end.
func rangeEnd(end []byte) []byte {
	if len(end) == 1 && end[0] == 0 {
		return nil
	}
	return end
}

// EvaluateReadOnlyTxn evaluates a transaction that writes nothing (see ReadOnly) against a snapshot, and returns the
// revision that it was evaluated at. The transaction must have passed ValidateTxn.
func EvaluateReadOnlyTxn(sn *keyspace.Snapshot, t *commandv1.Txn) (*TxnResult, int64, error) {
	if !ReadOnly(t) {
		return nil, 0, &InvalidError{Field: "txn", Err: ErrInvalidCommand}
	}
	path := choosePath(sn, t)
	result, err := evaluateReads(sn, path)
	if err != nil {
		return nil, 0, err
	}
	return result, sn.Revision(), nil
}

func evaluateReads(sn *keyspace.Snapshot, p *txnPath) (*TxnResult, error) {
	result := &TxnResult{Succeeded: p.succeeded, Operations: make([]OperationResult, len(p.operations))}
	nested := p.nested
	for i, o := range p.operations {
		switch o := o.Operation.(type) {
		case *commandv1.TxnOperation_Range:
			if err := checkRange(sn.Revision(), sn.CompactRevision(), o.Range); err != nil {
				return nil, err
			}
			answer, err := EvaluateRange(sn, o.Range)
			if err != nil {
				return nil, err
			}
			result.Operations[i].Range = &answer
		case *commandv1.TxnOperation_Txn:
			inner, err := evaluateReads(sn, nested[0])
			if err != nil {
				return nil, err
			}
			result.Operations[i].Txn = inner
			nested = nested[1:]
		}
	}
	return result, nil
}

// ReadOnly reports whether a transaction holds no write in any of its lists, nested ones included. Such a transaction
// is a read and needs no log entry.
func ReadOnly(t *commandv1.Txn) bool {
	return readOnlyOperations(t.Success) && readOnlyOperations(t.Failure)
}

func readOnlyOperations(operations []*commandv1.TxnOperation) bool {
	for _, o := range operations {
		switch o := o.GetOperation().(type) {
		case *commandv1.TxnOperation_Put, *commandv1.TxnOperation_DeleteRange, *commandv1.TxnOperation_Mutate:
			return false
		case *commandv1.TxnOperation_Txn:
			if !ReadOnly(o.Txn) {
				return false
			}
		}
	}
	return true
}
