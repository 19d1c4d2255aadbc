package disk

import (
	"path/filepath"
	"testing"
)

func TestCountedCountsBlocks(t *testing.T) {
	counted := Count(OS())
	file, err := counted.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Allocate(5 * BlockBytes); err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	for _, write := range []struct {
		offset       int64
		bytes, block int64
	}{{0, 1, 1}, {100, 3996, 1}, {100, 3997, 2}, {4096, 4096, 1}, {4095, 2, 2}, {4095, 2 + 4096, 3}, {7, 0, 0}} {
		if _, err := file.WriteAt(make([]byte, write.bytes), write.offset); err != nil {
			t.Fatal(err)
		}
		if want += write.block * BlockBytes; counted.WrittenBytes() != want {
			t.Fatalf("after %d bytes at %d: %d counted, want %d", write.bytes, write.offset, counted.WrittenBytes(), want)
		}
	}
	if got := counted.ReservedBytes(); got != 5*BlockBytes {
		t.Errorf("reserved %d", got)
	}
}
