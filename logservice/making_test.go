package logservice

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// workshop is a circle of members whose frontends build checkpoints as the test says: nothing is built, reported or copied
// but by a call.
type workshop struct {
	*circle
	held     map[uint64][]CheckpointName
	fetching map[uint64]*FetchCheckpoint
	offers   map[uint64]OfferResult
	asked    []CheckpointResult
	tokens   uint64
}

const (
	workshopTimeoutTicks = 100
	workshopRestTicks    = 20
	// workshopSilence is shorter than the timeout, so that a dead builder and a slow one are told apart.
	workshopSilence = 2 * time.Second
	// workshopTelling is enough for members to tell the leader all that they know, and for the leader to act on it.
	workshopTelling = 20
)

func newWorkshop(t *testing.T, change func(*MemberConfig), names ...string) *workshop {
	w := &workshop{held: map[uint64][]CheckpointName{}, fetching: map[uint64]*FetchCheckpoint{}, offers: map[uint64]OfferResult{}}
	w.circle = newCircle(t, func(c *MemberConfig) {
		c.CheckpointTicks, c.CheckpointTimeoutTicks, c.CheckpointRestTicks = 2, workshopTimeoutTicks, workshopRestTicks
		c.SessionSilence = workshopSilence
		if change != nil {
			change(c)
		}
	}, names...)
	w.performs = func(id uint64, effects *Effects) {
		if effects.Fetch != nil {
			if w.fetching[id] != nil {
				t.Errorf("%s is to fetch %v while it fetches %v", w.name(id), effects.Fetch.Name, w.fetching[id].Name)
			}
			w.fetching[id] = effects.Fetch
		}
		for _, r := range effects.Offers {
			w.offers[r.Token] = r
		}
		w.asked = append(w.asked, effects.Checkpoints...)
	}
	w.lead("a")
	return w
}

// live passes time, in which sessions write.
func (w *workshop) live(ticks int, sessions ...uint64) {
	for tick := range ticks {
		if tick%5 == 0 {
			for _, session := range sessions {
				w.propose(session, 10)
			}
		}
		w.tick(1)
	}
}

func (w *workshop) propose(session uint64, bytes int) {
	w.seq++
	w.step(w.names[w.leader()], batch(session, w.seq, bytes))
}

// ask is an operator's request at a member.
func (w *workshop) ask(who string) (token uint64) {
	w.tokens++
	w.step(w.names[who], AskCheckpoint{w.tokens})
	return w.tokens
}

func (w *workshop) state() CheckpointState { return w.member(w.leader()).State().Checkpoints }

// request lives until another checkpoint than that of index before is asked for.
func (w *workshop) request(before uint64, sessions ...uint64) CheckpointState {
	w.t.Helper()
	for range 2 * workshopTimeoutTicks {
		if s := w.state(); s.RequestIndex > before {
			return s
		}
		w.live(1, sessions...)
	}
	w.t.Fatalf("no request after that of index %d: %+v", before, w.state())
	return CheckpointState{}
}

// built is the checkpoint that a builder makes; builders with another variant make another one.
func built(index uint64, variant byte) CheckpointName {
	return CheckpointName{Index: index, SHA256: [32]byte{variant}, SizeBytes: 1000, FormatVersion: checkpointFormat}
}

// hold puts a checkpoint into a member's store.
func (w *workshop) hold(who string, name CheckpointName) {
	id := w.names[who]
	w.held[id] = append(w.held[id], name)
	w.step(id, HeldCheckpoints{slices.Clone(w.held[id])})
}

// report is a builder's at a member, whether the member holds the bytes or not.
func (w *workshop) report(who string, session uint64, name CheckpointName) error {
	w.t.Helper()
	w.tokens++
	w.step(w.names[who], OfferCheckpoint{Token: w.tokens, Session: session, Name: name})
	token := w.tokens
	w.until("an answer to the offer", func() bool { _, answered := w.offers[token]; return answered })
	return w.offers[token].Err
}

func (w *workshop) mustReport(who string, session uint64, name CheckpointName) {
	w.t.Helper()
	if err := w.report(who, session, name); err != nil {
		w.t.Fatalf("report of session %d at %s: %v", session, who, err)
	}
}

// fetched ends the fetch that a member was asked for.
func (w *workshop) fetched(who string, err error) {
	w.t.Helper()
	id := w.names[who]
	fetch := w.fetching[id]
	if fetch == nil {
		w.t.Fatalf("%s was not asked to fetch anything", who)
	}
	delete(w.fetching, id)
	if err == nil {
		w.hold(who, fetch.Name)
	}
	w.step(id, FetchedCheckpoint{Name: fetch.Name, Err: err})
}

// fetchers are the members that have been asked to fetch, with those to fetch from.
func (w *workshop) fetchers() string {
	var all []string
	for id, fetch := range w.fetching {
		var from []string
		for _, holder := range fetch.Holders {
			from = append(from, w.name(holder))
		}
		slices.Sort(from)
		all = append(all, w.name(id)+" from "+strings.Join(from, " "))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// seal has a request built, and sealed by what a and b hold.
func (w *workshop) seal(request CheckpointState, sessions ...uint64) {
	w.t.Helper()
	name := built(request.RequestIndex, 1)
	w.hold("a", name)
	w.hold("b", name)
	for _, builder := range request.RequestBuilders {
		w.mustReport("a", builder, name)
	}
	w.live(workshopTelling, sessions...)
	if s := w.state(); s.newest().Name != name {
		w.t.Fatalf("%v was to be sealed: %+v", name, s)
	}
}

// A checkpoint is asked for when there is as much log above the newest one as the bound says, and not before.
func TestCheckpointBySize(t *testing.T) {
	const limit = 4000
	w := newWorkshop(t, func(c *MemberConfig) { c.CheckpointLogBytes = limit }, "a", "b", "c")
	for _, after := range []string{"the start", "a checkpoint"} {
		start := w.state()
		before := start.newest().Name.Index
		for {
			bytes := w.state().LogBytes
			w.tick(2)
			if due := w.state().RequestIndex > before; due != (bytes >= limit) {
				t.Fatalf("after %s: with %d bytes above %d, a request: %v", after, bytes, before, due)
			} else if due {
				break
			}
			w.propose(1, 100)
		}
		w.seal(w.state(), 1)
	}
}

// A checkpoint is asked for when the newest one is as old as the bound says in log time, and not before; one that never was
// has no age.
func TestCheckpointByAge(t *testing.T) {
	const age = 10 * time.Second
	w := newWorkshop(t, func(c *MemberConfig) { c.CheckpointAge = age }, "a", "b", "c")
	w.live(int(2*age/(50*time.Millisecond)), 1)
	if s := w.state(); s.RequestIndex != 0 {
		t.Fatalf("asked for by the age of nothing: %+v", s)
	}
	w.ask("a")
	first := w.request(0, 1)
	w.seal(first, 1)
	for range 2 * age / (50 * time.Millisecond) {
		old := w.state().Age
		w.tick(2)
		if due := w.state().RequestIndex != 0; due != (old >= uint64(age)) {
			t.Fatalf("at an age of %v, a request: %v", time.Duration(old), due)
		} else if due {
			return
		}
		w.propose(1, 10)
	}
	t.Error("not asked for by age")
}

// An operator's question, at whatever member, is one request and is answered when it is sealed, or after a bounded time.
func TestCheckpointByOperator(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		w := newWorkshop(t, nil, "a", "b", "c")
		w.live(100, 1)
		if s := w.state(); s.RequestIndex != 0 {
			t.Fatalf("asked for by nobody: %+v", s)
		}
		token := w.ask(who)
		request := w.request(0, 1)
		if len(w.asked) != 0 {
			t.Fatalf("answered before anything is sealed: %+v", w.asked)
		}
		w.seal(request, 1)
		if want := (CheckpointResult{Token: token, Name: built(request.RequestIndex, 1)}); len(w.asked) != 1 || w.asked[0] != want {
			t.Errorf("asked %s: answers %+v, want %+v", who, w.asked, want)
		}
		w.live(100, 1)
		if s := w.state(); s.RequestIndex != 0 || len(s.Sealed) != 1 {
			t.Errorf("asked %s once, and another one is made: %+v", who, s)
		}
	}
	w := newWorkshop(t, nil, "a", "b", "c")
	w.ask("b")
	w.tick(workshopTimeoutTicks)
	if s := w.state(); s.RequestIndex != 0 || !strings.Contains(s.Failure, "no frontend has a session") {
		t.Errorf("without any session: %+v", s)
	}
	w.tick(askTimeouts * workshopTimeoutTicks)
	if len(w.asked) != 1 || !errors.Is(w.asked[0].Err, ErrCheckpointTimeout) {
		t.Errorf("without any session: %+v", w.asked)
	}
}

// Builders are alive; among these those that have failed least, then those that were asked longest ago, then those that
// propose least.
func TestBuildersOfACheckpoint(t *testing.T) {
	w := newWorkshop(t, nil, "a", "b", "c")
	w.propose(10, 0) // and nothing more: it has ended
	open := func(frontend uint64) (session uint64) {
		payload, err := proto.Marshal(&logv1.OpenSession{FrontendId: frontend})
		if err != nil {
			t.Fatal(err)
		}
		w.step(w.names["a"], Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, Payload: payload}})
		return w.member("a").State().Published
	}
	w.live(50, 100, 101, 102, 103)
	// A frontend that has just opened another session is in that one alone; it has proposed nothing, and is asked first.
	open(77)
	again := open(77)
	sessions := []uint64{100, 101, 102, 103}
	burden := func() {
		for i, session := range sessions {
			w.propose(session, []int{400, 100, 200, 300}[i])
		}
	}
	burden()
	expect := func(what string, s CheckpointState, want ...uint64) {
		t.Helper()
		if got := slices.Sorted(slices.Values(s.RequestBuilders)); !slices.Equal(got, want) {
			t.Errorf("%s: builders %v, want %v", what, got, want)
		}
	}
	w.ask("a")
	request := w.request(0, sessions...)
	expect("those that propose least", request, again, 101)
	w.seal(request, sessions...)
	w.live(60, sessions...) // and the one of frontend 77 goes silent
	burden()
	w.ask("a")
	request = w.request(request.RequestIndex, sessions...)
	w.seal(request, sessions...)
	expect("never asked, and those that propose least", request, 102, 103)

	w.ask("a")
	request = w.request(request.RequestIndex, sessions...)
	expect("asked longest ago", request, 100, 101)
	w.mustReport("a", 100, built(request.RequestIndex, 1))
	w.mustReport("b", 101, built(request.RequestIndex, 2))
	request = w.request(request.RequestIndex, sessions...)
	expect("failed least", request, 102, 103)
	w.seal(request, sessions...)
	w.ask("a")
	request = w.request(request.RequestIndex, sessions...)
	expect("failed least, although asked last", request, 102, 103)
}

// A checkpoint is copied once its builders agree, to members that lack it and from those that hold it, and sealed once a
// majority of the voters hold it: neither learners count nor reports.
func TestSealNeedsVotersThatHold(t *testing.T) {
	w := newWorkshop(t, func(c *MemberConfig) { c.CheckpointTimeoutTicks = 10 * workshopTimeoutTicks }, "a", "b", "c", "d", "e")
	w.made("add", w.add("a", "f"))
	w.join("f", "a")
	sessions := []uint64{1, 2}
	w.live(workshopTelling, sessions...)
	w.ask("c")
	request := w.request(0, sessions...)
	name := built(request.RequestIndex, 1)
	unsealed := func(after, fetchers string) {
		t.Helper()
		w.live(workshopTelling, sessions...)
		if s := w.state(); len(s.Sealed) != 0 || s.RequestIndex != name.Index || s.Failure != "" {
			t.Fatalf("after %s: %+v", after, s)
		}
		if got := w.fetchers(); got != fetchers {
			t.Fatalf("after %s: to fetch are %q, want %q", after, got, fetchers)
		}
	}
	for _, wrong := range []struct {
		what    string
		session uint64
		name    CheckpointName
	}{
		{"a session that was not asked", 3, name},
		{"another index", 1, built(name.Index-1, 1)},
		{"another format", 1, CheckpointName{Index: name.Index, SizeBytes: 1000, FormatVersion: checkpointFormat + 1}},
	} {
		if err := w.report("b", wrong.session, wrong.name); !errors.Is(err, ErrCheckpointOffer) {
			t.Errorf("report of %s: %v", wrong.what, err)
		}
	}
	unsealed("reports that are refused", "")
	w.hold("b", name)
	w.mustReport("b", 1, name)
	unsealed("one report", "")
	w.mustReport("c", 2, name)
	unsealed("both reports", "a from b, c from b, d from b, e from b, f from b")
	w.fetched("f", nil)
	w.fetched("c", nil)
	unsealed("two voters and a learner", "a from b, d from b, e from b")
	w.fetched("d", errors.New("broken off"))
	unsealed("a fetch that failed", "a from b, d from b c f, e from b")
	w.fetched("d", nil)
	w.live(workshopTelling, sessions...)
	if s := w.state(); len(s.Sealed) != 1 || s.Sealed[0].Name != name || s.RequestIndex != 0 {
		t.Fatalf("three of five voters hold it: %+v", s)
	}
	w.fetched("e", errors.New("broken off"))
	w.live(workshopTelling, sessions...)
	w.fetched("e", nil) // what is sealed is copied further
}

// Builders that differ: an alarm names them, nothing of theirs is copied or sealed, and others are asked, with a rest
// between two requests.
func TestBuildersThatDiffer(t *testing.T) {
	w := newWorkshop(t, nil, "a", "b", "c")
	sessions := []uint64{1, 2, 3, 4}
	w.live(workshopTelling, sessions...)
	w.ask("a")
	request := w.request(0, sessions...)
	for round := range 4 {
		right, wrong := built(request.RequestIndex, 1), built(request.RequestIndex, 2)
		for _, who := range []string{"a", "b", "c"} {
			w.hold(who, right)
		}
		builders := request.RequestBuilders
		w.mustReport("a", builders[0], right)
		w.mustReport("c", builders[1], wrong)
		began := w.member("a").checkpoints.making.requestedAt
		alarm := fmt.Sprintf("builders differ about checkpoint %d:", request.RequestIndex)
		w.until("the alarm", func() bool { return strings.Contains(w.state().Failure, alarm) })
		for _, word := range []string{fmt.Sprintf("session %d", builders[0]), fmt.Sprintf("session %d", builders[1])} {
			if failure := w.state().Failure; !strings.Contains(failure, word) {
				t.Errorf("the alarm %q lacks %q", failure, word)
			}
		}
		next := w.request(request.RequestIndex, sessions...)
		if rested := w.member("a").checkpoints.making.requestedAt - began; rested < workshopRestTicks {
			t.Errorf("round %d: others are asked %d ticks after the request before, want %d", round, rested, workshopRestTicks)
		}
		for _, builder := range next.RequestBuilders {
			if round%2 == 0 && slices.Contains(builders, builder) {
				t.Errorf("session %d is asked again although others have not failed: %v, then %v", builder, builders, next.RequestBuilders)
			}
		}
		if len(next.Sealed) != 0 || w.fetchers() != "" {
			t.Fatalf("differing checkpoints: %+v, to fetch %q", next, w.fetchers())
		}
		request = next
	}
	w.seal(request, sessions...)
	if s := w.state(); s.Failure != "" {
		t.Errorf("the alarm stays after a checkpoint was sealed: %q", s.Failure)
	}
}

// A builder that is slow is replaced after the timeout, one whose session has ended as soon as that is known; one that has
// reported is not blamed.
func TestBuilderIsReplaced(t *testing.T) {
	for _, test := range []struct {
		name     string
		dies     bool
		min, max int
		failure  string
	}{
		{"slow", false, workshopTimeoutTicks, workshopTimeoutTicks + 10, "was not made and copied in time: 1 of 2 builders"},
		{"dead", true, workshopRestTicks, int(workshopSilence/(50*time.Millisecond)) + 20, "session 2 has ended before it made checkpoint"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorkshop(t, nil, "a", "b", "c")
			w.live(workshopTelling, 1, 2)
			w.ask("a")
			first := w.request(0, 1, 2)
			began := w.member("a").ticks
			if got := slices.Sorted(slices.Values(first.RequestBuilders)); !slices.Equal(got, []uint64{1, 2}) {
				t.Fatalf("builders %v", got)
			}
			w.hold("b", built(first.RequestIndex, 1))
			w.mustReport("b", 1, built(first.RequestIndex, 1))
			live := []uint64{1, 2, 3}
			if test.dies {
				live = []uint64{1, 3}
			}
			second := w.request(first.RequestIndex, live...)
			if took := w.member("a").ticks - began; took < test.min || took > test.max {
				t.Errorf("replaced after %d ticks, want %d to %d", took, test.min, test.max)
			}
			if got := slices.Sorted(slices.Values(second.RequestBuilders)); !slices.Equal(got, []uint64{1, 3}) {
				t.Errorf("then asked are %v, want 1, which has reported, and 3", got)
			}
			if !strings.Contains(second.Failure, test.failure) {
				t.Errorf("failure %q, want %q", second.Failure, test.failure)
			}
			w.live(2, live...) // until b has applied it
			if err := w.report("b", 1, built(first.RequestIndex, 1)); !errors.Is(err, ErrCheckpointOffer) {
				t.Errorf("a late report: %v", err)
			}
			w.seal(second, live...)
		})
	}
}

// A new leader goes on with the request that it finds: members tell it what they hold and what they were told.
func TestNewLeaderGoesOnWithTheCheckpoint(t *testing.T) {
	w := newWorkshop(t, nil, "a", "b", "c")
	sessions := []uint64{1, 2}
	w.live(workshopTelling, sessions...)
	w.ask("b")
	request := w.request(0, sessions...)
	name := built(request.RequestIndex, 1)
	w.hold("c", name)
	w.mustReport("c", 1, name)
	w.mustReport("c", 2, name)
	w.live(workshopTelling, sessions...)
	w.down[w.names["a"]] = true
	w.until("another leader", func() bool { return w.leader() != "" })
	w.live(workshopTelling, sessions...)
	w.fetched("b", nil)
	w.live(workshopTelling, sessions...)
	if s := w.state(); len(s.Sealed) != 1 || s.Sealed[0].Name != name {
		t.Fatalf("under %s: %+v", w.leader(), s)
	}
	if len(w.asked) != 1 || w.asked[0].Name != name {
		t.Errorf("who asked is told %+v", w.asked)
	}
}
