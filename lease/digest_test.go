package lease

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// The digest depends on what the table holds, not on how it came to hold it.
func TestDigestIsOfTheContent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	table := NewTable()
	for step := range uint64(2000) {
		id, session := r.Int64N(20), 1+r.Uint64N(4)
		switch r.IntN(6) {
		case 0, 1:
			table.Grant(id, 1+r.Int64N(9), session, step)
		case 2:
			table.Adopt(id, session, step, time.Second)
		case 3:
			table.Move(session, 1+session%4, step, time.Second)
		case 4:
			table.Orphan(session, int64(step), 2*time.Second)
		case 5:
			table.Remove(id, Expired)
		}
		copied := NewTable()
		for _, info := range table.All() {
			if err := copied.Restore(info); err != nil {
				t.Fatal(err)
			}
		}
		if copied.Digest() != table.Digest() {
			t.Fatalf("step %d: %x, of a copy %x", step, table.Digest(), copied.Digest())
		}
	}
	for _, id := range table.IDs() {
		table.Remove(id, Revoked)
	}
	if table.Digest() != 0 {
		t.Errorf("of an empty table: %x", table.Digest())
	}
}

func TestVerifyFindsADamagedRow(t *testing.T) {
	table := NewTable()
	table.Grant(1, 10, 7, 3)
	table.Grant(2, 10, 7, 4)
	for _, key := range []string{"a", "b", "c", "b"} {
		table.Attach(2, []byte(key))
	}
	if err := table.Verify([]int64{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	for name, flip := range map[string]func(l *lease){
		"id":    func(l *lease) { l.id ^= 1 << 40 },
		"ttl":   func(l *lease) { l.ttlSeconds ^= 2 },
		"owner": func(l *lease) { l.owner.session ^= 1 },
		"stamp": func(l *lease) { l.orphanStamp ^= 1 },
		"sum":   func(l *lease) { l.sum ^= 1 },
		"key": func(l *lease) {
			b := []byte(l.keys.few[1])
			b[0] ^= 1
			l.keys.few[1] = string(b)
		},
		"key gone": func(l *lease) {
			if len(l.keys.few) == 3 {
				l.keys.few = l.keys.few[:2]
			} else {
				l.keys.few = l.keys.few[:3]
			}
		},
	} {
		l := table.leases[2]
		flip(l)
		var corrupt *CorruptError
		if err := table.Verify(table.IDs()); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		flip(l)
	}
	if err := table.Verify(table.IDs()); err != nil {
		t.Error(err)
	}
}

// A set's sum follows its keys through both of its forms.
func TestKeySetsSumFollows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var s keySet
	for range 5000 {
		key := []byte{'a' + byte(r.IntN(2*smallKeySet))}
		if r.IntN(2) == 0 {
			s.add(string(key))
		} else {
			s.remove(key)
		}
		if !s.intact() || s.len() == 0 && s.sum != 0 {
			t.Fatalf("%d keys, sum %x", s.len(), s.sum)
		}
	}
	for i := range 2 * smallKeySet {
		s.add(string(rune('a' + i)))
	}
	delete(s.many, "a")
	if s.intact() {
		t.Error("a key that is gone is not missed")
	}
}
