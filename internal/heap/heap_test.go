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
func TestRestful(t *testing.T) {
	const mega = 1 << 20
	before := usage{allocated: 1000 * mega}
	for _, c := range []struct {
		what string
		now  usage
		want bool
	}{
		{"garbage", usage{allocated: 1000 * mega, live: 10 * mega, objects: 11 * mega}, true},
		{"free", usage{allocated: 1002 * mega, live: 10 * mega, objects: 10 * mega, free: mega}, true},
		{"both", usage{allocated: 1002 * mega, live: 10 * mega, objects: 10*mega + mega/2, free: mega / 2}, true},
		{"too little", usage{allocated: 1000 * mega, live: 10 * mega, objects: 10*mega + mega/2, free: mega/2 - 1}, false},
		{"too little of what is alive", usage{allocated: 1000 * mega, live: 400 * mega, objects: 406 * mega}, false},
		{"enough of what is alive", usage{allocated: 1000 * mega, live: 400 * mega, objects: 407 * mega}, true},
		{"freed since the collection", usage{allocated: 1000 * mega, live: 400 * mega, objects: 10 * mega}, false},
		{"at work", usage{allocated: 1003 * mega, live: 10 * mega, objects: 60 * mega, free: 60 * mega}, false},
	} {
		if got := restful(before, c.now); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// What is read at rest is what the runtime counts: garbage is seen until it is given back.
func TestMemoryIsGivenBack(t *testing.T) {
	read := usageReader()
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := read()
	if restful(before, before) {
		t.Errorf("memory to be given back after all was: %+v", before)
	}
	garbage = make([]byte, 16*leastReturnedBytes)
	if held := read(); restful(before, held) {
		t.Errorf("%d bytes were allocated a moment ago: %+v", len(garbage), held)
	}
	garbage = nil
	left := read()
	if restful(before, left) || !restful(left, left) {
		t.Errorf("after garbage of %d bytes: %+v, before it %+v", 16*leastReturnedBytes, left, before)
	}
	debug.FreeOSMemory()
	if after := read(); restful(after, after) {
		t.Errorf("still to be given back: %+v", after)
	}
}

var garbage []byte
