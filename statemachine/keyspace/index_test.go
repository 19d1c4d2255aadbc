package keyspace

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// spaceOf returns a Space whose invariants are checked when the test ends.
func spaceOf(t testing.TB, o Options) *Space {
	s := New(o)
	t.Cleanup(func() {
		if err := s.CheckInvariants(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestIndexGrowsAndShrinks takes the index through splits and merges of leaves and groups, in several orders,
// down to nothing.
func TestIndexGrowsAndShrinks(t *testing.T) {
	const n = 20_000 // more than one group
	ascending := make([]int, n)
	for i := range ascending {
		ascending[i] = i
	}
	descending := slices.Clone(ascending)
	slices.Reverse(descending)
	shuffled := func(seed uint64) []int {
		order := slices.Clone(ascending)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
		return order
	}
	for _, c := range []struct {
		name             string
		inserts, removes []int
	}{
		{"ascending", ascending, ascending},
		{"descending", descending, descending},
		{"ascending, removed from the end", ascending, descending},
		{"shuffled", shuffled(1), shuffled(2)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := spaceOf(t, Options{})
			name := func(i int) []byte { return fmt.Appendf(nil, "/keys/%c/%06d", 'a'+i%2, i) }
			main := int64(1)
			for _, i := range c.inserts {
				main++
				s.Put(name(i), nil, 0, main, 0)
			}
			s.Publish(1, main)
			mustHold(t, s, n)
			if c.name == "ascending" {
				if cells := leaves(s); cells > n/leafKeys*12/10 {
					t.Errorf("%d leaves for %d keys in two ascending runs: they should be nearly full", cells, n)
				}
			}
			for k, i := range c.removes {
				main++
				s.Delete(name(i), main, 0)
				if k%1000 == 999 {
					s.Publish(uint64(main), main)
					s.Compact(main)
					drain(t, s)
					if k%5000 == 4999 {
						mustHold(t, s, n-k-1)
					}
				}
			}
			// The last deletion is history until it lies below the compact revision.
			main++
			s.Put(name(0), nil, 0, main, 0)
			s.Publish(uint64(main), main)
			s.Compact(main)
			drain(t, s)
			if cells := leaves(s); cells != 1 {
				t.Errorf("%d leaves are left with one key", cells)
			}
			if st := s.Stats(); st.Versions != 1 || st.Keys != 1 || st.SlabBytes > 2*DefaultSlabBytes {
				t.Errorf("left with one key: %+v", st)
			}
		})
	}
}

func leaves(s *Space) (n int) {
	for _, g := range s.index.root.Load().groups {
		n += len(g.cells)
	}
	return n
}

// mustHold checks the invariants and that walks in both directions see the number of keys.
func mustHold(t *testing.T, s *Space, keys int) {
	t.Helper()
	if err := s.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	view := s.WriterView()
	var up, down [][]byte
	_ = view.Range(nil, nil, 0, func(v Version) bool { up = append(up, v.Key); return true })
	_ = view.RangeDescending(nil, nil, 0, func(v Version) bool { down = append(down, v.Key); return true })
	slices.Reverse(down)
	if len(up) != keys || !slices.EqualFunc(up, down, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Fatalf("%d keys up, %d down, want %d", len(up), len(down), keys)
	}
	for i := 0; i < len(up); i += 97 {
		if v, ok := s.Latest(up[i]); !ok || string(v.Key) != string(up[i]) {
			t.Fatalf("key %q is not found", up[i])
		}
	}
}

// TestQueueLeavesNothingBehind moves a window over ever new keys: what is behind it must cost nothing.
func TestQueueLeavesNothingBehind(t *testing.T) {
	s := spaceOf(t, Options{SlabBytes: 64 << 10})
	const window = 500
	main := int64(1)
	for i := range 30_000 {
		main++
		s.Put(fmt.Appendf(nil, "queue/%09d", i), []byte("a message"), 0, main, 0)
		if i >= window {
			main++
			s.Delete(fmt.Appendf(nil, "queue/%09d", i-window), main, 0)
		}
		if i%100 == 99 {
			s.Publish(uint64(i), main)
			s.Compact(main)
			drain(t, s)
		}
	}
	st := s.Stats()
	if st.Keys != window || st.Versions > window+200 || st.SlabBytes > 512<<10 || leaves(s) > 3*window/leafKeys {
		t.Errorf("%+v, %d leaves", st, leaves(s))
	}
	if slots := s.slots.next; slots > 2*window+1000 {
		t.Errorf("%d slots", slots)
	}
	if chunks := len(s.history.view.Load().chunks); chunks > 2 {
		t.Errorf("%d chunks of history", chunks)
	}
}

// TestReadersDoNotWaitForAnInsertion stops the writer in the middle of the dearest insertion, the split of a leaf: readers
// find and walk over everything that was there before, and the new key once the writer has gone on.
func TestReadersDoNotWaitForAnInsertion(t *testing.T) {
	const last = leafKeys
	key := func(id uint32) []byte { return fmt.Appendf(nil, "key-%04d", id) }
	stopped, goOn, inserted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var x index
	var first sync.Once
	x.init(func(id uint32) []byte {
		if id == last {
			first.Do(func() {
				close(stopped)
				<-goOn
			})
		}
		return key(id)
	})
	for id := range uint32(last) {
		x.insert(x.locate(key(id)), key(id), id)
	}
	go func() {
		defer close(inserted)
		x.insert(x.locate(key(last)), key(last), last)
	}()
	<-stopped
	walked := func(walk func(start, end []byte, visit func(run []uint32) bool)) (ids int) {
		walk(nil, nil, func(run []uint32) bool { ids += len(run); return true })
		return ids
	}
	for id := range uint32(last) {
		if found, ok := x.find(key(id)); !ok || found != id {
			t.Errorf("key %d is not found while another is inserted", id)
		}
	}
	if up, down := walked(x.ascend), walked(x.descend); up != last || down != last {
		t.Errorf("%d keys up and %d down while another is inserted", up, down)
	}
	close(goOn)
	<-inserted
	if id, ok := x.find(key(last)); !ok || id != last || walked(x.ascend) != last+1 {
		t.Error("the new key is not found")
	}
}
