package segment

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

const testDir = "data/log"

var testIdentity = Identity{ClusterHash: 0xc1, MemberID: 0xa2, DataDirectoryID: 0xd3}

// testOptions make segments small, keep the index of one sealed segment in memory, and leave the log without a goroutine
// of its own, so that its operations have one order.
func testOptions() Options {
	return Options{SegmentBytes: 4096, IndexBytes: 1, Identity: testIdentity, ManualReserve: true}
}

// stride is how far apart the places are that a test of every place goes to: 1, or the distance given where the race detector
// looks on, because these tests are single-threaded. It should share no factor with the sizes within the format.
func stride(underRace int64) int64 {
	if raceEnabled {
		return underRace
	}
	return 1
}

func open(t testing.TB, fsys disk.FS, o Options) *Log {
	t.Helper()
	l, err := Open(fsys, testDir, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	must(t, l.Close())
}

// model is a log as a slice.
type model struct {
	base       base
	entries    []Entry
	hardState  HardState
	membership []byte
}

func (m *model) last() uint64 { return m.base.index + uint64(len(m.entries)) }

func (m *model) lastTerm() uint64 { return m.term(m.last()) }

func (m *model) term(index uint64) uint64 {
	if index == m.base.index {
		return m.base.term
	}
	return m.entries[index-m.base.index-1].Term
}

func (m *model) digest(index uint64) uint64 {
	digest := m.base.digest
	for _, e := range m.entries[:index-m.base.index] {
		digest = NextDigest(digest, e.Index, e.Term, e.Data)
	}
	return digest
}

func (m *model) clone() *model {
	c := *m
	c.entries = slices.Clone(m.entries)
	return &c
}

func (m *model) append(g Group) {
	if g.HardState != (HardState{}) {
		m.hardState = g.HardState
	}
	if g.Membership != nil {
		m.membership = bytes.Clone(g.Membership)
	}
	if len(g.Entries) > 0 {
		m.entries = append(m.entries[:g.Entries[0].Index-m.base.index-1:g.Entries[0].Index-m.base.index-1], g.Entries...)
	}
}

func (m *model) reset(b Base) {
	m.base, m.entries = base{index: b.Index, term: b.Term, digest: b.Digest}, nil
	m.hardState.Commit = max(m.hardState.Commit, b.Index)
}

// trimmedTo moves the model's beginning to where the log says that its own is.
func (m *model) trimmedTo(first uint64) {
	if first > m.base.index+1 {
		next := base{index: first - 1, term: m.term(first - 1), digest: m.digest(first - 1)}
		m.entries = slices.Clone(m.entries[next.index-m.base.index:])
		m.base = next
	}
}

// compare tells what distinguishes the log from the model, looking at everything that can be asked for.
func (m *model) compare(l *Log) error {
	if l.FirstIndex() != m.base.index+1 || l.LastIndex() != m.last() {
		return fmt.Errorf("entries [%d,%d], want [%d,%d]", l.FirstIndex(), l.LastIndex(), m.base.index+1, m.last())
	}
	if l.HardState() != m.hardState || !bytes.Equal(l.Membership(), m.membership) {
		return fmt.Errorf("state %+v %q, want %+v %q", l.HardState(), l.Membership(), m.hardState, m.membership)
	}
	for index := m.base.index; index <= m.last(); index++ {
		if term, err := l.Term(index); err != nil || term != m.term(index) {
			return fmt.Errorf("term of %d is %d (%v), want %d", index, term, err, m.term(index))
		}
		if digest, err := l.Digest(index); err != nil || digest != m.digest(index) {
			return fmt.Errorf("digest of %d is %x (%v), want %x", index, digest, err, m.digest(index))
		}
	}
	return m.compareEntries(l, m.base.index+1, m.last()+1, 0)
}

// compareEntries reads [lo, hi) in as many calls as it takes.
func (m *model) compareEntries(l *Log, lo, hi uint64, maxBytes int) error {
	for lo < hi {
		got, err := l.Entries(lo, hi, maxBytes)
		if err != nil {
			return fmt.Errorf("entries [%d,%d): %w", lo, hi, err)
		}
		if len(got) == 0 || uint64(len(got)) > hi-lo {
			return fmt.Errorf("entries [%d,%d): got %d", lo, hi, len(got))
		}
		total := 0
		for i, e := range got {
			want := m.entries[lo-m.base.index-1]
			if e.Index != want.Index || e.Term != want.Term || e.Type != want.Type || !bytes.Equal(e.Data, want.Data) {
				return fmt.Errorf("entry %d is %v, want %v", lo, e, want)
			}
			if total += len(e.Data); maxBytes > 0 && i > 0 && total > maxBytes {
				return fmt.Errorf("%d entries of %d bytes, at most %d", len(got), total, maxBytes)
			}
			lo++
		}
	}
	return nil
}

// entries makes entries of one term with data that tells them apart.
func entries(first uint64, count int, term uint64, size int) []Entry {
	made := make([]Entry, count)
	for i := range made {
		data := bytes.Repeat([]byte{byte(first + uint64(i))}, size)
		made[i] = Entry{Index: first + uint64(i), Term: term, Type: uint8(i % 3), Data: data}
	}
	return made
}
