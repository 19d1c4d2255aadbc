package keyspace

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"syscall"
	"testing"
)

// The figures that decide the layout: 1,000,000 keys with values of 256 bytes.
//
//	go test -run '^$' -bench . ./statemachine/keyspace
var benchKeysFlag = flag.Int("bench-keys", 1_000_000, "how many keys BenchmarkMemory holds")

const (
	benchKeys       = 1_000_000
	benchValueBytes = 256
)

func benchName(buffer []byte, i int) []byte {
	return fmt.Appendf(buffer[:0], "/registry/pods/namespace-%03d/pod-%09d", i%100, i)
}

// filled is one Space for the benchmarks that share it, filled in random order.
func filled(b *testing.B, keys int) (*Space, []int) {
	b.Helper()
	order := rand.New(rand.NewPCG(1, 1)).Perm(keys)
	s := New(Options{})
	value := make([]byte, benchValueBytes)
	var buffer []byte
	for n, i := range order {
		buffer = benchName(buffer, i)
		s.Put(buffer, value, 0, int64(n+1), 0)
	}
	s.Publish(uint64(keys), int64(keys))
	return s, order
}

// measureCPU reports the process's CPU time per operation, garbage collection included: machines are shared,
// and wall time tells of their load. It stands where the timer is reset; what it returns, at the end.
func measureCPU(b *testing.B) (report func()) {
	spent := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	runtime.GC()
	b.ResetTimer()
	b.ReportAllocs()
	before := spent()
	return func() { b.ReportMetric(float64(spent()-before)/float64(b.N), "cpu-ns/op") }
}

// gcCPU returns the CPU nanoseconds of one forced collection, the least of five.
func gcCPU() float64 {
	sample := []metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}}
	least := 0.0
	for n := range 6 {
		metrics.Read(sample)
		before := sample[0].Value.Float64()
		runtime.GC()
		metrics.Read(sample)
		if spent := (sample[0].Value.Float64() - before) * 1e9; n > 0 && (least == 0 || spent < least) {
			least = spent
		}
	}
	return least
}

func heapBytes() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func BenchmarkMemory(b *testing.B) {
	keys := *benchKeysFlag
	b.Run("keyspace", func(b *testing.B) {
		for b.Loop() {
			before := heapBytes()
			s, _ := filled(b, keys)
			reportMemory(b, before, keys)
			runtime.KeepAlive(s)
		}
	})
	b.Run("keyspace-compacted", func(b *testing.B) {
		for b.Loop() {
			before := heapBytes()
			s, _ := filled(b, keys)
			s.Compact(int64(keys))
			drain(b, s)
			reportMemory(b, before, keys)
			runtime.KeepAlive(s)
		}
	})
	b.Run("map-of-structs", func(b *testing.B) {
		type entry struct {
			key, value                                  []byte
			createRevision, modRevision, version, lease int64
		}
		for b.Loop() {
			before := heapBytes()
			m := map[string]*entry{}
			for i := range keys {
				k := benchName(nil, i)
				m[string(k)] = &entry{key: k, value: make([]byte, benchValueBytes),
					createRevision: int64(i), modRevision: int64(i), version: 1, lease: 0}
			}
			reportMemory(b, before, keys)
			runtime.KeepAlive(m)
		}
	})
}

func reportMemory(b *testing.B, before float64, keys int) {
	b.ReportMetric((heapBytes()-before)/float64(keys), "heap-B/key")
	b.ReportMetric((heapBytes()-before)/1e6, "heap-MB")
	b.ReportMetric(gcCPU()/1e6, "GC-cpu-ms")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkPut(b *testing.B) {
	value := make([]byte, benchValueBytes)
	b.Run("new-random", func(b *testing.B) {
		order := rand.New(rand.NewPCG(1, 1)).Perm(benchKeys)
		names := make([][]byte, benchKeys)
		for i := range names {
			names[i] = benchName(nil, order[i])
		}
		defer measureCPU(b)()
		s, main := New(Options{}), int64(0)
		for n := range b.N {
			if n%benchKeys == 0 {
				s, main = New(Options{}), 0
			}
			main++
			s.Put(names[n%benchKeys], value, 0, main, 0)
		}
	})
	b.Run("new-ascending", func(b *testing.B) {
		defer measureCPU(b)()
		var buffer []byte
		s, main := New(Options{}), int64(0)
		for n := range b.N {
			if n%benchKeys == 0 {
				s, main = New(Options{}), 0
			}
			main++
			buffer = fmt.Appendf(buffer[:0], "/registry/events/%012d", n)
			s.Put(buffer, value, 0, main, 0)
		}
	})
	b.Run("overwrite", func(b *testing.B) { overwrite(b, false) })
	b.Run("overwrite-expected", func(b *testing.B) { overwrite(b, true) })
	// A steady state: overwritten at random, published and compacted as it goes.
	b.Run("overwrite-compacting", func(b *testing.B) {
		s, _ := filled(b, benchKeys)
		main := int64(benchKeys)
		random := rand.New(rand.NewPCG(3, 3))
		var buffer []byte
		defer measureCPU(b)()
		for n := range b.N {
			main++
			buffer = benchName(buffer, random.IntN(benchKeys))
			s.Put(buffer, value, 0, main, 0)
			if n%16 == 15 {
				s.Publish(uint64(main), main)
				if main%100_000 < 16 {
					s.Compact(main - 50_000)
				}
				s.CompactSome(128)
			}
		}
		b.ReportMetric(float64(s.Stats().SlabBytes)/1e6, "slab-MB")
	})
}

// overwrite puts over random keys, 16 of them a batch.
func overwrite(b *testing.B, expect bool) {
	s, _ := filled(b, benchKeys)
	value := make([]byte, benchValueBytes)
	main, random := int64(benchKeys), rand.New(rand.NewPCG(3, 3))
	names := make([][]byte, 16)
	defer measureCPU(b)()
	for n := 0; n < b.N; n += len(names) {
		for i := range names {
			names[i] = benchName(names[i], random.IntN(benchKeys))
		}
		if expect {
			s.Expect(names)
		}
		for _, name := range names {
			main++
			s.Put(name, value, 0, main, 0)
		}
		s.Publish(uint64(main), main)
		s.Compact(main - 1)
		s.CompactSome(128)
	}
}

func BenchmarkRead(b *testing.B) {
	s, _ := filled(b, benchKeys)
	sn := s.Acquire()
	defer sn.Release()
	random := rand.New(rand.NewPCG(5, 5))
	names := make([][]byte, 1<<16)
	for i := range names {
		names[i] = benchName(nil, random.IntN(benchKeys))
	}
	b.Run("get", func(b *testing.B) {
		defer measureCPU(b)()
		for n := range b.N {
			if _, found, _ := sn.Get(names[n&(1<<16-1)], 0); !found {
				b.Fatal("not found")
			}
		}
	})
	b.Run("acquire-get-release", func(b *testing.B) {
		defer measureCPU(b)()
		b.RunParallel(func(pb *testing.PB) {
			for n := 0; pb.Next(); n++ {
				sn := s.Acquire()
				_, _, _ = sn.Get(names[n&(1<<16-1)], 0)
				sn.Release()
			}
		})
	})
	b.Run("range-1000", func(b *testing.B) {
		defer measureCPU(b)()
		for n := range b.N {
			left := 1000
			_ = sn.Range(names[n&(1<<16-1)], nil, 0, func(Version) bool { left--; return left > 0 })
		}
	})
	// What answers a range: the encodings are copied one after another. Keys next to each other lie far from each other.
	b.Run("range-1000-copied", func(b *testing.B) {
		buffer := make([]byte, 0, 64<<10)
		defer measureCPU(b)()
		for n := range b.N {
			left := 1000
			_ = sn.RangeEncoded(names[n&(1<<16-1)], nil, 0, func(_, encoded []byte) bool {
				if len(buffer)+len(encoded) > cap(buffer) {
					buffer = buffer[:0]
				}
				buffer = append(buffer, encoded...)
				left--
				return left > 0
			}, 0, nil)
		}
	})
	// The same ranges of a twentieth of the keys again and again, from what is packed.
	b.Run("range-1000-packed", func(b *testing.B) {
		buffer := make([]byte, 0, 64<<10)
		defer measureCPU(b)()
		var start, end []byte
		for n := range b.N {
			start, end = benchName(start, n%50), benchName(end, n%50+1000*100)
			_ = sn.RangeEncoded(start, end, 0, func(_, encoded []byte) bool {
				if len(buffer)+len(encoded) > cap(buffer) {
					buffer = buffer[:0]
				}
				buffer = append(buffer, encoded...)
				return true
			}, 0x12, func(elements []byte, _ int) bool {
				if len(buffer)+len(elements) > cap(buffer) {
					buffer = buffer[:0]
				}
				buffer = append(buffer, elements...)
				return true
			})
		}
	})
	b.Run("count-1000000", func(b *testing.B) {
		defer measureCPU(b)()
		for range b.N {
			_, _ = sn.Count(nil, nil, 0)
		}
	})
	b.Run("history-1000", func(b *testing.B) {
		defer measureCPU(b)()
		for n := range b.N {
			left := 1000
			_ = sn.History(int64(1+n*7919%(benchKeys-1000)), 0, func(Version) bool { left--; return left > 0 })
		}
	})
}
