package keyspace

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// recorded is what the writer says a revision holds, before it publishes it.
type recorded struct {
	keys    int
	content uint64 // sum of the hashes of all live versions
	changes int    // versions written up to here
}

const recordedRevisions = 4000

type records [recordedRevisions + 1]atomic.Pointer[recorded]

func hashOf(key, value []byte, modRevision int64) uint64 {
	h := fnv.New64a()
	h.Write(key)
	h.Write([]byte{0})
	h.Write(value)
	var m [8]byte
	binary.LittleEndian.PutUint64(m[:], uint64(modRevision))
	h.Write(m[:])
	return h.Sum64()
}

// TestReadersBesideWriter lets readers compare whole ranges, at their snapshot's revision and at older ones,
// with what the writer recorded of those revisions, while it writes, deletes, compacts and moves records.
func TestReadersBesideWriter(t *testing.T) {
	s := spaceOf(t, Options{SlabBytes: 8 << 10})
	var all records
	all[0].Store(&recorded{})
	var done atomic.Bool
	var group sync.WaitGroup
	for reader := range 4 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(reader), 1))
			verifier := s.NewVerifier()
			for !done.Load() {
				sn := s.Acquire()
				for range 1 + random.IntN(4) {
					if err := readAndCompare(sn, &all, random); err != nil {
						t.Error(err)
						done.Store(true)
					}
				}
				later := s.Acquire()
				for _, err := range []error{compareChain(sn, nil), compareChain(later, sn)} {
					if err != nil {
						t.Error(err)
						done.Store(true)
					}
				}
				later.Release()
				sn.Release()
				if _, err := verifier.Verify(8 << 10); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writeBesideReaders(s, &all, &done)
	done.Store(true)
	group.Wait()
	last := s.Stats().Revision + 1 // a revision without a deletion
	s.Put(name(0), nil, 0, last, 0)
	s.Publish(uint64(last), last)
	s.Compact(last)
	drain(t, s)
	if st := s.Stats(); st.Versions != st.Keys {
		t.Errorf("after compaction: %+v", st)
	}
}

func writeBesideReaders(s *Space, all *records, done *atomic.Bool) {
	random := rand.New(rand.NewPCG(7, 7))
	live := map[string]uint64{} // hash of the live version
	var content uint64
	var changes int
	for main := int64(1); main <= recordedRevisions && !done.Load(); main++ {
		for sub := range int64(1 + random.IntN(4)) {
			// The window of keys moves, so that keys and leaves come and go.
			key := fmt.Appendf(nil, "key/%06d", main/4+int64(random.IntN(400)))
			content -= live[string(key)]
			if random.IntN(5) < 2 {
				if _, _, existed := s.Delete(key, main, sub); existed {
					changes++
				}
				delete(live, string(key))
				continue
			}
			value := fmt.Appendf(nil, "%0*d", random.IntN(200), main)
			s.Put(key, value, 0, main, sub)
			live[string(key)] = hashOf(key, value, main)
			content += live[string(key)]
			changes++
		}
		if main%16 == 0 { // keys that the window has left behind
			for i := int64(0); i < 8; i++ {
				key := fmt.Appendf(nil, "key/%06d", main/4-i)
				if _, _, existed := s.Delete(key, main, 10+i); existed {
					content -= live[string(key)]
					delete(live, string(key))
					changes++
				}
			}
		}
		all[main].Store(&recorded{keys: len(live), content: content, changes: changes})
		s.Publish(uint64(main), main)
		if main%64 == 0 && main > 100 {
			s.Compact(main - int64(random.IntN(100)))
		}
		s.CompactSome(random.IntN(64))
	}
}

func readAndCompare(sn *Snapshot, all *records, random *rand.Rand) error {
	oldest, newest := sn.CompactRevision(), sn.Revision()
	if sn.Index() != uint64(newest) {
		return fmt.Errorf("index %d and revision %d are of two states", sn.Index(), newest)
	}
	if newest == 0 {
		return nil // nothing is written yet
	}
	lowest := max(oldest, 1)
	revision := lowest + random.Int64N(newest-lowest+1)
	var keys int
	var content uint64
	walk := sn.Range
	if random.IntN(2) == 0 {
		walk = sn.RangeDescending
	}
	var wrong error
	err := walk(nil, nil, revision, func(v Version) bool {
		keys++
		content += hashOf(v.Key, v.Value, v.ModRevision)
		if !v.Intact() {
			wrong = fmt.Errorf("%q at %d: not what was written", v.Key, v.ModRevision)
		}
		if keys%37 == 0 {
			if got, found, err := sn.Get(v.Key, revision); err != nil || !found || got.ModRevision != v.ModRevision {
				wrong = fmt.Errorf("get %q at %d: %v %v %v", v.Key, revision, got.ModRevision, found, err)
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	if want := all[revision].Load(); keys != want.keys || content != want.content {
		return fmt.Errorf("at %d of [%d, %d]: %d keys, content %x; want %d, %x",
			revision, oldest, newest, keys, content, want.keys, want.content)
	}
	if wrong != nil {
		return wrong
	}
	return compareHistory(sn, all)
}

// compareHistory checks that the whole history of the snapshot is in order and without a gap.
func compareHistory(sn *Snapshot, all *records) error {
	var lastMain, lastSub int64
	var changes int
	var wrong error
	from := max(sn.CompactRevision(), 1)
	err := sn.History(from, 0, func(v Version) bool {
		ordered := v.ModRevision > lastMain || v.ModRevision == lastMain && v.Sub > lastSub
		if !ordered || v.ModRevision < from || v.ModRevision > sn.Revision() || !v.Intact() {
			wrong = fmt.Errorf("history: %d/%d after %d/%d", v.ModRevision, v.Sub, lastMain, lastSub)
		}
		lastMain, lastSub = v.ModRevision, v.Sub
		changes++
		return wrong == nil
	})
	if err != nil {
		return err
	}
	if want := all[sn.Revision()].Load().changes - all[from-1].Load().changes; wrong == nil && changes != want {
		return fmt.Errorf("history from %d to %d has %d changes, want %d", from, sn.Revision(), changes, want)
	}
	return wrong
}

// compareChain follows what versions superseded, which must be the newest version before of the same key.
func compareChain(sn, older *Snapshot) error {
	newest, wrong := map[string]Place{}, error(nil)
	base, at := sn, sn.CompactRevision()
	if older != nil {
		base, at = older, older.Revision()
	}
	if err := base.Range(nil, nil, max(at, 1), func(v Version) bool {
		if older != nil || v.ModRevision < at {
			newest[string(v.Key)] = Place{v.ModRevision, v.Sub}
		}
		return true
	}); err != nil && base.Revision() > 0 {
		return err
	}
	sn.HistorySince(older, func(v Version, superseded Place) bool {
		want := newest[string(v.Key)]
		if older == nil && v.ModRevision == at && want.Main < at {
			want = Place{}
		}
		if superseded != want || !v.Intact() {
			wrong = fmt.Errorf("%q at %d/%d superseded %v, want %v", v.Key, v.ModRevision, v.Sub, superseded, want)
		}
		if newest[string(v.Key)] = (Place{v.ModRevision, v.Sub}); v.Tombstone {
			newest[string(v.Key)] = Place{}
		}
		return wrong == nil
	})
	return wrong
}
