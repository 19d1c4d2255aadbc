package statemachine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/lease"
)

// Limits bound what a frontend proposes. Zero fields mean the default.
type Limits struct {
	// MaxRequestBytes bounds one encoded command; 1.5 MiB.
	MaxRequestBytes int
	// MaxTxnOperations bounds each list of a transaction, along any way into nested ones; 128.
	MaxTxnOperations int
}

// Defaults of Limits, as etcd's.
const (
	DefaultMaxRequestBytes  = 3 << 19
	DefaultMaxTxnOperations = 128
)

// Bounds that apply itself keeps, whatever limits the proposer had. Part of what every mirror must agree on.
const (
	// maxTxnOperations bounds all operations and comparisons of a transaction together.
	maxTxnOperations = 1 << 16
	// maxTxnDepth bounds how deep transactions nest.
	maxTxnDepth       = 128
	maxRequestIDBytes = 128
	maxRegionBytes    = 128
)

// applyLimits are what apply checks lists of a transaction against: a frontend's limit is its own affair.
var applyLimits = Limits{MaxTxnOperations: maxTxnOperations}

func (l Limits) withDefaults() Limits {
	if l.MaxRequestBytes <= 0 {
		l.MaxRequestBytes = DefaultMaxRequestBytes
	}
	if l.MaxTxnOperations <= 0 {
		l.MaxTxnOperations = DefaultMaxTxnOperations
	}
	return l
}

// ValidateCommand checks what can be told without the state, before a command is proposed. The error is an
// *InvalidError that names the field and the limit.
func ValidateCommand(c *commandv1.Command, limits Limits) error {
	limits = limits.withDefaults()
	if size := proto.Size(c); size > limits.MaxRequestBytes {
		return &InvalidError{Field: "command", Limit: int64(limits.MaxRequestBytes), Value: int64(size), Err: ErrTooLarge}
	}
	if c.GetRequestId() != "" {
		if _, err := parseRequestID([]byte(c.GetRequestId())); err != nil {
			return err
		}
	}
	switch o := c.GetOperation().(type) {
	case *commandv1.Command_Put:
		put := putOf(o.Put)
		return validatePut(&put)
	case *commandv1.Command_DeleteRange:
		if len(o.DeleteRange.GetKey()) == 0 {
			return &InvalidError{Field: "delete_range.key", Err: ErrEmptyKey}
		}
		return nil
	case *commandv1.Command_Txn:
		return ValidateTxn(o.Txn, limits)
	case *commandv1.Command_Mutate:
		return validateMutate(o.Mutate)
	case *commandv1.Command_LeaseGrant:
		return validateGrant(o.LeaseGrant)
	case *commandv1.Command_ChangeSettings:
		return validateSettings(o.ChangeSettings)
	case *commandv1.Command_SetRegionState:
		return validateRegionState(o.SetRegionState)
	case *commandv1.Command_SetAlarm:
		return validateAlarm(o.SetAlarm)
	case *commandv1.Command_IdNodeGrant:
		return validateIDTime("id_node_grant", o.IdNodeGrant.GetKind(), o.IdNodeGrant.GetUntil())
	case *commandv1.Command_IdNodeExtend:
		return validateIDTime("id_node_extend", o.IdNodeExtend.GetKind(), o.IdNodeExtend.GetUntil())
	case *commandv1.Command_IdSegmentGrant:
		return validateIDSegmentGrant(o.IdSegmentGrant)
	case *commandv1.Command_IdSequenceNext:
		return validateIDSequenceNext(o.IdSequenceNext)
	case nil:
		return &InvalidError{Field: "command.operation", Err: ErrInvalidCommand}
	default:
		return nil // what the others say is judged by the state alone
	}
}

// ValidateTxn checks a transaction, read-only or not, as ValidateCommand does.
func ValidateTxn(t *commandv1.Txn, limits Limits) error {
	return validateTxn(t, limits.withDefaults())
}

// ValidateRange checks a range that is not part of a transaction.
func ValidateRange(r *commandv1.Range) error { return validateRange("range", r) }

func validateRange(field string, r *commandv1.Range) error {
	if len(r.GetKey()) == 0 {
		return &InvalidError{Field: field + ".key", Err: ErrEmptyKey}
	}
	if _, ok := commandv1.Range_SortOrder_name[int32(r.SortOrder)]; !ok {
		return &InvalidError{Field: field + ".sort_order", Err: ErrInvalidSortOption}
	}
	if _, ok := commandv1.Range_SortTarget_name[int32(r.SortTarget)]; !ok {
		return &InvalidError{Field: field + ".sort_target", Err: ErrInvalidSortOption}
	}
	return nil
}

func validatePut(p *putCommand) error {
	switch {
	case len(p.key) == 0:
		return &InvalidError{Field: "put.key", Err: ErrEmptyKey}
	case p.ignoreValue && len(p.value) != 0:
		return &InvalidError{Field: "put.value", Err: ErrValueProvided}
	case p.ignoreLease && p.lease != 0:
		return &InvalidError{Field: "put.lease", Err: ErrLeaseProvided}
	}
	return nil
}

func validateGrant(g *commandv1.LeaseGrant) error {
	switch {
	case g.GetId() == 0:
		return &InvalidError{Field: "lease_grant.id", Err: ErrLeaseNotFound}
	case g.TtlSeconds > lease.MaxTTLSeconds:
		return &InvalidError{
			Field: "lease_grant.ttl_seconds", Limit: lease.MaxTTLSeconds, Value: g.TtlSeconds, Err: ErrLeaseTTLTooLarge,
		}
	}
	return nil
}

// txnValidator walks a transaction. The paths of fields are made only for an error.
type txnValidator struct {
	operations int
}

func validateTxn(t *commandv1.Txn, limits Limits) error {
	v := txnValidator{}
	if err := v.txn("txn", t, limits.MaxTxnOperations, 1); err != nil {
		return err
	}
	for _, list := range [...][]*commandv1.TxnOperation{t.GetSuccess(), t.GetFailure()} {
		if len(list) == 0 {
			continue
		}
		if _, puts := putKey(list[0]); puts && len(list) == 1 {
			continue // it meets nothing
		}
		if _, _, err := writtenOnce(list); err != nil {
			return err
		}
	}
	return nil
}

// txn checks one level. As in etcd, what is left of the limit inside is the limit less the longest list of the level.
func (v *txnValidator) txn(field string, t *commandv1.Txn, limit, depth int) error {
	longest := max(len(t.GetCompares()), len(t.GetSuccess()), len(t.GetFailure()))
	if longest > limit {
		return &InvalidError{Field: field, Limit: int64(limit), Value: int64(longest), Err: ErrTooManyOperations}
	}
	if depth > maxTxnDepth {
		return &InvalidError{Field: field, Limit: maxTxnDepth, Value: int64(depth), Err: ErrTooManyOperations}
	}
	v.operations += len(t.GetCompares()) + len(t.GetSuccess()) + len(t.GetFailure())
	if v.operations > maxTxnOperations {
		return &InvalidError{Field: field, Limit: maxTxnOperations, Value: int64(v.operations), Err: ErrTooManyOperations}
	}
	for i, c := range t.GetCompares() {
		if err := validateCompare(c); err != nil {
			return under(err, "%s.compares[%d]", field, i)
		}
	}
	if err := v.list(field, "success", t.GetSuccess(), limit-longest, depth); err != nil {
		return err
	}
	return v.list(field, "failure", t.GetFailure(), limit-longest, depth)
}

func (v *txnValidator) list(field, name string, list []*commandv1.TxnOperation, limit, depth int) error {
	for i, o := range list {
		var err error
		switch o := o.GetOperation().(type) {
		case *commandv1.TxnOperation_Range:
			err = validateRange("range", o.Range)
		case *commandv1.TxnOperation_Put:
			put := putOf(o.Put)
			err = validatePut(&put)
		case *commandv1.TxnOperation_DeleteRange:
			if len(o.DeleteRange.GetKey()) == 0 {
				err = &InvalidError{Field: "delete_range.key", Err: ErrEmptyKey}
			}
		case *commandv1.TxnOperation_Mutate:
			err = validateMutate(o.Mutate)
		case *commandv1.TxnOperation_Txn:
			err = v.txn("txn", o.Txn, limit, depth+1)
		default:
			err = &InvalidError{Field: "operation", Err: ErrInvalidCommand}
		}
		if err != nil {
			return under(err, "%s.%s[%d]", field, name, i)
		}
	}
	return nil
}

func validateCompare(c *commandv1.Compare) error {
	if len(c.GetKey()) == 0 {
		return &InvalidError{Field: "key", Err: ErrEmptyKey}
	}
	if c.Target == nil {
		return &InvalidError{Field: "target", Err: ErrInvalidCommand}
	}
	if _, ok := commandv1.Compare_Result_name[int32(c.Result)]; !ok || c.Result == commandv1.Compare_RESULT_UNSPECIFIED {
		return &InvalidError{Field: "result", Err: ErrInvalidCommand}
	}
	return nil
}

// under puts the path of the enclosing field before that of an error.
func under(err error, format string, args ...any) error {
	if invalid := (*InvalidError)(nil); errors.As(err, &invalid) {
		invalid.Field = fmt.Sprintf(format, args...) + "." + invalid.Field
	}
	return err
}

// keyRange is a range of keys that a transaction deletes: [from, to), and from itself even if that is empty.
type keyRange struct{ from, to []byte }

// writtenOnce checks that no path through a list of operations puts a key twice, or puts one that it deletes, and
// returns the keys that the list may put and the ranges that it may delete. The rules are etcd's to the letter, also
// where they are lenient: puts of the two lists of one nested transaction may meet, a nested transaction may delete
// what an earlier nested one put, and a delete without an end ("\0") meets only a put of its first key.
func writtenOnce(list []*commandv1.TxnOperation) (puts map[string]struct{}, deletes rangeSet, err error) {
	for _, o := range list {
		if o, ok := o.GetOperation().(*commandv1.TxnOperation_DeleteRange); ok {
			deletes.add(keyRange{from: o.DeleteRange.GetKey(), to: o.DeleteRange.GetRangeEnd()})
		}
	}
	for _, o := range list {
		nested, ok := o.GetOperation().(*commandv1.TxnOperation_Txn)
		if !ok {
			continue
		}
		if puts, err = nestedWrittenOnce(nested.Txn, puts, &deletes); err != nil {
			return nil, rangeSet{}, err
		}
	}
	for _, o := range list {
		if key, ok := putKey(o); ok {
			if _, twice := puts[string(key)]; twice || deletes.meets(key) {
				return nil, rangeSet{}, &InvalidError{Field: fmt.Sprintf("txn: put of %.64q", key), Err: ErrDuplicateKey}
			}
			puts = addKey(puts, string(key))
		}
	}
	return puts, deletes, nil
}

// putKey returns the key that an operation puts, be it what the operation says or what it makes of the present value.
func putKey(o *commandv1.TxnOperation) (key []byte, puts bool) {
	switch o := o.GetOperation().(type) {
	case *commandv1.TxnOperation_Put:
		return o.Put.GetKey(), true
	case *commandv1.TxnOperation_Mutate:
		return o.Mutate.GetKey(), true
	default:
		return nil, false
	}
}

// nestedWrittenOnce adds the writes of a nested transaction to those of the list that it is in.
func nestedWrittenOnce(
	t *commandv1.Txn, puts map[string]struct{}, deletes *rangeSet,
) (map[string]struct{}, error) {
	successPuts, successDeletes, err := writtenOnce(t.GetSuccess())
	if err != nil {
		return nil, err
	}
	failurePuts, failureDeletes, err := writtenOnce(t.GetFailure())
	if err != nil {
		return nil, err
	}
	// Only one of the two lists is applied, so a key in both is no conflict; that one was put before is.
	for _, side := range [...]map[string]struct{}{successPuts, failurePuts} {
		for _, key := range sortedKeys(side) {
			if _, twice := puts[key]; twice || deletes.meets([]byte(key)) {
				return nil, &InvalidError{Field: fmt.Sprintf("txn: put of %.64q", key), Err: ErrDuplicateKey}
			}
		}
	}
	for key := range successPuts {
		puts = addKey(puts, key)
	}
	for key := range failurePuts {
		puts = addKey(puts, key)
	}
	deletes.addAll(successDeletes)
	deletes.addAll(failureDeletes)
	return puts, nil
}

func addKey(set map[string]struct{}, key string) map[string]struct{} {
	if set == nil {
		set = make(map[string]struct{})
	}
	set[key] = struct{}{}
	return set
}

// sortedKeys makes the key that an error names the same everywhere.
func sortedKeys(set map[string]struct{}) []string {
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// rangeSet answers whether a key is in one of many ranges. Ranges are kept as they come and put in order, merged, when
// the first question after that is asked.
type rangeSet struct {
	points  map[string]struct{}
	ranges  []keyRange // from < to
	ordered bool
}

func (s *rangeSet) add(r keyRange) {
	s.points = addKey(s.points, string(r.from))
	if bytes.Compare(r.from, r.to) < 0 {
		s.ranges, s.ordered = append(s.ranges, r), false
	}
}

func (s *rangeSet) addAll(other rangeSet) {
	for key := range other.points {
		s.points = addKey(s.points, key)
	}
	if len(other.ranges) > 0 {
		s.ranges, s.ordered = append(s.ranges, other.ranges...), false
	}
}

func (s *rangeSet) meets(key []byte) bool {
	if _, ok := s.points[string(key)]; ok {
		return true
	}
	if !s.ordered {
		s.merge()
	}
	// The first range that ends after the key is the only one that may hold it.
	i, _ := slices.BinarySearchFunc(s.ranges, key, func(r keyRange, key []byte) int {
		if bytes.Compare(r.to, key) <= 0 {
			return -1
		}
		return 1
	})
	return i < len(s.ranges) && bytes.Compare(s.ranges[i].from, key) <= 0
}

func (s *rangeSet) merge() {
	s.ordered = true
	if len(s.ranges) < 2 {
		return
	}
	slices.SortFunc(s.ranges, func(a, b keyRange) int { return bytes.Compare(a.from, b.from) })
	merged := s.ranges[:1]
	for _, r := range s.ranges[1:] {
		last := &merged[len(merged)-1]
		if bytes.Compare(r.from, last.to) > 0 {
			merged = append(merged, r)
		} else if bytes.Compare(r.to, last.to) > 0 {
			last.to = r.to
		}
	}
	s.ranges = merged
}
