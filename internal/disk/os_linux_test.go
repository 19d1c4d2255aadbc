package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A system that refuses a write past its page cache gets it, and those after it, the usual way.
func TestDirectRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	file, err := openOS(path, os.O_RDWR|os.O_CREATE)
	must(t, err)
	f := file.(*osFile)
	f.direct, err = os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0) // EINVAL for whatever is no number
	must(t, err)
	block := bytes.Repeat([]byte("x"), 64<<10)
	for n := range 2 {
		if written, err := file.WriteAt(block, int64(n*len(block))); written != len(block) || err != nil {
			t.Fatalf("wrote %d bytes: %v", written, err)
		}
	}
	if !f.refused.Load() {
		t.Error("what was refused once is tried again")
	}
	must(t, file.Close())
	if err := f.direct.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the descriptor for writes past the page cache was left open: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, append(block, block...)) {
		t.Errorf("the file holds %d bytes: %v", len(got), err)
	}
}

// Only blocks in memory that begins at a block's multiple go past the page cache.
func TestWholeBlocks(t *testing.T) {
	memory := make([]byte, 1<<20) // so large that it begins with a page
	for _, c := range []struct {
		what        string
		offset      int64
		from, bytes int
		want        bool
	}{
		{"blocks", 3 * BlockBytes, 0, 2 * BlockBytes, true},
		{"blocks further on in memory", 0, BlockBytes, BlockBytes, true},
		{"nothing", 0, 0, 0, false},
		{"an offset within a block", 512, 0, BlockBytes, false},
		{"a part of a block", 0, 0, BlockBytes + 512, false},
		{"memory that begins within a block", 0, 512, BlockBytes, false},
	} {
		if got := wholeBlocks(memory[c.from:][:c.bytes], c.offset); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// A file whose name was given to another one is not written to under that name.
func TestDirectOfARenamedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	file, err := OS().Create(path)
	must(t, err)
	must(t, OS().Rename(path, path+".old"))
	must(t, os.WriteFile(path, nil, 0o600))
	file.Direct()
	block := bytes.Repeat([]byte("x"), 1<<20)
	if _, err := file.WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	must(t, file.Close())
	for name, want := range map[string]int{path: 0, path + ".old": len(block)} {
		if got, err := os.ReadFile(name); err != nil || len(got) != want {
			t.Errorf("%s holds %d bytes, want %d: %v", name, len(got), want, err)
		}
	}
}
