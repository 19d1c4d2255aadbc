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

// Verify checks that leases of these ids, and the keys that hang on them, are what was written; ids that are not there are
// passed over. The error is a
// *CorruptError.
func (t *Table) Verify(ids []int64) error {
	for _, id := range ids {
		if l, ok := t.leases[id]; ok && (l.hash() != l.sum || l.id != id || !l.keys.intact()) {
			return &CorruptError{ID: id}
		}
	}
	return nil
}

// IDs returns the ids of all leases, in no order.
func (t *Table) IDs() []int64 {
	ids := make([]int64, 0, len(t.leases))
	for id := range t.leases {
		ids = append(ids, id)
	}
	return ids
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
