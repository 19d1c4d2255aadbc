package lease

import (
	"math"
	"slices"
	"time"
)

// MaxTTLSeconds is the longest TTL a lease can be granted with, as in etcd. It is just below what a time.Duration
// holds.
const MaxTTLSeconds = 9_000_000_000

// ChangeKind says what happened to a lease.
type ChangeKind uint8

const (
	// Granted: the lease came into being, owned by the session that asked for it.
	Granted ChangeKind = iota + 1
	// Revoked: the lease was ended by a command, its keys with it.
	Revoked
	// Expired: the lease was ended by its owner's proposal or, as an orphan, by apply.
	Expired
	// Adopted: the lease has a new owner, who asked for it or who is the next incarnation of the one before.
	Adopted
	// Orphaned: the owner's session ended.
	Orphaned
)

// String returns the kind as logs and transcripts show it.
func (k ChangeKind) String() string {
	switch k {
	case Granted:
		return "granted"
	case Revoked:
		return "revoked"
	case Expired:
		return "expired"
	case Adopted:
		return "adopted"
	case Orphaned:
		return "orphaned"
	default:
		return "unknown"
	}
}

// Change is one thing that happened to one lease.
type Change struct {
	Kind ChangeKind
	ID   int64
	// TTL is what the lease was granted with.
	TTL time.Duration
	// Owner is the owner after the change; zero for an orphan. Of a lease that ended it is the last owner.
	Owner uint64
	// OwnerIndex is the index of the entry that made Owner the owner; zero where Owner is.
	OwnerIndex uint64
	// PreviousOwner is the owner before, where the change is one of ownership; zero where there was none.
	PreviousOwner uint64
	// PreviousOwnerSessionTime, with Adopted, is what the new owner adds to the TTL when it begins to count: the session
	// time of the owner before. With Orphaned it is what the next one will have to add. Zero otherwise.
	PreviousOwnerSessionTime time.Duration
}

// Info is what the table knows of one lease.
type Info struct {
	ID         int64
	TTLSeconds int64
	// Owner is the session that owns the lease; zero for an orphan.
	Owner uint64
	// OwnerIndex is the index of the entry that made Owner the owner; zero for an orphan. An Expire must name it.
	OwnerIndex uint64
	// PreviousOwnerSessionTime is what Owner added to the TTL when it began to count.
	PreviousOwnerSessionTime time.Duration
	Orphaned                 bool
	// OrphanStamp is the log time from which an orphan has its TTL left, in nanoseconds; zero where it is none.
	OrphanStamp int64
	// Keys is how many keys hang on the lease.
	Keys int
}

// TTL returns the lease's time to live as a duration.
func (i Info) TTL() time.Duration { return secondsToDuration(i.TTLSeconds) }

// lease is one row. A cluster holds hundreds of thousands of them: 128 bytes here and 40 in the table's index.
type lease struct {
	id         int64
	ttlSeconds int64
	// owner is nil exactly when the lease is an orphan.
	owner      *holder
	ownerIndex uint64
	// previousSessionTime is the session time of the owner before, in nanoseconds.
	previousSessionTime int64
	orphanStamp         int64
	// next and previous link the leases of one owner, in no order that anyone may see.
	next, previous *lease
	keys           keySet
	// sum is the hash of what stands above, made with its last change.
	sum uint64
	// heapPosition is where the lease stands in Table.orphans, -1 where it is owned.
	heapPosition int32
	// version is that of the table with the last change of what a Pin tells of the lease.
	version uint32
}

// holder is a session that owns leases.
type holder struct {
	session uint64
	first   *lease
	count   int
}

// Table is the lease table. The zero value is not usable; see NewTable.
//
// Invariant: a lease is in the list of its owner, or it has none and is in orphans; never both, never neither.
type Table struct {
	leases  map[int64]*lease
	holders map[uint64]*holder
	orphans orphanHeap
	// ordered holds the ids of leases.
	ordered orderedIDs
	// digest is the sum of all rows' sums.
	digest uint64
	// version counts the pins that were ever taken; pins are those that are held.
	version uint32
	pins    []*Pin
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{leases: make(map[int64]*lease), holders: make(map[uint64]*holder)}
}

// Len returns the number of leases.
func (t *Table) Len() int { return len(t.leases) }

// Orphans returns the number of leases without an owner.
func (t *Table) Orphans() int { return len(t.orphans) }

// Exists reports whether there is a lease of this id.
func (t *Table) Exists(id int64) bool {
	_, ok := t.leases[id]
	return ok
}

// Info returns what is known of one lease.
func (t *Table) Info(id int64) (Info, bool) {
	l, ok := t.leases[id]
	if !ok {
		return Info{}, false
	}
	return l.info(), true
}

// All returns every lease, by id.
func (t *Table) All() []Info { return t.Page(math.MinInt64, len(t.leases)) }

// Page returns the leases whose ids are at or above first, by id, and at most limit of them.
func (t *Table) Page(first int64, limit int) []Info {
	page := make([]Info, 0, min(limit, len(t.leases)))
	t.ordered.from(first, func(id int64) bool {
		if len(page) == limit {
			return false
		}
		page = append(page, t.leases[id].info())
		return true
	})
	return page
}

// OwnedBy returns the number of leases that a session owns.
func (t *Table) OwnedBy(session uint64) int {
	if h, ok := t.holders[session]; ok {
		return h.count
	}
	return 0
}

// Grant makes a lease owned by session, at the entry index. It reports false, and does nothing, if there is one of
// that id. The caller has checked id and ttlSeconds.
func (t *Table) Grant(id, ttlSeconds int64, session, index uint64) (Change, bool) {
	if _, ok := t.leases[id]; ok {
		return Change{}, false
	}
	l := &lease{id: id, ttlSeconds: ttlSeconds, ownerIndex: index, heapPosition: -1, version: t.version}
	t.leases[id] = l
	t.ordered.add(id)
	t.link(l, t.holder(session))
	t.changed(l)
	return l.change(Granted), true
}

// Adopt makes session the owner of a lease at the entry index. ownerSessionTime is the session time of the present
// owner; it is not asked for where the lease is an orphan, which has kept that of its last owner. It reports false,
// and does nothing, if there is no such lease or session owns it already.
func (t *Table) Adopt(id int64, session, index uint64, ownerSessionTime time.Duration) (Change, bool) {
	l, ok := t.leases[id]
	if !ok || (l.owner != nil && l.owner.session == session) {
		return Change{}, false
	}
	t.keep(l)
	var from uint64
	if l.owner != nil {
		from = l.owner.session
		l.previousSessionTime = int64(ownerSessionTime)
		t.unlink(l)
	} else {
		t.orphans.remove(l)
		l.orphanStamp = 0
	}
	l.ownerIndex = index
	t.link(l, t.holder(session))
	t.changed(l)
	change := l.change(Adopted)
	change.PreviousOwner = from
	return change, true
}

// Move makes session `to` the owner of all leases of session `from`, at the entry index, and returns one change for
// each, by id. fromSessionTime is the session time of `from`.
func (t *Table) Move(from, to, index uint64, fromSessionTime time.Duration) []Change {
	owned := t.owned(from)
	if len(owned) == 0 {
		return nil
	}
	changes := make([]Change, 0, len(owned))
	t.keepMany(len(owned))
	target := t.holder(to)
	for _, o := range owned {
		l := o.lease
		t.keep(l)
		t.unlink(l)
		l.ownerIndex = index
		l.previousSessionTime = int64(fromSessionTime)
		t.link(l, target)
		t.changed(l)
		change := l.change(Adopted)
		change.PreviousOwner = from
		changes = append(changes, change)
	}
	return changes
}

// Orphan takes all leases of a session away from it and returns one change for each, by id. stamp is the log time
// from which they have their TTL left, in nanoseconds; sessionTime is that of the session.
func (t *Table) Orphan(session uint64, stamp int64, sessionTime time.Duration) []Change {
	owned := t.owned(session)
	if len(owned) == 0 {
		return nil
	}
	changes := make([]Change, 0, len(owned))
	t.keepMany(len(owned))
	for _, o := range owned {
		l := o.lease
		t.keep(l)
		t.unlink(l)
		l.ownerIndex = 0
		l.previousSessionTime = int64(sessionTime)
		l.orphanStamp = stamp
		t.orphans.push(l)
		t.changed(l)
		change := l.change(Orphaned)
		change.PreviousOwner = session
		changes = append(changes, change)
	}
	return changes
}

// RestartOrphans gives every orphan its whole TTL from stamp on.
func (t *Table) RestartOrphans(stamp int64) {
	all := t.orphans
	t.orphans = make(orphanHeap, 0, len(all))
	t.keepMany(len(all))
	for _, l := range all {
		t.keep(l)
		l.orphanStamp = stamp
		t.orphans.push(l)
		t.changed(l)
	}
}

// NextOrphan returns the orphan that ends first and the log time at which it does, in nanoseconds. Orphans that end
// at the same time come by id.
func (t *Table) NextOrphan() (id, endsAt int64, ok bool) {
	if len(t.orphans) == 0 {
		return 0, 0, false
	}
	l := t.orphans[0]
	return l.id, l.endsAt(), true
}

// Remove ends a lease, for the reason that kind gives (Revoked or Expired). Its keys are no longer attached to
// anything; the caller has deleted them. It reports false if there is no such lease.
func (t *Table) Remove(id int64, kind ChangeKind) (Change, bool) {
	l, ok := t.leases[id]
	if !ok {
		return Change{}, false
	}
	change := l.change(kind)
	change.PreviousOwnerSessionTime = 0
	t.forget(l)
	if l.owner != nil {
		t.unlink(l)
	} else {
		t.orphans.remove(l)
	}
	delete(t.leases, id)
	t.ordered.remove(id)
	t.digest -= l.sum
	return change, true
}

// Attach hangs a key on a lease; once it hangs there, doing it again changes nothing. The key is copied. It reports
// whether there is such a lease.
func (t *Table) Attach(id int64, key []byte) bool {
	l, ok := t.leases[id]
	if ok {
		l.keys.add(string(key))
	}
	return ok
}

// Detach takes a key off a lease.
func (t *Table) Detach(id int64, key []byte) {
	if l, ok := t.leases[id]; ok {
		l.keys.remove(key)
	}
}

// Keys returns copies of the keys of a lease, in order; nil if there is no such lease.
func (t *Table) Keys(id int64) [][]byte {
	l, ok := t.leases[id]
	if !ok {
		return nil
	}
	return l.keys.sorted()
}

// ownedLease carries the id beside the row, so that sorting many of them does not go to each row.
type ownedLease struct {
	id int64
	*lease
}

// owned returns the leases of a session, by id.
func (t *Table) owned(session uint64) []ownedLease {
	h, ok := t.holders[session]
	if !ok {
		return nil
	}
	owned := make([]ownedLease, 0, h.count)
	for l := h.first; l != nil; l = l.next {
		owned = append(owned, ownedLease{l.id, l})
	}
	slices.SortFunc(owned, func(a, b ownedLease) int { return compareInt64(a.id, b.id) })
	return owned
}

// holder returns the list of a session's leases, made where there is none yet.
func (t *Table) holder(session uint64) *holder {
	h, ok := t.holders[session]
	if !ok {
		h = &holder{session: session}
		t.holders[session] = h
	}
	return h
}

// link puts a lease that has no owner into the list of h.
func (t *Table) link(l *lease, h *holder) {
	l.owner, l.previous, l.next = h, nil, h.first
	if h.first != nil {
		h.first.previous = l
	}
	h.first = l
	h.count++
}

// unlink takes a lease out of its owner's list and forgets the owner with its last lease.
func (t *Table) unlink(l *lease) {
	h := l.owner
	if l.previous != nil {
		l.previous.next = l.next
	} else {
		h.first = l.next
	}
	if l.next != nil {
		l.next.previous = l.previous
	}
	l.owner, l.next, l.previous = nil, nil, nil
	if h.count--; h.count == 0 {
		delete(t.holders, h.session)
	}
}

func (l *lease) info() Info {
	info := Info{
		ID:                       l.id,
		TTLSeconds:               l.ttlSeconds,
		OwnerIndex:               l.ownerIndex,
		PreviousOwnerSessionTime: time.Duration(l.previousSessionTime),
		Orphaned:                 l.owner == nil,
		OrphanStamp:              l.orphanStamp,
		Keys:                     l.keys.len(),
	}
	if l.owner != nil {
		info.Owner = l.owner.session
	}
	return info
}

func (l *lease) change(kind ChangeKind) Change {
	change := Change{
		Kind:                     kind,
		ID:                       l.id,
		TTL:                      secondsToDuration(l.ttlSeconds),
		OwnerIndex:               l.ownerIndex,
		PreviousOwnerSessionTime: time.Duration(l.previousSessionTime),
	}
	if l.owner != nil {
		change.Owner = l.owner.session
	}
	return change
}

// endsAt returns when an orphan ends in log time; a TTL beyond the end of time ends there.
func (l *lease) endsAt() int64 {
	ttl := int64(secondsToDuration(l.ttlSeconds))
	if l.orphanStamp > math.MaxInt64-ttl {
		return math.MaxInt64
	}
	return l.orphanStamp + ttl
}

func secondsToDuration(seconds int64) time.Duration {
	return time.Duration(min(max(seconds, 0), MaxTTLSeconds)) * time.Second
}

func compareInt64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}
