package watch

import "errors"

type version struct {
	Key, Value                                       []byte
	CreateRevision, ModRevision, Version, Lease, Sub int64
	Tombstone                                        bool
	Encoded                                          []byte
}

type appliedEvent struct {
	Put          bool
	KV, Previous version
	HasPrevious  bool
}

var errHistoryCompacted = errors.New("compacted")

// history is where the hub reads what lies behind it.
type history interface {
	// acquire returns the newest published state. It does not block.
	acquire() view
}

// view is a state of the key space that does not change while it is held. Any goroutine may read it.
type view interface {
	Revision() int64
	CompactRevision() int64
	Get(key []byte, revision int64) (version, bool, error)
	History(from, to int64, visit func(version) bool) error
	Release()
}
