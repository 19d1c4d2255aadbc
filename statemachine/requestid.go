package statemachine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"strconv"

	"github.com/cespare/xxhash/v2"

	"github.com/logmirror/logmirror/statemachine/keyspace"
)

const (
	// maxOutcomeBytes bounds the key-values that are remembered of one outcome.
	maxOutcomeBytes = 1024
	// outcomeOperationBytes is what each operation of a transaction counts against maxOutcomeBytes.
	outcomeOperationBytes = 64
	// maxForgottenPerEntry bounds how many ids one entry forgets for their age.
	maxForgottenPerEntry = 1024
)

// requestRecord is one id whose command was decided.
type requestRecord struct {
	id      string
	hash    [16]byte
	index   uint64
	logTime int64
	outcome outcome
	// sum is the hash of what stands above, key-values left out, made when the id was decided.
	sum uint64
}

// outcome is a Result, made small: no text of an error, and key-values only within maxOutcomeBytes, copied so that
// they do not keep slabs of the key space alive.
type outcome struct {
	code            errorCode
	truncated       bool
	revision        int64
	leaseID         int64
	leaseTTLSeconds int64
	id              *IDResult
	txn             *TxnResult
	put             *PutResult
	delete          *DeleteResult
	mutate          *MutateResult
}

// requestTable remembers request ids, oldest first, bounded by count and by age.
//
// Invariant: every id whose command was decided at an index above horizon is in the table. So an unknown id that names
// an index at or above it was never applied.
type requestTable struct {
	byID    map[string]*requestRecord
	queue   requestQueue // in order of index
	horizon uint64
	// digest is the sum of all records' sums.
	digest uint64
}

func newRequestTable() requestTable {
	return requestTable{byID: make(map[string]*requestRecord)}
}

// parseRequestID returns the log index that a request id names.
func parseRequestID(id []byte) (uint64, error) {
	malformed := &InvalidError{Field: "request_id", Err: ErrRequestIDMalformed}
	if len(id) > maxRequestIDBytes {
		malformed.Limit, malformed.Value = maxRequestIDBytes, int64(len(id))
		return 0, malformed
	}
	number, unique, found := bytes.Cut(id, []byte{'-'})
	if !found || len(unique) == 0 || len(number) == 0 || (len(number) > 1 && number[0] == '0') {
		return 0, malformed
	}
	for _, digit := range number {
		if digit < '0' || digit > '9' {
			return 0, malformed
		}
	}
	index, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		return 0, malformed
	}
	return index, nil
}

// applyOnce applies a command that has a request id, unless its outcome is known or can no longer be told.
func (m *Machine) applyOnce(e *entry, c *command) (Result, error) {
	refused := Result{Index: e.applied.Index, Revision: m.revision}
	seen, err := parseRequestID(c.requestID)
	if err != nil {
		refused.Err = err
		return refused, nil //nolint:nilerr // a refusal is an outcome like any other
	}
	if seen >= e.applied.Index {
		refused.Err = ErrRequestIDFuture
		return refused, nil
	}
	hash := requestHash(c)
	if known, ok := m.requests.byID[string(c.requestID)]; ok {
		if known.hash != hash {
			refused.Err = ErrRequestIDMismatch
			return refused, nil
		}
		return known.replay(), nil
	}
	if seen < m.requests.horizon {
		refused.Err = ErrRequestIDTooOld
		return refused, nil
	}
	result, err := m.executeCommand(e, c, true)
	if err != nil {
		return Result{}, err
	}
	m.requests.add(&requestRecord{
		id: string(c.requestID), hash: hash, index: e.applied.Index, logTime: m.logTime, outcome: outcomeOf(&result),
	}, m.settings.RequestIDsMax)
	return result, nil
}

// requestHash names what a command asks for: the operation, not the id nor how it is to be reported. It is taken of
// the bytes in the log, which are the same for every mirror whatever encoder made them.
func requestHash(c *command) (hash [16]byte) {
	h := sha256.New()
	var head [8]byte
	binary.LittleEndian.PutUint64(head[:], uint64(c.operation))
	h.Write(head[:])
	h.Write(c.raw)
	var sum [sha256.Size]byte
	copy(hash[:], h.Sum(sum[:0]))
	return hash
}

// keep puts a record at the end of the table.
func (t *requestTable) keep(r *requestRecord) {
	r.sum = r.checksum()
	t.digest += r.sum
	t.byID[r.id] = r
	t.queue.push(r)
}

// checksum is over all but the key-values of an outcome.
func (r *requestRecord) checksum() uint64 {
	o := &r.outcome
	truncated := uint64(0)
	if o.truncated {
		truncated = 1
	}
	b := make([]byte, 0, 208)
	b = append(append(b, r.id...), r.hash[:]...)
	for _, field := range [...]uint64{
		r.index, uint64(r.logTime), uint64(o.code), truncated, uint64(o.revision), uint64(o.leaseID), uint64(o.leaseTTLSeconds),
	} {
		b = binary.LittleEndian.AppendUint64(b, field)
	}
	return xxhash.Sum64(b)
}

// add remembers a decided command and forgets the oldest beyond the bound: two, so that the table also shrinks to a
// bound that was lowered, without one entry having to forget them all.
func (t *requestTable) add(r *requestRecord, bound int64) {
	t.keep(r)
	for forgotten := 0; int64(t.len()) > bound && forgotten < 2; forgotten++ {
		t.forgetOldest()
	}
}

func (t *requestTable) len() int { return t.queue.count }

// forgetOld forgets what is older than the bounds, a bounded number at a time.
func (t *requestTable) forgetOld(logTime int64, s Settings) {
	for range maxForgottenPerEntry {
		if t.len() == 0 {
			return
		}
		oldest := t.queue.at(0)
		if int64(t.len()) <= s.RequestIDsMax && logTime-oldest.logTime < int64(s.RequestIDAge) {
			return
		}
		t.forgetOldest()
	}
}

func (t *requestTable) forgetOldest() {
	oldest := t.queue.at(0)
	delete(t.byID, oldest.id)
	t.digest -= oldest.sum
	t.horizon = max(t.horizon, oldest.index)
	t.queue.pop()
}

// replay returns the outcome again.
func (r *requestRecord) replay() Result {
	o := &r.outcome
	return Result{
		Err: o.code.err(), Index: r.index, Revision: o.revision,
		Txn: o.txn, Put: o.put, Delete: o.delete, Mutate: o.mutate,
		LeaseID: o.leaseID, LeaseTTLSeconds: o.leaseTTLSeconds, ID: o.id,
		Replayed: true, Truncated: o.truncated,
	}
}

func outcomeOf(r *Result) outcome {
	o := outcome{
		code: encodeError(r.Err), revision: r.Revision, leaseID: r.LeaseID, leaseTTLSeconds: r.LeaseTTLSeconds,
		id: r.ID,
	}
	keeper := outcomeKeeper{left: maxOutcomeBytes}
	o.put, o.delete, o.txn = keeper.put(r.Put), keeper.delete(r.Delete), keeper.txn(r.Txn)
	o.mutate = keeper.mutate(r.Mutate)
	if keeper.left >= 0 {
		return o
	}
	o.truncated = true
	if r.Put != nil {
		o.put = &PutResult{}
	}
	if r.Delete != nil {
		o.delete = &DeleteResult{Deleted: r.Delete.Deleted}
	}
	if r.Mutate != nil {
		o.mutate = new(*r.Mutate)
		o.mutate.Current = nil
	}
	if r.Txn != nil {
		o.txn = &TxnResult{Succeeded: r.Txn.Succeeded}
	}
	return o
}

// outcomeKeeper copies results as long as they fit. Once left is negative nothing more is copied and what was is to be
// thrown away.
type outcomeKeeper struct{ left int }

func (k *outcomeKeeper) fits(n int) bool {
	if k.left >= 0 {
		k.left -= min(n, math.MaxInt32)
	}
	return k.left >= 0
}

func (k *outcomeKeeper) version(v *keyspace.Version) keyspace.Version {
	size := len(v.Encoded)
	if v.Encoded == nil {
		size = len(v.Key) + outcomeOperationBytes
	}
	if !k.fits(size) {
		return keyspace.Version{}
	}
	kept := *v
	kept.Key, kept.Value, kept.Encoded = bytes.Clone(v.Key), bytes.Clone(v.Value), bytes.Clone(v.Encoded)
	return kept
}

func (k *outcomeKeeper) versions(vs []keyspace.Version) []keyspace.Version {
	if len(vs) == 0 || !k.fits(0) {
		return nil
	}
	kept := make([]keyspace.Version, 0, min(len(vs), maxOutcomeBytes/8))
	for i := range vs {
		kept = append(kept, k.version(&vs[i]))
		if k.left < 0 {
			return nil
		}
	}
	return kept
}

func (k *outcomeKeeper) put(r *PutResult) *PutResult {
	if r == nil {
		return nil
	}
	kept := new(PutResult)
	if r.Previous != nil {
		kept.Previous = new(k.version(r.Previous))
	}
	return kept
}

func (k *outcomeKeeper) delete(r *DeleteResult) *DeleteResult {
	if r == nil {
		return nil
	}
	return &DeleteResult{Deleted: r.Deleted, Previous: k.versions(r.Previous)}
}

func (k *outcomeKeeper) mutate(r *MutateResult) *MutateResult {
	if r == nil {
		return nil
	}
	kept := new(*r)
	if r.Current != nil {
		kept.Current = new(k.version(r.Current))
	}
	return kept
}

func (k *outcomeKeeper) txn(r *TxnResult) *TxnResult {
	if r == nil || !k.fits(outcomeOperationBytes*len(r.Operations)) {
		return nil
	}
	kept := &TxnResult{Succeeded: r.Succeeded, Operations: make([]OperationResult, len(r.Operations))}
	for i := range r.Operations {
		o := &r.Operations[i]
		if o.Range != nil {
			kept.Operations[i].Range = &RangeResult{
				KVs: k.versions(o.Range.KVs), More: o.Range.More, Count: o.Range.Count,
			}
		}
		kept.Operations[i].Put = k.put(o.Put)
		kept.Operations[i].Delete = k.delete(o.Delete)
		kept.Operations[i].Txn = k.txn(o.Txn)
		kept.Operations[i].Mutate = k.mutate(o.Mutate)
		if k.left < 0 {
			return nil
		}
	}
	return kept
}
