package frontend

import (
	"fmt"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// compareAndSwapTxn builds the transaction whose last operation, in either list, reads what is there afterwards.
func compareAndSwapTxn(r *kvv1.CompareAndSwapRequest) (*commandv1.Txn, error) {
	if err := checkKey("key", r.GetKey()); err != nil {
		return nil, err
	}
	compare := &commandv1.Compare{Key: r.GetKey(), Result: commandv1.Compare_RESULT_EQUAL}
	switch expect := r.GetExpect().(type) {
	case *kvv1.CompareAndSwapRequest_Value:
		compare.Target = &commandv1.Compare_Value{Value: expect.Value}
	case *kvv1.CompareAndSwapRequest_ModRevision:
		if expect.ModRevision <= 0 {
			return nil, invalid("mod_revision", "must be above zero; use absent to expect no key")
		}
		compare.Target = &commandv1.Compare_ModRevision{ModRevision: expect.ModRevision}
	case *kvv1.CompareAndSwapRequest_Absent:
		if !expect.Absent {
			return nil, invalid("absent", "must be true")
		}
		compare.Target = &commandv1.Compare_CreateRevision{CreateRevision: 0}
	default:
		return nil, invalid("expect", "must be one of value, mod_revision and absent")
	}

	write := &commandv1.TxnOperation{}
	switch change := r.GetChange().(type) {
	case *kvv1.CompareAndSwapRequest_Put:
		write.Operation = &commandv1.TxnOperation_Put{
			Put: &commandv1.Put{Key: r.GetKey(), Value: change.Put, Lease: r.GetLease()},
		}
	case *kvv1.CompareAndSwapRequest_Delete:
		if !change.Delete {
			return nil, invalid("delete", "must be true")
		}
		if r.GetLease() != 0 {
			return nil, invalid("lease", "goes with put only")
		}
		write.Operation = &commandv1.TxnOperation_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: r.GetKey()}}
	default:
		return nil, invalid("change", "must be put or delete")
	}
	read := &commandv1.TxnOperation{
		Operation: &commandv1.TxnOperation_Range{Range: &commandv1.Range{Key: r.GetKey()}},
	}
	return &commandv1.Txn{
		Compares: []*commandv1.Compare{compare},
		Success:  []*commandv1.TxnOperation{write, read},
		Failure:  []*commandv1.TxnOperation{read},
	}, nil
}

// txnTranslation turns a native transaction into a command, checking on the way.
type txnTranslation struct {
	limit int
	// writes: some operation of some list writes.
	writes bool
}

// txnCommand checks a transaction and turns it into a command. writes is false for one that is a read.
func txnCommand(r *kvv1.TxnRequest, limit int) (txn *commandv1.Txn, writes bool, err error) {
	t := txnTranslation{limit: limit}
	txn, _, _, err = t.transaction("", 0, r.GetCompares(), r.GetSuccess(), r.GetFailure())
	return txn, t.writes, err
}

// transaction returns what either list may write, and the number of operations of the longer one. field is the path of
// the transaction in the request, for errors.
func (t *txnTranslation) transaction(
	field string, depth int, compares []*kvv1.Compare, success, failure []*kvv1.TxnOperation,
) (txn *commandv1.Txn, either branch, operations int, err error) {
	if depth > nestingMax {
		return nil, branch{}, 0, invalid(field, "is nested deeper than %d", nestingMax)
	}
	if len(compares) > t.limit {
		return nil, branch{}, 0, invalid(field+"compares", "has %d comparisons, at most %d are allowed", len(compares), t.limit)
	}
	txn = &commandv1.Txn{Compares: make([]*commandv1.Compare, len(compares))}
	for i, compare := range compares {
		if txn.Compares[i], err = compareCommand(fmt.Sprintf("%scompares[%d]", field, i), compare); err != nil {
			return nil, branch{}, 0, err
		}
	}
	for _, list := range []struct {
		name string
		from []*kvv1.TxnOperation
		to   *[]*commandv1.TxnOperation
	}{{"success", success, &txn.Success}, {"failure", failure, &txn.Failure}} {
		commands, written, count, err := t.list(field+list.name, depth, list.from)
		if err != nil {
			return nil, branch{}, 0, err
		}
		*list.to = commands
		either.puts = append(either.puts, written.puts...)
		either.deletes = append(either.deletes, written.deletes...)
		operations = max(operations, count)
	}
	return txn, either, operations, nil
}

func (t *txnTranslation) list(
	field string, depth int, operations []*kvv1.TxnOperation,
) (commands []*commandv1.TxnOperation, all branch, count int, err error) {
	tooMany := func() error { return invalid(field, "has %d operations, at most %d are allowed", count, t.limit) }
	if count = len(operations); count > t.limit {
		return nil, branch{}, 0, tooMany()
	}
	commands = make([]*commandv1.TxnOperation, len(operations))
	for i, operation := range operations {
		at := fmt.Sprintf("%s[%d]", field, i)
		command, written, nested, err := t.operation(at, depth, operation)
		if err != nil {
			return nil, branch{}, 0, err
		}
		if count += nested; count > t.limit {
			return nil, branch{}, 0, tooMany()
		}
		if key, twice := all.join(written); twice {
			return nil, branch{}, 0, invalid(at, "writes key %.64q, which is written by another operation", key)
		}
		commands[i] = command
	}
	return commands, all, count, nil
}

func (t *txnTranslation) operation(
	field string, depth int, operation *kvv1.TxnOperation,
) (command *commandv1.TxnOperation, written branch, nested int, err error) {
	command = &commandv1.TxnOperation{}
	switch o := operation.GetOperation().(type) {
	case *kvv1.TxnOperation_Put_:
		t.writes, written.puts = true, []string{string(o.Put.GetKey())}
		command.Operation = &commandv1.TxnOperation_Put{Put: &commandv1.Put{
			Key: o.Put.GetKey(), Value: o.Put.GetValue(), Lease: o.Put.GetLease(), Previous: o.Put.GetReturnPrevious(),
		}}
		err = checkKey(field+".put.key", o.Put.GetKey())
	case *kvv1.TxnOperation_Delete_:
		t.writes, written.deletes = true, []span{spanOf(o.Delete.GetKey(), o.Delete.GetRangeEnd())}
		command.Operation = &commandv1.TxnOperation_DeleteRange{DeleteRange: &commandv1.DeleteRange{
			Key: o.Delete.GetKey(), RangeEnd: o.Delete.GetRangeEnd(), Previous: o.Delete.GetReturnPrevious(),
		}}
		err = checkKey(field+".delete.key", o.Delete.GetKey())
	case *kvv1.TxnOperation_Mutate:
		t.writes, written.puts = true, []string{string(o.Mutate.GetKey())}
		var mutate *commandv1.Mutate
		mutate, err = mutateCommand(field+".mutate", o.Mutate)
		command.Operation = &commandv1.TxnOperation_Mutate{Mutate: mutate}
	case *kvv1.TxnOperation_Read_:
		command.Operation = &commandv1.TxnOperation_Range{Range: &commandv1.Range{
			Key: o.Read.GetKey(), RangeEnd: o.Read.GetRangeEnd(), Limit: o.Read.GetLimit(), KeysOnly: o.Read.GetKeysOnly(),
		}}
		if err = checkKey(field+".read.key", o.Read.GetKey()); err == nil && o.Read.GetLimit() < 0 {
			err = invalid(field+".read.limit", "must not be negative")
		}
	case *kvv1.TxnOperation_Nested_:
		var txn *commandv1.Txn
		txn, written, nested, err = t.transaction(field+".nested.", depth+1,
			o.Nested.GetCompares(), o.Nested.GetSuccess(), o.Nested.GetFailure())
		command.Operation = &commandv1.TxnOperation_Txn{Txn: txn}
	default:
		err = invalid(field, "must be one of put, delete, read, nested and mutate")
	}
	return command, written, nested, err
}

var relations = map[kvv1.Compare_Relation]commandv1.Compare_Result{
	kvv1.Compare_RELATION_EQUAL:     commandv1.Compare_RESULT_EQUAL,
	kvv1.Compare_RELATION_NOT_EQUAL: commandv1.Compare_RESULT_NOT_EQUAL,
	kvv1.Compare_RELATION_GREATER:   commandv1.Compare_RESULT_GREATER,
	kvv1.Compare_RELATION_LESS:      commandv1.Compare_RESULT_LESS,
}

func compareCommand(field string, c *kvv1.Compare) (*commandv1.Compare, error) {
	if err := checkKey(field+".key", c.GetKey()); err != nil {
		return nil, err
	}
	result, known := relations[c.GetRelation()]
	if !known {
		return nil, invalid(field+".relation", "must be one of EQUAL, NOT_EQUAL, GREATER and LESS")
	}
	command := &commandv1.Compare{Key: c.GetKey(), RangeEnd: c.GetRangeEnd(), Result: result}
	switch target := c.GetTarget().(type) {
	case *kvv1.Compare_Version:
		command.Target = &commandv1.Compare_Version{Version: target.Version}
	case *kvv1.Compare_CreateRevision:
		command.Target = &commandv1.Compare_CreateRevision{CreateRevision: target.CreateRevision}
	case *kvv1.Compare_ModRevision:
		command.Target = &commandv1.Compare_ModRevision{ModRevision: target.ModRevision}
	case *kvv1.Compare_Value:
		command.Target = &commandv1.Compare_Value{Value: target.Value}
	case *kvv1.Compare_Lease:
		command.Target = &commandv1.Compare_Lease{Lease: target.Lease}
	default:
		return nil, invalid(field, "must name a target")
	}
	return command, nil
}

// txnResults turns the results of the list that was applied into answers. The command tells what each operation was.
func txnResults(txn *commandv1.Txn, result *statemachine.TxnResult) []*kvv1.TxnResult {
	operations := txn.GetSuccess()
	if !result.Succeeded {
		operations = txn.GetFailure()
	}
	if len(result.Operations) != len(operations) {
		return nil // a replayed outcome, of which no more is remembered
	}
	answers := make([]*kvv1.TxnResult, len(operations))
	for i, operation := range operations {
		answers[i] = txnResult(operation, &result.Operations[i])
	}
	return answers
}

func txnResult(operation *commandv1.TxnOperation, result *statemachine.OperationResult) *kvv1.TxnResult {
	switch o := operation.GetOperation().(type) {
	case *commandv1.TxnOperation_Put:
		return &kvv1.TxnResult{Result: &kvv1.TxnResult_Put_{Put: &kvv1.TxnResult_Put{
			Previous: previous(result.Put.Previous),
		}}}
	case *commandv1.TxnOperation_DeleteRange:
		return &kvv1.TxnResult{Result: &kvv1.TxnResult_Delete_{Delete: &kvv1.TxnResult_Delete{
			Deleted: result.Delete.Deleted, Previous: keyValues(result.Delete.Previous),
		}}}
	case *commandv1.TxnOperation_Mutate:
		return &kvv1.TxnResult{Result: &kvv1.TxnResult_Mutate{Mutate: mutationResult(result.Mutate)}}
	case *commandv1.TxnOperation_Range:
		read := &kvv1.TxnResult_Read{
			KeyValues: keyValues(result.Range.KVs), More: result.Range.More, Count: result.Range.Count,
		}
		if o.Range.GetKeysOnly() {
			for _, kv := range read.KeyValues {
				kv.Value = nil
			}
		}
		return &kvv1.TxnResult{Result: &kvv1.TxnResult_Read_{Read: read}}
	case *commandv1.TxnOperation_Txn:
		return &kvv1.TxnResult{Result: &kvv1.TxnResult_Nested_{Nested: &kvv1.TxnResult_Nested{
			Succeeded: result.Txn.Succeeded, Results: txnResults(o.Txn, result.Txn),
		}}}
	default:
		return &kvv1.TxnResult{}
	}
}
