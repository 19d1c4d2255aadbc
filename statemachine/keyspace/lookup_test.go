package keyspace

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"testing"
)

// tableOf is a lookup of keys that are their ids in decimal, under the given hash.
func tableOf(hashOf func(id uint32) uint64) *lookup {
	l := new(lookup)
	l.init(lookedUpKey, func(ids []uint32, hashes []uint64) {
		for i, id := range ids {
			hashes[i] = hashOf(id)
		}
	})
	return l
}

func lookedUpKey(id uint32) []byte { return fmt.Append(nil, id) }

func seededHash() func(id uint32) uint64 {
	seed := maphash.MakeSeed()
	return func(id uint32) uint64 { return maphash.Bytes(seed, binary.LittleEndian.AppendUint32(nil, id)) }
}

// mustKnow checks that the ids below end are found where there says so, and nothing else is.
func mustKnow(t *testing.T, l *lookup, hashOf func(id uint32) uint64, end uint32, there func(id uint32) bool) {
	t.Helper()
	count := 0
	for id := uint32(1); id < end; id++ {
		got, found, complete := l.find(hashOf(id), lookedUpKey(id))
		if found != there(id) || found && got != id || !complete {
			t.Fatalf("id %d: found %t as %d, complete %t", id, found, got, complete)
		}
		if found {
			count++
		}
	}
	if count != l.entries {
		t.Fatalf("%d entries, counted %d", count, l.entries)
	}
}

func TestLookupAsItGrows(t *testing.T) {
	const end = 50_000
	hashOf := seededHash()
	l := tableOf(hashOf)
	there := make([]bool, end)
	random := rand.New(rand.NewPCG(7, 7))
	for id := range uint32(end) {
		if id == 0 {
			continue
		}
		l.insert(hashOf(id), id)
		there[id] = true
		if gone := 1 + random.Uint32N(id); there[gone] && random.IntN(4) == 0 {
			l.remove(hashOf(gone), gone)
			there[gone] = false
		}
	}
	mustKnow(t, l, hashOf, end, func(id uint32) bool { return there[id] })
	keys, segments := l.entries, len(l.directory.Load().segments)
	if segments*segmentIDs > 8*keys {
		t.Errorf("%d entries of the directory for %d keys", segments, keys)
	}
}

func TestLookupOfManyAtOnce(t *testing.T) {
	for _, keys := range []uint32{0, 1, 100, 1_000, 20_000} {
		hashOf := seededHash()
		l := tableOf(hashOf)
		hashes := make([]uint64, keys)
		for i := range hashes {
			hashes[i] = hashOf(uint32(i) + 1)
		}
		l.fill(1, hashes)
		mustKnow(t, l, hashOf, 2*keys, func(id uint32) bool { return id <= keys })
		for id := keys + 1; id < 2*keys; id++ {
			l.insert(hashOf(id), id)
		}
		mustKnow(t, l, hashOf, 2*keys, func(uint32) bool { return true })
	}
}

// A reader may hold a directory for as long as it likes: it finds all that was there when it took it.
func TestLookupThroughReplacedSegments(t *testing.T) {
	hashOf := seededHash()
	l := tableOf(hashOf)
	type held struct {
		directory *directory
		end       uint32
	}
	var readers []held
	for id := uint32(1); id < 10_000; id++ {
		if id%500 == 0 {
			readers = append(readers, held{l.directory.Load(), id})
		}
		l.insert(hashOf(id), id)
	}
	for _, reader := range readers {
		old := tableOf(hashOf)
		old.directory.Store(reader.directory)
		for id := uint32(1); id < reader.end; id++ {
			if got, found, _ := old.find(hashOf(id), lookedUpKey(id)); !found || got != id {
				t.Fatalf("id %d of %d: found %t as %d", id, reader.end, found, got)
			}
		}
	}
}

// Keys whose hashes agree are left out, and do not make the table grow.
func TestLookupOfEqualHashes(t *testing.T) {
	const end = 3_000
	agreeing := func(id uint32) uint64 { return 0xabcdef0000000000 | uint64(id%2) }
	l := tableOf(agreeing)
	for id := uint32(1); id < end; id++ {
		l.insert(agreeing(id), id)
	}
	found := 0
	for id := uint32(1); id < end; id++ {
		got, ok, complete := l.find(agreeing(id), lookedUpKey(id))
		if ok && got != id || !ok && complete {
			t.Fatalf("id %d: found %t as %d, complete %t", id, ok, got, complete)
		}
		if ok {
			found++
		}
	}
	if found != l.entries || found < 2*bucketIDs {
		t.Errorf("found %d, counted %d", found, l.entries)
	}
	if n := len(l.directory.Load().segments); n > 2*segmentIDs/leastKeysPerSegment {
		t.Errorf("directory of %d entries", n)
	}
	for id := uint32(1); id < end; id++ {
		l.remove(agreeing(id), id)
	}
	if l.entries != 0 {
		t.Errorf("%d entries are left", l.entries)
	}
}

// What the lookup has left out, the index finds.
func TestKeysThatAreLeftOut(t *testing.T) {
	s := New(Options{})
	key := []byte("left out")
	s.Put(key, nil, 0, 1, 0)
	id, _ := s.index.find(key)
	s.lookup.remove(s.hash(key), id)
	s.lookup.directory.Load().entry(s.hash(key)).Load().leaveOut(s.hash(key))
	if err := s.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	if _, previous, existed := s.Put(key, nil, 0, 2, 0); !existed || previous.ModRevision != 1 {
		t.Fatalf("put over %v, %t", previous, existed)
	}
	if _, _, existed := s.Delete(key, 3, 0); !existed {
		t.Fatal("not deleted")
	}
	s.Publish(1, 3)
	s.Compact(3)
	for main := int64(4); main < 8; main++ {
		s.Put([]byte("another"), nil, 0, main, 0)
		s.Publish(uint64(main), main)
		s.CompactSome(100)
	}
	if err := s.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
}

func TestMatchingTags(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 9))
	for range 100_000 {
		tags, tag, want := uint64(0), 1+random.Uint64N(3), uint64(0)
		for i := range 8 {
			has := random.Uint64N(4)
			tags |= has << (8 * i)
			if has == tag {
				want |= 0x80 << (8 * i)
			}
		}
		if got := matching(tags, tag); got != want {
			t.Fatalf("%016x has %d at %016x, not %016x", tags, tag, want, got)
		}
	}
}
