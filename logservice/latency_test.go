package logservice

import (
	"fmt"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// within checks a duration to the millisecond.
func within(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want || got >= want+time.Millisecond {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

// A put's time, from the append at a region's member to its appearance in that member's tail, is what each publication
// says: one round trip to the leader by quorum, and the leader's own round trip to a quorum on top of it by leader.
func TestPutLatency(t *testing.T) {
	for _, test := range []struct {
		publication Publication
		want        map[string]time.Duration
	}{
		{PublicationLeader, map[string]time.Duration{"us": 80 * time.Millisecond, "eu": 160 * time.Millisecond, "ap": 230 * time.Millisecond}},
		{PublicationQuorum, map[string]time.Duration{"us": 80 * time.Millisecond, "eu": 80 * time.Millisecond, "ap": 150 * time.Millisecond}},
	} {
		t.Run(test.publication.String(), func(t *testing.T) {
			config := func(_ string, c *Config) { c.Publication = test.publication }
			bubble(t, config, func(t *testing.T, c *testCluster) {
				c.lead("us")
				for i, region := range c.regions {
					a := c.appender(t.Context(), region)
					seen := make(chan time.Time, 100)
					go func() {
						_ = c.tail(t.Context(), region, 1, 0, func(e *logv1.Entry) bool {
							if h, ok := parseEnvelope(e.Envelope); ok && h.session == uint64(100+i) {
								seen <- time.Now()
							}
							return true
						})
					}()
					time.Sleep(time.Second)
					for seq := range 5 {
						began := time.Now()
						a.batch(uint64(100+i), uint64(seq+1), "put")
						within(t, fmt.Sprintf("put %d through %s", seq, region), (<-seen).Sub(began), test.want[region])
						time.Sleep(123 * time.Millisecond)
					}
					if got := a.rejections(); len(got) > 0 {
						t.Errorf("rejected: %v", got)
					}
				}
			})
		})
	}
}
