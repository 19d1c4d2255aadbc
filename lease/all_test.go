package lease

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
)

// BenchmarkAll is what a checkpoint holds up apply for: a copy of every lease, in the order of their ids.
func BenchmarkAll(b *testing.B) {
	for _, leases := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(leases), func(b *testing.B) {
			t := NewTable()
			r := rand.New(rand.NewPCG(1, 1))
			for i := range leases {
				t.Grant(r.Int64(), 60, 1, uint64(i+1))
			}
			processor := func() int64 {
				var u syscall.Rusage
				if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
					b.Fatal(err)
				}
				return u.Utime.Nano() + u.Stime.Nano()
			}
			before, n := processor(), 0
			for b.Loop() {
				if len(t.All()) != leases {
					b.Fatal("some are missing")
				}
				n++
			}
			b.ReportMetric(float64(processor()-before)/float64(n*leases), "cpu-ns/lease")
		})
	}
}
