package serving

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// tellingMirror notes what it is asked to wait for.
type tellingMirror struct {
	Mirror // the methods that are not called here
	ready  chan struct{}
	asked  []string
	late   error
	age    time.Duration
	known  bool
}

func (m *tellingMirror) Ready() <-chan struct{} { return m.ready }
func (m *tellingMirror) Identity() mirror.Identity {
	return mirror.Identity{ClusterID: 1, Epoch: 2}
}
func (m *tellingMirror) Machine() *statemachine.Machine {
	return statemachine.New(statemachine.Options{})
}
func (m *tellingMirror) Age() (time.Duration, bool) { return m.age, m.known }
func (m *tellingMirror) Linearize(context.Context) (uint64, error) {
	m.asked = append(m.asked, "round")
	return 1, m.late
}
func (m *tellingMirror) WaitApplied(_ context.Context, index uint64) error {
	m.asked = append(m.asked, fmt.Sprint("index ", index))
	return m.late
}
func (m *tellingMirror) WaitRevision(_ context.Context, revision int64) error {
	m.asked = append(m.asked, fmt.Sprint("revision ", revision))
	return m.late
}

// A read waits for what it names, and for nothing else.
func TestReadWaitsForWhatItNames(t *testing.T) {
	ready := make(chan struct{})
	region := func(m *tellingMirror) *Region {
		m.ready = ready
		return New(m, statemachine.Limits{})
	}
	if _, err := region(&tellingMirror{}).Read(t.Context(), Consistency{}); !errors.Is(err, ErrNotReady) {
		t.Errorf("before it is ready: %v", err)
	}
	close(ready)
	for _, test := range []struct {
		name   string
		mirror tellingMirror
		c      Consistency
		asked  []string
		fails  func(error) bool
	}{
		{name: "serializable", c: Consistency{}},
		{name: "linearizable", c: Consistency{Linearizable: true}, asked: []string{"round"}},
		{name: "token", c: Consistency{AtLeast: Token{1, 2, 30}}, asked: []string{"index 30"}},
		{name: "revision", c: Consistency{MinRevision: 7}, asked: []string{"revision 7"}},
		{name: "token of another cluster", c: Consistency{AtLeast: Token{9, 2, 30}}, fails: func(err error) bool { return errors.Is(err, ErrOtherLog) }},
		{name: "token of another epoch", c: Consistency{AtLeast: Token{1, 9, 30}}, fails: func(err error) bool { return errors.Is(err, ErrOtherLog) }},
		{name: "fresh enough", mirror: tellingMirror{age: time.Second, known: true}, c: Consistency{MaxStaleness: time.Second}},
		{name: "too old", mirror: tellingMirror{age: time.Second, known: true}, c: Consistency{MaxStaleness: time.Second - 1}, fails: isStale},
		{name: "of unknown age", c: Consistency{MaxStaleness: time.Hour}, fails: isStale},
		{name: "late for a token", mirror: tellingMirror{late: context.DeadlineExceeded}, c: Consistency{AtLeast: Token{1, 2, 30}}, asked: []string{"index 30"},
			fails: func(err error) bool { return errors.As(err, new(*BehindError)) }},
		{name: "late for a round", mirror: tellingMirror{late: mirror.ErrUnavailable}, c: Consistency{Linearizable: true}, asked: []string{"round"},
			fails: func(err error) bool { return errors.Is(err, mirror.ErrUnavailable) }},
	} {
		m := test.mirror
		view, err := region(&m).Read(t.Context(), test.c)
		if err == nil {
			view.Release()
		}
		if test.fails == nil && err != nil || test.fails != nil && !test.fails(err) || !slices.Equal(m.asked, test.asked) {
			t.Errorf("%s: %v, asked for %q, want %q", test.name, err, m.asked, test.asked)
		}
	}
}

func isStale(err error) bool { return errors.As(err, new(*StaleError)) }

// oneRenewal is a stream with one renewal, and the decision on it.
type oneRenewal struct {
	ctx      context.Context
	received bool
	sent     []int64
	decision error
}

func (s *oneRenewal) Context() context.Context { return s.ctx }
func (s *oneRenewal) Receive() (int64, error) {
	if s.received {
		return 0, io.EOF
	}
	s.received = true
	return 5, nil
}
func (s *oneRenewal) Send(_ Facts, _, ttlSeconds int64) error {
	s.sent = append(s.sent, ttlSeconds)
	return nil
}
func (s *oneRenewal) BeginRenewal(int64) (int64, func(context.Context) (int64, error)) {
	return 0, func(context.Context) (int64, error) { return 10, s.decision }
}

// A TTL of zero is said only of a lease that does not exist; a renewal that nobody can vouch for ends the stream.
func TestRenewalsThatWait(t *testing.T) {
	for _, test := range []struct {
		decision, ends error
		sent           []int64
	}{{nil, nil, []int64{10}}, {keeper.ErrLeaseNotFound, nil, []int64{0}}, {keeper.ErrUnavailable, keeper.ErrUnavailable, nil}} {
		m := &tellingMirror{ready: make(chan struct{})}
		close(m.ready)
		s := &oneRenewal{ctx: t.Context(), decision: test.decision}
		if err := New(m, statemachine.Limits{}).KeepAlive(s, s); !errors.Is(err, test.ends) || !slices.Equal(s.sent, test.sent) {
			t.Errorf("decided %v: sent %v, ends with %v", test.decision, s.sent, err)
		}
	}
}
