package lease

import (
	"math"
	"slices"
	"time"
)

// Pin is the table as it was when the pin was taken, while the table goes on changing. It holds no copy of the table: of the
// rows that change after it, and of those only, the table keeps in it what they were. So taking a pin costs the same
// whatever the number of leases, and a change costs more once a row and pin.
//
// Whoever guards the table guards its pins: Table.Pin and Release are writes, Page is a read. Pages may be read again and
// by several goroutines.
type Pin struct {
	table *Table
	// number tells what has changed since: a row whose version is below it has not.
	number uint32
	len    int
	// changed holds what rows were whose version is no longer below number.
	changed map[int64]pinnedRow
	// removed are the ids of those rows of changed that the table no longer holds, or did not for a time.
	removed orderedIDs
}

// pinnedRow is what an Info has beside the id and the number of keys.
type pinnedRow struct {
	ttlSeconds          int64
	owner, ownerIndex   uint64
	previousSessionTime int64
	orphanStamp         int64
}

// PinPageIDs is how many ids one page of a pin looks at.
const PinPageIDs = 256

// Pin pins the table until Release.
func (t *Table) Pin() *Pin {
	t.version++
	p := &Pin{table: t, number: t.version, len: len(t.leases), changed: make(map[int64]pinnedRow)}
	t.pins = append(t.pins, p)
	return p
}

// Pins returns how many pins are held.
func (t *Table) Pins() int { return len(t.pins) }

// Release ends the pin; once more does nothing.
func (p *Pin) Release() {
	if at := slices.Index(p.table.pins, p); at >= 0 {
		p.table.pins = slices.Delete(p.table.pins, at, at+1)
	}
	p.changed, p.removed = nil, orderedIDs{}
}

// Len is the number of leases that there were.
func (p *Pin) Len() int { return p.len }

// Page appends leases whose ids are at or above first to rows, by id, in a bounded number of steps: none may be among
// them. Where more is true, the page that begins with next has the others. Keys is zero in each: which keys hang on a
// lease is not kept.
func (p *Pin) Page(first int64, rows []Info) (_ []Info, next int64, more bool) {
	var room [PinPageIDs]int64
	ids := p.ids(first, room[:0])
	// One lookup is likely to miss the processor's caches; of several in a row the misses overlap.
	var found [PinPageIDs]*lease
	for i, id := range ids {
		found[i] = p.table.leases[id]
	}
	for i, id := range ids {
		if info, ok := p.info(id, found[i]); ok {
			rows = append(rows, info)
		}
	}
	if len(ids) < PinPageIDs || ids[PinPageIDs-1] == math.MaxInt64 {
		return rows, 0, false
	}
	return rows, ids[PinPageIDs-1] + 1, true
}

// ids appends to the empty slice the lowest ids from first on that a lease has or had when the pin was taken, as many as
// there is room for.
func (p *Pin) ids(first int64, ids []int64) []int64 {
	take := func(id int64) bool {
		if len(ids) == cap(ids) {
			return false
		}
		ids = append(ids, id)
		return true
	}
	p.table.ordered.from(first, take)
	present := len(ids)
	var room [PinPageIDs]int64
	removed := room[:0]
	p.removed.from(first, func(id int64) bool {
		// What is above all of a full page comes with a later one.
		if present == cap(ids) && id > ids[present-1] || len(removed) == cap(ids) {
			return false
		}
		removed = append(removed, id)
		return true
	})
	if len(removed) == 0 {
		return ids
	}
	return merge(ids, removed)
}

// merge puts the ids of two sorted lists, each once, into the first, as many of the lowest as it has room for.
func merge(into, other []int64) []int64 {
	var room [PinPageIDs]int64
	one := append(room[:0], into...)
	into = into[:0]
	for len(into) < cap(into) && (len(one) > 0 || len(other) > 0) {
		switch {
		case len(other) == 0 || len(one) > 0 && one[0] < other[0]:
			into, one = append(into, one[0]), one[1:]
		case len(one) == 0 || other[0] < one[0]:
			into, other = append(into, other[0]), other[1:]
		default:
			into, one, other = append(into, one[0]), one[1:], other[1:]
		}
	}
	return into
}

// info is what a lease was, of which the table now has the row l or none.
func (p *Pin) info(id int64, l *lease) (Info, bool) {
	if l != nil && l.version < p.number {
		info := l.info()
		info.Keys = 0
		return info, true
	}
	row, ok := p.changed[id]
	if !ok {
		return Info{}, false // granted after the pin
	}
	return Info{
		ID: id, TTLSeconds: row.ttlSeconds, Owner: row.owner, OwnerIndex: row.ownerIndex, Orphaned: row.owner == 0,
		PreviousOwnerSessionTime: time.Duration(row.previousSessionTime), OrphanStamp: row.orphanStamp,
	}, true
}

// keep keeps what a row is for the pins that have not got it. It comes before each change of what pins tell.
func (t *Table) keep(l *lease) {
	if l.version == t.version {
		return // every pin has it, or is from before the lease
	}
	for _, p := range t.pins {
		if l.version < p.number {
			p.changed[l.id] = l.pinned()
		}
	}
	l.version = t.version
}

// keepMany tells pins that keep is about to be called for so many rows.
func (t *Table) keepMany(rows int) {
	for _, p := range t.pins {
		if len(p.changed) == 0 {
			p.changed = make(map[int64]pinnedRow, rows)
		}
	}
}

// forget is keep for a row that is removed.
func (t *Table) forget(l *lease) {
	t.keep(l)
	for _, p := range t.pins {
		if _, ok := p.changed[l.id]; ok && !p.removed.has(l.id) {
			p.removed.add(l.id)
		}
	}
}

func (l *lease) pinned() pinnedRow {
	row := pinnedRow{
		ttlSeconds: l.ttlSeconds, ownerIndex: l.ownerIndex, previousSessionTime: l.previousSessionTime, orphanStamp: l.orphanStamp,
	}
	if l.owner != nil {
		row.owner = l.owner.session
	}
	return row
}
