package check

import (
	"slices"
	"time"
)

// Lease is what became of one lease, by the history's clock.
type Lease struct {
	ID  int64
	TTL time.Duration
	// Confirmed are the times at which a renewal was confirmed, the grant first: when it was decided, or, where that is not
	// known, when it was asked for.
	Confirmed []time.Duration
	// Ended is when the end could first be seen anywhere; zero while it lives.
	Ended time.Duration
	// Revoked: a client asked for the end.
	Revoked bool
	// EndsBy is when it must have ended at the latest; zero for no such claim.
	EndsBy time.Duration
}

// Leases checks the promise: no lease ends before its TTL after its last confirmed renewal, but for the drift of clocks, as
// a fraction of the TTL; and none lives beyond EndsBy.
func Leases(leases []Lease, drift float64) error {
	var v violations
	for _, l := range leases {
		if l.Ended == 0 || l.EndsBy != 0 && l.Ended > l.EndsBy {
			if l.EndsBy != 0 {
				v.addf("lease %d was to end by %v, and ended at %v (0s: not yet)", l.ID, l.EndsBy, l.Ended)
			}
		}
		if l.Ended == 0 || l.Revoked || len(l.Confirmed) == 0 {
			continue
		}
		last := slices.Max(l.Confirmed)
		if earliest := last + time.Duration(float64(l.TTL)*(1-drift)); l.Ended < earliest {
			v.addf("lease %d of %v ended at %v, %v after a renewal was confirmed at %v", l.ID, l.TTL, l.Ended, l.Ended-last, last)
		}
	}
	return v.err()
}

// Guarded is an acknowledged write that was made on the condition that a lock is still the one that its writer took.
type Guarded struct {
	Client int
	// Lock is the key of the lock, Fence the revision that created it for this writer.
	Lock  string
	Fence int64
	// Revision is that of the write.
	Revision int64
}

// Locks checks that locks with fencing are safe whatever clocks and leases do: each fence is the creation of its lock and is
// one client's, a guarded write lies where the lock was held under its fence, and so the fences of guarded writes ascend.
func (l *Log) Locks(guarded []Guarded) error {
	var v violations
	type tenure struct {
		lock  string
		fence int64
	}
	holders := map[tenure]int{}
	for _, g := range guarded {
		at := tenure{g.Lock, g.Fence}
		if other, known := holders[at]; known && other != g.Client {
			v.addf("clients %d and %d both hold %q under fence %d", other, g.Client, g.Lock, g.Fence)
		}
		holders[at] = g.Client
		created, ok := l.changed(g.Lock, g.Fence)
		if before, existed := l.At(g.Lock, g.Fence-1); !ok || created.Deleted || existed && !before.Deleted {
			v.addf("client %d: fence %d is not the creation of %q", g.Client, g.Fence, g.Lock)
			continue
		}
		if end := l.deletedAfter(g.Lock, g.Fence); g.Revision <= g.Fence || end != 0 && g.Revision >= end {
			v.addf("client %d wrote at revision %d under %q, which was held from %d to %d", g.Client, g.Revision, g.Lock, g.Fence, end)
		}
	}
	return v.err()
}

// deletedAfter returns the first revision above another at which a key is deleted; zero for none.
func (l *Log) deletedAfter(key string, revision int64) int64 {
	for _, i := range l.byKey[key] {
		if c := &l.changes[i]; c.Revision > revision && c.Deleted {
			return c.Revision
		}
	}
	return 0
}
