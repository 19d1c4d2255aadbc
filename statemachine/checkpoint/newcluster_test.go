package checkpoint

import (
	"bytes"
	"slices"
	"testing"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
	"github.com/logmirror/logmirror/statemachine/machinetest"
)

// values are the newest versions of all keys.
func values(t *testing.T, m *statemachine.Machine) (encoded []string) {
	t.Helper()
	snapshot := m.Space().Acquire()
	defer snapshot.Release()
	if err := snapshot.Range(nil, nil, 0, func(v keyspace.Version) bool {
		encoded = append(encoded, string(v.Encoded))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return encoded
}

// The state with which a new cluster begins has the old one's keys and leases, and survives being written and read.
func TestNewClusterBeginsWithTheState(t *testing.T) {
	const revisionBump = 1_000_000
	orphans := 0
	for seed := range uint64(20) {
		m, log := statemachine.New(statemachine.Options{}), machinetest.NewLog(testCluster, seed)
		for index := uint64(1); index <= 300; index++ {
			machinetest.Apply(t, m, index, log.Next())
		}
		keys, leases, old := values(t, m), m.Leases(), m.ExportAll().Summary
		now := old.LogTime + int64(seed)*1e9 - 5e9 // the clock may be behind log time
		if _, err := m.BeginCluster(statemachine.NewCluster{ID: 77, Now: now, RevisionBump: revisionBump, IDBump: 10}); err != nil {
			t.Fatal(err)
		}
		source := Pin(m, testEpoch)
		var first, second bytes.Buffer
		counts, err := source.Write(&first)
		if err == nil {
			_, err = source.Write(&second)
		}
		source.Release()
		if err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("seed %d: written twice, %v", seed, err)
		}
		if counts.History != 0 || counts.Base != uint64(len(keys)) {
			t.Fatalf("seed %d: %+v for %d keys", seed, counts, len(keys))
		}
		reader, err := NewReader(&first)
		if err != nil {
			t.Fatal(err)
		}
		restored, _, err := reader.Restore(statemachine.Options{}, nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		want := old
		want.Index, want.Revision, want.ClusterID = old.Index+revisionBump, old.Revision+revisionBump, 77
		want.CompactRevision, want.LogTime = want.Revision, max(old.LogTime, now)
		if got := restored.ExportAll().Summary; got != want {
			t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
		}
		if !slices.Equal(values(t, restored), keys) {
			t.Fatalf("seed %d: the keys differ", seed)
		}
		if n := len(restored.Sessions()); n != 0 {
			t.Fatalf("seed %d: %d sessions", seed, n)
		}
		for i, l := range restored.Leases() {
			was := leases[i]
			if l.ID != was.ID || l.TTLSeconds != was.TTLSeconds || l.Keys != was.Keys || !l.Orphaned || l.OrphanStamp != want.LogTime {
				t.Fatalf("seed %d: lease %+v, was %+v", seed, l, was)
			}
			if was.Orphaned {
				orphans++
			}
		}
		if restored.LeaseCount() != len(leases) {
			t.Fatalf("seed %d: %d leases, were %d", seed, restored.LeaseCount(), len(leases))
		}
	}
	if orphans == 0 {
		t.Error("no lease was an orphan before")
	}
}
