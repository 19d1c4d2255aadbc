package idgen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// start runs a generator in the bubble of the caller.
func start(t *testing.T, l Log) *Generator {
	begin := time.Now()
	g := New(Config{Log: l, Clock: func() time.Duration { return time.Since(begin) }})
	t.Cleanup(g.Close)
	return g
}

func total(blocks []Block) (n int64) {
	for _, b := range blocks {
		n += b.Count
	}
	return n
}

// TestGenerators: many callers of one generator get what they ask for, nothing twice, for one proposal each minute; more
// than the layout has for the time takes time.
func TestGenerators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFrontendLog(t)
		g := start(t, l)
		began := time.Now()
		var (
			mu     sync.Mutex
			all    []Block
			asking sync.WaitGroup
		)
		for range 10 {
			asking.Go(func() {
				for range 5 {
					blocks, err := g.Next(t.Context(), statemachine.IDSnowflake, 200_000)
					if err != nil || total(blocks) != 200_000 {
						t.Errorf("%d ids, %v", total(blocks), err)
					}
					mu.Lock()
					all = append(all, blocks...)
					mu.Unlock()
				}
			})
		}
		asking.Wait()
		slices.SortFunc(all, func(a, b Block) int { return int(a.First>>12 - b.First>>12) })
		for i := range all[1:] {
			if all[i].First>>12 == all[i+1].First>>12 && all[i].First+all[i].Count > all[i+1].First && all[i].First < all[i+1].First+all[i+1].Count {
				t.Fatalf("%+v and %+v meet", all[i], all[i+1])
			}
		}
		// 10,000,000 ids are the milliseconds 1 to 2,442 of a node, of which the last second may be ahead of the clock.
		if took := time.Since(began); took != 1442*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if l.proposals != 1 {
			t.Errorf("%d proposals", l.proposals)
		}
		time.Sleep(time.Hour)
		if _, err := g.Next(t.Context(), statemachine.IDSnowflake, 1); err != nil || l.proposals != 2 {
			t.Errorf("%v after %d proposals", err, l.proposals)
		}
	})
}

// TestLogAway: ids go on as far as the grant reaches, then fail at once, and come back with the log; a session that ended
// costs another grant and nothing else.
func TestLogAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFrontendLog(t)
		g := start(t, l)
		next := func() error {
			_, err := g.Next(t.Context(), statemachine.IDRaindrop, 1)
			return err
		}
		if err := next(); err != nil {
			t.Fatal(err)
		}
		l.set(func() { l.down = errors.New("the log is away") })
		for range 60 {
			if err := next(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if err := next(); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		l.set(func() { l.down, l.session = nil, l.log.open(1) })
		time.Sleep(time.Second)
		if err := next(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNodesUsedUp: while other frontends hold every node number of a kind, who asks is told so, at once; when one of them has
// gone, the next who asks gets its number, above all that it gave.
func TestNodesUsedUp(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newFrontendLog(t)
				command, _ := newNodeCore(kind, time.Second, time.Minute).propose()
				for i := range kind.Layout().Nodes() {
					if result, err := l.log.propose(l.log.open(uint64(100+i)), command); err != nil || result.Err != nil {
						t.Fatal(i, result.Err, err)
					}
				}
				g := start(t, l)
				for range 2 {
					began := time.Now()
					if _, err := g.Next(t.Context(), kind, 1); !errors.Is(err, statemachine.ErrIDNodesUsedUp) || time.Since(began) != 0 {
						t.Fatalf("%v after %v", err, time.Since(began))
					}
				}
				l.set(func() { l.log.open(105) }) // restarts, which ends the session that held number 5
				time.Sleep(2 * time.Minute)
				blocks, err := g.Next(t.Context(), kind, 1)
				if err != nil || Split(kind.Layout(), blocks[0].First).Node != 5 {
					t.Fatalf("%+v, %v", blocks, err)
				}
				if last := untilOf(command); Split(kind.Layout(), blocks[0].First).Time <= last {
					t.Errorf("%+v, where the number was granted up to %d before", Split(kind.Layout(), blocks[0].First), last)
				}
			})
		})
	}
}

func untilOf(command *commandv1.Command) int64 { return command.GetIdNodeGrant().GetUntil() }

// TestFrozen: a generator that was frozen beyond its session, while another frontend took over its number, gives nothing of
// the old grant when it wakes up but what is within it, and gets a number of its own again.
func TestFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const kind = statemachine.IDRaindrop
		l := newFrontendLog(t)
		begin := time.Now()
		elapsed := func() time.Duration { return time.Since(begin) }
		wall := func() time.Time { return time.Unix(0, statemachine.IDEpoch).Add(elapsed()) }
		frozen := New(Config{Log: l, Wall: wall, Clock: elapsed})
		t.Cleanup(frozen.Close)
		given := make(map[int64]string)
		take := func(name string, g *Generator) {
			t.Helper()
			blocks, err := g.Next(t.Context(), kind, 100)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, b := range blocks {
				for id := b.First; id < b.First+b.Count; id++ {
					if given[id] != "" {
						t.Fatalf("%s gives %d, which %s gave", name, id, given[id])
					}
					given[id] = name
				}
			}
		}
		take("frozen", frozen)
		// All other numbers are held, and its session ends while it is frozen: the number is the next one's.
		command, _ := newNodeCore(kind, time.Second, time.Minute).propose()
		for i := range kind.Layout().Nodes() - 1 {
			if _, err := l.log.propose(l.log.open(uint64(100+i)), command); err != nil {
				t.Fatal(err)
			}
		}
		l.log.open(1)
		other := &frontendLog{log: l.log, session: l.log.open(2)}
		successor := New(Config{Log: other, Wall: wall, Clock: elapsed})
		t.Cleanup(successor.Close)
		time.Sleep(80 * time.Second) // past what the first was granted, so that the successor may use times after it
		take("successor", successor)
		if _, err := frozen.Next(t.Context(), kind, 100); !errors.Is(err, ErrUnavailable) && !errors.Is(err, statemachine.ErrIDNodesUsedUp) {
			t.Fatalf("woken up: %v", err)
		}
		take("successor", successor)
		l.log.open(103) // some frontend goes, and the woken one has a session again
		l.set(func() { l.session = l.log.open(1) })
		time.Sleep(80 * time.Second)
		for range 3 {
			take("woken up", frozen)
			take("successor", successor)
			time.Sleep(10 * time.Second)
		}
	})
}

// TestMetrics: what operators see of a generator.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		begin := time.Now()
		config := Config{
			Log: newFrontendLog(t), Clock: func() time.Duration { return time.Since(begin) }, Registerer: registry,
		}
		g := New(config)
		seen := func() string {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, family := range families {
				for _, m := range family.GetMetric() {
					fmt.Fprintf(&b, "%s{%s} %v\n", strings.TrimPrefix(family.GetName(), "logmirror_ids_"),
						m.GetLabel()[0].GetValue(), m.GetGauge().GetValue()+m.GetCounter().GetValue())
				}
			}
			return b.String()
		}
		if got := seen(); !strings.Contains(got, "node_number{snowflake} -1") || !strings.Contains(got, "granted_seconds{raindrop} 0") {
			t.Errorf("before the first id:\n%s", got)
		}
		if _, err := g.Next(t.Context(), statemachine.IDRaindrop, 3); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Sequence(t.Context(), "x", 5); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		got := seen()
		for _, want := range []string{
			"generated_total{raindrop} 3", "generated_total{sequence} 5", "proposals_total{granted} 1",
			"sequence_commands_total{granted} 1", "node_number{raindrop} 0", "node_number{snowflake} -1",
			"granted_seconds{raindrop} 50",
		} {
			if !strings.Contains(got, want+"\n") {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
		g.Close()
		New(config).Close() // all of it can be registered again
		if left := seen(); left != "" {
			t.Errorf("after the end:\n%s", left)
		}
	})
}

// TestSegments: numbers of a range come without a gap, whoever asks for how many, up to the range's end.
func TestSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFrontendLog(t)
		g := start(t, l)
		var (
			mu     sync.Mutex
			all    []Block
			asking sync.WaitGroup
		)
		for i := range 20 {
			asking.Go(func() {
				for j := range 10 {
					count := int64(1 + 37*i*j)
					blocks, err := g.Segment(t.Context(), "orders", math.MaxInt32, count)
					if err != nil || total(blocks) != count {
						t.Errorf("%d of %d numbers, %v", total(blocks), count, err)
					}
					mu.Lock()
					all = append(all, blocks...)
					mu.Unlock()
				}
			})
		}
		asking.Wait()
		slices.SortFunc(all, func(a, b Block) int { return int(a.First - b.First) })
		next := int64(1)
		for _, b := range all {
			if b.First != next {
				t.Fatalf("%+v where %d is next", b, next)
			}
			next += b.Count
		}
		if blocks, err := g.Segment(t.Context(), "orders", 0, 1); err != nil || blocks[0].First != next {
			t.Fatalf("%+v, %v where %d is next", blocks, err, next)
		}

		if blocks, err := g.Segment(t.Context(), "small", 10, 7); err != nil || fmt.Sprint(blocks) != "[{1 7}]" {
			t.Fatal(blocks, err)
		}
		if blocks, err := g.Segment(t.Context(), "small", 10, 4); !errors.Is(err, statemachine.ErrIDRangeUsedUp) {
			t.Fatal(blocks, err)
		}
		if blocks, err := g.Segment(t.Context(), "small", 10, 3); err != nil || fmt.Sprint(blocks) != "[{8 3}]" {
			t.Fatal(blocks, err)
		}
		if _, err := g.Segment(t.Context(), "small", 11, 1); !errors.Is(err, statemachine.ErrIDRangeMaximum) {
			t.Fatal(err)
		}
		if len(g.ranges) != 2 {
			t.Fatalf("%d ranges are held", len(g.ranges))
		}
	})
}

// hungLog never decides.
type hungLog struct{}

func (hungLog) Propose(ctx context.Context, _ *commandv1.Command) (statemachine.Result, error) {
	<-ctx.Done()
	return statemachine.Result{}, ctx.Err()
}

// TestEnds: a caller whose time is over leaves, and Close ends the others and the proposals.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := start(t, hungLog{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Next(ctx, statemachine.IDSnowflake, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		g.Close()
		if _, err := g.Segment(t.Context(), "x", 0, 1); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	})
}

// BenchmarkGenerator asks a generator for blocks, with the real clock: one node number has 4,096,000 snowflakes a second and
// 16,384 raindrops, and a range has what its blocks are granted.
func BenchmarkGenerator(b *testing.B) {
	for _, kind := range []string{"snowflake", "segment"} {
		for _, count := range []int64{1, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", kind, count), func(b *testing.B) {
				l := newFrontendLog(b)
				begin := time.Now()
				l.log.logTime = uint64(begin.UnixNano())
				l.session = l.log.open(1)
				g := New(Config{Log: l, Clock: func() time.Duration { return time.Since(begin) }})
				defer g.Close()
				for b.Loop() {
					var err error
					if kind == "snowflake" {
						_, err = g.Next(b.Context(), statemachine.IDSnowflake, count)
					} else {
						_, err = g.Segment(b.Context(), "x", 0, count)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "ids/s")
			})
		}
	}
}
