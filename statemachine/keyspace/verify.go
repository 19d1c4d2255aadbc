package keyspace

import "fmt"

// CorruptError tells of a retained version whose memory is no longer what was written.
type CorruptError struct {
	// Key and revision as far as they can still be told: they may be what rotted.
	Key       []byte
	Main, Sub int64
	What      string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("keyspace: version of %q at (%d, %d) is corrupt in memory: %s", e.Key, e.Main, e.Sub, e.What)
}

// Verifier walks over all retained versions and recomputes their checksums, a slice at a time, beside the
// writer and the readers. It belongs to one goroutine, any.
//
// A pass sees every version that is retained from its beginning to its end.
type Verifier struct {
	space *Space
	next  uint32 // slot
}

// NewVerifier returns a Verifier at the beginning of a pass.
func (s *Space) NewVerifier() *Verifier { return &Verifier{space: s, next: 1} }

// Verify checks versions until their records make up about budget bytes, and returns whether that ended the
// pass: the next call begins another. The first corrupt version ends the call with a *CorruptError; the next
// call goes on behind it.
func (v *Verifier) Verify(budget int) (done bool, err error) {
	s := v.space
	registered := s.epochs.enter()
	defer leave(registered)
	chunks := *s.slots.chunks.Load()
	end := uint32(len(chunks) * slotChunk)
	for ; v.next < end; v.next++ {
		if budget <= 0 {
			return false, nil
		}
		checked, err := s.verifySlot(&chunks[v.next/slotChunk][v.next%slotChunk], v.next)
		if err != nil {
			v.next++
			return false, err
		}
		budget -= checked + 32 // a slot costs something even when it is free
	}
	v.next = 1
	s.packs.clear() // copies, which nobody verifies: what rots of them is served until here at most
	return true, nil
}

// verifySlot checks one slot, which the writer may free, use again or point to a moved record meanwhile. The
// caller is registered.
func (s *Space) verifySlot(sl *slot, number uint32) (recordBytes int, err error) {
	for {
		ref := recordRef(sl.ref.Load())
		if ref == 0 {
			return 0, nil
		}
		main := sl.main.Load()
		r := s.slabs.record(ref)
		what := r.fault(ref, main, number)
		// A place is not used twice while a reader is registered, so the same reference means the same use of
		// the slot.
		if recordRef(sl.ref.Load()) != ref {
			continue
		}
		if what == "" {
			return len(r), nil
		}
		return len(r), &CorruptError{Key: append([]byte(nil), r.key()...), Main: main, Sub: r.sub(), What: what}
	}
}

// fault says what is wrong with a record that the slot of the given number refers to; empty for nothing.
func (r record) fault(ref recordRef, main int64, slot uint32) string {
	if !r.intact() {
		return "checksum"
	}
	kv, err := decodeKeyValue(r.encoded())
	switch {
	case err != nil:
		return err.Error()
	case r.slot() != slot:
		return "belongs to another slot"
	case kv.modRevision != main:
		return "revision differs from its slot's"
	case r.tombstone() != ref.tombstone() || r.tombstone() != (kv.version == 0):
		return "put and delete disagree"
	}
	return ""
}
