package keyspace

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// DigestVersion names the way digests are made. Raised with every change of it, so that only alike ones are compared.
const DigestVersion = 1

// Digest sums up a state of the key space. Two that applied the same writes have equal ones, whatever their compaction and
// restarts.
type Digest struct {
	// Live is the sum, of two independent hashes each modulo 2^64, over the encoded key-values of all live keys.
	Live [2]uint64
	// Events is a running hash over every version ever written, in order.
	Events uint64
}

// digestSeed makes the second hash another function than the first, which is plain XXH64.
const digestSeed = 0x6c6f676d6972726f

func hashEncoded(encoded []byte) (first, second uint64) {
	var d xxhash.Digest
	d.ResetWithSeed(digestSeed)
	_, _ = d.Write(encoded) // never fails
	return xxhash.Sum64(encoded), d.Sum64()
}

// written takes a version that was stored, and the live one that it replaces or ends, if there is one.
func (d *Digest) written(r record, previous Version, existed bool) {
	first, second := hashEncoded(r.encoded())
	var event [28]byte
	binary.LittleEndian.PutUint64(event[0:], d.Events)
	binary.LittleEndian.PutUint64(event[8:], first)
	binary.LittleEndian.PutUint64(event[16:], second)
	binary.LittleEndian.PutUint32(event[24:], r.subAndKind())
	d.Events = xxhash.Sum64(event[:])
	if !r.tombstone() {
		d.Live[0] += first
		d.Live[1] += second
	}
	if existed {
		first, second = hashEncoded(previous.Encoded)
		d.Live[0] -= first
		d.Live[1] -= second
	}
}

// Digest of the writer's state. Writer only.
func (s *Space) Digest() Digest { return s.digest }

// ResumeEvents takes the running hash of events from where another Space had it, which Restore cannot tell: what was
// compacted is part of it. Writer only, after the last Restore and before Publish.
func (s *Space) ResumeEvents(events uint64) { s.digest.Events = events }

// Digest of the snapshot's state.
func (sn *Snapshot) Digest() Digest { return sn.state.digest }

// DigestError tells that the live keys are not those that were written.
type DigestError struct {
	Index              uint64
	Want, Have         [2]uint64
	WantKeys, HaveKeys int
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("keyspace: %d live keys at index %d sum up to %016x%016x, should be %d with %016x%016x",
		e.HaveKeys, e.Index, e.Have[0], e.Have[1], e.WantKeys, e.Want[0], e.Want[1])
}

// Summer recomputes Digest.Live from the keys, a slice at a time. It holds a Snapshot from its beginning to its end. It
// belongs to one goroutine, any.
type Summer struct {
	snapshot *Snapshot
	next     []byte
	live     [2]uint64
	keys     int
}

// NewSummer begins a pass over the published state. Close ends it.
func (s *Space) NewSummer() *Summer { return &Summer{snapshot: s.Acquire()} }

// Close gives the snapshot back.
func (s *Summer) Close() {
	if s.snapshot != nil {
		s.snapshot.Release()
		s.snapshot = nil
	}
}

// Sum goes over keys until their key-values make up about budget bytes, and returns whether that was the last of them.
// The error, at the end, is a *DigestError.
func (s *Summer) Sum(budget int) (done bool, err error) {
	done = true
	err = s.snapshot.Range(s.next, nil, 0, func(v Version) bool {
		if budget <= 0 {
			s.next, done = append([]byte(nil), v.Key...), false
			return false
		}
		first, second := hashEncoded(v.Encoded)
		s.live[0] += first
		s.live[1] += second
		s.keys++
		budget -= len(v.Encoded) + 32
		return true
	})
	if err != nil || !done {
		return done, err
	}
	if want := s.snapshot.Digest().Live; want != s.live || s.snapshot.state.keys != s.keys {
		return true, &DigestError{Index: s.snapshot.Index(), Want: want, Have: s.live, WantKeys: s.snapshot.state.keys, HaveKeys: s.keys}
	}
	return true, nil
}
