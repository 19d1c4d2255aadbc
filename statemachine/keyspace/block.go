package keyspace

import "fmt"

// Block is a run of versions on their way into a Space by RestoreBlocks. Filling it is most of the work of restoring, and
// needs nothing of the Space: blocks can be filled by as many goroutines as there are processors, each block by one.
type Block struct {
	staged []stagedVersion
	// stagedBytes is what the records will take.
	stagedBytes int

	// The rest is made by Seal.
	slab     []byte
	versions []blockVersion
	// live sums up the hashes of all versions that are not tombstones.
	live [2]uint64
	// logicalBytes of all versions.
	logicalBytes int64
	// prefix is what all keys begin with; it aliases slab.
	prefix []byte
}

// stagedVersion was added and not yet copied.
type stagedVersion struct {
	encoded []byte
	main    int64
	sub     int64
	facts   versionFacts
}

// blockVersion is one version of a sealed block.
type blockVersion struct {
	main   int64
	offset uint32
	facts  versionFacts
}

// versionFacts is what the linking of versions wants to know of each without looking at its record.
type versionFacts uint32

const (
	factTombstone versionFacts = 1 << iota
	// factFirst: the version says of itself that it is the first of a key's life.
	factFirst
	// factLeased: the version names a lease.
	factLeased
)

// maxBlockBytes bounds the slab of a block.
const maxBlockBytes = 1 << 30

// Add takes a version, given as its Encoded, its main revision and its Sub. Versions come in ascending order of (main, sub).
// encoded must stay as it is until Seal. The error matches ErrMalformed or ErrInconsistent; the block is of no use after it.
func (b *Block) Add(main, sub int64, encoded []byte) error {
	v, err := decodeCanonical(encoded, sub)
	if err != nil {
		return err
	}
	if v.ModRevision != main {
		return fmt.Errorf("%w: %q says that it was changed at %d, not at %d", ErrInconsistent, v.Key, v.ModRevision, main)
	}
	if n := len(b.staged); n > 0 {
		if last := &b.staged[n-1]; main < last.main || main == last.main && sub <= last.sub {
			return fmt.Errorf("%w: (%d, %d) after (%d, %d)", ErrInconsistent, main, sub, last.main, last.sub)
		}
	}
	size := recordBytes(sub, len(encoded))
	if size > maxBlockBytes-b.stagedBytes {
		return fmt.Errorf("%w: more than %d bytes in a block", ErrMalformed, maxBlockBytes)
	}
	b.staged = append(b.staged, stagedVersion{encoded: encoded, main: main, sub: sub, facts: factsOf(&v)})
	b.stagedBytes += size
	return nil
}

func factsOf(v *Version) (f versionFacts) {
	if v.Tombstone {
		f |= factTombstone
	}
	if v.Version == 1 && v.CreateRevision == v.ModRevision {
		f |= factFirst
	}
	if v.Lease != 0 {
		f |= factLeased
	}
	return f
}

// Bytes is how much memory the versions will take.
func (b *Block) Bytes() int { return b.stagedBytes }

// Seal copies what was added into memory of the block's own. Nothing is added after it.
func (b *Block) Seal() {
	b.slab = make([]byte, b.stagedBytes)
	b.versions = make([]blockVersion, len(b.staged))
	offset := 0
	for i := range b.staged {
		s := &b.staged[i]
		room := b.slab[offset : offset+recordBytes(s.sub, len(s.encoded))]
		copy(beginRecord(room, s.sub, s.facts&factTombstone != 0, len(s.encoded)), s.encoded)
		r := sealRecord(room)
		if s.facts&factTombstone == 0 {
			first, second := hashEncoded(r.encoded())
			b.live[0] += first
			b.live[1] += second
		}
		if i == 0 {
			b.prefix = r.key()
		} else {
			b.prefix = b.prefix[:sharedPrefix(b.prefix, r.key())]
		}
		b.logicalBytes += logicalBytes(len(s.encoded))
		b.versions[i] = blockVersion{main: s.main, offset: uint32(offset), facts: s.facts}
		offset += len(room)
	}
	b.staged = nil
}

// record of the version with the given number.
func (b *Block) record(i int) record { return recordAt(b.slab[b.versions[i].offset:]) }
