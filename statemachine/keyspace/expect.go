package keyspace

import "math/bits"

// expectedAtOnce is how many keys are read ahead side by side: about as many as a processor waits for at once.
const expectedAtOnce = 16

// Expect says that the keys are about to be put, deleted or looked at. Whatever that will wait for in memory, the place of each
// key, its newest version and that version's record, is read for many keys at once, so that the waits overlap. It changes nothing.
// Writer only.
func (s *Space) Expect(keys [][]byte) {
	for len(keys) > 0 {
		n := min(len(keys), expectedAtOnce)
		s.expect(keys[:n])
		keys = keys[n:]
	}
}

// expect takes each of the steps from key to record for all keys.
func (s *Space) expect(keys [][]byte) {
	var (
		hashes  [expectedAtOnce]uint64
		tags    [expectedAtOnce]uint64
		buckets [expectedAtOnce]*bucket
		slots   [expectedAtOnce]uint32
		refs    [expectedAtOnce]recordRef
		n       int
	)
	d := s.lookup.directory.Load()
	for i, key := range keys {
		hashes[i] = s.hash(key)
		buckets[i], _ = d.entry(hashes[i]).Load().buckets(hashes[i])
	}
	for i := range keys {
		tags[i] = buckets[i].tags[0].Load()
	}
	for i := range keys {
		if id, found := buckets[i].likely(tags[i], tagOf(hashes[i])); found {
			slots[n] = s.heads.at(id).Load()
			n++
		}
	}
	for i, number := range slots[:n] {
		refs[i] = recordRef(s.slots.at(number).ref.Load())
	}
	sum := s.expected
	for _, ref := range refs[:n] {
		sum += s.slabs.record(ref).touch()
	}
	s.expected = sum
}

// likely returns the first id with the tag. first is what tags[0] holds.
func (b *bucket) likely(first, tag uint64) (id uint32, found bool) {
	if matches := matching(first, tag); matches != 0 {
		return b.ids[bits.TrailingZeros64(matches)/8].Load(), true
	}
	if matches := matching(b.tags[1].Load(), tag) & (1<<(8*(bucketIDs-8)) - 1); matches != 0 {
		return b.ids[8+bits.TrailingZeros64(matches)/8].Load(), true
	}
	return 0, false
}
