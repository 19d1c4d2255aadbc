package keyspace

import (
	"bytes"
	"fmt"
	"testing"
)

// TestRecords writes versions around the limits of a narrow record, and moves them.
func TestRecords(t *testing.T) {
	s := spaceOf(t, Options{SlabBytes: 64 << 10})
	type version struct {
		key   string
		value []byte
		sub   int64
	}
	var written []version
	for _, sub := range []int64{0, 1, narrowSubEnd - 1, narrowSubEnd, narrowSubEnd + 1, maxSub - 1} {
		for n := range 5 { // each padding
			written = append(written, version{fmt.Sprintf("%d/%d", sub, n), bytes.Repeat([]byte{byte(n)}, n), sub})
		}
	}
	for n := narrowBytesEnd - 60; n < narrowBytesEnd; n += 4 { // less by what surrounds the value
		written = append(written, version{fmt.Sprintf("large/%08d", n), bytes.Repeat([]byte{byte(n)}, n), 0})
	}
	main := int64(1)
	for _, v := range written {
		// What is overwritten later leaves slabs mostly dead, so that the rest is moved.
		for n := range 20 {
			main++
			s.Put(fmt.Append(nil, "filler/", n), make([]byte, 3000), 0, main, 0)
		}
		main++
		s.Put([]byte(v.key), v.value, 0, main, v.sub)
		s.Publish(uint64(main), main)
	}
	wide, narrow := 0, 0
	check := func() {
		t.Helper()
		sn := s.Acquire()
		defer sn.Release()
		wide, narrow = 0, 0
		for _, v := range written {
			got, found, err := sn.Get([]byte(v.key), 0)
			if err != nil || !found || !bytes.Equal(got.Value, v.value) || got.Sub != v.sub || got.Tombstone || !got.Intact() {
				t.Fatalf("%s: %t, %d bytes, sub %d, tombstone %t, %v", v.key, found, len(got.Value), got.Sub, got.Tombstone, err)
			}
			if isWide(v.sub, len(got.Encoded)) {
				wide++
			} else {
				narrow++
			}
		}
	}
	check()
	before := s.Stats().SlabBytes
	s.Compact(main)
	drain(t, s)
	if after := s.Stats().SlabBytes; after > before-5*1024*1024/4 {
		t.Errorf("slabs of %d bytes, after the compaction %d", before, after)
	}
	check()
	if wide < 20 || narrow < 20 || wide+narrow != 45 {
		t.Errorf("%d wide records, %d narrow ones", wide, narrow)
	}
	for _, v := range written {
		main++
		tombstone, _, _ := s.Delete([]byte(v.key), main, v.sub)
		if !tombstone.Tombstone || tombstone.Sub != v.sub || !tombstone.Intact() {
			t.Errorf("%s: deleted as %+v", v.key, tombstone)
		}
	}
	s.Publish(uint64(main), main)
}
