package segment

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/logmirror/logmirror/internal/disk"
)

// TestLogAgainstSlice runs random calls against the log and a slice, over reopening, killing and power cuts. Whatever was
// acknowledged must be there after each.
func TestLogAgainstSlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fsys := disk.NewMemory(rapid.Uint64().Draw(t, "seed"))
		o := testOptions()
		o.SegmentBytes = int64(rapid.SampledFrom([]int{2048, 4096, 8192}).Draw(t, "segmentBytes"))
		o.MaxReadBytes = rapid.SampledFrom([]int{1, 700, 1 << 20}).Draw(t, "maxReadBytes")
		o.IndexBytes = rapid.SampledFrom([]int{1, 1 << 20}).Draw(t, "indexBytes")
		l, err := Open(fsys, testDir, o)
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		check(err)
		m := &model{}
		reopen := func() {
			l, err = Open(fsys, testDir, o)
			check(err)
			check(m.compare(l))
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				g := drawGroup(t, m)
				check(l.Append(g))
				m.append(g)
			},
			"bad append": func(t *rapid.T) {
				if err := l.Append(drawBadGroup(t, m)); !errors.Is(err, ErrInvalid) {
					t.Fatalf("got %v", err)
				}
			},
			"trim": func(t *rapid.T) {
				index := rapid.Uint64Range(0, m.hardState.Commit).Draw(t, "index")
				check(l.Trim(index))
				if first := l.FirstIndex(); first > max(index, m.base.index)+1 {
					t.Fatalf("trim to %d left %d as the first", index, first)
				}
				m.trimmedTo(l.FirstIndex())
			},
			"install": func(t *rapid.T) {
				b := Base{Index: m.hardState.Commit + rapid.Uint64Range(0, 20).Draw(t, "ahead"), Term: m.hardState.Term,
					Digest: rapid.Uint64().Draw(t, "digest")}
				m.reset(b)
				var groups []Group
				for range rapid.IntRange(0, 3).Draw(t, "groups") {
					g := drawGroup(t, m)
					groups = append(groups, g)
					m.append(g)
				}
				check(l.Install(b, func(yield func(Group, error) bool) {
					for _, g := range groups {
						if !yield(g, nil) {
							return
						}
					}
				}))
			},
			"read": func(t *rapid.T) {
				if len(m.entries) == 0 {
					return
				}
				lo := rapid.Uint64Range(m.base.index+1, m.last()).Draw(t, "lo")
				hi := rapid.Uint64Range(lo+1, m.last()+1).Draw(t, "hi")
				check(m.compareEntries(l, lo, hi, rapid.IntRange(0, 2000).Draw(t, "maxBytes")))
			},
			"reserve": func(*rapid.T) { check(l.Reserve()) },
			"reopen": func(*rapid.T) {
				check(l.Close())
				reopen()
			},
			"kill": func(*rapid.T) {
				fsys.Kill()
				reopen()
			},
			"crash": func(*rapid.T) {
				fsys.Crash()
				fsys.Restart()
				reopen()
			},
			"": func(t *rapid.T) {
				check(m.compare(l))
				if _, err := l.Entries(m.base.index, m.base.index+1, 0); !errors.Is(err, ErrTrimmed) {
					t.Fatalf("before the first entry: %v", err)
				}
				if _, err := l.Term(m.last() + 1); !errors.Is(err, ErrUnavailable) {
					t.Fatalf("behind the last entry: %v", err)
				}
			},
		})
		check(l.Close())
	})
}

func drawGroup(t *rapid.T, m *model) (g Group) {
	g.HardState = m.hardState
	g.HardState.Term = max(m.lastTerm(), m.hardState.Term) + rapid.Uint64Range(0, 1).Draw(t, "newTerm")
	g.HardState.Vote = rapid.Uint64Range(0, 3).Draw(t, "vote")
	last := m.last()
	if count := rapid.IntRange(0, 5).Draw(t, "entries"); count > 0 {
		first := rapid.Uint64Range(max(m.base.index, m.hardState.Commit)+1, last+1).Draw(t, "first")
		size := rapid.SampledFrom([]int{0, 1, 100, 700, 5000}).Draw(t, "size")
		g.Entries = entries(first, count, g.HardState.Term, size)
		for i := range g.Entries {
			fill := rapid.Byte().Draw(t, "fill")
			g.Entries[i].Data = bytes.Repeat([]byte{fill}, size)
		}
		last = first + uint64(count) - 1
	}
	g.HardState.Commit = rapid.Uint64Range(m.hardState.Commit, last).Draw(t, "commit")
	if rapid.IntRange(0, 4).Draw(t, "membership") == 0 {
		g.Membership = rapid.SliceOfN(rapid.Byte(), 0, 900).Draw(t, "members")
	}
	return g
}

func drawBadGroup(t *rapid.T, m *model) Group {
	term := max(m.lastTerm(), m.hardState.Term)
	next := m.last() + 1
	bad := []Group{
		{Entries: entries(next+1, 1, term, 1)},
		{Entries: append(entries(next, 1, term, 1), entries(next, 1, term, 1)...)},
		{HardState: HardState{Term: term, Commit: next}},
		{Entries: append(entries(next, 1, term+2, 1), entries(next+1, 1, term+1, 1)...)},
	}
	if m.hardState.Commit > 0 {
		bad = append(bad, Group{Entries: entries(m.hardState.Commit, 1, term, 1)},
			Group{HardState: HardState{Term: term, Commit: m.hardState.Commit - 1, Vote: 1}})
	}
	if m.hardState.Term > 1 {
		bad = append(bad, Group{HardState: HardState{Term: m.hardState.Term - 1, Commit: m.hardState.Commit}})
	}
	if m.lastTerm() > 1 {
		bad = append(bad, Group{Entries: entries(next, 1, m.lastTerm()-1, 1)})
	}
	return rapid.SampledFrom(bad).Draw(t, "bad")
}
