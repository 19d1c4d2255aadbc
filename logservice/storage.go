package logservice

import "github.com/logmirror/logmirror/logservice/segment"

// What a member writes is in the terms of the log on disk. Entry.Type is raft's entry type, Group.Membership a record.
type (
	HardState = segment.HardState
	Entry     = segment.Entry
	Group     = segment.Group
	Identity  = segment.Identity
	Extent    = segment.Extent
)

// ErrNoSpace says that there is no room for a group and that nothing of it was written.
var ErrNoSpace = segment.ErrNoSpace

// errTrimmed says that an entry lies before the first one.
var errTrimmed = segment.ErrTrimmed

// Storage is what a Member reads of its log on disk. Reads may run while a group is being written; they are only of
// entries written before.
type Storage interface {
	HardState() HardState
	// Membership returns the latest record written, nil for none.
	Membership() []byte
	// FirstIndex is 1 for a log that was never trimmed; LastIndex is FirstIndex-1 for an empty one.
	FirstIndex() uint64
	LastIndex() uint64
	// Term returns the term of an entry between FirstIndex-1 and LastIndex.
	Term(index uint64) (uint64, error)
	// Entries returns entries of [lo, hi), at least one and otherwise no more than maxBytes of them. The caller owns the
	// slice; nobody modifies the data.
	Entries(lo, hi uint64, maxBytes int) ([]Entry, error)
	// Digest returns the running digest of the log up to an entry between FirstIndex-1 and LastIndex.
	Digest(index uint64) (uint64, error)
	// Extents returns what the log consists of, oldest first; the last one is never trimmed.
	Extents() []Extent
}

var _ Storage = (*segment.Log)(nil)
