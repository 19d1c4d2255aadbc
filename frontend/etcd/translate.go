package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// Requests become commands field by field. Checks come first (check.go), so nothing can fail here; slices are shared
// with the request, which nobody changes after it was received.

var sortOrders = map[pb.RangeRequest_SortOrder]commandv1.Range_SortOrder{
	pb.RangeRequest_NONE:    commandv1.Range_SORT_ORDER_UNSPECIFIED,
	pb.RangeRequest_ASCEND:  commandv1.Range_SORT_ORDER_ASCEND,
	pb.RangeRequest_DESCEND: commandv1.Range_SORT_ORDER_DESCEND,
}

var sortTargets = map[pb.RangeRequest_SortTarget]commandv1.Range_SortTarget{
	pb.RangeRequest_KEY:     commandv1.Range_SORT_TARGET_UNSPECIFIED,
	pb.RangeRequest_VERSION: commandv1.Range_SORT_TARGET_VERSION,
	pb.RangeRequest_CREATE:  commandv1.Range_SORT_TARGET_CREATE_REVISION,
	pb.RangeRequest_MOD:     commandv1.Range_SORT_TARGET_MOD_REVISION,
	pb.RangeRequest_VALUE:   commandv1.Range_SORT_TARGET_VALUE,
}

var compareResults = map[pb.Compare_CompareResult]commandv1.Compare_Result{
	pb.Compare_EQUAL:     commandv1.Compare_RESULT_EQUAL,
	pb.Compare_GREATER:   commandv1.Compare_RESULT_GREATER,
	pb.Compare_LESS:      commandv1.Compare_RESULT_LESS,
	pb.Compare_NOT_EQUAL: commandv1.Compare_RESULT_NOT_EQUAL,
}

func rangeCommand(r *pb.RangeRequest) *commandv1.Range {
	return &commandv1.Range{
		Key:               r.GetKey(),
		RangeEnd:          r.GetRangeEnd(),
		Limit:             r.GetLimit(),
		Revision:          r.GetRevision(),
		SortOrder:         sortOrders[r.GetSortOrder()],
		SortTarget:        sortTargets[r.GetSortTarget()],
		KeysOnly:          r.GetKeysOnly(),
		CountOnly:         r.GetCountOnly(),
		MinModRevision:    r.GetMinModRevision(),
		MaxModRevision:    r.GetMaxModRevision(),
		MinCreateRevision: r.GetMinCreateRevision(),
		MaxCreateRevision: r.GetMaxCreateRevision(),
	}
}

// putProposal is a command that is one object.
type putProposal struct {
	command   commandv1.Command
	operation commandv1.Command_Put
	put       commandv1.Put
}

func putCommand(r *pb.PutRequest) *putProposal {
	p := &putProposal{}
	setPut(&p.put, r)
	p.operation.Put, p.command.Operation = &p.put, &p.operation
	return p
}

// setPut fills in a new command.
func setPut(p *commandv1.Put, r *pb.PutRequest) {
	*p = commandv1.Put{
		Key:         r.GetKey(),
		Value:       r.GetValue(),
		Lease:       r.GetLease(),
		IgnoreValue: r.GetIgnoreValue(),
		IgnoreLease: r.GetIgnoreLease(),
		Previous:    r.GetPrevKv(),
	}
}

// swapProposal is the command of the transaction that there are most of, as one object: a comparison of one key's version or
// revision with a number, and a put for when it holds.
type swapProposal struct {
	command   commandv1.Command
	operation commandv1.Command_Txn
	txn       commandv1.Txn
	compares  [1]*commandv1.Compare
	compare   commandv1.Compare
	version   commandv1.Compare_Version
	created   commandv1.Compare_CreateRevision
	modified  commandv1.Compare_ModRevision
	success   [1]*commandv1.TxnOperation
	write     commandv1.TxnOperation
	writePut  commandv1.TxnOperation_Put
	put       commandv1.Put
}

// swapCommand returns nil for every other transaction.
func swapCommand(r *pb.TxnRequest) *commandv1.Command {
	if len(r.GetCompare()) != 1 || len(r.GetSuccess()) != 1 || len(r.GetFailure()) > 0 {
		return nil
	}
	put := r.Success[0].GetRequestPut()
	if put == nil {
		return nil
	}
	p := &swapProposal{}
	c := r.Compare[0]
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		p.version.Version, p.compare.Target = c.GetVersion(), &p.version
	case pb.Compare_CREATE:
		p.created.CreateRevision, p.compare.Target = c.GetCreateRevision(), &p.created
	case pb.Compare_MOD:
		p.modified.ModRevision, p.compare.Target = c.GetModRevision(), &p.modified
	default:
		return nil
	}
	p.compare.Result, p.compare.Key, p.compare.RangeEnd = compareResults[c.GetResult()], c.GetKey(), c.GetRangeEnd()
	setPut(&p.put, put)
	p.writePut.Put, p.write.Operation = &p.put, &p.writePut
	p.compares[0], p.success[0] = &p.compare, &p.write
	p.txn.Compares, p.txn.Success = p.compares[:], p.success[:]
	p.operation.Txn, p.command.Operation = &p.txn, &p.operation
	return &p.command
}

func deleteCommand(r *pb.DeleteRangeRequest) *commandv1.DeleteRange {
	return &commandv1.DeleteRange{Key: r.GetKey(), RangeEnd: r.GetRangeEnd(), Previous: r.GetPrevKv()}
}

func txnCommand(r *pb.TxnRequest) *commandv1.Txn {
	t := &commandv1.Txn{
		Compares: make([]*commandv1.Compare, len(r.GetCompare())),
		Success:  operationCommands(r.GetSuccess()),
		Failure:  operationCommands(r.GetFailure()),
	}
	for i, c := range r.GetCompare() {
		t.Compares[i] = compareCommand(c)
	}
	return t
}

func operationCommands(operations []*pb.RequestOp) []*commandv1.TxnOperation {
	commands := make([]*commandv1.TxnOperation, len(operations))
	for i, operation := range operations {
		command := &commandv1.TxnOperation{}
		switch o := operation.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			command.Operation = &commandv1.TxnOperation_Range{Range: rangeCommand(o.RequestRange)}
		case *pb.RequestOp_RequestPut:
			command.Operation = &commandv1.TxnOperation_Put{Put: &putCommand(o.RequestPut).put}
		case *pb.RequestOp_RequestDeleteRange:
			command.Operation = &commandv1.TxnOperation_DeleteRange{DeleteRange: deleteCommand(o.RequestDeleteRange)}
		case *pb.RequestOp_RequestTxn:
			command.Operation = &commandv1.TxnOperation_Txn{Txn: txnCommand(o.RequestTxn)}
		}
		commands[i] = command
	}
	return commands
}

// compareCommand carries the target by what the request says it compares (target), not by which member of the union is
// set: a request with another member, or none, compares with zero, as in etcd.
func compareCommand(c *pb.Compare) *commandv1.Compare {
	command := &commandv1.Compare{
		Result:   compareResults[c.GetResult()],
		Key:      c.GetKey(),
		RangeEnd: c.GetRangeEnd(),
	}
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		command.Target = &commandv1.Compare_Version{Version: c.GetVersion()}
	case pb.Compare_CREATE:
		command.Target = &commandv1.Compare_CreateRevision{CreateRevision: c.GetCreateRevision()}
	case pb.Compare_MOD:
		command.Target = &commandv1.Compare_ModRevision{ModRevision: c.GetModRevision()}
	case pb.Compare_VALUE:
		command.Target = &commandv1.Compare_Value{Value: c.GetValue()}
	case pb.Compare_LEASE:
		command.Target = &commandv1.Compare_Lease{Lease: c.GetLease()}
	}
	return command
}
