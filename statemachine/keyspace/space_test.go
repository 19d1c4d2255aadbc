package keyspace

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func text(v Version) string {
	if v.Tombstone {
		return fmt.Sprintf("%s deleted %d/%d", v.Key, v.ModRevision, v.Sub)
	}
	return fmt.Sprintf("%s=%s %d..%d/%d v%d l%d", v.Key, v.Value, v.CreateRevision, v.ModRevision, v.Sub, v.Version, v.Lease)
}

func collect(t *testing.T, walk func(func(Version) bool) error) []string {
	t.Helper()
	var got []string
	if err := walk(func(v Version) bool { got = append(got, text(v)); return true }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRevisionsAreEtcds(t *testing.T) {
	s := New(Options{SlabBytes: 1 << 10})
	s.Put([]byte("a"), []byte("1"), 7, 2, 0)
	s.Put([]byte("b"), []byte("1"), 0, 2, 1)
	s.Put([]byte("a"), []byte("2"), 0, 3, 0)
	s.Delete([]byte("a"), 4, 0)
	if _, _, existed := s.Delete([]byte("a"), 4, 1); existed {
		t.Fatal("deleted twice")
	}
	s.Put([]byte("a"), nil, 0, 5, 0)
	s.Publish(10, 5)

	sn := s.Acquire()
	defer sn.Release()
	at := func(revision int64) []string {
		return collect(t, func(visit func(Version) bool) error { return sn.Range(nil, nil, revision, visit) })
	}
	for _, c := range []struct {
		revision int64
		want     []string
	}{
		{1, nil},
		{2, []string{"a=1 2..2/0 v1 l7", "b=1 2..2/1 v1 l0"}},
		{3, []string{"a=2 2..3/0 v2 l0", "b=1 2..2/1 v1 l0"}},
		{4, []string{"b=1 2..2/1 v1 l0"}},
		{5, []string{"a= 5..5/0 v1 l0", "b=1 2..2/1 v1 l0"}},
		{0, []string{"a= 5..5/0 v1 l0", "b=1 2..2/1 v1 l0"}},
	} {
		if got := at(c.revision); !slices.Equal(got, c.want) {
			t.Errorf("at %d: %q, want %q", c.revision, got, c.want)
		}
	}
	if _, _, err := sn.Get([]byte("a"), 6); !errors.Is(err, ErrFuture) {
		t.Errorf("future: %v", err)
	}

	s.Compact(4)
	for s.CompactSome(100) {
	}
	// The older snapshot still reads below.
	if got := at(3); len(got) != 2 {
		t.Errorf("older snapshot at 3: %q", got)
	}
	after := s.Acquire()
	if _, _, err := after.Get([]byte("a"), 3); !errors.Is(err, ErrCompacted) {
		t.Errorf("compacted: %v", err)
	}
	if err := after.History(3, 0, nil); !errors.Is(err, ErrCompacted) {
		t.Errorf("compacted history: %v", err)
	}
	// The compact revision itself is history, the deletion at it too.
	want := []string{"a deleted 4/0", "a= 5..5/0 v1 l0"}
	if got := collect(t, func(visit func(Version) bool) error { return after.History(4, 0, visit) }); !slices.Equal(got, want) {
		t.Errorf("history from the compact revision: %q, want %q", got, want)
	}
	after.Release()
}
