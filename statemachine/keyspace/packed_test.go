package keyspace

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

const testTag = 2<<3 | byte(protowire.BytesType)

// elementsOf returns what a range gives as elements, and how many of its keys came packed.
func elementsOf(t *testing.T, sn *Snapshot, start, end []byte, revision int64) (elements []byte, packed int) {
	t.Helper()
	err := sn.RangeEncoded(start, end, revision, func(_, encoded []byte) bool {
		elements = protowire.AppendBytes(append(elements, testTag), encoded)
		return true
	}, testTag, func(run []byte, count int) bool {
		elements = append(elements, run...)
		packed += count
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return elements, packed
}

// wantElements is the same by another way.
func wantElements(t *testing.T, sn *Snapshot, start, end []byte, revision int64) (elements []byte) {
	t.Helper()
	if err := sn.Range(start, end, revision, func(v Version) bool {
		elements = protowire.AppendBytes(append(elements, testTag), v.Encoded)
		return true
	}); err != nil {
		t.Error(err)
	}
	return elements
}

func packedName(i int) []byte { return fmt.Appendf(nil, "key/%06d", i) }

// packedSpace holds so many keys, all of whose leaves are packed.
func packedSpace(t *testing.T, keys int) (s *Space, main int64) {
	s = spaceOf(t, Options{SlabBytes: 64 << 10})
	main = 1
	for i := range keys {
		main++
		s.Put(packedName(i), fmt.Append(nil, "value ", i), 0, main, 0)
	}
	s.Publish(uint64(main), main)
	sn := s.Acquire()
	defer sn.Release()
	for n, want := range []int{0, keys, keys} {
		elements, packed := elementsOf(t, sn, nil, nil, 0)
		if packed != want || !bytes.Equal(elements, wantElements(t, sn, nil, nil, 0)) {
			t.Fatalf("range %d: %d of %d keys came packed, %d bytes", n, packed, keys, len(elements))
		}
	}
	return s, main
}

// TestPackedLeavesAreOfTheirRevision changes keys after their leaves were packed, in each way there is.
func TestPackedLeavesAreOfTheirRevision(t *testing.T) {
	const keys = 20 * leafKeys
	for name, change := range map[string]func(s *Space, main *int64){
		"nothing": func(*Space, *int64) {},
		"put": func(s *Space, main *int64) {
			*main++
			s.Put(packedName(100), []byte("other"), 0, *main, 0)
		},
		"delete": func(s *Space, main *int64) {
			*main++
			s.Delete(packedName(100), *main, 0)
		},
		"a key between": func(s *Space, main *int64) {
			*main++
			s.Put(append(packedName(100), 'x'), []byte("new"), 0, *main, 0)
		},
		"a key behind": func(s *Space, main *int64) {
			*main++
			s.Put(packedName(keys), []byte("new"), 0, *main, 0)
		},
		"the first key": func(s *Space, main *int64) {
			*main++
			s.Put([]byte("a"), []byte("new"), 0, *main, 0)
		},
		"the same slot again": func(s *Space, main *int64) {
			for range 4 { // two slots take turns
				*main++
				s.Put(packedName(100), fmt.Append(nil, *main), 0, *main, 0)
				s.Publish(uint64(*main), *main)
				s.Compact(*main)
				drain(t, s)
			}
		},
		"removed and added": func(s *Space, main *int64) {
			*main++
			s.Delete(packedName(100), *main, 0)
			*main++
			s.Put(packedName(5), []byte("other"), 0, *main, 0)
			s.Publish(uint64(*main), *main)
			s.Compact(*main)
			drain(t, s)
			*main++
			s.Put(packedName(100), []byte("again"), 0, *main, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, main := packedSpace(t, keys)
			// One reader holds what was before, where the change does not wait for readers.
			before := s.Acquire()
			old := main
			if name == "the same slot again" || name == "removed and added" {
				before.Release()
				before = nil
			}
			change(s, &main)
			s.Publish(uint64(main), main)
			after := s.Acquire()
			defer after.Release()
			for n := range 4 {
				elements, packed := elementsOf(t, after, nil, nil, 0)
				if !bytes.Equal(elements, wantElements(t, after, nil, nil, 0)) {
					t.Errorf("after the change, range %d: wrong", n)
				}
				if n == 3 && packed < keys-1 {
					t.Errorf("%d keys came packed in the end", packed)
				}
				if before == nil {
					continue
				}
				for _, sn := range []*Snapshot{before, after} {
					if elements, _ := elementsOf(t, sn, nil, nil, old); !bytes.Equal(elements, wantElements(t, before, nil, nil, 0)) {
						t.Errorf("before the change, range %d: wrong", n)
					}
				}
			}
			if before != nil {
				before.Release()
			}
		})
	}
}

// What rots in a packed leaf is gone after a pass of the verifier, which looks at the records themselves.
func TestPackedLeavesEndWithThePass(t *testing.T) {
	s, _ := packedSpace(t, 20*leafKeys)
	sn := s.Acquire()
	defer sn.Release()
	rotten := s.packs.leaves[3].bytes
	rotten[len(rotten)/2] ^= 1
	want := wantElements(t, sn, nil, nil, 0)
	if elements, _ := elementsOf(t, sn, nil, nil, 0); bytes.Equal(elements, want) {
		t.Fatal("the rotten leaf was not read")
	}
	if done, err := s.NewVerifier().Verify(1 << 30); !done || err != nil {
		t.Fatalf("%t, %v", done, err)
	}
	for n := range 3 {
		if elements, _ := elementsOf(t, sn, nil, nil, 0); !bytes.Equal(elements, want) {
			t.Errorf("range %d after the pass: still rotten", n)
		}
	}
}

// TestEachChangeIsCounted changes one key after the other between ranges of its neighbours.
func TestEachChangeIsCounted(t *testing.T) {
	const keys = 5 * leafKeys
	s, main := packedSpace(t, keys)
	for i := range keys {
		main++
		s.Put(packedName(i), []byte("other"), 0, main, 0)
		s.Publish(uint64(main), main)
		sn := s.Acquire()
		start, end := packedName(i-i%leafKeys), packedName(i-i%leafKeys+leafKeys)
		packed := 0
		for range 3 {
			var elements []byte
			if elements, packed = elementsOf(t, sn, start, end, 0); !bytes.Equal(elements, wantElements(t, sn, start, end, 0)) {
				t.Fatalf("wrong after a change of key %d", i)
			}
		}
		if packed != leafKeys {
			t.Fatalf("after a change of key %d, %d keys came packed", i, packed)
		}
		sn.Release()
	}
}

// TestPackedLeavesAreBounded reads more than there is room for: what is read often stays.
func TestPackedLeavesAreBounded(t *testing.T) {
	const leaves = 100
	s := spaceOf(t, Options{})
	main := int64(1)
	for i := range leaves * leafKeys {
		main++
		s.Put(packedName(i), make([]byte, 100), 0, main, 0)
	}
	s.Publish(uint64(main), main)
	s.packs.limit = 128 << 10 // of some 800 KiB
	sn := s.Acquire()
	defer sn.Release()
	read := func(leaf int) (packed bool) {
		start, end := packedName(leaf*leafKeys), packedName((leaf+1)*leafKeys)
		elements, count := elementsOf(t, sn, start, end, 0)
		if !bytes.Equal(elements, wantElements(t, sn, start, end, 0)) {
			t.Fatal("wrong")
		}
		if s.packs.bytes > s.packs.limit {
			t.Fatalf("%d bytes packed", s.packs.bytes)
		}
		return count == leafKeys
	}
	seldom := map[int]bool{}
	for n := range 6000 {
		other := 9 + n%(leaves-9)
		if read(other); read(other) {
			seldom[other] = true
		}
		often := n/2000*3 + n%3 // other leaves after a while
		if packed := read(often); n%2000 > 1000 && !packed {
			t.Fatalf("range %d: leaf %d is read often and not packed", n, often)
		}
	}
	if s.packs.bytes < s.packs.limit/2 || len(seldom) < leaves/2 {
		t.Errorf("%d of %d bytes packed, %d leaves in their turn", s.packs.bytes, s.packs.limit, len(seldom))
	}
}

// A leaf that is too large for its share is left as it is.
func TestLargeLeavesAreNotPacked(t *testing.T) {
	s := spaceOf(t, Options{})
	for i := range 4 * leafKeys {
		s.Put(packedName(i), make([]byte, 1<<10), 0, int64(i)+2, 0)
	}
	s.Publish(1, 4*leafKeys+1)
	s.packs.limit = 128 << 10 // one would fit
	sn := s.Acquire()
	defer sn.Release()
	for range 5 {
		if _, packed := elementsOf(t, sn, nil, nil, 0); packed > 0 {
			t.Errorf("%d large keys are packed", packed)
		}
	}
}

// TestPackedLeavesUnderWrites reads packed and by another way at once, at any revision, while keys change, come and go.
func TestPackedLeavesUnderWrites(t *testing.T) {
	const keys, entries, entriesMost, readers = 600, 6000, 2_000_000, 3
	s, main := packedSpace(t, keys)
	s.packs.limit = 20 << 10
	done := make(chan struct{})
	var reading sync.WaitGroup
	packedKeys := make([]atomic.Int64, readers)
	for n := range readers {
		reading.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			for {
				select {
				case <-done:
					return
				default:
				}
				sn := s.Acquire()
				start := packedName(random.IntN(keys))
				if random.IntN(3) == 0 {
					start = nil
				}
				for range 1 + random.IntN(4) {
					revision := sn.Revision() - int64(random.IntN(3))*int64(random.IntN(20))
					if revision < sn.CompactRevision() || revision < 1 {
						revision = 0
					}
					elements, packed := elementsOf(t, sn, start, nil, revision)
					packedKeys[n].Add(int64(packed))
					if want := wantElements(t, sn, start, nil, revision); !bytes.Equal(elements, want) {
						t.Errorf("at %d from %q: %d bytes, not %d, or others", revision, start, len(elements), len(want))
					}
				}
				sn.Release()
			}
		})
	}
	random := rand.New(rand.NewPCG(2, 0))
	enough := func() bool {
		for n := range packedKeys {
			if packedKeys[n].Load() < keys {
				return false
			}
		}
		return true
	}
	for n := 0; n < entries || n < entriesMost && !enough(); n++ {
		// Phases of changes all over, in one place, and none to speak of.
		within := []int{keys * 2, 20, 1}[n/50%3]
		for range 1 + random.IntN(3) {
			main++
			name := packedName(random.IntN(within))
			if random.IntN(4) == 0 {
				s.Delete(name, main, 0)
			} else {
				s.Put(name, fmt.Append(nil, "value ", main), 0, main, 0)
			}
		}
		s.Publish(uint64(main), main)
		if n%40 == 39 {
			s.Compact(main - int64(random.IntN(30)))
		}
		s.CompactSome(64)
	}
	close(done)
	reading.Wait()
	if !enough() {
		t.Error("hardly any key came packed")
	}
}
