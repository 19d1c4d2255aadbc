package keyspace

import (
	"fmt"
	"hash/maphash"
	"sync/atomic"
)

// DefaultSlabBytes is the size of a slab unless Options says otherwise.
const DefaultSlabBytes = 1 << 20

// Options of a Space. The zero value is a new, empty key space.
type Options struct {
	// SlabBytes is the size of the memory that versions share; at most 1 GiB. Zero: DefaultSlabBytes. Larger
	// versions get a slab of their own.
	SlabBytes int
	// CompactRevision that a key space to be filled by Restore begins with.
	CompactRevision int64
}

// Space is the key space. See the package comment for who may call what.
type Space struct {
	state  atomic.Pointer[state]
	epochs epochs

	index   index
	lookup  lookup
	packs   packs
	seed    maphash.Seed // of the hashes of lookup
	heads   heads
	slots   slots
	slabs   slabs
	history history

	// Physical figures, stored by the writer when it publishes or compacts.
	slabBytes        atomic.Int64
	retainedVersions atomic.Int64

	// The rest belongs to the writer.

	newestMain        int64 // of the newest version
	newestSub         int64
	freedBytes        int64 // the sum of what each change freed
	written           bool  // at least one version was put into the history
	compactRevision   int64
	compactFreedBytes int64 // freedBytes as of compactRevision
	writtenBytes      int64 // logical bytes of all versions ever stored
	keys              int   // live ones
	versions          int   // physically retained
	digest            Digest
	retirees          retirees
	compaction        compaction
	evacuation        evacuation
	expected          byte // sum of what Expect has read, so that the compiler keeps the reads
}

// state is what a reader takes as one value.
type state struct {
	index                     uint64
	revision, compactRevision int64
	historyCount              uint64
	keys                      int
	logicalBytes              int64
	digest                    Digest
}

// Stats describes a Space. Keys, LogicalBytes and the revisions are those of the published state; Versions and
// SlabBytes are physical and depend on how far the removal of compacted versions has come.
type Stats struct {
	Keys         int   // live
	Versions     int   // retained, tombstones included
	LogicalBytes int64 // see Space.LogicalBytes
	SlabBytes    int64 // memory that holds versions, in use or not
	Revision     int64
	// CompactRevision is the lowest revision that can be read.
	CompactRevision int64
}

// New returns an empty Space at revision and index zero.
func New(o Options) *Space {
	s := &Space{compactRevision: o.CompactRevision, seed: maphash.MakeSeed()}
	slabBytes := o.SlabBytes
	if slabBytes <= 0 {
		slabBytes = DefaultSlabBytes
	}
	s.slabs.init(max(1<<10, min(slabBytes, 1<<30)))
	s.slots.init()
	s.heads.init()
	s.history.init()
	s.packs.limit = packedBytesMost
	s.index.init(s.keyOf)
	s.lookup.init(s.keyOf, s.hashesOf)
	s.compaction = compaction{published: o.CompactRevision, target: o.CompactRevision, done: o.CompactRevision}
	s.state.Store(&state{revision: o.CompactRevision, compactRevision: o.CompactRevision})
	return s
}

// Latest returns the newest version of key, published or not; false if the key is absent or deleted.
func (s *Space) Latest(key []byte) (Version, bool) {
	id, found := s.find(key)
	if !found {
		return Version{}, false
	}
	return s.live(s.heads.at(id).Load())
}

// Put stores a version of key under (main, sub) and returns it and the live version that it replaces, if there
// is one. key and value are copied. It panics if (main, sub) is not above all written before, since no state
// could be right then.
func (s *Space) Put(key, value []byte, lease int64, main, sub int64) (stored, previous Version, existed bool) {
	s.mustFollow(main, sub)
	id, found := s.find(key)
	var head uint32
	if found {
		head = s.heads.at(id).Load()
		previous, existed = s.live(head)
	}
	kv := keyValue{key: key, value: value, createRevision: main, modRevision: main, version: 1, lease: lease}
	if existed {
		kv.createRevision, kv.version = previous.CreateRevision, previous.Version+1
	} else {
		s.keys++
	}
	slot, record := s.store(&kv, sub, false, head)
	s.link(id, found, key, slot)
	var freed int64
	if existed {
		freed = previous.LogicalBytes()
	}
	s.digest.written(record, previous, existed)
	s.record(slot, main, sub, freed)
	return record.version(), previous, existed
}

// Delete stores a tombstone of key under (main, sub) and returns it and the live version that it ends. If there
// is none, nothing happens and existed is false. It panics as Put does.
func (s *Space) Delete(key []byte, main, sub int64) (tombstone, previous Version, existed bool) {
	s.mustFollow(main, sub)
	id, found := s.find(key)
	if !found {
		return Version{}, Version{}, false
	}
	head := s.heads.at(id).Load()
	previous, existed = s.live(head)
	if !existed {
		return Version{}, Version{}, false
	}
	kv := tombstoneOf(key, main)
	slot, record := s.store(&kv, sub, true, head)
	s.link(id, found, key, slot)
	tombstone = record.version()
	s.keys--
	s.digest.written(record, previous, existed)
	s.record(slot, main, sub, previous.LogicalBytes()+tombstone.LogicalBytes())
	return tombstone, previous, true
}

// Publish makes all that was written visible to readers, as the state after log entry index with the given
// revision. It panics if index or revision goes back, or if the revision is below what was written.
func (s *Space) Publish(index uint64, revision int64) {
	old := s.state.Load()
	if index < old.index || revision < old.revision || s.written && revision < s.newestMain {
		panic(fmt.Sprintf("keyspace: publish (%d, %d) after (%d, %d) with a version at %d",
			index, revision, old.index, old.revision, s.newestMain))
	}
	s.publish(index, revision)
}

func (s *Space) publish(index uint64, revision int64) {
	s.state.Store(&state{
		index: index, revision: revision, compactRevision: s.compactRevision,
		historyCount: s.history.count, keys: s.keys, logicalBytes: s.LogicalBytes(), digest: s.digest,
	})
	s.compactionPublished()
	s.storeFigures()
}

func (s *Space) storeFigures() {
	s.slabBytes.Store(s.slabs.totalBytes)
	s.retainedVersions.Store(int64(s.versions))
}

// LogicalBytes is the size that a quota counts, of the writer's state: the sum of Version.LogicalBytes over all
// versions that the compact revision retains: those above it, tombstones included, and of each key the newest
// at or below it unless that is a tombstone. It depends on the sequence of writes and compactions alone, not on
// physical progress.
func (s *Space) LogicalBytes() int64 { return s.writtenBytes - s.compactFreedBytes }

// Stats may be called from any goroutine.
func (s *Space) Stats() Stats {
	st := s.state.Load()
	return Stats{
		Keys: st.keys, Versions: int(s.retainedVersions.Load()),
		LogicalBytes: st.logicalBytes, SlabBytes: s.slabBytes.Load(),
		Revision: st.revision, CompactRevision: st.compactRevision,
	}
}

func (s *Space) mustFollow(main, sub int64) {
	published := s.state.Load().revision
	if main <= published || sub < 0 || sub > maxSub ||
		s.written && (main < s.newestMain || main == s.newestMain && sub <= s.newestSub) {
		panic(fmt.Sprintf("keyspace: write at (%d, %d) after (%d, %d), published %d",
			main, sub, s.newestMain, s.newestSub, published))
	}
}

// live returns the version in the slot unless it is a tombstone. Slot zero is none.
func (s *Space) live(number uint32) (Version, bool) {
	if number == 0 {
		return Version{}, false
	}
	ref := recordRef(s.slots.at(number).ref.Load())
	if ref.tombstone() {
		return Version{}, false
	}
	return s.slabs.record(ref).version(), true
}

// find returns the id of key.
func (s *Space) find(key []byte) (id uint32, found bool) {
	id, found, complete := s.lookup.find(s.hash(key), key)
	if found || complete {
		return id, found
	}
	return s.index.find(key)
}

func (s *Space) hash(key []byte) uint64 { return maphash.Bytes(s.seed, key) }

// hashesOf takes each of the steps from id to key for all ids, so that their cache misses overlap.
func (s *Space) hashesOf(ids []uint32, hashes []uint64) {
	for i, id := range ids {
		hashes[i] = uint64(s.heads.at(id).Load())
	}
	for i, number := range hashes[:len(ids)] {
		hashes[i] = s.slots.at(uint32(number)).ref.Load()
	}
	for i, ref := range hashes[:len(ids)] {
		hashes[i] = s.hash(s.slabs.record(recordRef(ref)).key())
	}
}

func (s *Space) keyOf(id uint32) []byte {
	ref := recordRef(s.slots.at(s.heads.at(id).Load()).ref.Load())
	return s.slabs.record(ref).key()
}

// store writes the record and its slot, which nothing refers to yet.
func (s *Space) store(kv *keyValue, sub int64, tombstone bool, prev uint32) (uint32, record) {
	encodedBytes := kv.encodedBytes()
	if encodedBytes > maxEncodedBytes {
		panic("keyspace: version of 1 GiB or more")
	}
	number := s.slots.allocate()
	ref, room := s.slabs.allocate(&s.slabs.incoming, recordBytes(sub, encodedBytes))
	if tombstone {
		ref |= 1
	}
	record := writeRecord(room, number, sub, tombstone, kv, encodedBytes)
	sl := s.slots.at(number)
	sl.main.Store(kv.modRevision)
	s.slots.setPrev(number, prev)
	sl.ref.Store(uint64(ref))
	s.writtenBytes += logicalBytes(encodedBytes)
	s.versions++
	return number, record
}

// link makes the slot the newest version of the key, which is added to the index if it is not there.
func (s *Space) link(id uint32, found bool, key []byte, slot uint32) {
	if !found {
		id = s.heads.allocate()
	}
	s.heads.store(id, slot)
	if !found {
		s.index.insert(s.index.locate(key), key, id)
		s.lookup.insert(s.hash(key), id)
	}
}

// record enters the version into the history.
func (s *Space) record(slot uint32, main, sub, freedBytes int64) {
	s.newestMain, s.newestSub, s.written = main, sub, true
	s.freedBytes += freedBytes
	s.history.append(change{main: main, slot: slot}, s.freedBytes)
}
