package logservice

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// distances tells a member of a circle how far others are.
func (c *circle) distances(of string, milliseconds map[string]uint64) {
	var near []*logv1.RoundTrip
	for name, d := range milliseconds {
		near = append(near, &logv1.RoundTrip{MemberId: c.names[name], Microseconds: d * 1000})
	}
	c.step(c.names[of], Measured{RoundTrips: near, Near: near})
}

// questions returns the names of those whom a member's step asks for a round, and lets the frames get lost.
func (c *circle) questions(of string, events ...Event) (asked []string) {
	effects := c.member(of).Step(c.now, events...)
	if len(effects.Rounds) > 0 {
		c.t.Fatalf("%s has an answer before anybody was asked: %+v", of, effects.Rounds)
	}
	for _, f := range effects.Frames {
		for name, id := range c.names {
			if id == f.To && f.Frame.GetQuestion() != nil {
				asked = append(asked, name)
			}
		}
	}
	slices.Sort(asked)
	return asked
}

func (c *circle) expectAsked(what string, got []string, want ...string) {
	c.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Errorf("%s: %v are asked, want %v", what, got, want)
	}
}

func TestARoundAsksTheNearestMajority(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c", "d", "e")
	c.lead("a")
	all := map[string]uint64{"a": 80, "c": 10, "d": 200, "e": 30}
	c.expectAsked("nothing is known of distances", c.questions("b", AskRound{Token: 1}), "a", "c", "d", "e")
	c.distances("b", all)
	c.expectAsked("all are known", c.questions("b", AskRound{Token: 2}), "c", "e")
	c.distances("b", map[string]uint64{"d": 200, "c": 10})
	c.expectAsked("a majority is known", c.questions("b", AskRound{Token: 3}), "c", "d")
	c.distances("b", map[string]uint64{"c": 10})
	c.expectAsked("too few are known", c.questions("b", AskRound{Token: 4}), "a", "c", "d", "e")
	c.distances("b", all)
	c.step(c.names["b"], Unreachable{Member: c.names["c"]})
	c.expectAsked("the nearest is lost", c.questions("b", AskRound{Token: 5}), "a", "e")
}

// Who does not answer in time is not waited for, and not relied upon for a while.
func TestARoundAsksTheOthersInTime(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	c.distances("b", map[string]uint64{"a": 60, "c": 120})
	c.expectAsked("at first", c.questions("b", AskRound{Token: 1}), "a")
	// One and a half round trips, rounded up to ticks, and two ticks.
	for range 3 {
		c.expectAsked("before its time", c.questions("b", Tick{}))
	}
	c.expectAsked("at its time", c.questions("b", Tick{}), "c")
	c.expectAsked("while a is not relied upon", c.questions("b", AskRound{Token: 2}), "a", "c")
	for range c.member("b").config.RoundAskAllTicks {
		c.member("b").Step(c.now, Tick{})
	}
	c.expectAsked("then", c.questions("b", AskRound{Token: 3}), "a")
	// What is lost is known at once.
	c.member("b").Step(c.now, Unreachable{Member: c.names["a"]})
	c.expectAsked("when a is lost", c.questions("b", Tick{}), "c")
}

// What the nearest holds and nobody will ever publish, since it is the end of a deposed leader's log, keeps readers only until the
// others are asked.
func TestARoundDoesNotWaitForWhatADeposedLeaderHolds(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	c.write("a", 3)
	published := c.member("b").State().Published
	c.lose = func(from, to uint64, _ *logv1.PeerFrame) bool { return from == c.names["a"] || to == c.names["a"] }
	c.step(c.names["a"], Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 7, Seq: 1, Payload: []byte("x")}})
	if held := c.member("a").State().Last; held <= published {
		t.Fatalf("a holds %d, %d is published", held, published)
	}
	c.lose = func(_, _ uint64, f *logv1.PeerFrame) bool { return f.GetQuestion() == nil && f.GetAnswer() == nil }
	c.distances("b", map[string]uint64{"a": 1, "c": 100})
	var rounds []RoundResult
	step := func(events ...Event) {
		effects := c.member("b").Step(c.now, events...)
		rounds = append(rounds, effects.Rounds...)
		for _, f := range effects.Frames {
			if q := f.Frame.GetQuestion(); q != nil {
				answer := &logv1.PeerFrame{Frame: &logv1.PeerFrame_Answer{Answer: c.members[f.To].answerTo(q.Id)}}
				answered := c.member("b").Step(c.now, Received{From: f.To, Frame: answer})
				rounds = append(rounds, answered.Rounds...)
			}
		}
	}
	step(AskRound{Token: 9})
	if len(rounds) > 0 {
		t.Fatalf("answered %+v, with what a holds", rounds)
	}
	for ticks := 0; len(rounds) == 0 && ticks < 4; ticks++ {
		step(Tick{})
	}
	if len(rounds) != 1 || rounds[0].Failure != "" || rounds[0].Index != published {
		t.Errorf("answered %+v, %d is published", rounds, published)
	}
}

// Members know how far the others are, and who has not been heard of lately.
func TestDistancesAreMeasured(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		distances := func() (known map[uint64]time.Duration) {
			c.servers["eu"].query(t.Context(), func(m *Member) { known = maps.Clone(m.rounds.distances) })
			return known
		}
		id := func(region string) uint64 { return c.servers[region].id }
		time.Sleep(5 * time.Second) // virtual
		if got, want := distances(), (map[uint64]time.Duration{id("us"): 80 * time.Millisecond, id("ap"): 100 * time.Millisecond}); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		c.net.Isolate("us")
		time.Sleep(heardLately + 2*time.Second) // virtual
		if got, want := distances(), (map[uint64]time.Duration{id("ap"): 100 * time.Millisecond}); !maps.Equal(got, want) {
			t.Errorf("with us cut off: %v, want %v", got, want)
		}
	})
}
