package idgen

import (
	"testing"

	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// TestNoNumberTwice: many processes take numbers of one range, with restarts, callers that leave, and grants whose outcome
// is lost: no number is given twice or is beyond the end, those of one grant have no gap, and what callers gave back is
// given again.
func TestNoNumberTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const highest = 500
		l := newTestLog(t)
		type process struct {
			core    *segmentCore
			session uint64
		}
		processes := make([]*process, rapid.IntRange(1, 4).Draw(rt, "processes"))
		restart := func(i int) {
			processes[i] = &process{
				core:    &segmentCore{name: "orders", max: highest, blockSize: rapid.Int64Range(1, 40).Draw(rt, "block size")},
				session: l.open(uint64(i + 1)),
			}
		}
		for i := range processes {
			restart(i)
		}
		given := make(map[int64]bool)
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			i := rapid.IntRange(0, len(processes)-1).Draw(rt, "process")
			p := processes[i]
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				restart(i)
			case 1, 2, 3:
				command, due := p.core.propose()
				if !due {
					continue
				}
				result, err := l.propose(p.session, command)
				if err != nil {
					rt.Fatal(err)
				}
				if rapid.IntRange(0, 4).Draw(rt, "lost") == 0 {
					_ = p.core.decided(command, nil, ErrUnavailable)
				} else {
					_ = p.core.decided(command, result.ID, result.Err)
				}
			default:
				count := rapid.Int64Range(1, 60).Draw(rt, "count")
				blocks, left, _ := p.core.take(reading{}, count, nil)
				if total(blocks)+left != count {
					rt.Fatalf("%d given, %d left of %d", total(blocks), left, count)
				}
				if rapid.IntRange(0, 4).Draw(rt, "leaves") == 0 {
					held := total(p.core.blocks)
					p.core.giveBack(blocks)
					if again, _, _ := p.core.take(reading{}, held+total(blocks), nil); total(again) != held+total(blocks) {
						rt.Fatalf("%d of %d numbers are there again", total(again), held+total(blocks))
					} else {
						p.core.giveBack(again)
					}
					continue
				}
				for j, b := range blocks {
					if j > 0 && b.First == blocks[j-1].First+blocks[j-1].Count {
						rt.Fatalf("%+v is in two", blocks)
					}
					for n := b.First; n < b.First+b.Count; n++ {
						if given[n] || n < 1 || n > highest {
							rt.Fatalf("%d is given again or beyond the range", n)
						}
						given[n] = true
					}
				}
			}
		}
	})
}

// TestSegmentAsksForWhatIsWaitedFor: a grant is as large as all that wait want, or a block, and asked for ahead.
func TestSegmentAsksForWhatIsWaitedFor(t *testing.T) {
	c := &segmentCore{name: "orders", blockSize: 100}
	size := func() int64 {
		command, due := c.propose()
		if !due {
			return 0
		}
		return command.GetIdSegmentGrant().GetSize()
	}
	grant := &commandv1.Command{}
	for _, step := range []struct{ wanted, held, asks int64 }{{0, 0, 100}, {70, 0, 100}, {700, 0, 700}, {0, 50, 0}, {0, 49, 100}, {60, 50, 100}} {
		c.wanted, c.blocks = step.wanted, nil
		if step.held > 0 {
			_ = c.decided(grant, resultOf(1, step.held), nil)
		}
		if got := size(); got != step.asks {
			t.Errorf("with %d held and %d wanted it asks for %d, want %d", step.held, step.wanted, got, step.asks)
		}
	}
}
