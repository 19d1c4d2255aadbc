// Package heap sets how much garbage a process lets gather before it collects: as much as is alive, as Go does, but from
// HeadroomBytes on less. A mirror of a million keys keeps hundreds of megabytes alive in a few large objects without
// pointers, which cost the collector little, so collecting more often is cheap and doubling its memory is not.
//
// What has gathered stays until the next collection, which a process that comes to rest does not reach. So one that hardly
// allocates any more is collected once, and what is free is given back to the system.
//
// Pace is called once, at the start of a process. GOGC and GOMEMLIMIT in the environment win: with GOGC set, Pace does
// nothing.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
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

// Pace adjusts the percentage after every collection and gives memory back at rest from now on, for the life of the process.
func Pace() {
	if os.Getenv("GOGC") != "" {
		return
	}
	newPacer().watch()
	go rest()
}

type pacer struct {
	sample  []metrics.Sample
	percent int
}

func newPacer() *pacer { return &pacer{sample: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}} }

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

const (
	// A process is at rest once it has allocated no more than restBytes in each of the last restIntervals, of restInterval each. A
	// pause between two bursts of work is no rest: what is given back has to be had from the system again, page by page.
	restInterval  = 2 * time.Second
	restIntervals = 5
	restBytes     = 2 << 20
	// Less is not worth a collection: neither less than leastReturnedBytes, nor than this share of what is alive, which the
	// collection has to look at.
	leastReturnedBytes = 1 << 20
	leastReturnedShare = 128
)

// usage is what decides whether memory is given back, in bytes.
type usage struct {
	allocated uint64 // since the start of the process
	live      uint64 // by the last collection
	objects   uint64 // live and garbage
	free      uint64 // neither, and not given back
}

// restDetector sees a process come to rest. It is passive.
type restDetector struct {
	before usage
	// quiet counts the intervals since it allocated more than restBytes in one.
	quiet int
}

// interval takes the usage at the end of an interval, and tells whether to collect now and give back what is free.
func (d *restDetector) interval(now usage) bool {
	if now.allocated-d.before.allocated > restBytes {
		d.quiet = 0
	} else {
		d.quiet = min(d.quiet+1, restIntervals)
	}
	d.before = now
	garbage := now.objects - min(now.live, now.objects)
	return d.quiet == restIntervals && garbage+now.free >= max(leastReturnedBytes, now.live/leastReturnedShare)
}

func rest() {
	read := usageReader()
	d := restDetector{before: read()}
	for range time.Tick(restInterval) {
		if d.interval(read()) {
			debug.FreeOSMemory()
		}
	}
}

func usageReader() func() usage {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	return func() usage {
		metrics.Read(samples)
		value := func(i int) uint64 { return samples[i].Value.Uint64() }
		return usage{allocated: value(0), live: value(1), objects: value(2), free: value(3)}
	}
}
