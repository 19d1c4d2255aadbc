package keyspace

import (
	"errors"
	"fmt"
)

// ErrInconsistent is returned by Restore for a version that does not fit those before it.
var ErrInconsistent = errors.New("keyspace: version does not fit the ones before it")

// Restore stores a version that another Space had, given as its Encoded and Sub, both copied. First come the
// keys that exist at Options.CompactRevision and were changed last below it, in any order (Range at that revision
// visits them among others), then all versions at or above it in the order of (main, sub), as History visits them;
// then Publish. The result reads as the
// original did, with the same LogicalBytes. Nothing is stored if an error is returned: ErrMalformed or
// ErrInconsistent. Writer only, before any Put, Delete or Compact.
func (s *Space) Restore(encoded []byte, sub int64) error {
	v, err := decodeCanonical(encoded, sub)
	if err != nil {
		return err
	}
	kv := v.keyValue()
	id, found := s.find(v.Key)
	var head uint32
	if found {
		head = s.heads.at(id).Load()
	}
	previous, existed := s.live(head)
	inconsistent := func(why string) error { return inconsistentVersion(v.Key, v.ModRevision, sub, why) }
	base := v.ModRevision < s.compactRevision
	// What the first versions of the history superseded is compacted.
	first := v.ModRevision == s.compactRevision
	switch {
	case base && v.Tombstone:
		return inconsistent("a compacted tombstone")
	case base && (s.written || found):
		return inconsistent("a compacted version after another of its key or after the history began")
	case base:
	case s.written && (v.ModRevision < s.newestMain || v.ModRevision == s.newestMain && sub <= s.newestSub),
		!first && v.ModRevision <= s.state.Load().revision:
		return inconsistent("out of order")
	case first && found && s.slots.at(head).main.Load() < s.compactRevision:
		return inconsistent("a version that it superseded is compacted")
	case first && !found:
	default:
		if why := follows(&v, &previous, existed); why != "" {
			return inconsistent(why)
		}
	}

	slot, record := s.store(&kv, sub, v.Tombstone, head)
	s.digest.written(record, previous, existed)
	s.link(id, found, v.Key, slot)
	var freed int64
	if existed {
		freed = previous.LogicalBytes()
	}
	switch {
	case v.Tombstone:
		freed += logicalBytes(len(record.encoded()))
		if existed {
			s.keys--
		}
	case !existed:
		s.keys++
	}
	if first {
		s.compactFreedBytes += freed
	}
	if !base {
		s.record(slot, v.ModRevision, sub, freed)
	}
	return nil
}

func inconsistentVersion(key []byte, main, sub int64, why string) error {
	return fmt.Errorf("%w: %q at (%d, %d): %s", ErrInconsistent, key, main, sub, why)
}

// decodeCanonical reads a version that is to be restored, which must be encoded as a Space encodes it.
func decodeCanonical(encoded []byte, sub int64) (Version, error) {
	v, err := DecodeKeyValue(encoded)
	if err != nil {
		return v, err
	}
	kv := v.keyValue()
	if kv.encodedBytes() != len(encoded) {
		return v, fmt.Errorf("%w: not the shortest encoding", ErrMalformed)
	}
	if len(encoded) > maxEncodedBytes {
		return v, fmt.Errorf("%w: %d bytes, of which there are at most %d", ErrMalformed, len(encoded), maxEncodedBytes)
	}
	if sub < 0 || sub > maxSub {
		return v, fmt.Errorf("%w: sub-revision %d", ErrInconsistent, sub)
	}
	v.Sub = sub
	return v, nil
}

// follows says why v cannot be what follows the live version previous of its key, or its absence; empty if it can.
func follows(v, previous *Version, existed bool) string {
	switch {
	case v.Tombstone && !existed:
		return "a tombstone of a key that does not exist"
	case v.Tombstone:
	case existed && (v.CreateRevision != previous.CreateRevision || v.Version != previous.Version+1),
		!existed && (v.CreateRevision != v.ModRevision || v.Version != 1):
		return "create_revision and version do not continue the key's"
	}
	return ""
}
