package segment

import (
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

func TestSmoke(t *testing.T) {
	for name, fsys := range map[string]disk.FS{"memory": disk.NewMemory(1), "os": disk.OS()} {
		dir := t.TempDir() + "/log"
		if name == "memory" {
			dir = "log"
		}
		o := Options{SegmentBytes: 4096, Identity: Identity{1, 2, 3}}
		l, err := Open(fsys, dir, o)
		if err != nil {
			t.Fatal(err)
		}
		for i := uint64(1); i <= 100; i++ {
			if err := l.Append(Group{HardState: HardState{Term: 1, Commit: i}, Entries: []Entry{{Index: i, Term: 1, Data: make([]byte, i)}}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Trim(50); err != nil {
			t.Fatal(err)
		}
		digest, first := l.last.digest, l.FirstIndex()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, err = Open(fsys, dir, o)
		if err != nil {
			t.Fatal(err)
		}
		e, err := l.Entries(first, 101, 0)
		if err != nil || len(e) != int(101-first) || l.last.digest != digest || l.FirstIndex() != first || first < 20 {
			t.Fatal(len(e), err, first, l.FirstIndex())
		}
		if err := l.Reset(200, 3, 77); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
