package lease

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// CorruptError tells of a lease whose memory is no longer what was written.
type CorruptError struct{ ID int64 }

func (e *CorruptError) Error() string {
	return fmt.Sprintf("lease: lease %d is corrupt in memory", e.ID)
}

// Digest is the sum over all leases of a hash of each: what it is and whose, not its keys. Equal tables have equal ones,
// however they came to be.
func (t *Table) Digest() uint64 { return t.digest }

// Verify checks that the leases whose ids are at or above first, and the keys that hang on them, are what was written: about
// as many rows and keys as limit says. Where more is true, the others begin at next. The error is a *CorruptError.
func (t *Table) Verify(first int64, limit int) (next int64, more bool, err error) {
	t.ordered.from(first, func(id int64) bool {
		if limit <= 0 {
			next, more = id, true
			return false
		}
		l, ok := t.leases[id]
		if !ok || l.hash() != l.sum || l.id != id || !l.keys.intact() {
			err = &CorruptError{ID: id}
			return false
		}
		limit -= 1 + l.keys.len()
		return true
	})
	return next, more, err
}

// changed takes a row's change into the digest.
func (t *Table) changed(l *lease) {
	sum := l.hash()
	t.digest += sum - l.sum
	l.sum = sum
}

func (l *lease) hash() uint64 {
	var owner uint64
	if l.owner != nil {
		owner = l.owner.session
	}
	var row [48]byte
	for i, field := range [...]uint64{
		uint64(l.id), uint64(l.ttlSeconds), owner, l.ownerIndex, uint64(l.previousSessionTime), uint64(l.orphanStamp),
	} {
		binary.LittleEndian.PutUint64(row[8*i:], field)
	}
	return xxhash.Sum64(row[:])
}
