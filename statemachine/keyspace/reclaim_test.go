package keyspace

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// These tests put the writer between two loads of a reader, where chance rarely does.

func name(i int) []byte { return fmt.Appendf(nil, "key/%06d", i) }

// fill puts keys 0..n-1 under main revisions from 1 and publishes.
func fill(s *Space, n int) (main int64) {
	for i := range n {
		main++
		s.Put(name(i), fmt.Appendf(nil, "value-%d", i), 0, main, 0)
	}
	s.Publish(uint64(main), main)
	return main
}

// TestStaleRootAfterSplit reads through a root and groups that were loaded before leaves and groups were split.
func TestStaleRootAfterSplit(t *testing.T) {
	s := spaceOf(t, Options{})
	main := int64(0)
	put := func(i int) {
		main++
		s.Put(name(i), nil, 0, main, 0)
	}
	for i := 0; i < 3000; i += 300 {
		put(i)
	}
	stale := s.index.root.Load()
	for i := range 3000 {
		if i%300 != 0 {
			put(i)
		}
	}
	s.Publish(1, main)
	present := s.index.root.Load()
	if present == stale {
		t.Fatal("nothing was split")
	}
	s.index.root.Store(stale)
	mustHoldAll(t, s, 3000)
	s.index.root.Store(present)
}

func mustHoldAll(t *testing.T, s *Space, n int) {
	t.Helper()
	sn := s.Acquire()
	defer sn.Release()
	for i := range n {
		if _, found, err := sn.Get(name(i), 0); !found || err != nil {
			t.Fatalf("key %d is not found (%v)", i, err)
		}
	}
	for i := 0; i < n; i += 71 {
		for direction, walk := range map[string]func([]byte, []byte, int64, func(Version) bool) error{
			"up": sn.Range, "down": sn.RangeDescending} {
			count := 0
			_ = walk(name(i), name(n-i), 0, func(Version) bool { count++; return true })
			if want := max(n-2*i, 0); count != want {
				t.Fatalf("%s from %d to %d: %d keys, want %d", direction, i, n-i, count, want)
			}
		}
	}
}

// TestStaleRootAfterMerge reads through a root that was loaded before cells were merged away, and after the key
// space has grown again where they were.
func TestStaleRootAfterMerge(t *testing.T) {
	s := spaceOf(t, Options{})
	main := fill(s, 4000)
	for i := range 4000 {
		if i%50 != 0 {
			main++
			s.Delete(name(i), main, 0)
		}
	}
	s.Publish(uint64(main), main)
	s.Compact(main)
	s.epochs.advance() // so that what follows does not wait for the snapshot
	s.epochs.advance()
	sn := s.Acquire()
	stale := s.index.root.Load()
	s.CompactSome(1 << 20)
	present := s.index.root.Load()
	if leaves(s) > 20 {
		t.Fatalf("%d leaves: nothing was merged", leaves(s))
	}
	for i := range 4000 {
		if i%50 != 0 {
			main++
			s.Put(name(i), nil, 0, main, 0)
		}
	}
	s.Publish(uint64(main), main)
	grown := s.index.root.Load()
	for what, r := range map[string]*root{"before merging": stale, "merged": present, "grown": grown} {
		s.index.root.Store(r)
		for i := range 4000 {
			if _, found, err := sn.Get(name(i), 0); found != (i%50 == 0) || err != nil {
				t.Fatalf("root %s: key %d: %v %v", what, i, found, err)
			}
		}
		var up, down []string
		_ = sn.Range(nil, nil, 0, func(v Version) bool { up = append(up, string(v.Key)); return true })
		_ = sn.RangeDescending(nil, nil, 0, func(v Version) bool { down = append(down, string(v.Key)); return true })
		slices.Reverse(down)
		if len(up) != 80 || !slices.Equal(up, down) {
			t.Fatalf("root %s: %d keys up, %d down, want 80", what, len(up), len(down))
		}
	}
	s.index.root.Store(grown)
	sn.Release()
}

// TestRemovedKeyWaitsForReaders removes a key of which a reader holds the id, and lets the writer take all
// numbers it can get: the id and its slot must not be among them.
func TestRemovedKeyWaitsForReaders(t *testing.T) {
	s := spaceOf(t, Options{SlabBytes: 1 << 10})
	main := fill(s, 10)
	main++
	s.Delete(name(5), main, 0)
	main++
	s.Put(name(1), nil, 0, main, 0)
	s.Publish(uint64(main), main)
	s.Compact(main)
	s.epochs.advance()
	s.epochs.advance()
	sn := s.Acquire()
	id, found := s.index.find(name(5))
	if !found {
		t.Fatal("removed too early")
	}
	slot := s.heads.at(id).Load()
	s.CompactSome(1 << 20)
	if _, found := s.index.find(name(5)); found {
		t.Fatal("not removed")
	}
	for i := 100; i < 1000; i++ {
		main++
		s.Put(name(i), nil, 0, main, 0)
		s.Publish(uint64(main), main)
		s.CompactSome(10)
	}
	if got := s.heads.at(id).Load(); got != slot || string(s.keyOf(id)) != string(name(5)) {
		t.Errorf("the id is used again under the reader: %q", s.keyOf(id))
	}
	if _, visible := sn.at(id, sn.Revision()); visible {
		t.Error("the reader sees the deleted key")
	}
	sn.Release()
	drain(t, s)
	if len(s.heads.free) != 1 || s.slots.at(slot).ref.Load() != 0 {
		t.Errorf("not free after the reader has gone: %v", s.heads.free)
	}
}

// TestMovedRecordWaitsForReaders empties slabs into which a reader holds references.
func TestMovedRecordWaitsForReaders(t *testing.T) {
	s := spaceOf(t, Options{SlabBytes: 1 << 10})
	fill(s, 100)
	main := s.Stats().Revision
	for i := range 100 {
		if i%10 != 0 {
			main++
			s.Put(name(i), []byte("again"), 0, main, 0)
		}
	}
	s.Publish(uint64(main), main)
	s.Compact(main)
	s.epochs.advance()
	s.epochs.advance()
	sn := s.Acquire()
	refs := map[int]recordRef{}
	for i := 0; i < 100; i += 10 {
		id, _ := s.index.find(name(i))
		refs[i], _ = sn.at(id, sn.Revision())
	}
	s.CompactSome(1 << 20)
	moved := 0
	for i, ref := range refs {
		id, _ := s.index.find(name(i))
		if now, _ := sn.at(id, sn.Revision()); now != ref {
			moved++
		}
		if v := s.slabs.record(ref).version(); !v.Intact() || string(v.Value) != fmt.Sprintf("value-%d", i) {
			t.Errorf("key %d through an older reference: %s", i, text(v))
		}
	}
	if moved == 0 {
		t.Fatal("nothing was moved")
	}
	before := s.Stats().SlabBytes
	sn.Release()
	drain(t, s)
	if after := s.Stats().SlabBytes; after >= before {
		t.Errorf("%d bytes of slabs after the reader has gone, %d before", after, before)
	}
}

// TestVersionsOutliveTheirSlab keeps slices of versions whose slab has been dropped and whose snapshot is released.
func TestVersionsOutliveTheirSlab(t *testing.T) {
	s := spaceOf(t, Options{SlabBytes: 1 << 10})
	main := fill(s, 100)
	sn := s.Acquire()
	var kept []Version
	_ = sn.Range(nil, nil, 0, func(v Version) bool { kept = append(kept, v); return true })
	sn.Release()
	for i := range 100 {
		main++
		s.Delete(name(i), main, 0)
	}
	s.Publish(uint64(main), main)
	s.Compact(main)
	drain(t, s)
	fill2 := New(Options{SlabBytes: 1 << 10})
	fill(fill2, 1000)
	runtime.GC()
	for i, v := range kept {
		if !v.Intact() || string(v.Value) != fmt.Sprintf("value-%d", i) {
			t.Fatalf("kept version %d changed: %s", i, text(v))
		}
	}
}

// TestHistoryEndsAtTheSnapshot lets the writer append while a reader is in the middle of the history.
func TestHistoryEndsAtTheSnapshot(t *testing.T) {
	s := spaceOf(t, Options{})
	main := fill(s, historyChunk) // the next change begins a chunk that the reader does not know
	sn := s.Acquire()
	defer sn.Release()
	n := 0
	err := sn.History(1, 0, func(Version) bool {
		n++
		main++
		s.Put(name(n), nil, 0, main, 0)
		s.Publish(uint64(main), main)
		return true
	})
	if err != nil || n != historyChunk {
		t.Errorf("%d changes (%v), want %d", n, err, historyChunk)
	}
}

// TestEpochs checks the one promise of epochs under real concurrency: what a reader loaded is not reclaimed
// while it is registered.
func TestEpochs(t *testing.T) {
	const objects = 200_000
	var e epochs
	var present atomic.Int64
	reclaimed := make([]atomic.Bool, objects+1)
	var done atomic.Bool
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for n := 0; !done.Load(); n++ {
				registered := e.enter()
				object := present.Load()
				for range n % 50 {
					if reclaimed[object].Load() {
						t.Errorf("object %d was reclaimed under a reader", object)
						done.Store(true)
						break
					}
				}
				leave(registered)
			}
		})
	}
	var waiting retirees
	for n := int64(1); n <= objects && !done.Load(); n++ {
		waiting.push(retiree{epoch: e.current.Load(), number: uint32(n - 1)})
		present.Store(n)
		waiting.queue[len(waiting.queue)-1].epoch = e.current.Load()
		e.advance()
		for r, ok := waiting.peek(); ok && e.passed(r.epoch); r, ok = waiting.peek() {
			reclaimed[r.number].Store(true)
			waiting.pop()
		}
	}
	done.Store(true)
	group.Wait()
	for range 2 {
		if !e.advance() {
			t.Fatal("a reader is left")
		}
	}
	if r, ok := waiting.peek(); ok && !e.passed(r.epoch) {
		t.Error("something waits without a reader")
	}
}

// TestReaderOfEachEpochIsWaitedFor walks through the epochs with one reader held at a time.
func TestReaderOfEachEpochIsWaitedFor(t *testing.T) {
	var e epochs
	for range 10 {
		registered := e.enter()
		retired := e.current.Load()
		if !e.advance() {
			t.Fatal("a reader of the present epoch holds up the next")
		}
		if e.advance() || e.passed(retired) {
			t.Fatal("the epoch moved on past a reader")
		}
		leave(registered)
		if !e.advance() || !e.passed(retired) {
			t.Fatal("the epoch waits without a reader")
		}
	}
}

// TestLateRegistrationFails lets the writer move on between a reader's look at the epoch and its registration.
func TestLateRegistrationFails(t *testing.T) {
	for late := range 5 {
		var e epochs
		seen := e.current.Load()
		for range late {
			e.advance()
		}
		counter, ok := e.register(seen, 0)
		if ok != (late == 0) {
			t.Errorf("registered %v, %d epochs late", ok, late)
		}
		if ok {
			leave(counter)
		}
		for range 4 {
			if !e.advance() {
				t.Errorf("a reader is left that registered %d epochs late", late)
			}
		}
	}
}

func TestVerifierFindsRot(t *testing.T) {
	s := New(Options{SlabBytes: 1 << 10})
	fill(s, 500)
	v := s.NewVerifier()
	pass := func() (found []error) {
		for {
			done, err := v.Verify(1000)
			if err != nil {
				found = append(found, err)
			}
			if done {
				return found
			}
		}
	}
	if found := pass(); found != nil {
		t.Fatal(found)
	}
	victim, _ := s.Latest(name(123))
	victim.Value[2] ^= 0x10
	found := pass()
	var corrupt *CorruptError
	if len(found) != 1 || !errors.As(found[0], &corrupt) || string(corrupt.Key) != string(name(123)) || corrupt.Main != 124 {
		t.Fatalf("found %v", found)
	}
	if again, _ := s.Latest(name(123)); again.Intact() {
		t.Error("the version itself does not tell")
	}
	victim.Value[2] ^= 0x10
	if found := pass(); found != nil {
		t.Fatal(found)
	}
}
