package idgen

import "github.com/logmirror/logmirror/statemachine"

// Block is the ids First, First + 1, … First + Count - 1.
type Block struct{ First, Count int64 }

// ID is a snowflake or raindrop taken apart.
type ID struct {
	// Time is in units of the layout since statemachine.IDEpoch.
	Time, Node, Sequence int64
}

// Compose makes an id. Every field must fit the layout.
func Compose(l statemachine.IDLayout, id ID) int64 {
	return id.Time<<(l.NodeBits+l.SequenceBits) | id.Node<<l.SequenceBits | id.Sequence
}

// Split takes an id apart.
func Split(l statemachine.IDLayout, id int64) ID {
	return ID{
		Time:     id >> (l.NodeBits + l.SequenceBits),
		Node:     id >> l.SequenceBits & (1<<l.NodeBits - 1),
		Sequence: id & (1<<l.SequenceBits - 1),
	}
}
