package etcd

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, known := pb.RangeRequest_SortOrder_name[int32(r.GetSortOrder())]; !known {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, known := pb.RangeRequest_SortTarget_name[int32(r.GetSortTarget())]; !known {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.GetIgnoreValue() && len(r.GetValue()) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.GetIgnoreLease() && r.GetLease() != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// nestedFactor bounds the operations of all levels of a transaction together, as a multiple of what one list may hold.
// etcd bounds only each level, so that nesting multiplies; no known client comes near this.
const nestedFactor = 16

// checkTxn checks a transaction as etcd does: the number of operations first, so that a huge request is refused before
// anything is computed over it, and overlapping writes last.
func checkTxn(r *pb.TxnRequest, maxOperations int) error {
	budget := nestedFactor * maxOperations
	if err := checkTxnOperations(r, maxOperations, &budget); err != nil {
		return err
	}
	for _, list := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		if len(list) == 0 || len(list) == 1 && list[0].GetRequestTxn() == nil {
			continue // there is nothing that it could overlap
		}
		if _, err := checkOverlaps(list); err != nil {
			return err
		}
	}
	return nil
}

// checkTxnOperations bounds each list of each level: a nested transaction may have what its parent left unused. The
// budget is for all lists of all levels.
func checkTxnOperations(r *pb.TxnRequest, maxOperations int, budget *int) error {
	longest := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	*budget -= len(r.GetCompare()) + len(r.GetSuccess()) + len(r.GetFailure())
	if longest > maxOperations || *budget < 0 {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if len(c.GetKey()) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, list := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, operation := range list {
			if err := checkOperation(operation, maxOperations-longest, budget); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOperation(operation *pb.RequestOp, maxOperations int, budget *int) error {
	switch o := operation.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(o.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(o.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(o.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOperations(o.RequestTxn, maxOperations, budget)
	default:
		return rpctypes.ErrGRPCKeyNotFound
	}
}

// writes are the keys that a list of operations may write, nested transactions included.
type writes struct {
	puts    map[string]struct{}
	deletes []interval
}

// interval is what a delete covers when overlaps are looked for: its first key, and everything between that and end.
// So a range that is empty, or that is open towards the end ("\0"), counts as its first key, as it does in etcd.
type interval struct{ key, end []byte }

func (iv interval) contains(key []byte) bool {
	return bytes.Equal(iv.key, key) || (bytes.Compare(iv.key, key) < 0 && bytes.Compare(key, iv.end) < 0)
}

func (w *writes) deleted(key []byte) bool {
	for _, iv := range w.deletes {
		if iv.contains(key) {
			return true
		}
	}
	return false
}

// addPut adds a put that must overlap nothing added before, except a put of the keys in exclusive.
func (w *writes) addPut(key string, exclusive map[string]struct{}) error {
	if _, twice := w.puts[key]; twice {
		if _, allowed := exclusive[key]; !allowed {
			return rpctypes.ErrGRPCDuplicateKey
		}
	}
	if w.deleted([]byte(key)) {
		return rpctypes.ErrGRPCDuplicateKey
	}
	w.puts[key] = struct{}{}
	return nil
}

// checkOverlaps refuses a list of operations that writes one key twice. The two branches of a nested transaction exclude
// each other, so they may put the same key; deletes may overlap each other.
func checkOverlaps(operations []*pb.RequestOp) (writes, error) {
	all := writes{puts: make(map[string]struct{})}
	for _, operation := range operations {
		if r := operation.GetRequestDeleteRange(); r != nil {
			all.deletes = append(all.deletes, interval{key: r.GetKey(), end: r.GetRangeEnd()})
		}
	}
	for _, operation := range operations {
		nested := operation.GetRequestTxn()
		if nested == nil {
			continue
		}
		success, err := checkOverlaps(nested.GetSuccess())
		if err != nil {
			return all, err
		}
		failure, err := checkOverlaps(nested.GetFailure())
		if err != nil {
			return all, err
		}
		for key := range success.puts {
			if err := all.addPut(key, nil); err != nil {
				return all, err
			}
		}
		for key := range failure.puts {
			if err := all.addPut(key, success.puts); err != nil {
				return all, err
			}
		}
		all.deletes = append(append(all.deletes, success.deletes...), failure.deletes...)
	}
	for _, operation := range operations {
		if r := operation.GetRequestPut(); r != nil {
			if err := all.addPut(string(r.GetKey()), nil); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

// readOnly tells whether a transaction is a read. As in etcd, one that nests another counts as a write.
func readOnly(r *pb.TxnRequest) bool {
	for _, list := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, operation := range list {
			if operation.GetRequestRange() == nil {
				return false
			}
		}
	}
	return true
}

// serializable tells whether every range of a read-only transaction asked for a serializable read.
func serializable(r *pb.TxnRequest) bool {
	for _, list := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, operation := range list {
			if !operation.GetRequestRange().GetSerializable() {
				return false
			}
		}
	}
	return true
}

func defaultOrder(r *pb.RangeRequest) bool {
	return r.GetSortOrder() == pb.RangeRequest_NONE ||
		(r.GetSortTarget() == pb.RangeRequest_KEY && r.GetSortOrder() == pb.RangeRequest_ASCEND)
}

func revisionFilters(r *pb.RangeRequest) bool {
	return r.GetMinModRevision() != 0 || r.GetMaxModRevision() != 0 ||
		r.GetMinCreateRevision() != 0 || r.GetMaxCreateRevision() != 0
}
