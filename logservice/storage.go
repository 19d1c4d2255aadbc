package logservice

import "errors"

// HardState is what raft must remember across a crash besides its entries.
type HardState struct{ Term, Vote, Commit uint64 }

// Entry is one entry of the log as storage knows it.
type Entry struct {
	Index, Term uint64
	// Type is raft's entry type: 0 normal, 1 and 2 configuration changes.
	Type uint8
	Data []byte
}

// Group is what storage writes as one frame with one sync.
type Group struct {
	// HardState is the zero value where it did not change.
	HardState HardState
	// Entries are contiguous. A first index at or below the last one of the log cuts the log's tail.
	Entries []Entry
	// Membership is the member's record (see record); nil where it did not change.
	Membership []byte
}

// ErrNoSpace says that there is no room for a group and that nothing of it was written.
var ErrNoSpace = errors.New("logservice: no space for the log")

// Storage is what a Member reads of its log on disk. Reads may run while a group is being written; they are only of
// entries written before.
type Storage interface {
	HardState() HardState
	// Membership returns the latest record written, nil for none.
	Membership() []byte
	// FirstIndex is 1 for a log that was never trimmed; LastIndex is FirstIndex-1 for an empty one.
	FirstIndex() uint64
	LastIndex() uint64
	// Term returns the term of an entry between FirstIndex and LastIndex.
	Term(index uint64) (uint64, error)
	// Entries returns entries of [lo, hi), at least one and otherwise no more than maxBytes of them. The caller owns the
	// slice; nobody modifies the data.
	Entries(lo, hi uint64, maxBytes int) ([]Entry, error)
}
