package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"
)

// quiet is what three regions notice where nothing is wrong: a write, a read and an event every 100 ms for ten seconds.
func quiet(began time.Time) *watching {
	o := &watching{stop: func() {}}
	for i, region := range regions {
		r := &regionWatch{clients: &clients{region: region}, acknowledged: map[int64]time.Time{}, seen: map[int64]time.Time{}}
		for n := range 100 {
			at := began.Add(time.Duration(n) * 100 * time.Millisecond)
			for w := range r.writers {
				r.writers[w].add(at.Add(-80*time.Millisecond), at, nil)
			}
			r.reads.add(at, at, nil)
			r.acknowledged[int64(i*1000+n)] = at
		}
		o.regions = append(o.regions, r)
	}
	for _, r := range o.regions {
		for _, from := range o.regions {
			for revision, at := range from.acknowledged {
				r.seen[revision] = at.Add(80 * time.Millisecond)
			}
		}
	}
	return o
}

func (o *watching) everybody() (all []*clients) {
	for _, r := range o.regions {
		all = append(all, r.clients)
	}
	return all
}

// A drill that took anything that clients notice would practise nothing.
func TestWhatClientsNoticeFailsADrill(t *testing.T) {
	for _, test := range []struct {
		name   string
		missed string
		harm   func(o *watching, at time.Time)
	}{
		{"nothing", "", func(*watching, time.Time) {}},
		{"a writer waits too long", "longest wait of a writer in eu", func(o *watching, at time.Time) {
			w := &o.of("eu").writers[1]
			w.succeeded = append(w.succeeded[:20:20], w.succeeded[20+31:]...)
		}},
		{"a watch stays open and silent", "longest wait of a watch in ap", func(o *watching, at time.Time) {
			o.of("ap").seen[30] = at.Add(watchesBehindAtMost + time.Second)
		}},
		{"a watch misses an event", "longest wait of a watch in ap", func(o *watching, _ time.Time) { delete(o.of("ap").seen, 10) }},
		{"a read fails", "reads that failed there", func(o *watching, at time.Time) {
			o.of("us").reads.add(at, at, context.DeadlineExceeded)
		}},
		{"a watch ends", "watches that ended there", func(o *watching, at time.Time) {
			o.of("us").ends = append(o.of("us").ends, at)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now().Add(-10 * time.Second)
			o := quiet(began)
			test.harm(o, began.Add(3*time.Second))
			r := &result{}
			// A part of calm, so that the test need not wait for it.
			o.record(r, "harm", "", began.Add(500*time.Millisecond), began.Add(9900*time.Millisecond), o.everybody())
			var missed []string
			for _, n := range r.Numbers {
				if n.missed() {
					missed = append(missed, n.Name)
				}
			}
			if got := strings.Join(missed, ", "); (test.missed == "") != (got == "") || !strings.Contains(got, test.missed) || len(missed) > 1 {
				t.Errorf("missed %q, want %q", got, test.missed)
			}
			if r.failed() != (test.missed != "") {
				t.Errorf("failed is %v", r.failed())
			}
		})
	}
}

func TestSummaryShowsMedianAndWorst(t *testing.T) {
	run := func(seconds, goal float64) *result {
		r := &result{Drill: "d"}
		r.within("wait", time.Duration(seconds*float64(time.Second)), time.Duration(goal*float64(time.Second)))
		r.count("writes", int(10*seconds))
		return r
	}
	ended := run(9, 9)
	ended.Numbers, ended.Failures = ended.Numbers[:1], []string{"it ended"}
	s := summarize([]*result{run(1, 3), run(2.5, 2), run(2, 3), ended})
	if s.Runs != 4 || s.Failed != 2 || len(s.Numbers) != 2 {
		t.Fatalf("%+v", s)
	}
	wait, writes := s.Numbers[0], s.Numbers[1]
	if wait.Median != 2.25 || wait.Worst != 2.5 || *wait.AtMost != 2 || !wait.missed() || wait.Runs != 4 {
		t.Errorf("the run that missed its goal is the worst: %+v", wait)
	}
	if writes.Median != 20 || writes.Worst != 25 || writes.Runs != 3 {
		t.Errorf("%+v", writes)
	}
	if well := summarize([]*result{run(1.9, 2), run(2, 3)}).Numbers[0]; well.Worst != 2 || *well.AtMost != 3 {
		t.Errorf("where none missed its goal the longest is the worst: %+v", well)
	}
	var out strings.Builder
	if err := s.show(&out, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"4 runs, 2 failed", "MISSED", "2.25 s", "2.50 s", "3 runs"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if err := s.show(io.Discard, "json"); err != nil {
		t.Error(err)
	}
}

func TestUnknownDrillsAndBadFlagsAreRefused(t *testing.T) {
	for want, test := range map[string]struct {
		o     options
		names []string
	}{
		"no drill":     {options{repeat: 1, output: "text"}, []string{"lost-everything"}},
		"which drill":  {options{repeat: 1, output: "text"}, nil},
		"-repeat 0":    {options{repeat: 0, output: "text"}, []string{"all"}},
		"-o xml: want": {options{repeat: 1, output: "xml"}, []string{"all"}},
	} {
		if err := run(t.Context(), test.o, test.names); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v %v: %v, want %q", test.o, test.names, err, want)
		}
	}
}
