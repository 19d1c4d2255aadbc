package lease

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestOrphanHeap takes orphans out of the middle of a large heap and then all by their end, which must not go back.
func TestOrphanHeap(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		table := NewTable()
		const leases = 200
		for id := range int64(leases) {
			session := r.Uint64N(20) + 1
			table.Grant(id, 1+r.Int64N(100), session, 1)
		}
		for session := range uint64(20) {
			table.Orphan(session+1, r.Int64N(100)*1e9, time.Second)
		}
		for range leases / 2 {
			table.Adopt(r.Int64N(leases), 99, 2, 0)
		}
		last, lastID, left := int64(0), int64(-1), table.Orphans()
		for ; left > 0; left-- {
			id, endsAt, ok := table.NextOrphan()
			if !ok || endsAt < last || endsAt == last && id < lastID {
				t.Fatalf("seed %d: lease %d at %d after %d at %d", seed, id, endsAt, lastID, last)
			}
			last, lastID = endsAt, id
			table.Remove(id, Expired)
		}
		if _, _, ok := table.NextOrphan(); ok {
			t.Fatal("more orphans than were counted")
		}
	}
}
