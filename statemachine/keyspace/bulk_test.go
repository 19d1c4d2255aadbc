package keyspace

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// keyShapes are key spaces that are hard on a sort by words, a function from number to key each.
var keyShapes = map[string]func(i int) string{
	"in order":        func(i int) string { return fmt.Sprintf("bench/%08d", i) },
	"short":           func(i int) string { return fmt.Sprint(i) },
	"long and shared": func(i int) string { return fmt.Sprintf("/registry/pods/namespace-%d/a-long-name-%06d", i%7, i/7) },
	"two in common":   func(i int) string { return fmt.Sprintf("%s/%06d", strings.Repeat("x", 100*(i%2)), i/2) },
	"few words":       func(i int) string { return fmt.Sprintf("%016d/%016d", i%3, i/3) },
	"zeros": func(i int) string {
		return strings.Repeat("\x00", 1+i%40) + strings.Repeat("\xff", i/40%40) + strings.Repeat("\x00", i/1600)
	},
	"prefixes of each other": func(i int) string { return strings.Repeat("ab", 1+i%300) + fmt.Sprint(i/300) },
}

// TestRestoreBlocksOfManyKeys restores more versions than one goroutine sorts alone, whose keys come in no order, and
// compares what comes of it with the original.
func TestRestoreBlocksOfManyKeys(t *testing.T) {
	for name, shape := range keyShapes {
		t.Run(name, func(t *testing.T) {
			const keys = 3 * spreadEntries
			r := rand.New(rand.NewPCG(1, uint64(len(name))))
			original := New(Options{})
			main := int64(0)
			for _, i := range append(r.Perm(keys), r.Perm(keys)[:keys/4]...) {
				main++
				if r.IntN(10) == 0 {
					original.Delete([]byte(shape(i)), main, 0)
				} else {
					original.Put([]byte(shape(i)), []byte("value"), 0, main, 0)
				}
			}
			view := original.WriterView()
			var all, want []Version
			if err := errors.Join(view.History(0, 0, func(v Version) bool { all = append(all, v); return true }),
				view.Range(nil, nil, 0, func(v Version) bool { want = append(want, v); return true })); err != nil {
				t.Fatal(err)
			}
			s := spaceOf(t, Options{})
			if _, err := s.RestoreBlocks(blocksOf(t, all, func() int { return 1 + r.IntN(5000) })); err != nil {
				t.Fatal(err)
			}
			if s.Digest().Live != original.Digest().Live || s.LogicalBytes() != original.LogicalBytes() {
				t.Error("it does not sum up to the original")
			}
			var got []Version
			view = s.WriterView()
			if err := view.Range(nil, nil, 0, func(v Version) bool { got = append(got, v); return true }); err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got, want, func(a, b Version) bool { return bytes.Equal(a.Encoded, b.Encoded) && a.Sub == b.Sub }) {
				t.Errorf("%d keys of %d, or others", len(got), len(want))
			}
			s.Publish(1, main)
			for _, i := range r.Perm(keys)[:1000] { // it goes on as a space that was never away
				main++
				s.Put([]byte(shape(i)+"+"), nil, 0, main, 0)
				s.Delete([]byte(shape(i)), main, 1)
			}
			s.Publish(2, main)
			s.Compact(main)
			drain(t, s)
		})
	}
}

func TestBlocksRefuseWhatDoesNotFit(t *testing.T) {
	live := func(key string, create, mod, version int64) []byte {
		kv := keyValue{key: []byte(key), createRevision: create, modRevision: mod, version: version}
		return kv.appendTo(nil)
	}
	deleted := func(key string, mod int64) []byte {
		kv := tombstoneOf([]byte(key), mod)
		return kv.appendTo(nil)
	}
	type add struct {
		main, sub int64
		encoded   []byte
	}
	for _, c := range []struct {
		what string
		adds []add
		want error
	}{
		{"history", []add{{8, 0, live("a", 3, 8, 2)}, {11, 0, live("a", 3, 11, 3)}, {12, 0, deleted("a", 12)}, {12, 1, live("a", 12, 12, 1)}}, nil},
		{"begins at the compact revision", []add{{10, 0, deleted("a", 10)}, {10, 1, live("b", 3, 10, 7)}, {10, 2, deleted("b", 10)}}, nil},
		{"base twice", []add{{8, 0, live("a", 3, 8, 2)}, {9, 0, live("a", 3, 9, 3)}}, ErrInconsistent},
		{"base tombstone", []add{{8, 0, deleted("b", 8)}}, ErrInconsistent},
		{"superseded at the compact revision", []add{{8, 0, live("a", 3, 8, 2)}, {10, 0, live("a", 3, 10, 3)}}, ErrInconsistent},
		{"version skipped", []add{{8, 0, live("a", 3, 8, 2)}, {11, 0, live("a", 3, 11, 4)}}, ErrInconsistent},
		{"other create_revision", []add{{8, 0, live("a", 3, 8, 2)}, {11, 0, live("a", 4, 11, 3)}}, ErrInconsistent},
		{"tombstone of nothing", []add{{11, 0, deleted("b", 11)}}, ErrInconsistent},
		{"tombstone twice", []add{{8, 0, live("a", 3, 8, 2)}, {11, 0, deleted("a", 11)}, {12, 0, deleted("a", 12)}}, ErrInconsistent},
		{"born old", []add{{11, 0, live("b", 5, 11, 1)}}, ErrInconsistent},
		{"negative sub", []add{{11, -1, live("b", 11, 11, 1)}}, ErrInconsistent},
		{"same place", []add{{11, 0, live("a", 11, 11, 1)}, {11, 0, live("b", 11, 11, 1)}}, ErrInconsistent},
		{"back", []add{{12, 0, live("a", 12, 12, 1)}, {11, 0, live("b", 11, 11, 1)}}, ErrInconsistent},
		{"other revision", []add{{12, 0, live("a", 11, 11, 1)}}, ErrInconsistent},
		{"garbage", []add{{11, 0, []byte{0xff}}}, ErrMalformed},
		{"long varint", []add{{13, 0, []byte{0x0a, 0x81, 0x00, 'a', 0x10, 13, 0x18, 13, 0x20, 1}}}, ErrMalformed},
	} {
		for _, together := range []bool{false, true} {
			s, blocks := New(Options{CompactRevision: 10}), []*Block{new(Block)}
			var err error
			for _, a := range c.adds {
				if err == nil {
					err = blocks[len(blocks)-1].Add(a.main, a.sub, a.encoded)
				}
				if !together {
					blocks[len(blocks)-1].Seal()
					blocks = append(blocks, new(Block))
				}
			}
			if err == nil {
				blocks[len(blocks)-1].Seal()
				_, err = s.RestoreBlocks(blocks)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%s, in one block %v: %v, want %v", c.what, together, err, c.want)
			}
			if c.want == nil {
				if err := s.CheckInvariants(); err != nil {
					t.Errorf("%s: %v", c.what, err)
				}
			}
		}
	}
	s := New(Options{})
	s.Put([]byte("a"), nil, 0, 1, 0)
	if _, err := s.RestoreBlocks(nil); err == nil {
		t.Error("blocks were restored into a space that is in use")
	}
}
