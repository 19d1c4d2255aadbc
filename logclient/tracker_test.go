package logclient

import (
	"errors"
	"slices"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// trackerRun drives a tracker without chance and with a clock of its own.
type trackerRun struct {
	*tracker
	t   *testing.T
	now time.Time
}

func runTracker(t *testing.T, configured ...string) *trackerRun {
	r := &trackerRun{t: t, now: time.Unix(0, 0)}
	r.tracker = newTracker(trackerConfig{
		probeInterval: 2 * time.Second, stallTimeout: 3 * time.Second, preferAfter: 5 * time.Second,
		retryMin: 100 * time.Millisecond, retryMax: 5 * time.Second, jitter: func(d time.Duration) time.Duration { return d },
	}, configured, nil, r.now)
	return r
}

func (r *trackerRun) after(d time.Duration) { r.now = r.now.Add(d) }

func (r *trackerRun) answer(address string, roundTrip time.Duration, published uint64) {
	r.answered(address, roundTrip, published, 1, r.now)
}

func (r *trackerRun) wantCurrent(want string) {
	r.t.Helper()
	m, wait := r.usable(r.now)
	got := ""
	if m != nil {
		got = m.address
	}
	if got != want {
		r.t.Fatalf("in use: %q (wait %v), want %q", got, wait, want)
	}
}

func members(index uint64, addresses ...string) *logv1.Membership {
	m := &logv1.Membership{Index: index}
	for i, a := range addresses {
		m.Members = append(m.Members, &logv1.Member{Id: uint64(i + 1), Address: a, Role: logv1.Member_ROLE_VOTER})
	}
	return m
}

const ms = time.Millisecond

// The first that answers is used; a nearer one only after it has been well for a while, and only if it is much nearer.
func TestPrefersTheNearest(t *testing.T) {
	r := runTracker(t, "a", "b", "c")
	r.wantCurrent("")
	r.answer("b", 80*ms, 10)
	r.wantCurrent("b")
	r.answer("a", 10*ms, 10)
	r.answer("c", 70*ms, 10)
	r.wantCurrent("b")
	r.after(4 * time.Second)
	r.answer("a", 10*ms, 10)
	r.wantCurrent("b")
	r.after(time.Second)
	r.answer("a", 10*ms, 10)
	r.wantCurrent("a")
	r.failed("a", r.now)
	r.wantCurrent("c")
	r.after(20 * time.Second)
	r.answer("b", 60*ms, 10) // a few milliseconds are not worth a change
	r.wantCurrent("a")
}

// A member that fails is left at once and avoided for longer each time, until a stream lives.
func TestAvoidsWhatFails(t *testing.T) {
	r := runTracker(t, "a")
	r.answer("a", ms, 1)
	for i, pause := range []time.Duration{100 * ms, 200 * ms, 400 * ms} {
		r.failed("a", r.now)
		if _, wait := r.usable(r.now); wait != pause {
			t.Fatalf("failure %d: pause %v, want %v", i+1, wait, pause)
		}
		r.after(pause)
		r.wantCurrent("a")
	}
	r.lived("a")
	r.failed("a", r.now)
	if _, wait := r.usable(r.now); wait != 100*ms {
		t.Fatalf("after a stream that lived: pause %v", wait)
	}
	for range 20 {
		r.failed("a", r.now)
	}
	if _, wait := r.usable(r.now); wait != 5*time.Second {
		t.Fatalf("pause %v, at most 5 s", wait)
	}
}

// A member that delivers nothing of what others publish is left; one that catches up is not.
func TestLeavesWhatLags(t *testing.T) {
	r := runTracker(t, "a", "b")
	r.answer("a", ms, 5)
	r.answer("b", 50*ms, 9)
	r.advanced(5, r.now)
	for range 3 {
		r.after(2 * time.Second)
		r.advanced(r.position+1, r.now)
		r.answer("b", 50*ms, 20)
		r.wantCurrent("a")
	}
	r.after(2 * time.Second)
	r.answer("b", 50*ms, 20)
	r.wantCurrent("a")
	r.after(2 * time.Second)
	r.answer("b", 50*ms, 20)
	r.wantCurrent("b")
}

// A member without a leader is left while another one has one.
func TestLeavesWhatHasNoLeader(t *testing.T) {
	r := runTracker(t, "a", "b")
	r.answer("a", ms, 5)
	r.advanced(5, r.now)
	for range 3 {
		r.answered("a", ms, 5, 0, r.now)
		r.answered("b", 50*ms, 5, 0, r.now)
		r.after(2 * time.Second)
	}
	r.wantCurrent("a")
	for range 2 {
		r.answered("a", ms, 5, 0, r.now)
		r.answered("b", 50*ms, 5, 2, r.now)
		r.after(2 * time.Second)
	}
	r.answered("b", 50*ms, 5, 2, r.now)
	r.wantCurrent("b")
}

// Members come and go with the membership; a configured address stays as a last resort, asked only when no listed one
// answers.
func TestLearnsMembers(t *testing.T) {
	r := runTracker(t, "seed")
	if due, _ := r.probes(r.now); len(due) != 1 || due[0] != "seed" {
		t.Fatalf("asks %v", due)
	}
	r.answer("seed", 30*ms, 1)
	if !r.learn(members(5, "a", "b"), r.now) || r.learn(members(5, "a", "b"), r.now) || r.learn(members(4, "x"), r.now) {
		t.Fatal("learn")
	}
	due, _ := r.probes(r.now)
	if len(due) != 2 {
		t.Fatalf("asks %v", due)
	}
	r.answer("a", 10*ms, 1)
	r.unanswered("b", r.now)
	r.after(time.Minute)
	if due, _ := r.probes(r.now); len(due) != 2 || due[0] != "a" || due[1] != "b" {
		t.Fatalf("asks %v, wants the listed ones", due)
	}
	r.unanswered("a", r.now)
	r.unanswered("b", r.now)
	r.after(time.Minute)
	if due, _ := r.probes(r.now); len(due) != 3 {
		t.Fatalf("asks %v, wants all", due)
	}
	r.answer("a", 10*ms, 1)
	r.failed("seed", r.now)
	r.wantCurrent("a")
	if !r.learn(members(9, "c"), r.now) || r.find("a") != nil || r.find("seed") == nil {
		t.Fatal("a removed member is still known, or the configured one is not")
	}
}

// Members that the operator named and that were removed since are not gone back to while one of the log answers, however near
// they were: nobody probes them, so that they would seem well for ever.
func TestLeavesRemovedMembersForGood(t *testing.T) {
	r := runTracker(t, "a", "b")
	r.answer("a", 10*ms, 10)
	r.answer("b", 20*ms, 10)
	r.learn(members(5, "c"), r.now)
	r.answer("c", 80*ms, 10)
	r.failed("a", r.now)
	r.wantCurrent("c")
	r.after(time.Minute)
	r.answer("c", 80*ms, 10)
	r.wantCurrent("c")
	r.unanswered("c", r.now)
	r.failed("c", r.now)
	if due, _ := r.probes(r.now); !slices.Equal(due, []string{"a", "b", "c"}) {
		t.Errorf("with no member of the log left, %q are asked", due)
	}
}

// One address of another log is left alone; when all that were configured are, that is final.
func TestRefusesAnotherLog(t *testing.T) {
	r := runTracker(t, "a", "b")
	r.answer("a", ms, 1)
	r.answer("b", 9*ms, 1)
	if err := r.refuse("a", ErrOtherLog, r.now); err != nil {
		t.Fatalf("final after one of two: %v", err)
	}
	r.wantCurrent("b")
	r.learn(members(1, "b", "c"), r.now)
	if err := r.refuse("b", ErrOtherLog, r.now); !errors.Is(err, ErrOtherLog) {
		t.Fatalf("not final after all configured ones: %v", err)
	}
}

func TestCursor(t *testing.T) {
	for _, test := range []struct {
		name        string
		index, term uint64
		ok          bool
	}{
		{"next", 8, 3, true},
		{"next of a later term", 8, 5, true},
		{"gap", 9, 3, false},
		{"repeated", 7, 3, false},
		{"term goes back", 8, 2, false},
	} {
		c := cursor{next: 8, previousTerm: 3}
		err := c.accept(test.index, test.term)
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
		var discontinuity *DiscontinuityError
		if err != nil && (!errors.As(err, &discontinuity) || c.next != 8 || c.previousTerm != 3) {
			t.Errorf("%s: %v, cursor %+v", test.name, err, c)
		}
		if err == nil && (c.next != 9 || c.previousTerm != test.term) {
			t.Errorf("%s: cursor %+v", test.name, c)
		}
	}
}
