// Package heap sets how much garbage a process lets gather before it collects: as much as is alive, as Go does, but from
// HeadroomBytes on less. A mirror of a million keys keeps hundreds of megabytes alive in a few large objects without
// pointers, which cost the collector little, so collecting more often is cheap and doubling its memory is not.
//
// Pace is called once, at the start of a process. GOGC and GOMEMLIMIT in the environment win: with GOGC set, Pace does
// nothing.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// HeadroomBytes of garbage may gather, within the percentages of what is alive that follow. Letting as much gather in
	// small heaps too saved no CPU time that could be measured, and cost its memory in each process.
	HeadroomBytes = 64 << 20
	percentMin    = 12
	percentMax    = 100
	// A new percentage stops the world for a moment: one that differs by less than an eighth is not worth it.
	percentChange = 8
)

// Percent returns the value for GOGC where so much is alive.
func Percent(liveBytes uint64) int {
	if liveBytes == 0 {
		return percentMax
	}
	return int(min(max(uint64(HeadroomBytes)*100/liveBytes, percentMin), percentMax))
}

// Pace adjusts the percentage after every collection from now on, for the life of the process.
func Pace() {
	if os.Getenv("GOGC") != "" {
		return
	}
	p := &pacer{sample: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}}
	p.watch()
}

type pacer struct {
	sample  []metrics.Sample
	percent int
}

// watch leaves an object behind whose end is the next collection. Finalizers run one at a time, each after the collection
// that found the object, so nothing here runs at once with itself.
func (p *pacer) watch() {
	sentinel := &[64]byte{} // smaller ones share blocks with others and may outlive them
	runtime.SetFinalizer(sentinel, func(*[64]byte) {
		p.adjust()
		p.watch()
	})
}

func (p *pacer) adjust() {
	metrics.Read(p.sample)
	wanted := Percent(p.sample[0].Value.Uint64())
	if difference := wanted - p.percent; p.percent == 0 || max(difference, -difference) > p.percent/percentChange {
		p.percent = wanted
		debug.SetGCPercent(wanted)
	}
}
