package watch

import (
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// history is where the hub reads what lies behind it.
type history interface {
	// acquire returns the newest published state. It does not block.
	acquire() view
	// revisions returns that state's revision, and the lowest one that can be watched.
	revisions() (present, lowest int64)
}

// view is a state of the key space that does not change while it is held. Any goroutine may read it. Its
// methods are those of keyspace.Snapshot.
type view interface {
	Revision() int64
	CompactRevision() int64
	Get(key []byte, revision int64) (keyspace.Version, bool, error)
	History(from, to int64, visit func(keyspace.Version) bool) error
	Release()
}

// lowestRevision is the lowest one that can be watched: as in etcd, history begins with the compact revision.
func lowestRevision(v view) int64 { return v.CompactRevision() }

// spaceHistory reads a key space's history.
type spaceHistory struct{ space *keyspace.Space }

func (h spaceHistory) acquire() view { return h.space.Acquire() }

func (h spaceHistory) revisions() (present, lowest int64) { return h.space.Revisions() }

// NewHub makes a hub over a key space and starts its goroutines. It is called before the first entry that it is
// to tell of is applied. The caller closes it.
func NewHub(space *keyspace.Space, config Config) *Hub {
	h := newHub(spaceHistory{space}, config)
	h.start()
	return h
}

// Applied tells the hub what an entry did. It does not wait for anybody: it costs a lookup for each event and a
// little for each watch that gets one.
func (h *Hub) Applied(a *statemachine.Applied) { h.apply(a.Events, a.Revision) }
