package watch

import (
	"fmt"
	"sort"
	"sync"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// fakeSpace keeps every version ever written in a slice, which makes its answers easy to believe.
type fakeSpace struct {
	mu        sync.Mutex
	versions  []keyspace.Version
	revision  int64
	compacted int64
	views     int
}

func newFakeSpace() *fakeSpace { return &fakeSpace{revision: 1} }

// change is one write: a put of a value, or a delete where value is nil.
type change struct {
	key   string
	value []byte
}

// write publishes one revision and returns its events as apply would tell them.
func (s *fakeSpace) write(changes ...change) []statemachine.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.revision + 1
	var events []statemachine.Event
	for _, c := range changes {
		previous, existed := s.get([]byte(c.key), s.revision)
		v := keyspace.Version{Key: []byte(c.key), ModRevision: revision, Sub: int64(len(events))}
		if c.value == nil {
			if !existed {
				continue
			}
			v.Tombstone = true
			v.Encoded = encodeKV(&kvv1.KeyValue{Key: v.Key, ModRevision: revision})
		} else {
			v.Value, v.CreateRevision, v.Version = c.value, revision, 1
			if existed {
				v.CreateRevision, v.Version = previous.CreateRevision, previous.Version+1
			}
			v.Encoded = encodeKV(&kvv1.KeyValue{
				Key: v.Key, Value: v.Value, CreateRevision: v.CreateRevision, ModRevision: revision, Version: v.Version,
			})
		}
		s.versions = append(s.versions, v)
		events = append(events, statemachine.Event{Put: !v.Tombstone, KV: v, Previous: previous, HasPrevious: existed})
	}
	if len(events) > 0 {
		s.revision = revision
	}
	return events
}

func encodeKV(kv *kvv1.KeyValue) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(kv)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *fakeSpace) get(key []byte, revision int64) (keyspace.Version, bool) {
	for i := len(s.versions) - 1; i >= 0; i-- {
		v := s.versions[i]
		if v.ModRevision <= revision && string(v.Key) == string(key) {
			return v, !v.Tombstone
		}
	}
	return keyspace.Version{}, false
}

func (s *fakeSpace) compact(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted = max(s.compacted, revision)
}

func (s *fakeSpace) acquire() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.views++
	return &fakeView{space: s, versions: s.versions, revision: s.revision, compacted: s.compacted}
}

func (s *fakeSpace) revisions() (present, lowest int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision, s.compacted
}

type fakeView struct {
	space               *fakeSpace
	versions            []keyspace.Version
	revision, compacted int64
}

func (v *fakeView) Revision() int64        { return v.revision }
func (v *fakeView) CompactRevision() int64 { return v.compacted }

func (v *fakeView) Get(key []byte, revision int64) (keyspace.Version, bool, error) {
	if revision < v.compacted {
		return keyspace.Version{}, false, keyspace.ErrCompacted
	}
	for i := len(v.versions) - 1; i >= 0; i-- {
		if kv := v.versions[i]; kv.ModRevision <= revision && string(kv.Key) == string(key) {
			return kv, !kv.Tombstone, nil
		}
	}
	return keyspace.Version{}, false, nil
}

func (v *fakeView) History(from, to int64, visit func(keyspace.Version) bool) error {
	if from < v.compacted {
		return fmt.Errorf("from %d: %w", from, keyspace.ErrCompacted)
	}
	at := sort.Search(len(v.versions), func(i int) bool { return v.versions[i].ModRevision >= from })
	for ; at < len(v.versions) && v.versions[at].ModRevision <= to; at++ {
		if !visit(v.versions[at]) {
			return nil
		}
	}
	return nil
}

func (v *fakeView) Release() {
	v.space.mu.Lock()
	defer v.space.mu.Unlock()
	v.space.views--
}
