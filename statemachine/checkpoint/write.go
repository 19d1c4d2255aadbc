package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// ErrRotten is returned where memory no longer holds what was applied.
var ErrRotten = errors.New("the state is corrupt in memory")

// Source is a state that is pinned.
type Source struct {
	header   Header
	export   *statemachine.Export
	snapshot *keyspace.Snapshot
}

// Pin pins the present state, which takes no longer the more keys and leases there are. Called between two entries by the
// goroutine that applies, it is of exactly the entry before. Release ends it.
func Pin(m *statemachine.Machine, epoch uint64) *Source {
	export, snapshot := m.Pin()
	return &Source{export: export, snapshot: snapshot, header: Header{Summary: export.Summary, Epoch: epoch}}
}

// Header returns what the checkpoint will say of itself.
func (s *Source) Header() Header { return s.header }

// Release lets go of the state. It may be called once, when no WriteTo runs.
func (s *Source) Release() {
	s.export.Release()
	s.snapshot.Release()
}

// Write writes the checkpoint, in one call of w per block. An error is w's, or matches ErrRotten.
func (s *Source) Write(w io.Writer) (Counts, error) {
	e := &encoder{w: w}
	if err := s.write(e); err != nil {
		return Counts{}, fmt.Errorf("write the checkpoint of index %d: %w", s.header.Index, err)
	}
	return e.counts, nil
}

func (s *Source) write(e *encoder) error {
	if s.snapshot.Index() != s.header.Index || s.snapshot.CompactRevision() != s.header.CompactRevision {
		return fmt.Errorf("pinned within an entry: tables at %d, keys at %d", s.header.Index, s.snapshot.Index())
	}
	if err := e.begin(); err != nil {
		return err
	}
	if err := e.single(kindHeader, s.header.append(nil)); err != nil {
		return err
	}
	state, err := s.export.State()
	if err != nil {
		return err
	}
	if err := e.single(kindState, state); err != nil {
		return err
	}
	if err := s.export.Leases(func(id int64, row []byte) error {
		e.counts.Leases++
		return e.record(kindLeases, uint64(id), row)
	}); errors.Is(err, statemachine.ErrCorruptTable) {
		return fmt.Errorf("%w: %w", ErrRotten, err)
	} else if err != nil {
		return err
	}
	if err := s.export.Requests(func(row []byte) error {
		e.counts.RequestIDs++
		return e.record(kindRequests, 0, row)
	}); err != nil {
		return err
	}
	if err := s.versions(e); err != nil {
		return err
	}
	if err := e.flush(); err != nil {
		return err
	}
	return e.single(kindEnd, e.counts.append(nil))
}

// versions writes the keys that exist at the compact revision and were changed last below it, in their order, and then the
// history, which begins with the compact revision.
func (s *Source) versions(e *encoder) error {
	var failed error
	version := func(kind blockKind, count *uint64) func(v keyspace.Version) bool {
		return func(v keyspace.Version) bool {
			if kind == kindBase && v.ModRevision == s.header.CompactRevision {
				return true // it is history
			}
			if !v.Intact() {
				failed = fmt.Errorf("%w: %q at (%d, %d)", ErrRotten, v.Key, v.ModRevision, v.Sub)
				return false
			}
			*count++
			failed = e.record(kind, uint64(v.Sub), v.Encoded)
			return failed == nil
		}
	}
	compacted := s.header.CompactRevision
	if compacted > 0 { // without a compaction everything is history
		if err := s.snapshot.Range(nil, nil, compacted, version(kindBase, &e.counts.Base)); err != nil || failed != nil {
			return errors.Join(err, failed)
		}
	}
	err := s.snapshot.History(compacted, 0, version(kindHistory, &e.counts.History))
	return errors.Join(err, failed)
}

// encoder packs records into blocks.
type encoder struct {
	w io.Writer
	// chain is the checksum of the block before.
	chain uint32
	// block is the one being filled, its header's room first.
	block   []byte
	kind    blockKind
	records uint32
	counts  Counts
}

func (e *encoder) begin() error {
	preamble := appendPreamble(make([]byte, 0, preambleBytes))
	e.chain = binary.LittleEndian.Uint32(preamble[12:])
	e.block = make([]byte, blockHeaderBytes, blockHeaderBytes+blockBytes+blockBytes/4)
	_, err := e.w.Write(preamble)
	return err
}

// single writes a block whose payload is one record without a frame.
func (e *encoder) single(kind blockKind, payload []byte) error {
	e.kind, e.records = kind, 1
	e.block = append(e.block[:blockHeaderBytes], payload...)
	return e.flush()
}

// record adds a record. A block ends once it holds blockBytes, and with its kind.
func (e *encoder) record(kind blockKind, number uint64, row []byte) error {
	if kind != e.kind {
		if err := e.flush(); err != nil {
			return err
		}
		e.kind = kind
	}
	if kind != kindRequests {
		e.block = binary.AppendUvarint(e.block, number)
	}
	e.block = binary.AppendUvarint(e.block, uint64(len(row)))
	e.block = append(e.block, row...)
	e.records++
	if len(e.block) >= blockHeaderBytes+blockBytes {
		return e.flush()
	}
	return nil
}

// flush writes the block, if there is one.
func (e *encoder) flush() error {
	if e.records == 0 {
		return nil
	}
	payload := len(e.block) - blockHeaderBytes
	if payload > blockBytesMax {
		return fmt.Errorf("a block of %s of %d bytes, at most %d", e.kind, payload, blockBytesMax)
	}
	binary.LittleEndian.PutUint32(e.block[4:], uint32(payload))
	binary.LittleEndian.PutUint32(e.block[8:], uint32(e.kind))
	binary.LittleEndian.PutUint32(e.block[12:], e.records)
	e.chain = crc32.Update(e.chain, castagnoli, e.block[4:])
	binary.LittleEndian.PutUint32(e.block, e.chain)
	_, err := e.w.Write(e.block)
	if e.block, e.records = e.block[:blockHeaderBytes], 0; cap(e.block) > 4*blockBytes {
		e.block = make([]byte, blockHeaderBytes, blockHeaderBytes+blockBytes+blockBytes/4)
	}
	return err
}
