package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		liveMegabytes uint64
		want          int
	}{{0, 100}, {1, 100}, {32, 100}, {64, 100}, {128, 50}, {256, 25}, {512, 12}, {4096, 12}} {
		if got := Percent(c.liveMegabytes << 20); got != c.want {
			t.Errorf("%d MB alive: %d %%, want %d", c.liveMegabytes, got, c.want)
		}
	}
}

// A large object makes the next collections come sooner, and its end makes them come later again.
func TestPaceFollowsWhatIsAlive(t *testing.T) {
	newPacer().watch()
	percent := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	expect := func(want uint64) {
		t.Helper()
		for range 200 {
			runtime.GC()
			metrics.Read(percent)
			if percent[0].Value.Uint64() == want {
				return
			}
			time.Sleep(time.Millisecond) // the finalizer runs beside us
		}
		t.Errorf("collecting at %d %%, want %d", percent[0].Value.Uint64(), want)
	}
	expect(percentMax)
	large := make([]byte, 512<<20)
	expect(percentMin)
	runtime.KeepAlive(large)
	expect(percentMax)
}

// A process gives back what it no longer needs once it is at rest, and not while it works.
func TestWhatIsGivenBack(t *testing.T) {
	const mega = 1 << 20
	for _, c := range []struct {
		what string
		now  usage
		want bool
	}{
		{"garbage", usage{live: 10 * mega, objects: 11 * mega}, true},
		{"free", usage{live: 10 * mega, objects: 10 * mega, free: mega}, true},
		{"both", usage{live: 10 * mega, objects: 10*mega + mega/2, free: mega / 2}, true},
		{"too little", usage{live: 10 * mega, objects: 10*mega + mega/2, free: mega/2 - 1}, false},
		{"too little of what is alive", usage{live: 400 * mega, objects: 403 * mega}, false},
		{"enough of what is alive", usage{live: 400 * mega, objects: 404 * mega}, true},
		{"freed since the collection", usage{live: 400 * mega, objects: 10 * mega}, false},
	} {
		var d restDetector
		for n := 1; n <= restIntervals+1; n++ {
			c.now.allocated += restBytes
			if got, want := d.interval(c.now), c.want && n >= restIntervals; got != want {
				t.Errorf("%s, interval %d: %v", c.what, n, got)
			}
		}
	}
}

// Rest is a time without work, and not many times together: work begins it anew.
func TestPausesAreNoRest(t *testing.T) {
	now := usage{free: 100 << 20}
	var d restDetector
	for n := range 10 * restIntervals {
		now.allocated += restBytes
		if n%restIntervals == 0 {
			now.allocated++
		}
		if d.interval(now) {
			t.Fatalf("given back after interval %d, with work in every %dth", n, restIntervals)
		}
	}
	now.allocated += restBytes
	if n := 10 * restIntervals; !d.interval(now) {
		t.Errorf("not given back after interval %d, the %dth without work", n, restIntervals)
	}
}

// What is read at rest is what the runtime counts: garbage is seen until it is given back.
func TestMemoryIsGivenBack(t *testing.T) {
	read := usageReader()
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := read()
	// rested tells what a process does at the end of a rest.
	rested := func(now usage) bool {
		return (&restDetector{before: now, quiet: restIntervals}).interval(now)
	}
	if rested(before) {
		t.Errorf("memory to be given back after all was: %+v", before)
	}
	garbage = make([]byte, 16*leastReturnedBytes)
	if d, held := (restDetector{before: before, quiet: restIntervals}), read(); d.interval(held) || d.quiet != 0 {
		t.Errorf("%d bytes were allocated a moment ago: %+v", len(garbage), held)
	}
	garbage = nil
	left := read()
	if !rested(left) {
		t.Errorf("after garbage of %d bytes: %+v, before it %+v", 16*leastReturnedBytes, left, before)
	}
	debug.FreeOSMemory()
	if after := read(); rested(after) {
		t.Errorf("still to be given back: %+v", after)
	}
}

var garbage []byte
