package lease

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// pinnedRows reads a pin to its end, page by page, with something done between two pages.
func pinnedRows(p *Pin, between func()) (rows []Info) {
	for next, more := int64(math.MinInt64), true; more; {
		rows, next, more = p.Page(next, rows)
		between()
	}
	return rows
}

// naivePin copies the whole table.
func naivePin(t *Table) []Info {
	rows := t.All()
	for i := range rows {
		rows[i].Keys = 0
	}
	return rows
}

// TestPinStays: whatever becomes of the table, and whatever other pins there are, each pin tells the table as a copy made at
// its moment does, also where the table changes between two pages.
func TestPinStays(t *testing.T) {
	type pinned struct {
		pin  *Pin
		want []Info
	}
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable()
		index := uint64(0)
		edge := rapid.SampledFrom([]int64{math.MinInt64, math.MinInt64 + 1, -1, math.MaxInt64 - 1, math.MaxInt64})
		ids := rapid.OneOf(rapid.Int64Range(0, 4*PinPageIDs), edge)
		// change does one thing to a run of leases.
		change := func() {
			index++
			session := rapid.Uint64Range(1, 3).Draw(t, "session")
			first, step := ids.Draw(t, "first"), rapid.Int64Range(1, 3).Draw(t, "step")
			count := rapid.SampledFrom([]int64{1, 2, PinPageIDs, 3 * PinPageIDs}).Draw(t, "count")
			each := func(do func(id int64)) {
				for i := range count {
					do(first + i*step) // may wrap around
				}
			}
			switch rapid.IntRange(0, 6).Draw(t, "change") {
			case 0, 1:
				each(func(id int64) { table.Grant(id, 1+count, session, index) })
			case 2:
				each(func(id int64) { table.Remove(id, Revoked) })
			case 3:
				each(func(id int64) { table.Adopt(id, session, index, time.Duration(index)) })
			case 4:
				table.Orphan(session, int64(index), time.Second)
			case 5:
				table.Move(session, session%3+1, index, time.Second)
			case 6:
				table.RestartOrphans(int64(index))
			}
			each(func(id int64) { table.Attach(id, []byte("key")) })
		}
		var pins []pinned
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1, 2:
				change()
			case 3:
				pins = append(pins, pinned{table.Pin(), naivePin(table)})
			case 4:
				if len(pins) == 0 {
					continue
				}
				at := rapid.IntRange(0, len(pins)-1).Draw(t, "pin")
				p := pins[at]
				between := func() {}
				if rapid.Bool().Draw(t, "changes between pages") {
					between = change
				}
				if got := pinnedRows(p.pin, between); !slices.Equal(got, p.want) || p.pin.Len() != len(p.want) {
					t.Fatalf("pin %d shows %d leases that are not the %d that there were", at, len(got), len(p.want))
				}
				if rapid.Bool().Draw(t, "release") {
					p.pin.Release()
					pins = slices.Delete(pins, at, at+1)
				}
			}
		}
		for at, p := range pins {
			if got := pinnedRows(p.pin, func() {}); !slices.Equal(got, p.want) {
				t.Fatalf("pin %d shows %d leases that are not the %d that there were", at, len(got), len(p.want))
			}
			p.pin.Release()
		}
		if len(table.pins) != 0 {
			t.Fatalf("%d pins are left", len(table.pins))
		}
		if err := verify(table, 100); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPinVisitsNoLease: neither taking a pin nor giving it back looks at a row, or takes memory for one.
func TestPinVisitsNoLease(t *testing.T) {
	cost := func(leases int) (allocations, bytes uint64) {
		table := NewTable()
		for id := range int64(leases) {
			table.Grant(id, 60, 1, 1)
		}
		for id := range table.leases {
			table.leases[id] = nil // who visits it will not miss that
		}
		clear(table.ordered.chunks)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const pins = 100
		for range pins {
			table.Pin().Release()
		}
		runtime.ReadMemStats(&after)
		return (after.Mallocs - before.Mallocs) / pins, (after.TotalAlloc - before.TotalAlloc) / pins
	}
	for _, leases := range []int{1, 100_000} {
		allocations, bytes := cost(leases)
		t.Logf("%d leases: %d allocations of %d bytes", leases, allocations, bytes)
		if allocations > 4 || bytes > 1024 {
			t.Errorf("a pin of %d leases makes %d allocations of %d bytes", leases, allocations, bytes)
		}
	}
}

// TestPinKeepsWhatChanges counts what a pin holds: the rows that changed since and were there, each once.
func TestPinKeepsWhatChanges(t *testing.T) {
	const leases = 10_000
	table := NewTable()
	for id := range int64(leases) {
		table.Grant(id, 60, 1, 1)
	}
	p := table.Pin()
	expect := func(what string, rows int) {
		t.Helper()
		if len(p.changed) != rows {
			t.Errorf("%s: the pin holds %d rows, not %d", what, len(p.changed), rows)
		}
	}
	for id := range int64(leases) {
		table.Attach(id, []byte("key"))
	}
	expect("after keys came", 0)
	for id := range int64(leases) {
		table.Grant(leases+id, 60, 2, 2)
		table.Adopt(leases+id, 3, 3, time.Second)
	}
	expect("after grants", 0)
	for index := range uint64(5) {
		table.Adopt(17, 2+index%2, 3+index, time.Second)
	}
	table.Remove(18, Revoked)
	table.Grant(18, 5, 1, 9)
	table.Remove(18, Expired)
	expect("after an adopted lease and one that was granted anew", 2)
	table.Orphan(1, 7, time.Second)
	expect("after the end of the session", leases)
	visited, pages := 0, 0
	for _, info := range pinnedRows(p, func() { pages++ }) {
		if want := (Info{ID: int64(visited), TTLSeconds: 60, Owner: 1, OwnerIndex: 1}); info != want {
			t.Fatalf("%+v, not %+v", info, want)
		}
		visited++
	}
	if want := 2*leases/PinPageIDs + 1; visited != leases || pages != want {
		t.Errorf("%d leases in %d pages, not %d in %d", visited, pages, leases, want)
	}
	p.Release()
	p.Release()
	table.Remove(19, Revoked)
	expect("after the release", 0)
}

// TestPinsAreOfTheirMoments: what one pin keeps is not what an earlier one kept, nor the other way round.
func TestPinsAreOfTheirMoments(t *testing.T) {
	table := NewTable()
	table.Grant(1, 60, 1, 1)
	var pins []*Pin
	var want [][]Info
	for index := uint64(2); index < 6; index++ {
		pins, want = append(pins, table.Pin()), append(want, naivePin(table))
		table.Adopt(1, index, index, time.Second)
		table.Grant(int64(index), 60, 1, index)
	}
	table.Orphan(5, 1, time.Second)
	table.Remove(1, Expired)
	table.Remove(3, Expired)
	for _, release := range []int{1, 3, 0, 2} {
		for at, p := range pins {
			if got := pinnedRows(p, func() {}); p.changed != nil && !slices.Equal(got, want[at]) {
				t.Errorf("pin %d shows %+v, not %+v", at, got, want[at])
			}
		}
		pins[release].Release()
	}
}

// BenchmarkPin is what a checkpoint holds up apply for.
func BenchmarkPin(b *testing.B) {
	for _, leases := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(leases), func(b *testing.B) {
			table, _ := granted(leases)
			b.ReportAllocs()
			report, n := processor(b), 0
			for b.Loop() {
				table.Pin().Release()
				n++
			}
			report(n, "pin")
		})
	}
}

// BenchmarkPinPages reads all pages of a pin, of a table that stays and of one of which every row has changed since.
func BenchmarkPinPages(b *testing.B) {
	for _, leases := range []int{10_000, 100_000, 1_000_000} {
		for _, changed := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/changed=%v", leases, changed), func(b *testing.B) {
				table, _ := granted(leases)
				p := table.Pin()
				if changed {
					for session := range uint64(3) {
						table.Orphan(session+1, 1, time.Second)
					}
				}
				var rows []Info
				report, n := processor(b), 0
				for b.Loop() {
					for next, more := int64(math.MinInt64), true; more; {
						rows, next, more = p.Page(next, rows[:0])
					}
					n++
				}
				report(n*leases, "lease")
			})
		}
	}
}
