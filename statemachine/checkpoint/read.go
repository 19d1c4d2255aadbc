package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// Observer is told of what a Reader restores.
type Observer interface {
	// Version is told of each version in the order in which it was restored: the keys that exist at the compact revision and
	// were changed last below it, by key, then the history. previous is the live version that one of the history supersedes, if there is one. What
	// they point to is never modified, and may be kept.
	Version(v keyspace.Version, previous *keyspace.Version) error
}

// Reader builds a state machine from a checkpoint.
type Reader struct {
	d      decoder
	header Header
}

// NewReader reads the beginning of a checkpoint. An error is r's, or matches ErrCorrupt or ErrFormat.
func NewReader(r io.Reader) (*Reader, error) {
	var preamble [preambleBytes]byte
	if _, err := io.ReadFull(r, preamble[:]); err != nil {
		return nil, cutShort(err)
	}
	reader := &Reader{d: decoder{r: r}}
	var err error
	if reader.d.chain, err = checkPreamble(preamble[:]); err != nil {
		return nil, err
	}
	payload, err := reader.d.single(kindHeader)
	if err != nil {
		return nil, err
	}
	if reader.header, err = decodeHeader(payload); err != nil {
		return nil, err
	}
	return reader, nil
}

// Header returns what the checkpoint says of itself.
func (r *Reader) Header() Header { return r.header }

// Restore reads the rest and returns the machine. observer may be nil. An error is the reader's or the observer's, or
// matches ErrCorrupt, statemachine.ErrInconsistent, statemachine.ErrNewer or keyspace.ErrMalformed and keyspace.ErrInconsistent.
func (r *Reader) Restore(o statemachine.Options, observer Observer) (*statemachine.Machine, Counts, error) {
	state, err := r.d.single(kindState)
	if err != nil {
		return nil, Counts{}, err
	}
	restorer, err := statemachine.NewRestorer(o, state)
	if err != nil {
		return nil, Counts{}, err
	}
	if restorer.Summary() != r.header.Summary {
		return nil, Counts{}, fmt.Errorf("%w: header %+v, state %+v", ErrCorrupt, r.header.Summary, restorer.Summary())
	}
	b := builder{restorer: restorer, observer: observer, compacted: r.header.CompactRevision}
	if err := r.blocks(&b); err != nil {
		return nil, Counts{}, err
	}
	machine, err := restorer.Machine()
	return machine, b.counts, err
}

// blocks reads everything from the tables to the end.
func (r *Reader) blocks(b *builder) error {
	for last := kindState; ; {
		kind, records, payload, err := r.d.next()
		if err != nil {
			return err
		}
		if kind < last || kind <= kindState || kind > kindEnd {
			return fmt.Errorf("%w: a block of %s after one of %s", ErrCorrupt, kind, last)
		}
		if last = kind; kind == kindEnd {
			want, err := decodeCounts(payload)
			if err == nil && (want != b.counts || records != 1) {
				err = fmt.Errorf("%w: %+v read, %+v were written", ErrCorrupt, b.counts, want)
			}
			return errors.Join(err, r.d.end())
		}
		if err := b.block(kind, records, payload); err != nil {
			return err
		}
	}
}

// builder restores records.
type builder struct {
	restorer  *statemachine.Restorer
	observer  Observer
	compacted int64
	counts    Counts
	lastLease int64
	lastKey   []byte
}

func (b *builder) block(kind blockKind, records uint32, payload []byte) error {
	if records == 0 {
		return fmt.Errorf("%w: an empty block", ErrCorrupt)
	}
	for range records {
		var number uint64
		var row []byte
		ok := true
		if kind != kindRequests {
			number, payload, ok = uvarint(payload)
		}
		if ok {
			row, payload, ok = field(payload)
		}
		if !ok {
			return fmt.Errorf("%w: a record of %s", ErrCorrupt, kind)
		}
		if err := b.record(kind, number, row); err != nil {
			return err
		}
	}
	if len(payload) > 0 {
		return fmt.Errorf("%w: a block with more than its records", ErrCorrupt)
	}
	return nil
}

func (b *builder) record(kind blockKind, number uint64, row []byte) error {
	switch kind {
	case kindLeases:
		id := int64(number)
		if b.counts.Leases > 0 && id <= b.lastLease {
			return fmt.Errorf("%w: lease %d after %d", ErrCorrupt, id, b.lastLease)
		}
		b.lastLease = id
		b.counts.Leases++
		return b.restorer.Lease(id, row)
	case kindRequests:
		b.counts.RequestIDs++
		return b.restorer.RequestID(row)
	default:
		return b.version(kind, number, row)
	}
}

func (b *builder) version(kind blockKind, sub uint64, encoded []byte) error {
	v, err := keyspace.DecodeKeyValue(encoded)
	if err != nil {
		return err
	}
	if base := v.ModRevision < b.compacted; base != (kind == kindBase) {
		return fmt.Errorf("%w: a version at %d among %s", ErrCorrupt, v.ModRevision, kind)
	}
	var previous *keyspace.Version
	if kind == kindBase {
		if b.counts.Base > 0 && bytes.Compare(v.Key, b.lastKey) <= 0 {
			return fmt.Errorf("%w: keys out of order", ErrCorrupt)
		}
		b.lastKey = append(b.lastKey[:0], v.Key...)
		b.counts.Base++
	} else {
		if p, existed := b.restorer.Latest(v.Key); existed {
			previous = &p
		}
		b.counts.History++
	}
	if err := b.restorer.Version(encoded, int64(sub)); err != nil || b.observer == nil {
		return err
	}
	stored, live := b.restorer.Latest(v.Key)
	if !live {
		stored = v
		stored.Sub, stored.Encoded = int64(sub), bytes.Clone(encoded)
		stored.Key = bytes.Clone(v.Key)
	}
	return b.observer.Version(stored, previous)
}

// decoder reads blocks.
type decoder struct {
	r     io.Reader
	chain uint32
	// block is reused.
	block bytes.Buffer
}

// next reads one block. The payload is good until the next call.
func (d *decoder) next() (kind blockKind, records uint32, payload []byte, err error) {
	d.block.Reset()
	if err := d.read(blockHeaderBytes); err != nil {
		return 0, 0, nil, err
	}
	header := d.block.Bytes()
	sum, length := binary.LittleEndian.Uint32(header), binary.LittleEndian.Uint32(header[4:])
	word := binary.LittleEndian.Uint32(header[8:])
	records = binary.LittleEndian.Uint32(header[12:])
	if length > blockBytesMax || word > uint32(kindEnd) {
		return 0, 0, nil, fmt.Errorf("%w: a block of kind %d of %d bytes, at most %d", ErrCorrupt, word, length, blockBytesMax)
	}
	if err := d.read(int64(length)); err != nil {
		return 0, 0, nil, err
	}
	block := d.block.Bytes()
	if d.chain = crc32.Update(d.chain, castagnoli, block[4:]); d.chain != sum {
		return 0, 0, nil, fmt.Errorf("%w: checksum of a block of %s", ErrCorrupt, blockKind(word))
	}
	return blockKind(word), records, block[blockHeaderBytes:], nil
}

// read adds n bytes to the block. Memory grows with what comes, not with what was announced.
func (d *decoder) read(n int64) error {
	got, err := io.CopyN(&d.block, d.r, n)
	if got < n {
		return cutShort(err)
	}
	return nil
}

// single reads a block that is one record.
func (d *decoder) single(want blockKind) ([]byte, error) {
	kind, records, payload, err := d.next()
	if err != nil {
		return nil, err
	}
	if kind != want || records != 1 {
		return nil, fmt.Errorf("%w: %d records of %s where the %s should be", ErrCorrupt, records, kind, want)
	}
	return payload, nil
}

// end checks that nothing follows.
func (d *decoder) end() error {
	var one [1]byte
	switch n, err := io.ReadFull(d.r, one[:]); {
	case n > 0:
		return fmt.Errorf("%w: bytes after the end", ErrCorrupt)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", ErrCorrupt)
	}
	return err
}

func uvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}

// field cuts a row with its length before it.
func field(b []byte) (row, rest []byte, ok bool) {
	length, b, ok := uvarint(b)
	if !ok || length > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:length], b[length:], true
}
