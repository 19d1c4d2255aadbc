package statemachine

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// digestOf fails the test where there is none.
func digestOf(t testing.TB, m *Machine) Digest {
	t.Helper()
	d, err := m.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// scrub runs one whole pass.
func scrub(m *Machine, budget int) error {
	s := m.NewScrubber()
	defer s.Close()
	for {
		done, err := s.Step(budget)
		if done || err != nil {
			return err
		}
	}
}

// TestDigestsOfEqualStatesAreEqual applies a random log to machines that differ in all that must not matter: how far they
// compact, and whether they were restored from what another exported. A scrub finds nothing in any of them.
func TestDigestsOfEqualStatesAreEqual(t *testing.T) {
	for seed := range uint64(10) {
		log := newRandomLog(t, seed)
		eager, lazy, restored := New(Options{CompactionBudget: 1 << 20}), New(Options{CompactionBudget: 1}), New(Options{})
		x := newExporter(t)
		due := 0
		for range 1500 {
			e := log.next()
			var first *Applied
			for _, m := range []*Machine{eager, lazy, restored} {
				a, err := m.Apply(log.index, 1, e.kind, e.envelope, true)
				if err != nil {
					t.Fatal(err)
				}
				if first == nil {
					first = a
				}
				if a.DigestDue != first.DigestDue {
					t.Fatalf("seed %d, entry %d: not due on all", seed, log.index)
				}
			}
			x.applied(first)
			if first.DigestDue {
				due++
				want := digestOf(t, eager)
				for name, m := range map[string]*Machine{"lazy": lazy, "restored": restored} {
					if have := digestOf(t, m); have != want {
						t.Fatalf("seed %d, entry %d, %s: %+v, others have %+v", seed, log.index, name, have, want)
					}
				}
			}
			if log.r.IntN(40) == 0 {
				x.export(restored)
				restored = x.restore(restored)
			}
			if log.r.IntN(200) == 0 {
				for _, m := range []*Machine{eager, lazy, restored} {
					if err := scrub(m, 1+log.r.IntN(2000)); err != nil {
						t.Fatalf("seed %d, entry %d: %v", seed, log.index, err)
					}
				}
			}
		}
		if due < 50 {
			t.Errorf("seed %d: a digest was due %d times", seed, due)
		}
	}
}

// TestDigestTellsStatesApart leaves one entry out of one of two equal machines, in which case nothing else differs.
func TestDigestTellsStatesApart(t *testing.T) {
	apart := 0
	for seed := range uint64(8) {
		log := newRandomLog(t, seed)
		a, b := New(Options{}), New(Options{})
		skip := uint64(100 + log.r.IntN(300))
		for range skip + 50 {
			e := log.next()
			if _, err := a.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
				t.Fatal(err)
			}
			if log.index == skip {
				e = logEntry{} // an entry of the log's own
			}
			if _, err := b.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
				t.Fatal(err)
			}
			if equal := dump(a) == dump(b); equal != (digestOf(t, a) == digestOf(t, b)) {
				t.Fatalf("seed %d, entry %d: states equal: %v, digests %+v and %+v", seed, log.index, equal, digestOf(t, a), digestOf(t, b))
			} else if !equal {
				apart++
			}
		}
	}
	if apart == 0 {
		t.Error("no two states ever differed")
	}
}

// TestScrubFindsEachKindOfDamage flips one bit at a time in what a machine holds.
func TestScrubFindsEachKindOfDamage(t *testing.T) {
	log := newRandomLog(t, 3)
	m := New(Options{})
	version := func(history bool) (found keyspace.Version, ok bool) {
		sn := m.space.Acquire()
		defer sn.Release()
		visit := func(v keyspace.Version) bool {
			live, _, _ := sn.Get(v.Key, 0)
			found, ok = v, len(v.Value) > 0 && history != (live.ModRevision == v.ModRevision && live.Sub == v.Sub)
			return !ok
		}
		if history {
			_ = sn.History(sn.CompactRevision(), 0, visit)
		} else {
			_ = sn.Range(nil, nil, 0, visit)
		}
		return found, ok
	}
	for ready := false; !ready; {
		e := log.next()
		if _, err := m.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
			t.Fatal(err)
		}
		_, old := version(true)
		_, live := version(false)
		ready = old && live && m.requests.len() > 1 && m.leases.Len() > 0 &&
			len(m.sessions.open) > 0 && len(m.ids.sequences) > 0 && len(m.ids.ranges) > 0 && len(m.ids.nodes) > 0
	}
	if err := scrub(m, 1000); err != nil {
		t.Fatal(err)
	}
	flipVersion := func(history bool, flip func(v keyspace.Version)) func() {
		v, _ := version(history)
		return func() { flip(v) }
	}
	ttl := leaseField(t, m, m.leases.All()[0].ID, "ttlSeconds")
	session := m.sessions.open[anyOf(m.sessions.open)]
	frontendID := session.FrontendID
	sequence, identified := anyOf(m.ids.sequences), anyOf(m.ids.ranges)
	kind := anyOf(m.ids.nodes)
	region := "flipped"
	for name, flip := range map[string]func(){
		"live value": flipVersion(false, func(v keyspace.Version) { v.Value[0] ^= 0x10 }),
		"live key":   flipVersion(false, func(v keyspace.Version) { v.Key[0] ^= 0x01 }),
		"history":    flipVersion(true, func(v keyspace.Version) { v.Value[0] ^= 0x80 }),
		"request id": func() { m.requests.queue.at(0).index ^= 4 },
		"lease":      func() { *ttl ^= 2 },

		"session's seq":              func() { session.LastSeq ^= 1 },
		"session's id":               func() { session.ID ^= 1 << 40 },
		"session's last entry":       func() { session.LastEntryAt ^= 1 << 20 },
		"session's time":             func() { session.SessionTime ^= 1 << 30 },
		"session's frontend":         func() { session.FrontendID ^= 1 },
		"session's apply version":    func() { session.ApplyVersionMax ^= 1 },
		"frontend's incarnation":     func() { m.sessions.frontends[frontendID].incarnation ^= 2 },
		"frontend's last session":    func() { m.sessions.frontends[frontendID].lastSession ^= 2 },
		"settings":                   func() { m.settings.QuotaBytes ^= 1 << 12 },
		"settings, the last":         func() { m.settings.RequestIDAge ^= 1 },
		"region that is not there":   func() { toggle(m.regions, region) },
		"next number of a sequence":  func() { m.ids.sequences[sequence] ^= 8 },
		"next number of a range":     func() { r := m.ids.ranges[identified]; r.next ^= 8; m.ids.ranges[identified] = r },
		"holder of a node number":    func() { m.ids.nodes[kind][0].holder ^= 8 },
		"last time of a node number": func() { m.ids.nodes[kind][0].until ^= 1 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			flip()
			if err := scrub(m, 500); err == nil {
				t.Error("the scrub found nothing")
			} else {
				t.Log(err)
			}
			flip()
			if err := scrub(m, 500); err != nil {
				t.Errorf("after the damage is undone: %v", err)
			}
		})
	}
}

// anyOf returns a key of a map.
func anyOf[K comparable, V any](m map[K]V) (any K) {
	for any = range m {
		break
	}
	return any
}

// toggle adds a region or takes it away.
func toggle(regions map[string]RegionState, region string) {
	if _, ok := regions[region]; ok {
		delete(regions, region)
	} else {
		regions[region] = RegionFenced
	}
}

// leaseField returns a number in the memory of a lease's row, which only this package's neighbour may write.
func leaseField(t *testing.T, m *Machine, id int64, name string) *int64 {
	t.Helper()
	row := reflect.ValueOf(m.leases).Elem().FieldByName("leases").MapIndex(reflect.ValueOf(id))
	if !row.IsValid() {
		t.Fatalf("no lease %d", id)
	}
	return (*int64)(row.Elem().FieldByName(name).Addr().UnsafePointer())
}

// TestDigestTellsDamagedTables flips a bit at a time in the tables that have no checksums of rows: each is in the digest as
// it stands, so that the next one differs from that of others.
func TestDigestTellsDamagedTables(t *testing.T) {
	log := newRandomLog(t, 5)
	m := New(Options{})
	for len(m.sessions.open) == 0 || len(m.ids.sequences) == 0 || m.index < 300 {
		e := log.next()
		if _, err := m.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
			t.Fatal(err)
		}
	}
	var session *session
	for _, s := range m.sessions.open {
		session = s
	}
	var sequence string
	for sequence = range m.ids.sequences {
		break
	}
	want := digestOf(t, m)
	for name, flip := range map[string]func(){
		"session's seq":           func() { session.LastSeq ^= 1 },
		"session's last entry":    func() { session.LastEntryAt ^= 1 << 20 },
		"session's time":          func() { session.SessionTime ^= 1 << 30 },
		"frontend's incarnation":  func() { m.sessions.frontends[session.FrontendID].incarnation ^= 2 },
		"settings":                func() { m.settings.QuotaBytes ^= 1 << 12 },
		"log time":                func() { m.logTime ^= 1 },
		"revision":                func() { m.revision ^= 1 },
		"compact revision":        func() { m.compacted ^= 1 },
		"horizon of request ids":  func() { m.requests.horizon ^= 1 },
		"alarm":                   func() { m.noSpace = !m.noSpace },
		"next number of sequence": func() { m.ids.sequences[sequence] ^= 8 },
	} {
		flip()
		if digestOf(t, m) == want {
			t.Errorf("%s: the digest is the same", name)
		}
		flip()
		if digestOf(t, m) != want {
			t.Fatalf("%s: the digest is not what it was", name)
		}
	}
	// Rows of leases are summed as they change.
	for m.leases.Len() == 0 {
		e := log.next()
		if _, err := m.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
			t.Fatal(err)
		}
	}
	want = digestOf(t, m)
	if _, changed := m.leases.Adopt(m.leases.All()[0].ID, session.ID+1<<40, m.index, time.Second); !changed || digestOf(t, m) == want {
		t.Error("a lease's owner: the digest is the same")
	}
}

// BenchmarkDigest shows what a digest costs the goroutine that applies, every 5 s of log time, with many sessions, and what
// a session takes of memory.
func BenchmarkDigest(b *testing.B) {
	for _, sessions := range []int{10, 10_000} {
		b.Run(fmt.Sprint(sessions), func(b *testing.B) {
			before := heapBytes()
			m := New(Options{})
			for i := range uint64(sessions) {
				m.sessions.frontends[i+1] = &frontend{incarnation: 1, lastSession: i + 1}
				m.sessions.add(&session{SessionInfo: SessionInfo{ID: i + 1, FrontendID: i + 1, Name: fmt.Sprint("frontend-", i), Region: "us"}})
				m.sessions.frontends[i+1].open = m.sessions.open[i+1]
			}
			held := heapBytes() - before
			for b.Loop() {
				if _, err := m.Digest(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(held/float64(sessions), "heap-B/session")
		})
	}
}

func heapBytes() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// TestDigestVersion holds the digest of one state. Where it changes, mirrors of both versions would disagree for ever:
// raise DigestVersion with it.
func TestDigestVersion(t *testing.T) {
	m := New(Options{})
	log := &randomLog{t: t}
	apply := func(kind logv1.EntryKind, session, seq uint64, payload proto.Message) {
		log.index++
		log.logTime += int64(time.Second)
		e := log.entry(kind, session, seq, encode(t, payload))
		if _, err := m.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
			t.Fatal(err)
		}
	}
	apply(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, &logv1.Genesis{ClusterId: 9})
	apply(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, 0, &logv1.OpenSession{
		FrontendId: 1, Incarnation: 1, FrontendName: "a", Region: "us", ApplyVersionMax: 1,
	})
	put := func(key, value string, lease int64) *commandv1.Command {
		return &commandv1.Command{RequestId: "1-" + key, Operation: &commandv1.Command_Put{
			Put: &commandv1.Put{Key: []byte(key), Value: []byte(value), Lease: lease},
		}}
	}
	apply(logv1.EntryKind_ENTRY_KIND_BATCH, 2, 1, &commandv1.CommandBatch{Commands: []*commandv1.Command{
		{Operation: &commandv1.Command_LeaseGrant{LeaseGrant: &commandv1.LeaseGrant{Id: 5, TtlSeconds: 60}}},
		put("a", "1", 5), put("b", "2", 0), put("c", "3", 0),
		{Operation: &commandv1.Command_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: []byte("b")}}},
		{Operation: &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: 3}}},
		{Operation: &commandv1.Command_IdSequenceNext{IdSequenceNext: &commandv1.IdSequenceNext{Name: "s", Count: 4}}},
	}})
	const want = "dd31d47bba9aca9c46cff35743ae57a9f654f968de1792285f380096e4583a31"
	if have := hex.EncodeToString(digestOf(t, m).Bytes()); have != want || DigestVersion != 2 {
		t.Errorf("digest %s in version %d, was %s in version 2", have, DigestVersion, want)
	}
}
