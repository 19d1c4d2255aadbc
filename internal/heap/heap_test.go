package heap

import (
	"runtime"
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
	t.Setenv("GOGC", "")
	Pace()
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
