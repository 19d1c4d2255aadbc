package lease

import (
	"errors"
	"fmt"
)

// ErrInconsistent is returned by Restore for a lease that cannot stand in a table.
var ErrInconsistent = errors.New("lease: inconsistent row")

// Restore puts a lease into the table as Info described it in another one. Its keys are not restored: attach them. The
// error matches ErrInconsistent, and then nothing has changed.
func (t *Table) Restore(info Info) error {
	inconsistent := func(why string) error { return fmt.Errorf("%w: lease %d: %s", ErrInconsistent, info.ID, why) }
	switch {
	case t.Exists(info.ID):
		return inconsistent("twice")
	case info.Orphaned != (info.Owner == 0) || info.Orphaned != (info.OwnerIndex == 0):
		return inconsistent("neither owned nor an orphan")
	case !info.Orphaned && info.OrphanStamp != 0:
		return inconsistent("owned, and stamped as an orphan")
	case info.TTLSeconds <= 0 || info.TTLSeconds > MaxTTLSeconds:
		return inconsistent("a TTL that is never granted")
	}
	l := &lease{
		id:                  info.ID,
		ttlSeconds:          info.TTLSeconds,
		ownerIndex:          info.OwnerIndex,
		previousSessionTime: int64(info.PreviousOwnerSessionTime),
		orphanStamp:         info.OrphanStamp,
		heapPosition:        -1,
		version:             t.version,
	}
	t.leases[l.id] = l
	t.ordered.add(l.id)
	if info.Orphaned {
		t.orphans.push(l)
	} else {
		t.link(l, t.holder(info.Owner))
	}
	t.changed(l)
	return nil
}
