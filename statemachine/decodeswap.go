package statemachine

import (
	"google.golang.org/protobuf/encoding/protowire"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// swapTxn is the transaction that there are most of, as one object: a comparison of one key's version or revision with a number,
// and a put for when it holds.
type swapTxn struct {
	txn       commandv1.Txn
	compares  [1]*commandv1.Compare
	success   [1]*commandv1.TxnOperation
	compare   commandv1.Compare
	version   commandv1.Compare_Version
	created   commandv1.Compare_CreateRevision
	modified  commandv1.Compare_ModRevision
	operation commandv1.TxnOperation
	write     commandv1.TxnOperation_Put
	put       commandv1.Put
}

// decodeSwap decodes an encoded Txn that is a swapTxn, to the message that the general decoder would give, but that its slices
// alias b. It returns nil for every other transaction, also for one that is malformed: the general decoder knows what it is.
func decodeSwap(b []byte) *commandv1.Txn {
	compare, b := soleBytes(b, 1)
	operation, rest := soleBytes(b, 2)
	write, none := soleBytes(operation, 2)
	if compare == nil || write == nil || len(rest) > 0 || len(none) > 0 {
		return nil
	}
	var put putCommand
	if put.decode(write) != nil {
		return nil
	}
	s := &swapTxn{put: commandv1.Put{
		Key: put.key, Value: put.value, Lease: put.lease, IgnoreValue: put.ignoreValue, IgnoreLease: put.ignoreLease, Previous: put.previous,
	}}
	if !s.decodeCompare(compare) {
		return nil
	}
	s.write.Put, s.operation.Operation = &s.put, &s.write
	s.compares[0], s.success[0] = &s.compare, &s.operation
	s.txn.Compares, s.txn.Success = s.compares[:], s.success[:]
	return &s.txn
}

// soleBytes returns the bytes of the field that b begins with, nil if it is another one, and what follows.
func soleBytes(b []byte, field protowire.Number) (content, rest []byte) {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 || number != field || kind != protowire.BytesType {
		return nil, nil
	}
	content, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, nil
	}
	return content, b[n+m:]
}

// decodeCompare returns false for a comparison that is not a swapTxn's.
func (s *swapTxn) decodeCompare(b []byte) bool {
	var seen [9]bool
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || field >= protowire.Number(len(seen)) || seen[field] {
			return false
		}
		seen[field] = true
		b = b[n:]
		if field == 2 && kind == protowire.BytesType {
			key, m := protowire.ConsumeBytes(b)
			if m < 0 {
				return false
			}
			s.compare.Key, b = key, b[m:]
			continue
		}
		v, m := protowire.ConsumeVarint(b)
		if m < 0 || kind != protowire.VarintType || field > 1 && s.compare.Target != nil {
			return false
		}
		b = b[m:]
		switch field {
		case 1:
			s.compare.Result = commandv1.Compare_Result(int32(v))
		case 4:
			s.version.Version, s.compare.Target = int64(v), &s.version
		case 5:
			s.created.CreateRevision, s.compare.Target = int64(v), &s.created
		case 6:
			s.modified.ModRevision, s.compare.Target = int64(v), &s.modified
		default:
			return false
		}
	}
	return true
}
