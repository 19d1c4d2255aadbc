package lease

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// modelLease is a lease as a second, slow opinion on the table knows it.
type modelLease struct {
	ttl                 int64
	owner, ownerIndex   uint64
	previousSessionTime time.Duration
	orphanStamp         int64
	keys                map[string]bool
}

type model map[int64]*modelLease

func (m model) ids(keep func(*modelLease) bool) (ids []int64) {
	for id, l := range m {
		if keep(l) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (m model) info(id int64) Info {
	l := m[id]
	return Info{
		ID: id, TTLSeconds: l.ttl, Owner: l.owner, OwnerIndex: l.ownerIndex, Orphaned: l.owner == 0,
		PreviousOwnerSessionTime: l.previousSessionTime, OrphanStamp: l.orphanStamp, Keys: len(l.keys),
	}
}

// compare checks everything that a table can be asked against the model.
func compare(t *rapid.T, table *Table, m model) {
	all := table.All()
	ids := m.ids(func(*modelLease) bool { return true })
	if len(all) != len(ids) || table.Len() != len(ids) {
		t.Fatalf("%d leases, want %d", len(all), len(ids))
	}
	owned := make(map[uint64]int)
	for i, id := range ids {
		if all[i] != m.info(id) {
			t.Fatalf("got %+v, want %+v", all[i], m.info(id))
		}
		owned[m[id].owner]++
		var keys []string
		for key := range m[id].keys {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		if got := fmt.Sprintf("%q", table.Keys(id)); got != fmt.Sprintf("%q", keys) {
			t.Fatalf("keys of %d: %s, want %q", id, got, keys)
		}
	}
	for session := range uint64(4) {
		if session > 0 && table.OwnedBy(session) != owned[session] {
			t.Fatalf("session %d owns %d, want %d", session, table.OwnedBy(session), owned[session])
		}
	}
	orphans := m.ids(func(l *modelLease) bool { return l.owner == 0 })
	slices.SortStableFunc(orphans, func(a, b int64) int {
		return compareInt64(m[a].orphanStamp+m[a].ttl*1e9, m[b].orphanStamp+m[b].ttl*1e9)
	})
	id, endsAt, ok := table.NextOrphan()
	if ok != (len(orphans) > 0) || table.Orphans() != len(orphans) {
		t.Fatalf("%d orphans, want %d", table.Orphans(), len(orphans))
	}
	if ok && (id != orphans[0] || endsAt != m[id].orphanStamp+m[id].ttl*1e9) {
		t.Fatalf("next orphan %d at %d, want %d", id, endsAt, orphans[0])
	}
}

// TestTable does random things to a table and to a model of it.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, m := NewTable(), model{}
		index := uint64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			index++
			id := rapid.Int64Range(-2, 8).Draw(t, "id")
			session := rapid.Uint64Range(1, 3).Draw(t, "session")
			sessionTime := time.Duration(session) * time.Second
			key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"}).Draw(t, "key")
			l := m[id]
			switch rapid.IntRange(0, 7).Draw(t, "step") {
			case 0, 1:
				ttl := rapid.Int64Range(1, 4).Draw(t, "ttl")
				change, ok := table.Grant(id, ttl, session, index)
				if ok != (l == nil) || ok && change != (Change{
					Kind: Granted, ID: id, TTL: time.Duration(ttl) * time.Second, Owner: session, OwnerIndex: index,
				}) {
					t.Fatalf("grant: %+v, %v", change, ok)
				}
				if ok {
					m[id] = &modelLease{ttl: ttl, owner: session, ownerIndex: index, keys: make(map[string]bool)}
				}
			case 2:
				change, ok := table.Adopt(id, session, index, sessionTime)
				if ok != (l != nil && l.owner != session) {
					t.Fatalf("adopt: %v", ok)
				}
				if ok {
					if change.PreviousOwner != l.owner {
						t.Fatalf("adopted from %d, want %d", change.PreviousOwner, l.owner)
					}
					if l.owner != 0 {
						l.previousSessionTime = sessionTime
					}
					l.owner, l.ownerIndex, l.orphanStamp = session, index, 0
				}
			case 3:
				to := session%3 + 1
				owned := m.ids(func(l *modelLease) bool { return l.owner == session })
				changes := table.Move(session, to, index, sessionTime)
				checkChanges(t, changes, owned, Adopted, to, session)
				for _, id := range owned {
					m[id].owner, m[id].ownerIndex, m[id].previousSessionTime = to, index, sessionTime
				}
			case 4:
				owned := m.ids(func(l *modelLease) bool { return l.owner == session })
				stamp := rapid.Int64Range(1, 3).Draw(t, "stamp") * 1e9
				checkChanges(t, table.Orphan(session, stamp, sessionTime), owned, Orphaned, 0, session)
				for _, id := range owned {
					m[id].owner, m[id].ownerIndex, m[id].previousSessionTime, m[id].orphanStamp = 0, 0, sessionTime, stamp
				}
			case 5:
				change, ok := table.Remove(id, Revoked)
				if ok != (l != nil) || ok && (change.Kind != Revoked || change.ID != id || change.Owner != l.owner) {
					t.Fatalf("remove: %+v, %v", change, ok)
				}
				delete(m, id)
			case 6:
				if table.Attach(id, []byte(key)) != (l != nil) {
					t.Fatal("attach")
				}
				if l != nil {
					l.keys[key] = true
				}
			case 7:
				if table.Detach(id, []byte(key)); l != nil {
					delete(l.keys, key)
				}
			}
			compare(t, table, m)
		}
	})
}

func checkChanges(t *rapid.T, changes []Change, ids []int64, kind ChangeKind, owner, previous uint64) {
	if len(changes) != len(ids) {
		t.Fatalf("%d changes, want %d", len(changes), len(ids))
	}
	for i, c := range changes {
		if c.ID != ids[i] || c.Kind != kind || c.Owner != owner || c.PreviousOwner != previous {
			t.Fatalf("%+v, want %v of %d", c, kind, ids[i])
		}
	}
}

// TestEndOfTime: a TTL that no clock will see the end of does not wrap around.
func TestEndOfTime(t *testing.T) {
	table := NewTable()
	table.Grant(1, MaxTTLSeconds, 1, 1)
	table.Orphan(1, math.MaxInt64-5, time.Second)
	if _, endsAt, _ := table.NextOrphan(); endsAt != math.MaxInt64 {
		t.Errorf("ends at %d", endsAt)
	}
	if info, _ := table.Info(1); info.TTL() != MaxTTLSeconds*time.Second || info.TTL() < 0 {
		t.Errorf("TTL %v", info.TTL())
	}
}

// TestMemory holds a lease to what the design promises, without its keys.
func TestMemory(t *testing.T) {
	const leases = 200_000
	before := heapBytes()
	table := NewTable()
	for id := range int64(leases) {
		table.Grant(id, 60, 1+uint64(id)%3, uint64(id))
	}
	perLease := float64(heapBytes()-before) / leases
	t.Logf("%.0f bytes a lease", perLease)
	if perLease > 200 {
		t.Errorf("%.0f bytes a lease", perLease)
	}
	runtime.KeepAlive(table)
}

func heapBytes() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
