package keyspace

import (
	"bytes"
	"fmt"
	"testing"
)

// TestExpectChangesNothing expects keys that are there, were there, and never were, of every length of batch.
func TestExpectChangesNothing(t *testing.T) {
	s := spaceOf(t, Options{})
	name := func(i int) []byte { return fmt.Append(nil, "key/", i) }
	main := int64(1)
	for i := range 3000 {
		main++
		s.Put(name(i), bytes.Repeat([]byte{1}, i%700), 0, main, 0)
		if i%3 == 0 {
			main++
			s.Delete(name(i), main, 0)
		}
	}
	s.Publish(1, main)
	s.Compact(main)
	drain(t, s)
	before, digest := s.Stats(), s.Digest()
	for n := range 3 * expectedAtOnce {
		keys := [][]byte{nil}
		for i := range n {
			keys = append(keys, name(i*997%6000))
		}
		if allocations := testing.AllocsPerRun(1, func() { s.Expect(keys) }); allocations > 0 {
			t.Fatalf("%v allocations for %d keys", allocations, len(keys))
		}
	}
	if s.Stats() != before || s.Digest() != digest {
		t.Errorf("%+v, before %+v", s.Stats(), before)
	}
	if s.expected == 0 {
		t.Error("no record was read")
	}
}
