package logservice

import (
	"context"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

func TestParseLeaderPolicy(t *testing.T) {
	for _, text := range []string{"none", "traffic", "fixed=eu"} {
		if p, err := ParseLeaderPolicy(text); err != nil || p.String() != text {
			t.Errorf("%s became %v (%v)", text, p, err)
		}
	}
	for _, text := range []string{"fixed", "fixed=", "Traffic", "nearest"} {
		if p, err := ParseLeaderPolicy(text); err == nil {
			t.Errorf("%s became %v", text, p)
		}
	}
}

// triangle is a circle of us, eu and ap that goes by traffic, and knows how far they are apart.
type triangle struct {
	*circle
	changes int
	last    string
	// unknown are members that do not tell.
	unknown map[string]bool
}

func newTriangle(t *testing.T) *triangle {
	c := newCircle(t, func(m *MemberConfig) { m.LeaderPolicy = LeaderPolicy{Traffic: true} }, "us", "eu", "ap")
	c.lead("us")
	return &triangle{circle: c, last: "us", unknown: map[string]bool{}}
}

// second lets a second pass in which so many proposals come through each member.
func (c *triangle) second(us, eu, ap int) {
	distances := map[string]map[string]uint64{
		"us": {"eu": 80, "ap": 150}, "eu": {"us": 80, "ap": 100}, "ap": {"us": 150, "eu": 100}}
	for name, row := range distances {
		var told []*logv1.RoundTrip
		for other, ms := range row {
			told = append(told, &logv1.RoundTrip{MemberId: c.names[other], Microseconds: 1000 * ms})
		}
		if !c.unknown[name] {
			c.step(c.names[name], Measured{RoundTrips: told})
		}
	}
	c.write("us", us)
	c.write("eu", eu)
	c.write("ap", ap)
	c.tick(20)
	if leader := c.leader(); leader != "" && leader != c.last {
		c.last = leader
		c.changes++
	}
}

func (c *triangle) seconds(n, us, eu, ap int) {
	for range n {
		c.second(us, eu, ap)
	}
}

// Leadership moves to the region that writes, not before the rest, and stays.
func TestTrafficPolicyMoves(t *testing.T) {
	c := newTriangle(t)
	c.seconds(40, 0, 0, 3)
	if c.last != "us" {
		t.Errorf("moved to %s within the rest", c.last)
	}
	c.seconds(60, 0, 0, 3)
	if c.last != "ap" || c.changes != 1 {
		t.Errorf("leader %s after %d changes", c.last, c.changes)
	}
	c.seconds(80, 0, 0, 3)
	if c.changes != 1 {
		t.Errorf("%d changes", c.changes)
	}
	// The writers move on: after the window has turned, so does the leader.
	c.seconds(80, 5, 0, 0)
	if c.last != "us" || c.changes != 2 {
		t.Errorf("leader %s after %d changes", c.last, c.changes)
	}
	// Few proposals are no reason.
	c.seconds(90, 0, 0, 1)
	if c.changes != 2 {
		t.Errorf("%d changes for a proposal a second", c.changes)
	}
}

// The voter in the middle is nearest to writers on both sides.
func TestTrafficPolicyWeighs(t *testing.T) {
	c := newTriangle(t)
	// Mean round trips: us 75, eu 90, ap 75.
	c.seconds(100, 1, 0, 1)
	if c.changes != 0 {
		t.Errorf("moved to %s, where it is no nearer", c.last)
	}
	// us 97, eu 80, ap 57: ap is nearest by more than a quarter of what us has.
	c.seconds(80, 2, 1, 4)
	if c.last != "ap" {
		t.Errorf("leader %s", c.last)
	}
}

// Two regions that write in turns do not draw leadership to and fro: within the window both have written; where they take
// longer turns, leadership moves no more often than the rest allows.
func TestTrafficPolicyDoesNotFlap(t *testing.T) {
	turns := []int{3, 7, 10}
	if raceEnabled {
		turns = turns[2:]
	}
	for _, turn := range turns {
		c := newTriangle(t)
		for range 240 / (2 * turn) {
			c.seconds(turn, 3, 0, 0)
			c.seconds(turn, 0, 0, 3)
		}
		if c.changes != 0 {
			t.Errorf("turns of %d s: %d changes", turn, c.changes)
		}
	}
	c := newTriangle(t)
	for range 4 {
		c.seconds(40, 3, 0, 0)
		c.seconds(40, 0, 0, 3)
	}
	if c.changes > 320/60 {
		t.Errorf("turns of 40 s: %d changes in 320 s", c.changes)
	}
}

// Without the round trips of a candidate, or with the candidate down, leadership stays.
func TestTrafficPolicyNeedsToKnow(t *testing.T) {
	c := newTriangle(t)
	c.unknown["us"], c.unknown["ap"] = true, true
	c.seconds(90, 0, 0, 3) // us and ap are known only from eu
	if c.changes != 0 {
		t.Errorf("moved to %s without knowing how far it is", c.last)
	}
	c.unknown["us"] = false
	c.down[c.names["ap"]] = true
	c.seconds(20, 3, 0, 0)
	if c.changes != 0 {
		t.Errorf("moved to %s", c.last)
	}
	c.down[c.names["ap"]] = false
	c.seconds(80, 0, 0, 5)
	if c.last != "ap" {
		t.Errorf("leader %s, although ap is back", c.last)
	}
}

// With the round trips that members measure, in virtual time: leadership goes to the region that writes, and a write there
// takes the round trip to the nearest other one.
func TestTrafficPolicyInVirtualTime(t *testing.T) {
	config := func(_ string, c *Config) { c.LeaderPolicy = LeaderPolicy{Traffic: true} }
	bubble(t, config, func(t *testing.T, c *testCluster) {
		c.lead("us")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.writer(ctx, "ap", 100)
		took := c.until(3*time.Minute, "ap to lead", func() bool { return c.leader() == "ap" })
		t.Logf("ap, which writes, leads after %v", took)
		cancel()
		time.Sleep(5 * time.Second)
		// us and eu write in turns.
		changes, turns := 0, 20
		if raceEnabled {
			turns = 10
		}
		last := c.leader()
		for i := range turns {
			ctx, cancel := context.WithCancel(t.Context())
			c.writer(ctx, []string{"us", "eu"}[i%2], uint64(1000+i))
			for range 10 {
				time.Sleep(time.Second)
				if leader := c.leader(); leader != "" && leader != last {
					changes++
					last = leader
				}
			}
			cancel()
		}
		if changes > 1 || last == "ap" {
			t.Errorf("%d changes while us and eu wrote in turns; %s leads", changes, last)
		}
	})
}
