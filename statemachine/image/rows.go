package image

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"go.etcd.io/bbolt"
)

// ErrCorrupt is returned for a file that does not hold what was written into it.
var ErrCorrupt = errors.New("image is corrupt")

// ErrForeign is returned for an image of another cluster, epoch or frontend.
var ErrForeign = errors.New("image belongs elsewhere")

var errMalformedVersion = fmt.Errorf("%w: malformed version", ErrCorrupt)

// formatVersion is that of the file.
const formatVersion = 1

var (
	bucketVersions = []byte("versions")
	bucketLeases   = []byte("leases")
	bucketRequests = []byte("requests")
	bucketMeta     = []byte("meta")
	keyState       = []byte("state")
	keyHead        = []byte("head")
)

// Identity is whose image it is.
type Identity struct {
	ClusterID, Epoch, FrontendID uint64
}

// fits tells whether an image of this identity may be used by a frontend that knows as much of itself as in known.
func (i Identity) fits(known Identity) bool {
	if known.ClusterID == 0 && known.Epoch == 0 {
		return i.FrontendID == known.FrontendID
	}
	return i == known
}

// head is what binds the rows together.
type head struct {
	Format      int
	Identity    Identity
	Index, Term uint64
	// CompactRevision is the state's, and Compacted the last row that the removal has seen.
	CompactRevision int64
	Compacted       revision
	// FirstRequest is the ordinal of the oldest request id, NextRequest that of the next one.
	FirstRequest, NextRequest uint64
	Versions, Leases, Request tally
}

// tally counts the rows of a bucket and sums what identifies each: a set of rows that agrees with it is, but for a chance
// of 1 in 2^64 a bucket, the set that was written.
type tally struct{ Count, Sum uint64 }

func (t *tally) add(key, value []byte) {
	t.Count++
	t.Sum += fingerprint(key, value)
}

func (t *tally) remove(key, value []byte) {
	t.Count--
	t.Sum -= fingerprint(key, value)
}

func (t *tally) join(other tally) {
	t.Count += other.Count
	t.Sum += other.Sum
}

// check compares the tally of a bucket's rows with what was written.
func (t tally) check(bucket []byte, want tally) error {
	if t != want {
		return fmt.Errorf("%w: rows of %s do not add up: %d, want %d", ErrCorrupt, bucket, t.Count, want.Count)
	}
	return nil
}

// fingerprint mixes key, checksum and length of a row, so that sums of rows do not cancel out.
func fingerprint(key, value []byte) uint64 {
	x := uint64(len(value))
	for ; len(key) >= 8; key = key[8:] {
		x = mix(x ^ binary.BigEndian.Uint64(key))
	}
	if len(value) >= checksumBytes {
		x = mix(x ^ uint64(binary.BigEndian.Uint32(value[len(value)-checksumBytes:])))
	}
	return x
}

// mix is a bijection of 64 bits in which each bit of the input moves half of those of the output.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

const checksumBytes = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends the checksum of key and row to the row.
func seal(key, row []byte) []byte {
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, row)
	return binary.BigEndian.AppendUint32(row, sum)
}

// open returns the row without its checksum, if that is right.
func open(key, value []byte) ([]byte, error) {
	if len(value) < checksumBytes {
		return nil, fmt.Errorf("%w: row %x is cut short", ErrCorrupt, key)
	}
	row := value[:len(value)-checksumBytes]
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, row)
	if sum != binary.BigEndian.Uint32(value[len(row):]) {
		return nil, fmt.Errorf("%w: checksum of row %x", ErrCorrupt, key)
	}
	return row, nil
}

// revision is the place of a version.
type revision struct{ Main, Sub int64 }

const revisionBytes = 16

// endOf is above every version of a main revision.
func endOf(main int64) revision { return revision{main, math.MaxInt64} }

func (r revision) atLeast(other revision) bool {
	return r.Main > other.Main || r.Main == other.Main && r.Sub >= other.Sub
}

func (r revision) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(r.Main))
	return binary.BigEndian.AppendUint64(b, uint64(r.Sub))
}

func revisionOf(key []byte) (revision, error) {
	if len(key) != revisionBytes {
		return revision{}, fmt.Errorf("%w: key %x is no revision", ErrCorrupt, key)
	}
	r := revision{int64(binary.BigEndian.Uint64(key)), int64(binary.BigEndian.Uint64(key[8:]))}
	if r.Main <= 0 || r.Sub < 0 {
		return revision{}, fmt.Errorf("%w: key %x is no revision", ErrCorrupt, key)
	}
	return r, nil
}

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

const (
	flagTombstone   = 1 << 0
	flagPredecessor = 1 << 1
)

// versionRow is what stands under a revision.
type versionRow struct {
	tombstone      bool
	hasPredecessor bool
	predecessor    revision
	encoded        []byte
}

func (v *versionRow) bytes() int { return 1 + revisionBytes + len(v.encoded) + checksumBytes }

func (v *versionRow) appendTo(b []byte) []byte {
	flags := byte(0)
	if v.tombstone {
		flags |= flagTombstone
	}
	if v.hasPredecessor {
		flags |= flagPredecessor
	}
	b = append(b, flags)
	if v.hasPredecessor {
		b = v.predecessor.appendTo(b)
	}
	return append(b, v.encoded...)
}

func decodeVersionRow(row []byte) (v versionRow, err error) {
	if len(row) < 1 || row[0]&^(flagTombstone|flagPredecessor) != 0 {
		return v, errMalformedVersion
	}
	v.tombstone, v.hasPredecessor = row[0]&flagTombstone != 0, row[0]&flagPredecessor != 0
	row = row[1:]
	if v.hasPredecessor {
		if len(row) < revisionBytes {
			return v, errMalformedVersion
		}
		if v.predecessor, err = revisionOf(row[:revisionBytes]); err != nil {
			return v, err
		}
		row = row[revisionBytes:]
	}
	v.encoded = row
	return v, nil
}

func decodeHead(value []byte) (*head, error) {
	row, err := open(keyHead, value)
	if err != nil {
		return nil, err
	}
	h := new(head)
	if err := json.Unmarshal(row, h); err != nil {
		return nil, fmt.Errorf("%w: head: %w", ErrCorrupt, err)
	}
	if h.Format != formatVersion {
		return nil, fmt.Errorf("%w: format %d, known is %d", ErrForeign, h.Format, formatVersion)
	}
	return h, nil
}

func writeHead(tx *bbolt.Tx, h *head) error {
	row, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(keyHead, seal(keyHead, row))
}

func number(key []byte) uint64 { return binary.BigEndian.Uint64(key) }
