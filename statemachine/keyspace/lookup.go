package keyspace

import (
	"bytes"
	"math/bits"
	"sync/atomic"
)

// lookup finds the id of one key by its hash. The index could, but each step of its search waits for memory; here a key is
// one cache line away, and its record.
//
// It is extendible hashing. A directory of 2^depth entries lists the segments: the lowest bits of a hash choose one, and a
// segment that is told by fewer bits is listed more than once. Within its segment a key stands in one of two buckets of a
// cache line each, in the second only if there was no room in the first. A tag of eight other bits of the hash is beside each
// id, so that a key that is not there rarely costs a look at a record. A segment that has no room for one key more is replaced
// by two: what growing costs one call is bounded by the keys of a segment, and the list of segments now and then.
//
// Invariant: an entry stays where it is while its segment is listed, and a segment is not changed any more once it is
// replaced. What the index says of readers that hold what was replaced holds here too: they find all that they may see.
//
// Whoever could choose keys whose hashes agree would fill one segment without end. The hashes are seeded, and a segment is not
// split beyond what the number of keys can explain: then keys are left out, and their first bucket says so.
//
// Nothing in a segment is a pointer, for the garbage collector's sake.
type lookup struct {
	directory atomic.Pointer[directory]
	keyOf     func(id uint32) []byte
	hashesOf  func(ids []uint32, hashes []uint64) // fills hashes
	entries   int                                 // writer only
}

type directory struct {
	depth    uint
	segments []atomic.Pointer[segment] // 2^depth
}

const (
	segmentBuckets = 16
	bucketIDs      = 12
	segmentIDs     = segmentBuckets * bucketIDs
	// filledIDs is how many keys of a segment are counted on when many are stored at once, so that nearly all find room.
	filledIDs = segmentIDs * 3 / 4
	// leastKeysPerSegment bounds the segments, counted as if all were split as often as the one.
	leastKeysPerSegment = 8
)

// segment is buckets. The bits of a hash: the lowest choose the segment, those from 40 on the buckets, the highest are the
// tag.
type segment [segmentBuckets]bucket

// bucket is a cache line.
type bucket struct {
	// tags of ids, a byte each, zero for none, from the lowest byte of the first word on. The highest byte of the second one
	// are flags.
	tags [2]atomic.Uint64
	ids  [bucketIDs]atomic.Uint32
}

// Flags of a bucket, about keys whose first one it is. They are not taken back.
const (
	flagOverflowed uint64 = 1 << (56 + iota) // some stand in their second bucket
	flagLeftOut                              // some stand nowhere
)

func (l *lookup) init(keyOf func(id uint32) []byte, hashesOf func(ids []uint32, hashes []uint64)) {
	l.keyOf, l.hashesOf = keyOf, hashesOf
	l.directory.Store(newDirectory(0))
	l.directory.Load().segments[0].Store(new(segment))
}

func newDirectory(depth uint) *directory {
	return &directory{depth: depth, segments: make([]atomic.Pointer[segment], 1<<depth)}
}

func (d *directory) entry(hash uint64) *atomic.Pointer[segment] {
	return &d.segments[hash&(1<<d.depth-1)]
}

// localDepth is how many bits tell the hash's segment.
func (d *directory) localDepth(hash uint64) uint {
	local, sg := d.depth, d.entry(hash).Load()
	for local > 0 && d.entry(hash^1<<(local-1)).Load() == sg {
		local--
	}
	return local
}

// buckets of a hash, which are two.
func (sg *segment) buckets(hash uint64) (first, second *bucket) {
	place := hash >> 40
	at := place % segmentBuckets
	return &sg[at], &sg[(at+1+place/segmentBuckets%(segmentBuckets-1))%segmentBuckets]
}

func tagOf(hash uint64) uint64 { return max(1, hash>>56) }

// find returns the id of key. Where it is not found and complete is false, only the index knows.
func (l *lookup) find(hash uint64, key []byte) (id uint32, found, complete bool) {
	first, second := l.directory.Load().entry(hash).Load().buckets(hash)
	if id, found = l.among(first, hash, key); found {
		return id, true, true
	}
	flags := first.tags[1].Load()
	if flags&flagOverflowed != 0 {
		if id, found = l.among(second, hash, key); found {
			return id, true, true
		}
	}
	return 0, false, flags&flagLeftOut == 0
}

func (l *lookup) among(b *bucket, hash uint64, key []byte) (uint32, bool) {
	matches := matching(b.tags[0].Load(), tagOf(hash))
	for ; matches != 0; matches &= matches - 1 {
		id := b.ids[bits.TrailingZeros64(matches)/8].Load()
		if bytes.Equal(l.keyOf(id), key) {
			return id, true
		}
	}
	matches = matching(b.tags[1].Load(), tagOf(hash)) & (1<<(8*(bucketIDs-8)) - 1)
	for ; matches != 0; matches &= matches - 1 {
		id := b.ids[8+bits.TrailingZeros64(matches)/8].Load()
		if bytes.Equal(l.keyOf(id), key) {
			return id, true
		}
	}
	return 0, false
}

// matching has the highest bit of each byte set that equals the tag.
func matching(tags, tag uint64) uint64 {
	const lowest, others = 0x0101010101010101, 0x7f7f7f7f7f7f7f7f
	difference := tags ^ tag*lowest
	return ^((difference&others + others) | difference | others)
}

// insert adds a key that is not there.
func (l *lookup) insert(hash uint64, id uint32) {
	for {
		d := l.directory.Load()
		sg := d.entry(hash).Load()
		if sg.put(hash, id) {
			l.entries++
			return
		}
		if !l.split(d, hash) {
			sg.leaveOut(hash)
			return
		}
	}
}

// put returns false if there is no room.
func (sg *segment) put(hash uint64, id uint32) bool {
	first, second := sg.buckets(hash)
	if first.put(tagOf(hash), id) {
		return true
	}
	if !second.put(tagOf(hash), id) {
		return false
	}
	first.tags[1].Store(first.tags[1].Load() | flagOverflowed)
	return true
}

func (sg *segment) leaveOut(hash uint64) {
	first, _ := sg.buckets(hash)
	first.tags[1].Store(first.tags[1].Load() | flagLeftOut)
}

// tag returns the word that has the tag of the i-th id, and where.
func (b *bucket) tag(i int) (word *atomic.Uint64, shift int) { return &b.tags[i/8], i % 8 * 8 }

func (b *bucket) put(tag uint64, id uint32) bool {
	for i := range b.ids {
		if word, shift := b.tag(i); word.Load()>>shift&0xff == 0 {
			b.ids[i].Store(id) // before its tag, by which readers come
			word.Store(word.Load() | tag<<shift)
			return true
		}
	}
	return false
}

// remove takes a key out, if it is there.
func (l *lookup) remove(hash uint64, id uint32) {
	first, second := l.directory.Load().entry(hash).Load().buckets(hash)
	if first.remove(id) || second.remove(id) {
		l.entries--
	}
}

func (b *bucket) remove(id uint32) bool {
	for i := range b.ids {
		if word, shift := b.tag(i); word.Load()>>shift&0xff != 0 && b.ids[i].Load() == id {
			word.Store(word.Load() &^ (0xff << shift))
			return true
		}
	}
	return false
}

// visit the ids of a segment.
func (sg *segment) visit(visit func(id uint32)) {
	for n := range sg {
		b := &sg[n]
		for i := range b.ids {
			if word, shift := b.tag(i); word.Load()>>shift&0xff != 0 {
				visit(b.ids[i].Load())
			}
		}
	}
}

// split replaces the segment of a hash by two. It returns false if that is not to be done: there are too few keys for as many
// segments.
func (l *lookup) split(d *directory, hash uint64) bool {
	local := d.localDepth(hash)
	if leastKeysPerSegment<<local > max(l.entries, segmentIDs) {
		return false
	}
	old := d.entry(hash).Load()
	halves := l.halves(old, local)
	if local == d.depth {
		doubled := newDirectory(d.depth + 1)
		for i := range doubled.segments {
			doubled.segments[i].Store(d.segments[i&(len(d.segments)-1)].Load())
		}
		l.directory.Store(doubled)
		d = doubled
	}
	for i := hash & (1<<local - 1); i < uint64(len(d.segments)); i += 1 << local {
		d.segments[i].Store(halves[i>>local&1])
	}
	return true
}

// halves distributes the keys of a segment by one more bit.
func (l *lookup) halves(old *segment, local uint) [2]*segment {
	var (
		ids    [segmentIDs]uint32
		hashes [segmentIDs]uint64
		n      int
	)
	old.visit(func(id uint32) {
		ids[n] = id
		n++
	})
	l.hashesOf(ids[:n], hashes[:n])
	halves := [2]*segment{new(segment), new(segment)}
	for i, hash := range hashes[:n] {
		if half := halves[hash>>local&1]; !half.put(hash, ids[i]) { // room that is given in another order may be less
			half.leaveOut(hash)
			l.entries--
		}
	}
	for n := range old {
		if old[n].tags[1].Load()&flagLeftOut == 0 {
			continue
		}
		for _, half := range halves {
			half[n].tags[1].Store(half[n].tags[1].Load() | flagLeftOut)
		}
	}
	return halves
}

// fill stores many keys at once in an empty table, on all processors: hashes[i] is that of the key with id first+i.
func (l *lookup) fill(first uint32, hashes []uint64) {
	depth := uint(bits.Len(uint(len(hashes) / filledIDs)))
	d := newDirectory(depth)
	parts := min(16, len(d.segments))
	counts, rest := make([]int, parts), make([][]uint32, parts)
	parallel(parts, func(part int) {
		for i := part; i < len(d.segments); i += parts {
			d.segments[i].Store(new(segment))
		}
		for i, hash := range hashes {
			switch {
			case int(hash%uint64(parts)) != part:
			case d.entry(hash).Load().put(hash, first+uint32(i)):
				counts[part]++
			default:
				rest[part] = append(rest[part], uint32(i))
			}
		}
	})
	for _, n := range counts {
		l.entries += n
	}
	l.directory.Store(d)
	for _, left := range rest {
		for _, i := range left {
			l.insert(hashes[i], first+i)
		}
	}
}
