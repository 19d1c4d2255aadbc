package lease

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// granted returns a table of leases with random ids, owned by the sessions 1 to 3, and the ids.
func granted(leases int) (*Table, []int64) {
	table, r := NewTable(), rand.New(rand.NewPCG(1, 1))
	ids := make([]int64, leases)
	for i := range ids {
		ids[i] = r.Int64()
		table.Grant(ids[i], 60, 1+uint64(i%3), uint64(i)+1)
	}
	return table, ids
}

// processor measures the processor time of the process from now on: on a machine that others use too it says more than
// the time that has passed.
func processor(b *testing.B) (report func(operations int, unit string)) {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func(operations int, unit string) {
		b.ReportMetric(float64(used()-before)/float64(operations), "cpu-ns/"+unit)
	}
}

// BenchmarkApply is what the commands about leases cost this table, with 100,000 leases in it.
func BenchmarkApply(b *testing.B) {
	const leases = 100_000
	for _, c := range []struct {
		name string
		do   func(t *Table, ids []int64, i int)
	}{
		{"grant+revoke", func(t *Table, ids []int64, i int) {
			place := i % leases
			t.Remove(ids[place], Revoked)
			ids[place] += 2
			t.Grant(ids[place], 60, 1, uint64(i)+1)
		}},
		{"attach+detach", func(t *Table, ids []int64, i int) {
			key := []byte("a key of sixteen")
			t.Attach(ids[i%leases], key)
			t.Detach(ids[i%leases], key)
		}},
		{"adopt", func(t *Table, ids []int64, i int) {
			t.Adopt(ids[i%leases], 1+uint64(i/leases%2+i%3)%3, uint64(i)+1, time.Second)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			table, ids := granted(leases)
			b.ReportAllocs()
			report := processor(b)
			n := 0
			for b.Loop() {
				c.do(table, ids, n)
				n++
			}
			report(n, "op")
		})
	}
}

// BenchmarkOrphan ends a session that owns 300,000 leases, which is the most that one entry does, with so many pins held.
func BenchmarkOrphan(b *testing.B) {
	const leases = 300_000
	for _, pins := range []int{0, 1} {
		b.Run(fmt.Sprintf("pins=%d", pins), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				table := NewTable()
				for id := range int64(leases) {
					table.Grant(id*7919%300_007, 60, 1, uint64(id))
				}
				for range pins {
					table.Pin()
				}
				report := processor(b)
				b.StartTimer()
				table.Orphan(1, 1, time.Second)
				report(leases, "lease")
			}
		})
	}
}

// BenchmarkExpire orphans 100,000 leases and ends them one after another, as their time comes.
func BenchmarkExpire(b *testing.B) {
	const leases = 100_000
	for b.Loop() {
		b.StopTimer()
		table, _ := granted(leases)
		report := processor(b)
		b.StartTimer()
		for session := range uint64(3) {
			table.Orphan(session+1, 1, time.Second)
		}
		for {
			id, _, ok := table.NextOrphan()
			if !ok {
				break
			}
			table.Remove(id, Expired)
		}
		report(leases, "lease")
	}
}

// BenchmarkAll copies every lease, in the order of their ids.
func BenchmarkAll(b *testing.B) {
	for _, leases := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(leases), func(b *testing.B) {
			table, _ := granted(leases)
			report := processor(b)
			n := 0
			for b.Loop() {
				if len(table.All()) != leases {
					b.Fatal("some are missing")
				}
				n++
			}
			report(n*leases, "lease")
		})
	}
}
