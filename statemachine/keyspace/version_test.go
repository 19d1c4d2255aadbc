package keyspace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// TestChecksumIsCRC32C compares with the standard library over the same bytes in one piece.
func TestChecksumIsCRC32C(t *testing.T) {
	for _, encoded := range [][]byte{nil, {1}, []byte("a longer encoding, with more than sixteen bytes")} {
		whole := binary.LittleEndian.AppendUint32(nil, 0x12345679)
		want := crc32.Checksum(append(whole, encoded...), crc32.MakeTable(crc32.Castagnoli))
		if got := recordChecksum(0x12345679, encoded); got != want {
			t.Errorf("%x: %08x, want %08x", encoded, got, want)
		}
	}
}

// FuzzDecodeKeyValue feeds the decoder anything: it must not panic, must agree with the generated code on what
// it accepts, and accept all that the encoder writes.
func FuzzDecodeKeyValue(f *testing.F) {
	kv := keyValue{key: []byte("key"), value: []byte("value"), createRevision: 3, modRevision: 300, version: 2, lease: -1}
	f.Add(kv.appendTo(nil))
	tombstone := tombstoneOf([]byte("key"), 1<<40)
	f.Add(tombstone.appendTo(nil))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{0x0a, 0x01, 'a', 0x0a, 0x01, 'b'})
	f.Add([]byte{0x0a})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeKeyValue(b)
		if err != nil {
			return
		}
		var want kvv1.KeyValue
		if err := proto.Unmarshal(b, &want); err != nil {
			t.Fatalf("%x is accepted, but no key-value: %v", b, err)
		}
		if !bytes.Equal(got.key, want.GetKey()) || !bytes.Equal(got.value, want.GetValue()) ||
			got.createRevision != want.GetCreateRevision() || got.modRevision != want.GetModRevision() ||
			got.version != want.GetVersion() || got.lease != want.GetLease() {
			t.Fatalf("%x: %+v, want %v", b, got, &want)
		}
		again := got.appendTo(nil)
		if len(again) != got.encodedBytes() {
			t.Fatalf("%+v: %d bytes, counted %d", got, len(again), got.encodedBytes())
		}
		standard, err := proto.MarshalOptions{Deterministic: true}.Marshal(&want)
		if err != nil || !bytes.Equal(again, standard) {
			t.Fatalf("%+v: encoded as %x, want %x (%v)", got, again, standard, err)
		}
		if v, err := DecodeKeyValue(b); err == nil {
			restoreOne(t, v, b)
		}
	})
}

// restoreOne checks that Restore takes or refuses what the decoder accepts, and reads back what it took.
func restoreOne(t *testing.T, v Version, encoded []byte) {
	s := spaceOf(t, Options{CompactRevision: v.ModRevision})
	if err := s.Restore(encoded, 0); err != nil {
		if !errors.Is(err, ErrInconsistent) && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		return
	}
	if _, found := s.Latest(v.Key); found == v.Tombstone {
		t.Fatalf("restored %x, found %v", encoded, found)
	}
	s.Publish(1, v.ModRevision)
	sn := s.Acquire()
	defer sn.Release()
	var got [][]byte
	err := sn.History(v.ModRevision, 0, func(v Version) bool { got = append(got, v.Encoded); return true })
	if err != nil || len(got) != 1 || !bytes.Equal(got[0], encoded) {
		t.Fatalf("restored %x as %x (%v)", encoded, got, err)
	}
}

// FuzzRecord feeds the readers of records rotten memory: nothing may panic, and the checksum must tell.
func FuzzRecord(f *testing.F) {
	kv := keyValue{key: []byte("key"), value: []byte("value"), createRevision: 3, modRevision: 300, version: 2}
	for _, sub := range []int64{9, narrowSubEnd} {
		room := make([]byte, recordBytes(sub, kv.encodedBytes()))
		writeRecord(room, 7, sub, false, &kv, kv.encodedBytes())
		f.Add(room)
	}
	f.Add(make([]byte, recordHeaderBytes))
	f.Add(append(make([]byte, 8), recordWide, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < recordHeaderBytes {
			return // records begin at most this far before the end of a slab
		}
		r := recordAt(b)
		v := r.version()
		_ = r.key()
		if v.Intact() != r.intact() {
			t.Fatal("the version and its record disagree")
		}
		for i := range r {
			if i >= 4 && i < 8 || i >= 10 && i < 12 || i == 9 && r.wide() {
				continue // slot and length are checked otherwise
			}
			if rotten := bytes.Clone(r); r.intact() {
				rotten[i] ^= 1
				if record(rotten).intact() {
					t.Fatalf("a flipped bit in byte %d is not found", i)
				}
			}
		}
	})
}

func TestRestoreRefusesWhatDoesNotFit(t *testing.T) {
	live := func(key string, create, mod, version int64) []byte {
		kv := keyValue{key: []byte(key), createRevision: create, modRevision: mod, version: version}
		return kv.appendTo(nil)
	}
	deleted := func(key string, mod int64) []byte {
		kv := tombstoneOf([]byte(key), mod)
		return kv.appendTo(nil)
	}
	s := spaceOf(t, Options{CompactRevision: 10})
	for _, c := range []struct {
		what    string
		encoded []byte
		sub     int64
		want    error
	}{
		{"base", live("a", 3, 8, 2), 0, nil},
		{"base twice", live("a", 3, 9, 3), 0, ErrInconsistent},
		{"base tombstone", deleted("b", 8), 0, ErrInconsistent},
		{"version skipped", live("a", 3, 11, 4), 0, ErrInconsistent},
		{"other create_revision", live("a", 4, 11, 3), 0, ErrInconsistent},
		{"tombstone of nothing", deleted("b", 11), 0, ErrInconsistent},
		{"born old", live("b", 5, 11, 1), 0, ErrInconsistent},
		{"negative sub", live("a", 3, 11, 3), -1, ErrInconsistent},
		{"next", live("a", 3, 11, 3), 1, nil},
		{"same place", live("b", 11, 11, 1), 1, ErrInconsistent},
		{"base after history", live("c", 1, 2, 1), 0, ErrInconsistent},
		{"tombstone", deleted("a", 12), 0, nil},
		{"born again", live("a", 12, 12, 1), 1, nil},
		{"garbage", []byte{0xff}, 0, ErrMalformed},
		{"no key", live("", 13, 13, 1), 0, ErrMalformed},
		{"long varint", []byte{0x0a, 0x81, 0x00, 'a', 0x10, 13, 0x18, 13, 0x20, 1}, 0, ErrMalformed},
	} {
		if err := s.Restore(c.encoded, c.sub); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	s.Publish(5, 12)
	if st := s.Stats(); st.Keys != 1 || st.Versions != 4 {
		t.Errorf("%+v", st)
	}
}

// TestAllocations bounds what the hot paths allocate.
func TestAllocations(t *testing.T) {
	s := New(Options{})
	main := fill(s, 10_000)
	value := make([]byte, 100)
	k := name(777)
	put := testing.AllocsPerRun(5000, func() {
		main++
		s.Put(k, value, 0, main, 0)
	})
	fresh := testing.AllocsPerRun(5000, func() {
		main++
		binary.BigEndian.PutUint64(k, uint64(main)*0x9e3779b97f4a7c15)
		s.Put(k, value, 0, main, 0)
	})
	k = name(778)
	s.Publish(uint64(main), main)
	sn := s.Acquire()
	defer sn.Release()
	get := testing.AllocsPerRun(1000, func() {
		if _, found, err := sn.Get(k, 0); !found || err != nil {
			t.Fatal("not found")
		}
	})
	latest := testing.AllocsPerRun(1000, func() { s.Latest(k) })
	n := 0
	visit := func(Version) bool { n++; return n%1000 != 0 }
	scan := testing.AllocsPerRun(100, func() { _ = sn.Range(k, nil, 0, visit) })
	t.Logf("put %.2f, put of a new key %.2f, get %.2f, latest %.2f, range of 1,000 %.2f", put, fresh, get, latest, scan)
	if put > 0 || fresh > 1 || get > 0 || latest > 0 || scan > 2 {
		t.Error("too many allocations")
	}
}
