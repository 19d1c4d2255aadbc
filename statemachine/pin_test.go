package statemachine

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// filled returns a machine with so many rows of each table.
func filled(leases, requests, sessions, names int) *Machine {
	m := New(Options{})
	r := rand.New(rand.NewPCG(1, 1))
	for i := range leases {
		m.leases.Grant(r.Int64(), 60, 1, uint64(i)+1)
	}
	for i := range requests {
		m.requests.keep(&requestRecord{id: fmt.Sprintf("%d-id", i), index: uint64(i) + 1})
	}
	for i := range uint64(sessions) {
		m.sessions.frontends[i+1] = &frontend{incarnation: 1, lastSession: i + 1}
		m.sessions.add(&session{SessionInfo: SessionInfo{ID: i + 1, FrontendID: i + 1, Name: fmt.Sprint("frontend-", i), Region: "us"}})
	}
	for i := range names {
		m.ids.setSequence(fmt.Sprint("a sequence of ids: ", i), 1)
		m.ids.setRange(fmt.Sprint("a range of ids: ", i), idRange{next: 1, max: 1 << 40})
	}
	return m
}

// TestPinCopiesNoRow counts what a pin takes of memory: of leases nothing, of request ids a place in a list for 256 of them.
func TestPinCopiesNoRow(t *testing.T) {
	cost := func(leases, requests int) (allocations, bytes int64) {
		m := filled(leases, requests, 1, 1)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const pins = 100
		for range pins {
			x, sn := m.Pin()
			x.Release()
			sn.Release()
		}
		runtime.ReadMemStats(&after)
		return int64(after.Mallocs-before.Mallocs) / pins, int64(after.TotalAlloc-before.TotalAlloc) / pins
	}
	allocations, bytes := cost(1, 1)
	for _, rows := range []struct{ leases, requests int }{{100_000, 1}, {1, 100_000}} {
		a, b := cost(rows.leases, rows.requests)
		// Size classes and what else the process does at the time may add a little.
		most := bytes + 2*8*int64(rows.requests/requestsPerChunk) + 1024
		t.Logf("%+v: %d allocations of %d bytes, with one of each %d of %d", rows, a, b, allocations, bytes)
		if a > allocations+4 || b > most {
			t.Errorf("%+v: %d allocations of %d bytes, with one of each %d of %d", rows, a, b, allocations, bytes)
		}
	}
}

// rowsOf reads all rows of an export, and calls between after each.
func rowsOf(t testing.TB, x *Export, between func()) (rows []string) {
	state, err := x.State()
	if err != nil {
		t.Fatal(err)
	}
	rows = append(rows, string(state))
	if err := x.Leases(func(id int64, row []byte) error {
		rows = append(rows, fmt.Sprintf("%d %x", id, row))
		between()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := x.Requests(func(row []byte) error {
		rows = append(rows, string(row))
		between()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestPinStays reads pinned tables, whole and again, while another goroutine applies what changes them.
func TestPinStays(t *testing.T) {
	const leases = 2000
	m, index, session := started(t, Options{})
	seq := uint64(0)
	apply := func(commands ...*commandv1.Command) {
		index++
		seq++
		if _, err := m.Apply(index, 1, logv1.EntryKind_ENTRY_KIND_BATCH, &logv1.Envelope{
			Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: 2e9, Session: session, Seq: seq,
			Payload: encode(t, &commandv1.CommandBatch{Commands: commands}),
		}, false); err != nil {
			t.Error(err)
		}
	}
	bound := int64(leases)
	apply(&commandv1.Command{Operation: &commandv1.Command_ChangeSettings{
		ChangeSettings: &commandv1.ChangeSettings{RequestIdsMax: &bound},
	}})
	r := rand.New(rand.NewPCG(1, 2))
	change := func() {
		id := 1 + r.Int64N(2*leases)
		c := grant(id, 60)
		if r.IntN(2) == 0 {
			c = &commandv1.Command{Operation: &commandv1.Command_LeaseRevoke{LeaseRevoke: &commandv1.LeaseRevoke{Id: id}}}
		}
		c.RequestId = fmt.Sprintf("%d-%d", index, r.Uint64())
		apply(c)
	}
	for range 4 * leases {
		change()
	}
	for round := range 3 {
		want := rowsOf(t, m.ExportAll(), func() {})
		if len(want) < leases {
			t.Fatalf("only %d rows", len(want))
		}
		x, sn := m.Pin()
		more, done := make(chan struct{}), make(chan struct{})
		var applying sync.WaitGroup
		applying.Go(func() {
			for {
				select {
				case <-more:
					change()
				case <-done:
					return
				}
			}
		})
		for again := range 2 {
			got := rowsOf(t, x, func() { more <- struct{}{} })
			if !slices.Equal(got, want) {
				t.Errorf("round %d, walk %d: %d rows, not the %d that there were", round, again, len(got), len(want))
			}
		}
		close(done)
		applying.Wait()
		x.Release()
		sn.Release()
	}
}

// TestRequestQueue compares a queue with a slice, and its snapshots with copies.
func TestRequestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q requestQueue
		var want []*requestRecord
		type taken struct {
			queue requestQueue
			want  []*requestRecord
		}
		var snapshots []taken
		same := func(q *requestQueue, want []*requestRecord) {
			if q.count != len(want) {
				t.Fatalf("%d records, not %d", q.count, len(want))
			}
			for n, r := range want {
				if q.at(n) != r {
					t.Fatalf("record %d is of index %d, not %d", n, q.at(n).index, r.index)
				}
			}
		}
		index := uint64(0)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch count := rapid.IntRange(1, 3*requestsPerChunk).Draw(t, "count"); rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				for range count {
					index += 2
					q.push(&requestRecord{index: index})
					want = append(want, q.at(q.count-1))
				}
			case 2:
				for range min(count, len(want)) {
					q.pop()
					want = want[1:]
				}
			case 3:
				above := rapid.Uint64Range(0, index+1).Draw(t, "above")
				from := q.above(above)
				expected := 0
				for expected < len(want) && want[expected].index <= above {
					expected++
				}
				if from != expected {
					t.Fatalf("above %d begins with %d, not %d", above, from, expected)
				}
				snapshots = append(snapshots, taken{q.snapshot(from), slices.Clone(want[from:])})
			}
			same(&q, want)
		}
		for _, s := range snapshots {
			same(&s.queue, s.want)
		}
	})
}

// BenchmarkPin is what a checkpoint holds up apply for, by what the tables hold.
func BenchmarkPin(b *testing.B) {
	for _, c := range []struct {
		name                              string
		leases, requests, sessions, names int
	}{
		{"nothing", 0, 0, 0, 0},
		{"leases=100000", 100_000, 0, 0, 0},
		{"leases=1000000", 1_000_000, 0, 0, 0},
		{"request-ids=100000", 0, 100_000, 0, 0},
		{"request-ids=1000000", 0, 1_000_000, 0, 0},
		{"sessions=100", 0, 0, 100, 0},
		{"sessions=10000", 0, 0, 10_000, 0},
		{"id-names=4096", 0, 0, 0, 4096},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := filled(c.leases, c.requests, c.sessions, c.names)
			b.ReportAllocs()
			for b.Loop() {
				x, sn := m.Pin()
				x.Release()
				sn.Release()
			}
		})
	}
}
