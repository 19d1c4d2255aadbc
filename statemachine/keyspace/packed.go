package keyspace

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
)

// packedLeaf is what a range takes from a whole leaf, ready to be copied at once: the newest versions of its keys, tombstones
// left out, as elements of a repeated field. Records lie where they were written; who reads the same range again and again would
// wait for each of them again.
//
// It is made by the second range that finds the leaf as another one found it, and used as long as none of its keys changes.
//
// Invariant: if the keys' changes sum up to what they did before the records were looked at, then no version that is visible
// at a revision from newest on is missing. For the writer counts a change after it has stored it and before it publishes it, so
// that a reader who can see it can see that it was counted; and no count ever goes back. A key that was added since is counted, too.
type packedLeaf struct {
	changes uint64 // sum of the keys' changes
	newest  int64  // highest main revision
	tag     byte   // before each element
	count   int    // of elements
	bytes   []byte

	used atomic.Bool // since the eviction looked at it
	// The rest belongs to packs.
	room *leafRoom
	at   int
}

const (
	// packedBytesMost bounds the memory of all packed leaves of a Space.
	packedBytesMost = 32 << 20
	// packedKeysLeast is how many keys are worth it.
	packedKeysLeast = 8
	// replaceOneIn: while there is no room, so many leaves are left as they are for one that takes the place of others. More ranges
	// than there is room for would pack leaves without ever finding them again.
	replaceOneIn = 16
)

// packs is all packed leaves.
type packs struct {
	mu     sync.Mutex
	leaves []*packedLeaf
	hand   int
	bytes  int
	limit  int
}

// packed returns the leaf's keys as they are at the revision. It returns nil if that is not at hand, and makes it so that it will
// be if this is asked for again. lf is what the snapshot found in the room, whole.
func (w *walker) packed(room *leafRoom, lf *leaf, tag byte) *packedLeaf {
	if len(lf.ids) < packedKeysLeast {
		return nil
	}
	heads, changes := &w.sn.space.heads, uint64(1) // so that it is never what a new room has seen
	for _, id := range lf.ids {
		changes += heads.changes(id).Load()
	}
	p := room.packed.Load()
	if p != nil && p.changes == changes && p.tag == tag {
		if p.newest > w.revision {
			return nil
		}
		if !p.used.Load() {
			p.used.Store(true)
		}
		return p
	}
	if room.seen.Swap(changes) != changes {
		return nil
	}
	return w.pack(room, lf, changes, tag)
}

// pack makes the leaf packed. It returns nil if the newest versions are not what the reader sees, or there is no room.
func (w *walker) pack(room *leafRoom, lf *leaf, changes uint64, tag byte) *packedLeaf {
	packs := &w.sn.space.packs
	if !packs.mu.TryLock() {
		return nil // this one can be read as always
	}
	defer packs.mu.Unlock()
	if packs.full() && rand.IntN(replaceOneIn) > 0 {
		return nil
	}
	p := &packedLeaf{changes: changes, tag: tag, room: room}
	size := 0
	records := w.records[:0]
	for _, id := range lf.ids {
		sl := w.sn.space.slots.at(w.sn.space.heads.at(id).Load())
		p.newest = max(p.newest, sl.main.Load())
		ref := recordRef(sl.ref.Load())
		if ref.tombstone() {
			continue
		}
		r := w.sn.space.slabs.record(ref)
		size += 1 + protowire.SizeBytes(len(r.encoded()))
		records = append(records, r)
	}
	if p.newest > w.revision || !packs.admit(room, size) {
		return nil
	}
	p.bytes, p.count = make([]byte, 0, size), len(records)
	for _, r := range records {
		p.bytes = protowire.AppendBytes(append(p.bytes, tag), r.encoded())
	}
	packs.add(p)
	return p
}

// full tells whether another leaf would take the place of one that is there. The caller holds mu.
func (k *packs) full() bool { return k.bytes > k.limit/16*15 }

// admit makes room for a leaf of so many bytes, without the one that the room has now. The caller holds mu.
func (k *packs) admit(room *leafRoom, size int) bool {
	if size > k.limit/8 {
		return false
	}
	if old := room.packed.Load(); old != nil {
		k.drop(old)
	}
	for k.bytes+size > k.limit {
		if k.hand >= len(k.leaves) {
			k.hand = 0
		}
		if p := k.leaves[k.hand]; p.used.Swap(false) {
			k.hand++
		} else {
			k.drop(p)
		}
	}
	return true
}

func (k *packs) add(p *packedLeaf) {
	p.at = len(k.leaves)
	k.leaves = append(k.leaves, p)
	k.bytes += len(p.bytes)
	p.room.packed.Store(p)
}

// clear leaves all leaves to be packed anew.
func (k *packs) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.leaves {
		p.room.packed.Store(nil)
	}
	k.leaves, k.bytes, k.hand = nil, 0, 0
}

func (k *packs) drop(p *packedLeaf) {
	last := k.leaves[len(k.leaves)-1]
	k.leaves[p.at], last.at = last, p.at
	k.leaves[len(k.leaves)-1] = nil
	k.leaves = k.leaves[:len(k.leaves)-1]
	k.bytes -= len(p.bytes)
	p.room.packed.Store(nil)
}
