package wan

import (
	"testing"
	"time"
)

// A segment may become due between the reader's look at the queue and its arming of the timer. The reader must look
// again then: no timer, writer or heal would ever wake it.
func TestReaderLooksAgainAtWhatArrivedMeanwhile(t *testing.T) {
	l := &link{flows: make(map[*flow]struct{})}
	f := newFlow(l, 10)
	l.mu.Lock()
	defer l.mu.Unlock()
	f.segments = []segment{{data: []byte("x"), due: time.Now().Add(-time.Nanosecond)}}
	if f.scheduleWake() {
		t.Error("the reader would wait for a segment that has arrived")
	}
	f.segments[0].due = time.Now().Add(time.Hour)
	if !f.scheduleWake() || f.wake == nil {
		t.Error("the reader would not wait for a segment that is to come")
	}
	f.wake.Stop()
	f.segments[0].due, f.segments[0].lost, l.cut = time.Now().Add(-time.Hour), true, true
	if !f.scheduleWake() {
		t.Error("the reader would spin on a segment that a cut link holds")
	}
}
