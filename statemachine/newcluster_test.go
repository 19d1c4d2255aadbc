package statemachine

import (
	"errors"
	"maps"
	"math"
	"slices"
	"testing"
)

func TestRaiseIDs(t *testing.T) {
	now := IDEpoch + 1_000_000*1e9
	ids := newIDTables()
	const far = 1 << 40
	ids.nodes[IDSnowflake] = []idNode{{holder: 7, until: 5}, {until: far}}
	ids.sequences = map[string]int64{"few": 7, "many": math.MaxInt64 - 1}
	ids.ranges = map[string]idRange{"all": {1001, 1000}, "last": {90, 100}, "small": {90, 99}, "wide": {5, maxIDNumber}}
	usedUp := ids.raise(now, 10)
	if !slices.Equal(usedUp, []string{"small"}) {
		t.Errorf("used up: %q", usedUp)
	}
	if want := map[string]int64{"few": 17, "many": math.MaxInt64}; !maps.Equal(ids.sequences, want) {
		t.Errorf("sequences %v, want %v", ids.sequences, want)
	}
	want := map[string]idRange{"all": {1001, 1000}, "last": {100, 100}, "small": {100, 99}, "wide": {15, maxIDNumber}}
	if !maps.Equal(ids.ranges, want) {
		t.Errorf("ranges %v, want %v", ids.ranges, want)
	}
	for kind, units := range map[IDKind]int64{IDSnowflake: 1_000_030_001, IDRaindrop: 1_000_031} {
		if len(ids.nodes[kind]) != kind.Layout().Nodes() {
			t.Errorf("%d %s nodes", len(ids.nodes[kind]), kind)
		}
		for number, node := range ids.nodes[kind] {
			until := units
			if kind == IDSnowflake && number == 1 {
				until = far
			}
			if node != (idNode{until: until}) {
				t.Fatalf("%s node %d: %+v, want until %d", kind, number, node, until)
			}
		}
	}
	if usedUp := ids.raise(now, MaxIDBump); !slices.Equal(usedUp, []string{"last"}) {
		t.Errorf("used up: %q", usedUp)
	}
}

func TestWrongNewClusters(t *testing.T) {
	m := New(Options{})
	m.clusterID = 1
	for _, c := range []NewCluster{
		{ID: 0, RevisionBump: 1}, {ID: 1, RevisionBump: 1}, {ID: 2}, {ID: 2, RevisionBump: -1}, {ID: 2, RevisionBump: MaxRevisionBump + 1},
		{ID: 2, RevisionBump: 1, IDBump: -1}, {ID: 2, RevisionBump: 1, IDBump: MaxIDBump + 1},
		{ID: 2, RevisionBump: 1, Now: maxLogTime + 1},
	} {
		if _, err := m.BeginCluster(c); !errors.Is(err, ErrNewCluster) || m.clusterID != 1 || m.revision != 1 {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
