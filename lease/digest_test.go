package lease

import (
	"errors"
	"fmt"
	"math"
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
	for _, info := range table.All() {
		table.Remove(info.ID, Revoked)
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
	if err := verify(table, 1); err != nil {
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
		if err := verify(table, 1); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		flip(l)
	}
	if err := verify(table, 1); err != nil {
		t.Error(err)
	}
}

// verify checks a whole table, a few rows at a time.
func verify(t *Table, limit int) error {
	for next, more := int64(math.MinInt64), true; more; {
		var err error
		if next, more, err = t.Verify(next, limit); err != nil {
			return err
		}
	}
	return nil
}

// Whatever the size of its steps, a check comes by every lease, and a step is not longer for keys than for leases.
func TestVerifyComesByEachLease(t *testing.T) {
	table := NewTable()
	ids := []int64{math.MinInt64, -5, 0, 7, 8, math.MaxInt64}
	for _, id := range ids {
		table.Grant(id, 10, 1, 1)
	}
	for key := range 100 {
		table.Attach(-5, fmt.Appendf(nil, "%d", key))
	}
	for limit := 1; limit < 10; limit++ {
		if err := verify(table, limit); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			table.leases[id].ttlSeconds++
			var corrupt *CorruptError
			if err := verify(table, limit); !errors.As(err, &corrupt) || corrupt.ID != id {
				t.Errorf("steps of %d: %v, corrupt is %d", limit, err, id)
			}
			table.leases[id].ttlSeconds--
		}
	}
	if next, more, err := table.Verify(math.MinInt64, 3); next != 0 || !more || err != nil {
		t.Errorf("a step of 3 ends before %d (%v, %v), not after the lease of 100 keys", next, more, err)
	}
	table.ordered.chunks[0][2] = 3
	if err := verify(table, 10); err == nil {
		t.Error("an id without a lease is not found")
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
