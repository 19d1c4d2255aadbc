package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

// FuzzFrame decodes arbitrary bytes at arbitrary places. With resum the checksums are made right first, so that what stands
// behind them is reached: nothing panics, and entries stay within the frame.
func FuzzFrame(f *testing.F) {
	g := Group{HardState: HardState{Term: 3, Vote: 1, Commit: 4}, Entries: entries(5, 2, 3, 30), Membership: []byte("members")}
	payload, err := payloadBytes(&g)
	if err != nil {
		f.Fatal(err)
	}
	whole := make([]byte, frameHeaderBytes+align(payload)+frameTrailerBytes)
	encodeFrame(whole, &frameHeader{hardState: g.HardState, first: 5}, &g, 77, 512)
	f.Add(whole, uint32(77), int64(512), false)
	f.Add(whole, uint32(78), int64(512), true)
	f.Add(whole[:frameHeaderBytes], uint32(77), int64(512), true)
	f.Fuzz(func(t *testing.T, b []byte, salt uint32, offset int64, resum bool) {
		le := binary.LittleEndian
		if b = bytes.Clone(b); resum && len(b) >= frameBytesMin {
			le.PutUint32(b, frameMagic)
			le.PutUint32(b[84:], 0)
			le.PutUint32(b[92:], frameHeaderMark)
			length := frameHeaderBytes + align(int64(le.Uint32(b[8:]))) + frameTrailerBytes
			if length <= int64(len(b)) {
				le.PutUint32(b[4:], crc32.Checksum(b[frameHeaderBytes:length-frameTrailerBytes], castagnoli))
				le.PutUint32(b[length-4:], frameEndMark)
				le.PutUint32(b[length-8:], headerCRC(b, salt, offset))
			}
			le.PutUint32(b[88:], headerCRC(b, salt, offset))
		}
		decoded, reason := decodeFrame(b, salt, offset)
		if reason != "" {
			return
		}
		if decoded.length() > int64(len(b)) {
			t.Fatalf("a frame of %d bytes in %d", decoded.length(), len(b))
		}
		bytesOfEntries, next := 0, decoded.first
		decoded.entries(func(e Entry) bool {
			if e.Index != next {
				t.Fatalf("entry %d after %d", e.Index, next-1)
			}
			next++
			bytesOfEntries += len(e.Data)
			return true
		})
		if bytesOfEntries != len(decoded.data) || next != decoded.last()+1 {
			t.Errorf("%d of %d bytes in entries up to %d, last is %d", bytesOfEntries, len(decoded.data), next-1, decoded.last())
		}
	})
}

// FuzzOpen writes over a part of a segment of a log. Open says what is damaged, or gives a log whose entries can be read or
// are reported damaged; it never invents one.
func FuzzOpen(f *testing.F) {
	const count = 12
	whole := map[string][]byte{}
	var name string
	{
		fsys := disk.NewMemory(1)
		l := open(f, fsys, testOptions())
		for i := range uint64(count) {
			if err := l.Append(Group{HardState: HardState{Term: 1, Vote: 1, Commit: i}, Entries: entries(i+1, 1, 1, 40)}); err != nil {
				f.Fatal(err)
			}
		}
		closeLog(f, l)
		names, err := fsys.ReadDir(testDir)
		if err != nil {
			f.Fatal(err)
		}
		for _, n := range names {
			content, err := disk.ReadFile(fsys, testDir+"/"+n, 1<<20)
			if err != nil {
				f.Fatal(err)
			}
			whole[n] = content
			if _, ok := parseSegmentName(n); ok && name == "" {
				name = n
			}
		}
	}
	f.Add(uint16(0), []byte{})
	f.Add(uint16(600), []byte("damage"))
	f.Add(uint16(12), []byte{0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, at uint16, content []byte) {
		fsys := disk.NewMemory(1)
		if err := fsys.MkdirAll(testDir); err != nil {
			t.Fatal(err)
		}
		for n, b := range whole {
			if b = bytes.Clone(b); n == name {
				copy(b[int(at)%len(b):], content)
			}
			if err := disk.WriteFile(fsys, testDir+"/"+n, b); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(fsys, testDir, testOptions())
		if err != nil {
			return
		}
		defer closeLog(t, l)
		want := entries(1, count, 1, 40)
		for i := l.FirstIndex(); i <= l.LastIndex(); i++ {
			got, err := l.Entries(i, i+1, 1<<20)
			var corrupt *CorruptError
			switch {
			case errors.As(err, &corrupt):
			case err != nil:
				t.Fatal(err)
			case len(got) != 1 || i > count || !bytes.Equal(got[0].Data, want[i-1].Data):
				t.Fatalf("entry %d is %v", i, got)
			}
		}
	})
}
