package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

// FuzzFooter opens arbitrary files under a checkpoint's name; with resum the footer's checksum is right. What is taken has
// the size that it says.
func FuzzFooter(f *testing.F) {
	name, data := content(5, 3000)
	f.Add(append(bytes.Clone(data), encodeFooter(name, []uint32{1})...), false)
	f.Add(encodeFooter(Name{Index: 5}, nil), true)
	f.Add([]byte("short"), true)
	f.Fuzz(func(t *testing.T, b []byte, resum bool) {
		if b = bytes.Clone(b); resum && len(b) >= footerFixedBytes {
			fixed, le := b[len(b)-footerFixedBytes:], binary.LittleEndian
			copy(fixed, footerMagic)
			if size := le.Uint64(fixed[8:]); size <= uint64(len(b)-footerFixedBytes) {
				le.PutUint32(fixed[20:], footerCRC(name, b[size:len(b)-4]))
			}
		}
		fsys := disk.NewMemory(1)
		if err := disk.WriteFile(fsys, "file", b); err != nil {
			t.Fatal(err)
		}
		file, err := fsys.OpenFile("file")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		n, chunks, err := readFooter(file, name)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if int64(len(chunks)) != chunkCount(n.SizeBytes) || n.SizeBytes+4*int64(len(chunks))+footerFixedBytes != int64(len(b)) {
			t.Errorf("%d bytes and %d chunks in a file of %d bytes", n.SizeBytes, len(chunks), len(b))
		}
	})
}

// FuzzParseFile takes only names that Name gives.
func FuzzParseFile(f *testing.F) {
	name, _ := content(5, 10)
	f.Add(name.file())
	f.Add("0000000000000005-.checkpoint")
	f.Fuzz(func(t *testing.T, text string) {
		if n, ok := parseFile(text); ok && n.file() != text {
			t.Errorf("%q is taken for %q", text, n.file())
		}
	})
}
