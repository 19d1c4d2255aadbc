package logservice

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/internal/wan"
)

// within checks a duration to the millisecond.
func within(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want || got >= want+time.Millisecond {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

// With any number of voters, a put through member o takes, from the leader l and the distances d (half round trips):
// the time to l, and then the time until o has the entry, d(l, o), and has heard of it from a majority, the k-th
// smallest of d(l, v) + d(v, o) over all voters v, whichever is later.
func putTime(regions []string, leader, member string) time.Duration {
	half := func(a, b string) time.Duration {
		if d, ok := roundTrips[wan.Pair{A: a, B: b}]; ok {
			return d / 2
		}
		return roundTrips[wan.Pair{A: b, B: a}] / 2
	}
	var heard []time.Duration
	for _, v := range regions {
		heard = append(heard, half(leader, v)+half(v, member))
	}
	slices.Sort(heard)
	return half(member, leader) + max(half(leader, member), heard[len(regions)/2])
}

func TestPutLatencyOfFiveMembers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		for _, region := range c.regions {
			c.kill(region)
			c.disks[region] = disk.NewMemory(9)
		}
		c.regions = []string{"us", "eu", "ap", "sa", "af"}
		for i, region := range c.regions {
			c.disks[region] = disk.NewMemory(uint64(10 + i))
			c.start(region)
		}
		for round, leader := range []string{"us", "af"} {
			c.lead(leader)
			for i, region := range c.regions {
				ctx, cancel := context.WithCancel(t.Context())
				a := c.appender(ctx, region)
				seen := make(chan time.Time, 100)
				session := uint64(1000*(round+1) + i)
				go func() {
					_ = c.tail(ctx, region, 1, 0, func(e *logv1.Entry) bool {
						if h, ok := parseEnvelope(e.Envelope); ok && h.session == session {
							seen <- time.Now()
						}
						return true
					})
				}()
				time.Sleep(time.Second)
				began := time.Now()
				a.batch(session, 1, "put")
				within(t, fmt.Sprintf("leader in %s: put through %s", leader, region), (<-seen).Sub(began), putTime(c.regions, leader, region))
				cancel()
			}
		}
	})
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
