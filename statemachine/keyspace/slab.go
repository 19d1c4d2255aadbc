package keyspace

import "sync/atomic"

// recordRef is the place of a record: slab number << 32 | offset | 1 for a tombstone. Offsets are multiples of
// recordAlignment, so the low bits are free. Zero is no place: slab numbers begin at 1.
type recordRef uint64

func (r recordRef) slab() uint32    { return uint32(r >> 32) }
func (r recordRef) offset() uint32  { return uint32(r) &^ (recordAlignment - 1) }
func (r recordRef) tombstone() bool { return r&1 != 0 }

// minSlabBytes is the size of the first slab, from which they double up to the configured size, so that a small
// key space is small.
const minSlabBytes = 64 << 10

// slab is a run of records. Bytes below used are never written again.
type slab struct {
	bytes []byte
	// The rest belongs to the writer.
	number    uint32
	used      int
	liveBytes int // of records whose slot refers to them
	sealed    bool
	candidate bool // in slabs.candidates
}

// slabs owns all records. Appending, moving and dropping is the writer's; readers resolve references.
type slabs struct {
	table     atomic.Pointer[[]atomic.Pointer[slab]]
	maxBytes  int // of a slab that holds more than one record
	nextBytes int
	next      uint32
	free      []uint32 // numbers
	// Two open slabs: what survived once tends to survive, so it is kept apart from what comes in.
	incoming, survivors *slab
	candidates          []*slab // mostly dead, to be emptied
	totalBytes          int64
}

func (s *slabs) init(maxBytes int) {
	s.table.Store(new(make([]atomic.Pointer[slab], 16)))
	s.maxBytes, s.nextBytes, s.next = maxBytes, min(minSlabBytes, maxBytes), 1
}

// record resolves a reference that was loaded by a registered reader or by the writer.
func (s *slabs) record(ref recordRef) record {
	b := (*s.table.Load())[ref.slab()].Load().bytes
	return recordAt(b[ref.offset():])
}

// allocate makes room for a record of n bytes in the open slab *open and returns its place and its bytes.
func (s *slabs) allocate(open **slab, n int) (recordRef, []byte) {
	if n > s.maxBytes/4 { // the rest of a slab is wasted when the next record does not fit; at most a quarter
		own := s.add(n)
		own.used, own.liveBytes = n, n
		s.seal(own)
		return recordRef(own.number) << 32, own.bytes
	}
	if *open == nil || (*open).used+n > len((*open).bytes) {
		if *open != nil {
			s.seal(*open)
		}
		size := s.nextBytes
		for size < n {
			size *= 2
		}
		size = min(size, s.maxBytes)
		s.nextBytes = min(2*s.nextBytes, s.maxBytes)
		*open = s.add(size)
	}
	sl := *open
	offset := sl.used
	sl.used += n
	sl.liveBytes += n
	return recordRef(sl.number)<<32 | recordRef(offset), sl.bytes[offset : offset+n : offset+n]
}

func (s *slabs) add(size int) *slab { return s.adopt(make([]byte, size)) }

// adopt makes memory a slab.
func (s *slabs) adopt(bytes []byte) *slab {
	number := s.next
	if n := len(s.free); n > 0 {
		number = s.free[n-1]
		s.free = s.free[:n-1]
	} else {
		s.next++
	}
	sl := &slab{bytes: bytes, number: number}
	table := *s.table.Load()
	if int(number) >= len(table) {
		grown := make([]atomic.Pointer[slab], 2*len(table))
		for i := range table {
			grown[i].Store(table[i].Load())
		}
		s.table.Store(&grown)
		table = grown
	}
	table[number].Store(sl)
	s.totalBytes += int64(len(bytes))
	return sl
}

func (s *slabs) seal(sl *slab) {
	sl.sealed = true
	s.consider(sl)
}

// consider queues a sealed slab for emptying when less than half of it lives: so dead bytes are at most as many as
// live ones, and each byte is copied at most about once more than it is written.
func (s *slabs) consider(sl *slab) {
	if sl.sealed && !sl.candidate && sl.liveBytes < len(sl.bytes)/2 {
		sl.candidate = true
		s.candidates = append(s.candidates, sl)
	}
}

// kill notes that the slot of the record at ref no longer refers to it.
func (s *slabs) kill(ref recordRef) {
	sl := (*s.table.Load())[ref.slab()].Load()
	sl.liveBytes -= recordAt(sl.bytes[ref.offset():]).room()
	s.consider(sl)
}

// drop forgets an emptied slab whose grace period is over.
func (s *slabs) drop(number uint32) {
	entry := &(*s.table.Load())[number]
	s.totalBytes -= int64(len(entry.Load().bytes))
	entry.Store(nil)
	s.free = append(s.free, number)
}

// writeRecord fills the room of a record.
func writeRecord(room []byte, slot uint32, sub int64, tombstone bool, kv *keyValue, encodedBytes int) record {
	encoded := kv.appendTo(beginRecord(room, sub, tombstone, encodedBytes)[:0])
	if len(encoded) != encodedBytes {
		panic("keyspace: encoded size miscounted")
	}
	r := sealRecord(room)
	r.setSlot(slot)
	return r
}
