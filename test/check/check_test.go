package check

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
)

// verdict compares what a checker says with what it must say: a part of the violation, empty for none.
func verdict(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("a good history was refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted; want %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("refused with %q; want %q", err, want)
	}
}

func mustLog(t *testing.T, changes ...Change) *Log {
	t.Helper()
	l, err := NewLog(changes)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// history shortens tables: times are in milliseconds.
func op(client int, kind Kind, key, value string, call, end int) Operation {
	o := Operation{Client: client, Kind: kind, Key: key, Value: value, Call: ms(call), Return: ms(end), Outcome: Done, Applied: true}
	if kind == Get {
		o.Read, o.Value = value, ""
	}
	return o
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func (o Operation) at(revision int64) Operation { o.Revision = revision; return o }
func (o Operation) unknown() Operation          { o.Outcome = Unknown; return o }
func (o Operation) refused() Operation          { o.Outcome = NotApplied; return o }
func (o Operation) expecting(value string, applied bool) Operation {
	o.Expect, o.Applied = value, applied
	return o
}
func (o Operation) adding(delta int64, sum string) Operation {
	o.Delta, o.Read, o.Value = delta, sum, ""
	return o
}

func TestLinearizable(t *testing.T) {
	for _, test := range []struct {
		name       string
		operations []Operation
		want       string
	}{
		{"reads what was written", []Operation{op(1, Put, "k", "a", 0, 10), op(2, Get, "k", "a", 11, 20)}, ""},
		{"stale read", []Operation{op(1, Put, "k", "a", 0, 10), op(2, Get, "k", "", 11, 20)}, "no order"},
		{"read at the same time", []Operation{op(1, Put, "k", "a", 0, 10), op(2, Get, "k", "", 5, 20)}, ""},
		{"backwards", []Operation{op(1, Put, "k", "a", 0, 100), op(2, Get, "k", "a", 5, 20), op(2, Get, "k", "", 30, 40)}, "no order"},
		{"unknown seen", []Operation{op(1, Put, "k", "a", 0, 0).unknown(), op(2, Get, "k", "a", 30, 40)}, ""},
		{"unknown not seen", []Operation{op(1, Put, "k", "a", 0, 0).unknown(), op(2, Get, "k", "", 30, 40)}, ""},
		{"unknown seen, then not", []Operation{op(1, Put, "k", "a", 0, 0).unknown(), op(2, Get, "k", "a", 30, 40),
			op(2, Get, "k", "", 50, 60)}, "no order"},
		{"unknown applied twice", []Operation{op(1, Put, "k", "a", 0, 0).unknown(), op(2, Get, "k", "a", 1, 2),
			op(2, Put, "k", "b", 3, 4), op(2, Get, "k", "a", 5, 6)}, "no order"},
		{"refused seen", []Operation{op(1, Put, "k", "a", 0, 10).refused(), op(2, Get, "k", "a", 30, 40)}, "no order"},
		{"two swaps of one value", []Operation{op(1, CompareAndSwap, "k", "a", 0, 10).expecting("", true),
			op(2, CompareAndSwap, "k", "b", 0, 10).expecting("", true)}, "no order"},
		{"one swap of two", []Operation{op(1, CompareAndSwap, "k", "a", 0, 10).expecting("", true),
			op(2, CompareAndSwap, "k", "b", 0, 10).expecting("", false)}, ""},
		{"lost addition", []Operation{op(1, Add, "n", "", 0, 10).adding(2, "2"), op(2, Add, "n", "", 0, 10).adding(3, "3")}, "no order"},
		{"additions", []Operation{op(1, Add, "n", "", 0, 10).adding(2, "5"), op(2, Add, "n", "", 0, 10).adding(3, "3")}, ""},
		{"deleted twice", []Operation{op(1, Put, "k", "a", 0, 1), op(1, Delete, "k", "", 2, 3), op(2, Delete, "k", "", 4, 5)}, "no order"},
	} {
		t.Run(test.name, func(t *testing.T) { verdict(t, Linearizable(test.operations, time.Minute), test.want) })
	}
}

// A search that is cut off says so, and does not pass for a verdict.
func TestLinearizableSaysThatItDoesNotKnow(t *testing.T) {
	var operations []Operation
	for i := range 40 {
		operations = append(operations, op(i, Put, "k", fmt.Sprint(i), 0, 0).unknown())
	}
	operations = append(operations, op(99, Get, "k", "never", 1, 2))
	if err := Linearizable(operations, 50*time.Millisecond); !errors.Is(err, ErrInconclusive) {
		t.Errorf("got %v", err)
	}
}

func TestOperations(t *testing.T) {
	l := mustLog(t, Change{Revision: 2, Key: "k", Value: "a"}, Change{Revision: 3, Key: "k", Value: "b"},
		Change{Revision: 4, Key: "n", Value: "7"}, Change{Revision: 5, Key: "k", Deleted: true}, Change{Revision: 6, Key: "k", Value: "c"})
	good := []Operation{op(1, Put, "k", "a", 0, 10).at(2), op(2, CompareAndSwap, "k", "b", 11, 20).expecting("a", true).at(3),
		op(1, Add, "n", "", 21, 22).adding(7, "7").at(4), op(1, Delete, "k", "", 23, 24).at(5), op(3, Get, "k", "", 25, 26).at(5),
		op(3, Put, "k", "c", 27, 27).unknown(), op(2, Get, "k", "c", 40, 41).at(6),
		op(2, CompareAndSwap, "k", "x", 42, 43).expecting("a", false).at(6)}
	all := func(string) bool { return true }
	verdict(t, l.Operations(good, all), "")
	for _, test := range []struct {
		name   string
		change func(o []Operation) []Operation
		want   string
	}{
		{"acknowledged and lost", func(o []Operation) []Operation { return append(o, op(4, Put, "q", "lost", 50, 51).at(7)) }, "no such change"},
		{"wrong value read", func(o []Operation) []Operation { o[4].Read = "b"; return o }, "in the log at that revision"},
		{"stale read", func(o []Operation) []Operation { return append(o, op(4, Get, "k", "b", 50, 51).at(3)) }, "began after the answer"},
		{"refused and applied", func(o []Operation) []Operation { o[5] = o[5].refused(); return o }, "the log has it"},
		{"one change for two", func(o []Operation) []Operation { o = append(o, o[2]); o[8].Client = 5; return o }, "another operation"},
		{"nobody wrote it", func(o []Operation) []Operation { return append(o[:5], o[6:]...) }, "nobody wrote"},
		{"addition that nobody made", func(o []Operation) []Operation { return append(o[:2], o[3:]...) }, "nobody wrote"},
		{"deletion that nobody made", func(o []Operation) []Operation { return append(o[:3], o[4:]...) }, "nobody wrote"},
		{"swap of another value", func(o []Operation) []Operation { o[1].Expect = "z"; return o }, "the value before was"},
		{"swap refused wrongly", func(o []Operation) []Operation { o[7].Expect = "c"; return o }, "the key had what it wanted"},
		{"write in the past", func(o []Operation) []Operation { o[0].Call, o[0].Return = ms(60), ms(61); return o }, "began after the answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			verdict(t, l.Operations(test.change(append([]Operation(nil), good...)), all), test.want)
		})
	}
	t.Run("applied twice", func(t *testing.T) {
		l := mustLog(t, Change{Revision: 2, Key: "k", Value: "a"}, Change{Revision: 3, Key: "k", Value: "a"})
		verdict(t, l.Operations([]Operation{op(1, Put, "k", "a", 0, 1).unknown()}, nil), "and again at")
	})
}

func TestLogRefusesWhatIsNoLog(t *testing.T) {
	for _, changes := range [][]Change{
		{{Revision: 3, Key: "a", Value: "x"}, {Revision: 2, Key: "b", Value: "y"}},
		{{Revision: 3, Key: "a", Value: "x"}, {Revision: 3, Key: "a", Value: "y"}},
		{{Revision: 3, Key: "a", Deleted: true}},
	} {
		if _, err := NewLog(changes); err == nil {
			t.Errorf("accepted %+v", changes)
		}
	}
}

// The two checks of the same history agree: on histories that a register made, and on those with one answer changed.
func TestTheTwoChecksAgree(t *testing.T) {
	refused := 0
	for seed := range uint64(300) {
		operations, changes := register1(rand.New(rand.NewPCG(seed, 1)))
		l := mustLog(t, changes...)
		if err := errors.Join(l.Operations(operations, func(string) bool { return true }), Linearizable(operations, time.Minute)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		r := rand.New(rand.NewPCG(seed, 2))
		o := &operations[r.IntN(len(operations))]
		if o.Kind != Get || o.Outcome != Done {
			continue
		}
		o.Read = strconv.Itoa(r.IntN(len(operations)))
		byLog := l.Operations(operations, nil)
		if byOrder := Linearizable(operations, time.Minute); byOrder != nil && byLog == nil {
			t.Errorf("seed %d: porcupine refuses what the log explains: %v", seed, byOrder)
		}
		if byLog != nil {
			refused++
		}
	}
	if refused < 20 {
		t.Errorf("only %d histories were refused", refused)
	}
}

// register1 makes a history of three clients on a register whose operations happen at one instant each.
func register1(r *rand.Rand) (operations []Operation, changes []Change) {
	value, revision, now := "", int64(1), time.Duration(0)
	type under struct {
		o  Operation
		at time.Duration
	}
	free := make([]time.Duration, 3)
	for i := range 40 {
		now += time.Duration(r.IntN(5)) * time.Millisecond
		client := r.IntN(3)
		call := max(free[client]+1, now-time.Duration(r.IntN(8))*time.Millisecond)
		now = max(now, call)
		u := under{Operation{Client: client, Key: "k", Call: call, Outcome: Done}, now}
		switch r.IntN(3) {
		case 0:
			u.o.Kind, u.o.Read = Get, value
		case 1:
			u.o.Kind, u.o.Value, u.o.Applied = Put, fmt.Sprint("v", i), true
		case 2:
			u.o.Kind, u.o.Value, u.o.Expect = CompareAndSwap, fmt.Sprint("v", i), value
			if r.IntN(2) == 0 {
				u.o.Expect = "other"
			}
			u.o.Applied = u.o.Expect == value
		}
		if u.o.writes() {
			value, revision = u.o.Value, revision+1
			changes = append(changes, Change{Revision: revision, Key: "k", Value: value})
		}
		u.o.Revision, u.o.Return = revision, now+time.Duration(r.IntN(8))*time.Millisecond
		if free[client] = u.o.Return; u.o.Kind != Get && r.IntN(6) == 0 {
			u.o.Outcome = Unknown
		}
		operations = append(operations, u.o)
	}
	return operations, changes
}

func TestReads(t *testing.T) {
	l := mustLog(t, Change{Revision: 2, Key: "a", Value: "1"}, Change{Revision: 2, Key: "b", Value: "1"},
		Change{Revision: 3, Key: "a", Value: "2"}, Change{Revision: 3, Key: "b", Value: "2"})
	read := func(life uint64, call int, revision int64, a, b string) Read {
		return Read{Frontend: 1, Life: life, Call: ms(call), Return: ms(call + 1), Revision: revision, Values: map[string]string{"a": a, "b": b}}
	}
	verdict(t, l.Reads([]Read{read(1, 0, 1, "", ""), read(1, 10, 3, "2", "2"), read(2, 20, 2, "1", "1")}), "")
	verdict(t, l.Reads([]Read{read(1, 0, 3, "2", "1")}), "the log has")
	verdict(t, l.Reads([]Read{read(1, 0, 3, "2", "2"), read(1, 10, 2, "1", "1")}), "went back")
}

func TestSessions(t *testing.T) {
	verdict(t, Sessions([]Step{{Client: 1, Index: 5, Revision: 3}, {Client: 1, Carried: true, Index: 5, Revision: 3},
		{Client: 1, Index: 2, Revision: 1}, {Client: 1, Carried: true, Index: 5, Revision: 3}, {Client: 2, Carried: true, Index: 1}}), "")
	verdict(t, Sessions([]Step{{Client: 1, Index: 5, Revision: 3}, {Client: 1, Carried: true, Index: 4, Revision: 3}}), "it had seen")
	verdict(t, Sessions([]Step{{Client: 1, Index: 5, Revision: 3}, {Client: 1, Carried: true, Index: 6, Revision: 2}}), "it had seen")
}

func TestWatches(t *testing.T) {
	l := mustLog(t, Change{Revision: 2, Key: "a", Value: "1"}, Change{Revision: 3, Key: "a", Value: "2"},
		Change{Revision: 3, Key: "b", Value: "2"}, Change{Revision: 4, Key: "z", Value: "no"}, Change{Revision: 5, Key: "b", Deleted: true})
	event := func(i int) Change { return l.changes[i] }
	good := func() Watch {
		return Watch{Name: "w", Key: "a", End: "c", Through: 5, Legs: []WatchLeg{
			{Start: 1, Responses: []WatchResponse{{Revision: 2, Events: []Change{event(0)}}, {Revision: 2, Events: nil}}},
			{Start: 3, Responses: []WatchResponse{{Revision: 0, Fragment: true, Events: []Change{event(1)}},
				{Revision: 4, Events: []Change{event(2)}}, {Revision: 5, Events: []Change{event(4)}}}}}}
	}
	for _, test := range []struct {
		name   string
		change func(w *Watch)
		want   string
	}{
		{"good", func(*Watch) {}, ""},
		{"missing", func(w *Watch) { w.Legs[1].Responses = w.Legs[1].Responses[:2] }, "has not come"},
		{"not yet there", func(w *Watch) { w.Legs[1].Responses, w.Through = w.Legs[1].Responses[:2], 4 }, ""},
		{"left out", func(w *Watch) { w.Legs[0].Responses[0].Events = nil }, "has not come"},
		{"twice", func(w *Watch) { w.Legs[0].Responses[1].Events = []Change{event(0)} }, "was to come"},
		{"again after moving", func(w *Watch) { w.Legs[1].Start = 2 }, "begins at"},
		{"gap between legs", func(w *Watch) { w.Legs[1].Start = 4 }, "begins at"},
		{"swapped", func(w *Watch) {
			r := w.Legs[1].Responses
			r[0].Events, r[1].Events = r[1].Events, r[0].Events
		}, "was to come"},
		{"torn", func(w *Watch) { w.Legs[1].Responses[0].Fragment, w.Legs[1].Responses[0].Revision = false, 2 }, "an event of"},
		{"in parts", func(w *Watch) { w.Legs[1].Responses[0].Fragment, w.Legs[1].Responses[0].Revision = false, 3 }, "has not come"},
		{"bookmark too high", func(w *Watch) { w.Legs[0].Responses[1].Revision = 3 }, "has not come"},
		{"wrong value", func(w *Watch) { w.Legs[0].Responses[0].Events[0].Value = "9" }, "was to come"},
		{"not watched", func(w *Watch) {
			w.Legs[1].Responses[2].Events = []Change{event(3), event(4)}
		}, "was to come"},
		{"fragments at the end", func(w *Watch) { w.Legs[1].Responses[2].Fragment = true }, "nobody may use"},
		{"compacted", func(w *Watch) {
			w.Legs = []WatchLeg{{Start: 1, Responses: []WatchResponse{{CompactRevision: 3}}}, w.Legs[1]}
		}, ""},
		{"compacted without need", func(w *Watch) {
			w.Legs = []WatchLeg{{Start: 3, Responses: []WatchResponse{{CompactRevision: 2}}}, w.Legs[1]}
		}, "was canceled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := good()
			test.change(&w)
			verdict(t, l.Watches([]Watch{w}), test.want)
		})
	}
}

func TestLeases(t *testing.T) {
	ttl := 10 * time.Second
	good := Lease{ID: 1, TTL: ttl, Confirmed: []time.Duration{0, 5 * time.Second}, Ended: 15 * time.Second, EndsBy: 20 * time.Second}
	verdict(t, Leases([]Lease{good, {ID: 2, TTL: ttl, Confirmed: []time.Duration{0}}}, 0.01), "")
	early := good
	early.Ended = 14 * time.Second
	verdict(t, Leases([]Lease{early}, 0.01), "after a renewal was confirmed")
	early.Revoked = true
	verdict(t, Leases([]Lease{early}, 0.01), "")
	drifted := good
	drifted.Ended = 14950 * time.Millisecond
	verdict(t, Leases([]Lease{drifted}, 0.01), "")
	after := good
	after.Confirmed = append(after.Confirmed, 16*time.Second)
	verdict(t, Leases([]Lease{after}, 0.01), "after a renewal was confirmed")
	late := good
	late.Ended = 21 * time.Second
	verdict(t, Leases([]Lease{late}, 0.01), "was to end by")
	late.Ended = 0
	verdict(t, Leases([]Lease{late}, 0.01), "was to end by")
}

func TestLocks(t *testing.T) {
	l := mustLog(t, Change{Revision: 2, Key: "lock", Value: "1"}, Change{Revision: 3, Key: "r", Value: "x"},
		Change{Revision: 4, Key: "lock", Deleted: true}, Change{Revision: 5, Key: "lock", Value: "2"}, Change{Revision: 6, Key: "r", Value: "y"})
	first, second := Guarded{1, "lock", 2, 3}, Guarded{2, "lock", 5, 6}
	verdict(t, l.Locks([]Guarded{first, second}), "")
	verdict(t, l.Locks([]Guarded{first, {1, "lock", 2, 6}}), "which was held from")
	verdict(t, l.Locks([]Guarded{first, {2, "lock", 2, 3}}), "both hold")
	verdict(t, l.Locks([]Guarded{{1, "lock", 3, 6}}), "not the creation")
	verdict(t, l.Locks([]Guarded{{2, "lock", 5, 3}}), "which was held from")
}

func TestUnique(t *testing.T) {
	give := func(space, generator string, global bool, first, count int64, call int) IDs {
		return IDs{space, generator, global, first, count, ms(call), ms(call + 1)}
	}
	verdict(t, Unique([]IDs{give("s", "a", false, 1, 5, 0), give("s", "b", false, 6, 2, 0), give("t", "a", false, 1, 1, 9), give("q", "", true, 1, 2, 0),
		give("q", "", true, 3, 1, 9)}), "")
	verdict(t, Unique([]IDs{give("s", "a", false, 1, 5, 0), give("s", "b", false, 5, 2, 0)}), "given twice")
	verdict(t, Unique([]IDs{give("s", "a", false, 9, 1, 0), give("s", "a", false, 5, 1, 8)}), "after 9")
	verdict(t, Unique([]IDs{give("q", "", true, 9, 1, 0), give("q", "", true, 5, 1, 8)}), "after 9")
	verdict(t, Unique([]IDs{give("q", "", true, 9, 0, 0)}), "0 ids")
}

func TestAgreementRetriesLiveness(t *testing.T) {
	var a Agreement[string]
	verdict(t, errors.Join(a.Claim("x", 1, "p"), a.Claim("y", 1, "p"), a.Claim("y", 2, "q")), "")
	verdict(t, a.Claim("z", 2, "r"), "at 2 z has r, y has q")
	if a.Compared != 2 {
		t.Errorf("compared %d", a.Compared)
	}
	verdict(t, Retries([]Retry{{"a", Done, 5}, {"a", Unknown, 0}, {"a", Done, 5}, {"b", Done, 6}}), "")
	verdict(t, Retries([]Retry{{"a", Done, 5}, {"a", Done, 7}}), "and done at revision 7")
	verdict(t, Retries([]Retry{{"a", Done, 5}, {"a", NotApplied, 0}}), "not applied")
	healed := time.Minute
	verdict(t, Liveness(healed, time.Second, []Progress{{"a", true, healed + time.Second}}), "")
	verdict(t, Liveness(healed, time.Second, []Progress{{"a", true, healed + 2*time.Second}}), "works again")
	verdict(t, Liveness(healed, time.Second, []Progress{{"a", false, 0}}), "does not work again")
}

// What is told is bounded.
func TestViolationsAreBounded(t *testing.T) {
	var v violations
	for i := range 100 {
		v.addf("violation %d", i)
	}
	if lines := strings.Count(v.err().Error(), "\n") + 1; lines != violationsMax+1 || !strings.Contains(v.err().Error(), "95 more") {
		t.Errorf("%d lines: %v", lines, v.err())
	}
}
