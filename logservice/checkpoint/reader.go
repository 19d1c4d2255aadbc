package checkpoint

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/logmirror/logmirror/internal/disk"
)

// Reader reads one checkpoint. It goes on also after the checkpoint was removed. It must be closed.
type Reader struct {
	store  *Store
	name   Name
	file   disk.File
	chunks []uint32
	buffer []byte
}

// Open returns a reader of a checkpoint that the store holds, or ErrNotHeld.
func (s *Store) Open(name Name) (*Reader, error) {
	if !s.Holds(name) {
		return nil, fmt.Errorf("%w: %v", ErrNotHeld, name)
	}
	file, err := s.fs.OpenFile(s.path(name.file()))
	if err != nil {
		return nil, fmt.Errorf("checkpoint: open %v: %w", name, err)
	}
	read, chunks, err := readFooter(file, name)
	if err == nil && read != name {
		err = fmt.Errorf("%w: it is %v", ErrDamaged, read)
	}
	if err != nil {
		if errors.Is(err, ErrDamaged) {
			s.setAside(name, err)
		}
		return nil, fmt.Errorf("checkpoint: open %v: %w", name, errors.Join(err, file.Close()))
	}
	return &Reader{store: s, name: name, file: file, chunks: chunks}, nil
}

// Name is the checkpoint's.
func (r *Reader) Name() Name { return r.name }

// ReadFrom returns the bytes from an offset on to the end of their chunk, checked; io.EOF at the end of the checkpoint.
// They are valid until the next call.
func (r *Reader) ReadFrom(offset int64) ([]byte, error) {
	switch {
	case offset == r.name.SizeBytes:
		return nil, io.EOF
	case offset < 0 || offset > r.name.SizeBytes:
		return nil, fmt.Errorf("checkpoint: offset %d of %v, which has %d bytes", offset, r.name, r.name.SizeBytes)
	}
	if r.buffer == nil {
		r.buffer = make([]byte, chunkBytes)
	}
	chunk := offset / chunkBytes
	begin := chunk * chunkBytes
	b := r.buffer[:min(chunkBytes, r.name.SizeBytes-begin)]
	if err := readFull(r.file, b, begin); err != nil {
		return nil, fmt.Errorf("checkpoint: %v: %w", r.name, err)
	}
	if crc32.Checksum(b, castagnoli) != r.chunks[chunk] {
		err := fmt.Errorf("%w: %v, at offset %d", ErrDamaged, r.name, begin)
		r.store.setAside(r.name, err)
		return nil, err
	}
	return b[offset-begin:], nil
}

// Close ends the reader.
func (r *Reader) Close() error { return r.file.Close() }
