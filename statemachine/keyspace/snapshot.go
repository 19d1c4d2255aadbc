package keyspace

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

var (
	// ErrCompacted is returned for a revision below the snapshot's compact revision.
	ErrCompacted = errors.New("keyspace: revision has been compacted")
	// ErrFuture is returned for a revision above the snapshot's.
	ErrFuture = errors.New("keyspace: revision is not reached yet")
)

// Snapshot is the key space as of one log entry. It may be used by several goroutines at once, until Release.
//
// Visit functions are called on the caller's goroutine and may read through the same snapshot. They end the walk by
// returning false.
type Snapshot struct {
	space      *Space
	state      state
	registered *atomic.Int64 // nil: the writer's view
}

// Acquire returns a snapshot of the published state. Release it soon: until then nothing that it could read is
// freed, nor anything that is superseded after.
func (s *Space) Acquire() *Snapshot {
	registered := s.epochs.enter()
	return &Snapshot{space: s, state: *s.state.Load(), registered: registered}
}

// Revisions returns the revision and the compact revision of the published state, for who reads nothing of it.
func (s *Space) Revisions() (revision, compactRevision int64) {
	published := s.state.Load()
	return published.revision, published.compactRevision
}

// Release ends the use of the snapshot. Versions that were read through it stay valid. It may be called only
// once, after all reads have returned; reads after it panic.
func (sn *Snapshot) Release() {
	if sn.space == nil {
		panic("keyspace: snapshot released twice")
	}
	sn.space = nil
	if sn.registered != nil {
		leave(sn.registered)
	}
}

// WriterView returns a view of all that was written, published or not, for the writer's goroutine and only
// until its next write, Compact or CompactSome. Its revision is that of the newest version if that is above the
// published one, its index the published one. It needs no Release.
func (s *Space) WriterView() Snapshot {
	st := *s.state.Load()
	st.revision = max(st.revision, s.newestMain)
	st.compactRevision = s.compactRevision
	st.historyCount = s.history.count
	return Snapshot{space: s, state: st}
}

// Index of the log entry that the snapshot is the state after.
func (sn *Snapshot) Index() uint64 { return sn.state.index }

// Revision of the snapshot: the highest that can be read.
func (sn *Snapshot) Revision() int64 { return sn.state.revision }

// CompactRevision is the lowest revision that can be read, and where history begins.
func (sn *Snapshot) CompactRevision() int64 { return sn.state.compactRevision }

// Get returns the version of key at revision, zero or less meaning the snapshot's own; false if the key did not
// exist then.
func (sn *Snapshot) Get(key []byte, revision int64) (Version, bool, error) {
	revision, err := sn.check(revision)
	if err != nil {
		return Version{}, false, err
	}
	id, found := sn.space.find(key)
	if !found {
		return Version{}, false, nil
	}
	ref, ok := sn.at(id, revision)
	if !ok {
		return Version{}, false, nil
	}
	return sn.space.slabs.record(ref).version(), true, nil
}

// Range visits the keys in [start, end) that exist at revision, in ascending order. start nil: from the first
// key; end nil: no bound. Revision as for Get.
func (sn *Snapshot) Range(start, end []byte, revision int64, visit func(Version) bool) error {
	return sn.rangeRecords(start, end, revision, false, func(r record) bool { return visit(r.version()) })
}

func (sn *Snapshot) rangeRecords(start, end []byte, revision int64, copies bool, visit func(record) bool) error {
	revision, err := sn.check(revision)
	if err != nil {
		return err
	}
	w := walker{sn: sn, revision: revision, batch: firstBatch, copies: copies}
	sn.space.index.ascend(start, end, func(run []uint32) bool { return w.visit(run, visit) })
	return nil
}

// RangeEncoded is Range for those who copy the key-values as they are encoded: visit is given the key and
// Version.Encoded, and nothing is decoded.
//
// packed, unless it is nil, is given the key-values of some runs of keys in place of visit, where they are at hand as elements of
// a repeated field: the tag, which is one byte, the length and Version.Encoded of each. They are as the slices of a Version. If it
// returns false, visit is given them after all.
func (sn *Snapshot) RangeEncoded(start, end []byte, revision int64, visit func(key, encoded []byte) bool,
	tag byte, packed func(elements []byte, count int) bool,
) error {
	each := func(r record) bool { return visit(r.key(), r.encoded()) }
	if packed == nil {
		return sn.rangeRecords(start, end, revision, true, each)
	}
	revision, err := sn.check(revision)
	if err != nil {
		return err
	}
	w := walker{sn: sn, revision: revision, batch: firstBatch, copies: true}
	sn.space.index.ascendLeaves(start, end, func(room *leafRoom, lf *leaf, run []uint32) bool {
		if len(run) == len(lf.ids) {
			if p := w.packed(room, lf, tag); p != nil && packed(p.bytes, p.count) {
				return true
			}
		}
		return w.visit(run, each)
	})
	return nil
}

// RangeDescending is Range in descending order.
func (sn *Snapshot) RangeDescending(start, end []byte, revision int64, visit func(Version) bool) error {
	revision, err := sn.check(revision)
	if err != nil {
		return err
	}
	w := walker{sn: sn, revision: revision, batch: firstBatch}
	sn.space.index.descend(start, end, func(run []uint32) bool {
		for len(run) > 0 {
			rest := max(len(run)-w.batch, 0)
			for _, r := range slices.Backward(w.resolve(run[rest:])) {
				if !visit(r.version()) {
					return false
				}
			}
			run = run[:rest]
		}
		return true
	})
	return nil
}

// Count returns how many keys of [start, end) exist at revision, without looking at their contents. Bounds and
// revision as for Range.
func (sn *Snapshot) Count(start, end []byte, revision int64) (int64, error) {
	revision, err := sn.check(revision)
	if err != nil {
		return 0, err
	}
	var n int64
	w := walker{sn: sn, revision: revision}
	sn.space.index.ascend(start, end, func(run []uint32) bool {
		n += int64(w.find(run))
		return true
	})
	return n, nil
}

// walker resolves ids to records in batches. Each of the steps from id to record is likely to miss the
// processor's caches; taken for a whole batch at once, the misses of a step overlap. Batches begin small, since
// many a range ends after a few keys.
type walker struct {
	sn       *Snapshot
	revision int64
	batch    int
	slots    [leafKeys]uint32
	refs     [leafKeys]recordRef
	records  [leafKeys]record
	copies   bool // whoever visits them reads whole records
	touched  byte // sum of what touch has read, so that the compiler keeps the reads
}

const (
	firstBatch = 4
	// touchedBytes of a record are read ahead of its visit: those of a batch fit into the first cache. The rest of a
	// longer one comes in order, which the processor foresees.
	touchedBytes   = 512
	cacheLineBytes = 64
)

// visit the records of those keys that exist at the revision.
func (w *walker) visit(run []uint32, visit func(record) bool) bool {
	for len(run) > 0 {
		n := min(w.batch, len(run))
		for _, r := range w.resolve(run[:n]) {
			if !visit(r) {
				return false
			}
		}
		run = run[n:]
	}
	return true
}

// resolve returns the records of those keys that exist at the revision. They are good until the next call.
func (w *walker) resolve(ids []uint32) []record {
	w.batch = min(2*w.batch, leafKeys)
	n := w.find(ids)
	for i, ref := range w.refs[:n] {
		w.records[i] = w.sn.space.slabs.record(ref)
	}
	if w.copies {
		w.touch(w.records[:n])
	}
	return w.records[:n]
}

// touch reads one byte of each cache line of the records. Who copies them one after the other waits for the lines of each;
// these reads depend on nothing, so the processor has those of several records under way.
func (w *walker) touch(records []record) {
	for _, r := range records {
		w.touched += r.touch()
	}
}

// touch returns a sum of what it reads.
func (r record) touch() byte {
	sum := r[len(r)-1]
	for at := cacheLineBytes; at < min(len(r), touchedBytes); at += cacheLineBytes {
		sum += r[at]
	}
	return sum
}

// find fills refs with the references of those keys that exist at the revision, and returns how many they are.
func (w *walker) find(ids []uint32) (n int) {
	space := w.sn.space
	for i, id := range ids {
		w.slots[i] = space.heads.at(id).Load()
	}
	for _, number := range w.slots[:len(ids)] {
		if ref, ok := space.versionAt(number, w.revision); ok {
			w.refs[n] = ref
			n++
		}
	}
	return n
}

// History visits every version written from main revision fromMain to toMain, both included, tombstones among
// them, in the order of (main, sub). A fromMain below the compact revision gives ErrCompacted, as in etcd; a toMain
// above the snapshot's revision, or of zero or less, means the snapshot's revision. fromMain may lie above it:
// there is nothing to visit then.
func (sn *Snapshot) History(fromMain, toMain int64, visit func(Version) bool) error {
	s := sn.alive()
	if compacted := sn.state.compactRevision; compacted > 0 && fromMain < compacted {
		return fmt.Errorf("%w: history from %d, compacted at %d", ErrCompacted, fromMain, compacted)
	}
	if toMain <= 0 || toMain > sn.state.revision {
		toMain = sn.state.revision
	}
	v := s.history.view.Load()
	for n := v.after(fromMain-1, sn.state.historyCount); n < sn.state.historyCount; n++ {
		c := v.at(n)
		if c.main > toMain || !visit(s.slabs.record(recordRef(s.slots.at(c.slot).ref.Load())).version()) {
			break
		}
	}
	return nil
}

// Place is where a version stands in the order of all versions. The zero Place stands for none.
type Place struct{ Main, Sub int64 }

// HistorySince visits every version that was written after older was taken and that the snapshot holds, tombstones among
// them, in the order of (main, sub): all of them, also those that were compacted meanwhile. older must not be released
// before it returns, and may be nil: then the versions from the snapshot's compact revision on are visited, as by History.
//
// superseded is the live version that the visited one replaced or ended, if that can be read through older, or is visited
// too; else, and where there is none, it is zero.
func (sn *Snapshot) HistorySince(older *Snapshot, visit func(v Version, superseded Place) bool) {
	s := sn.alive()
	v := s.history.view.Load()
	var from uint64
	compacted := sn.state.compactRevision
	if older == nil {
		from = v.after(compacted-1, sn.state.historyCount)
	} else {
		if older.alive() != s {
			panic("keyspace: snapshots of two spaces")
		}
		from, compacted = older.state.historyCount, older.state.compactRevision
	}
	for n := from; n < sn.state.historyCount; n++ {
		c := v.at(n)
		v := s.slabs.record(recordRef(s.slots.at(c.slot).ref.Load())).version()
		if !visit(v, s.superseded(c.slot, c.main, compacted)) {
			break
		}
	}
}

// superseded returns the place of the live version before that of a slot, which was written at main. What a reader that
// holds a snapshot of the given compact revision cannot read is none: only a version at that revision can have superseded
// it.
func (s *Space) superseded(slot uint32, main, compactRevision int64) Place {
	number := s.slots.prev(slot)
	if number == 0 {
		return Place{}
	}
	before := s.slots.at(number)
	place, ref := Place{Main: before.main.Load()}, recordRef(before.ref.Load())
	// The removal of what is compacted takes the link away before it gives the slot to another version. It is under way at
	// most at the compact revision itself: above it, the reader keeps links and slots.
	if s.slots.prev(slot) != number || main == compactRevision && place.Main < compactRevision || ref.tombstone() {
		return Place{}
	}
	place.Sub = s.slabs.record(ref).sub()
	return place
}

func (sn *Snapshot) alive() *Space {
	if sn.space == nil {
		panic("keyspace: snapshot used after its release")
	}
	return sn.space
}

// check resolves a revision to read at.
func (sn *Snapshot) check(revision int64) (int64, error) {
	sn.alive()
	switch {
	case revision <= 0:
		return sn.state.revision, nil
	case revision > sn.state.revision:
		return 0, fmt.Errorf("%w: %d, now at %d", ErrFuture, revision, sn.state.revision)
	case revision < sn.state.compactRevision:
		return 0, fmt.Errorf("%w: %d, compacted at %d", ErrCompacted, revision, sn.state.compactRevision)
	}
	return revision, nil
}

// at returns the record of the key's version at revision; false if there is none or it is a tombstone.
func (sn *Snapshot) at(id uint32, revision int64) (recordRef, bool) {
	return sn.space.versionAt(sn.space.heads.at(id).Load(), revision)
}

// versionAt goes from the slot of a newer version, or zero, to the one at revision.
func (s *Space) versionAt(number uint32, revision int64) (recordRef, bool) {
	for number != 0 {
		sl := s.slots.at(number)
		if sl.main.Load() <= revision {
			ref := recordRef(sl.ref.Load())
			return ref, !ref.tombstone()
		}
		number = s.slots.prev(number)
	}
	return 0, false
}
