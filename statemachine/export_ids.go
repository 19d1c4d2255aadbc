package statemachine

import (
	"fmt"
	"maps"
)

// exportedIDs is what has been given out of ids, as it is encoded.
type exportedIDs struct {
	Nodes     map[IDKind][]exportedIDNode
	Ranges    map[string]exportedIDRange
	Sequences map[string]int64
}

type exportedIDNode struct {
	Holder uint64
	Until  int64
}

type exportedIDRange struct{ Next, Max int64 }

// export returns a copy.
func (t *idTables) export() exportedIDs {
	x := exportedIDs{
		Nodes:     make(map[IDKind][]exportedIDNode, len(t.nodes)),
		Ranges:    make(map[string]exportedIDRange, len(t.ranges)),
		Sequences: maps.Clone(t.sequences),
	}
	for kind, nodes := range t.nodes {
		for _, node := range nodes {
			x.Nodes[kind] = append(x.Nodes[kind], exportedIDNode{node.holder, node.until})
		}
	}
	for name, r := range t.ranges {
		x.Ranges[name] = exportedIDRange{r.next, r.max}
	}
	return x
}

// restoreIDs returns the tables that were exported. The error matches ErrInconsistent.
func restoreIDs(x exportedIDs) (idTables, error) {
	t := newIDTables()
	for kind, nodes := range x.Nodes {
		if len(nodes) > kind.Layout().Nodes() {
			return t, fmt.Errorf("%w: %d node numbers of ids of kind %d", ErrInconsistent, len(nodes), kind)
		}
		for _, node := range nodes {
			t.nodes[kind] = append(t.nodes[kind], idNode{node.Holder, node.Until})
		}
	}
	if len(x.Ranges) > maxIDNames || len(x.Sequences) > maxIDNames {
		return t, fmt.Errorf("%w: %d ranges and %d sequences of ids", ErrInconsistent, len(x.Ranges), len(x.Sequences))
	}
	for name, r := range x.Ranges {
		t.ranges[name] = idRange{r.Next, r.Max}
	}
	maps.Copy(t.sequences, x.Sequences)
	t.sum = t.seal()
	return t, nil
}
