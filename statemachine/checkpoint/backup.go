package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/logmirror/logmirror/statemachine"
)

// WriteBackup writes the checkpoint and behind it the SHA-256 of its bytes, which it returns.
func (s *Source) WriteBackup(w io.Writer) (sum [sha256.Size]byte, counts Counts, err error) {
	digest := sha256.New()
	if counts, err = s.Write(io.MultiWriter(digest, w)); err != nil {
		return sum, counts, err
	}
	digest.Sum(sum[:0])
	_, err = w.Write(sum[:])
	return sum, counts, err
}

// ReadBackup reads a backup of a number of bytes, checks all of it, and returns the state that it holds. Errors are as those
// of Reader.
func ReadBackup(r io.Reader, bytesTotal int64, o statemachine.Options) (*Backup, error) {
	size := bytesTotal - sha256.Size
	if size < 0 {
		return nil, fmt.Errorf("%w: it is cut short", ErrCorrupt)
	}
	digest := sha256.New()
	reader, err := NewReader(io.TeeReader(io.LimitReader(r, size), digest))
	if err != nil {
		return nil, err
	}
	b := &Backup{Header: reader.Header()}
	if b.Machine, b.Counts, err = reader.Restore(o, nil); err != nil {
		return nil, err
	}
	digest.Sum(b.SHA256[:0])
	var want [sha256.Size]byte
	if _, err := io.ReadFull(r, want[:]); err != nil {
		return nil, cutShort(err)
	}
	if !bytes.Equal(want[:], b.SHA256[:]) {
		return nil, fmt.Errorf("%w: sha256 is %x, written was %x", ErrCorrupt, b.SHA256, want)
	}
	return b, nil
}

// Backup is what a backup holds.
type Backup struct {
	Header  Header
	Counts  Counts
	SHA256  [sha256.Size]byte
	Machine *statemachine.Machine
}
