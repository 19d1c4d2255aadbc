package checkpoint

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io/fs"
	"sync"

	"github.com/logmirror/logmirror/internal/disk"
)

// syncEveryBytes keeps what waits to be synced small: the log, whose syncs writers wait for, is on the same disk.
const syncEveryBytes = 16 << 20

// Incoming is a checkpoint that is being received. Whoever has it calls Commit or Pause at the end.
type Incoming struct {
	store *Store
	name  Name
	file  disk.File
	sum   hash.Hash
	// chunk is the checksum of the last chunk so far, chunks those of the ones before.
	chunk  uint32
	chunks []uint32
	offset int64
	synced int64

	mu    sync.Mutex
	taken bool
}

// Receive begins to receive a checkpoint, or goes on with what was received of it before. ErrHeld, ErrReceiving, ErrBusy,
// ErrTooLarge and ErrNoSpace say why not.
func (s *Store) Receive(name Name) (*Incoming, error) {
	if name.SizeBytes < 0 || name.SizeBytes > s.options.MaxCheckpointBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, name.SizeBytes, s.options.MaxCheckpointBytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[name] {
		return nil, ErrHeld
	}
	if known := s.incoming[name]; known != nil {
		if !known.take() {
			return nil, fmt.Errorf("%w: %v", ErrReceiving, name)
		}
		return known, nil
	}
	s.makeRoom()
	switch {
	case len(s.incoming) >= s.options.MaxIncoming:
		return nil, fmt.Errorf("%w: %d checkpoints", ErrBusy, len(s.incoming))
	case len(s.held) >= s.options.MaxHeld:
		return nil, fmt.Errorf("%w: %d checkpoints are held", ErrBusy, len(s.held))
	case s.bytes()+name.SizeBytes > s.options.MaxBytes:
		return nil, fmt.Errorf("%w: %d bytes beside %d, at most %d", ErrTooLarge, name.SizeBytes, s.bytes(), s.options.MaxBytes)
	}
	file, err := s.fs.Create(s.path(name.file() + temporary))
	if err != nil {
		return nil, fmt.Errorf("checkpoint: receive %v: %w", name, err)
	}
	in := &Incoming{store: s, name: name, file: file, sum: sha256.New(), taken: true}
	s.incoming[name] = in
	return in, nil
}

// makeRoom drops one that nobody is receiving any more, the one of the lowest index, if there is no place for another. The
// caller holds mu.
func (s *Store) makeRoom() {
	if len(s.incoming) < s.options.MaxIncoming {
		return
	}
	var oldest *Incoming
	for _, in := range s.incoming {
		if (oldest == nil || in.name.Index < oldest.name.Index) && in.idle() {
			oldest = in
		}
	}
	if oldest != nil && oldest.take() {
		delete(s.incoming, oldest.name)
		oldest.discardFile()
	}
}

// take makes the caller the only one that receives.
func (in *Incoming) take() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	was := in.taken
	in.taken = true
	return !was
}

func (in *Incoming) idle() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.taken
}

// Offset is how many bytes have been received: the next ones are wanted from here on.
func (in *Incoming) Offset() int64 { return in.offset }

// Write takes the next bytes. After an error what was received is gone.
func (in *Incoming) Write(p []byte) error {
	if in.offset+int64(len(p)) > in.name.SizeBytes {
		in.drop()
		return fmt.Errorf("%w: %v has %d bytes, more have come", ErrMismatch, in.name, in.name.SizeBytes)
	}
	if _, err := in.file.WriteAt(p, in.offset); err != nil {
		in.drop()
		return fmt.Errorf("checkpoint: receive %v: %w", in.name, err)
	}
	_, _ = in.sum.Write(p) // never fails
	for len(p) > 0 {
		n := min(int64(len(p)), chunkBytes-in.offset%chunkBytes)
		in.chunk = crc32.Update(in.chunk, castagnoli, p[:n])
		p, in.offset = p[n:], in.offset+n
		if in.offset%chunkBytes == 0 {
			in.chunks, in.chunk = append(in.chunks, in.chunk), 0
		}
	}
	if in.offset-in.synced >= syncEveryBytes {
		in.synced = in.offset
		if err := in.file.Datasync(); err != nil {
			in.drop()
			return fmt.Errorf("checkpoint: receive %v: %w", in.name, err)
		}
	}
	return nil
}

// Complete tells whether all bytes have come.
func (in *Incoming) Complete() bool { return in.offset == in.name.SizeBytes }

// Commit verifies what was received and makes it durable. After an error it is gone.
func (in *Incoming) Commit() error {
	if !in.Complete() {
		in.drop()
		return fmt.Errorf("%w: %v has %d bytes, %d have come", ErrMismatch, in.name, in.name.SizeBytes, in.offset)
	}
	if got := in.sum.Sum(nil); [32]byte(got) != in.name.SHA256 {
		in.drop()
		return fmt.Errorf("%w: %v, their SHA-256 is %x", ErrMismatch, in.name, got)
	}
	if in.offset%chunkBytes != 0 {
		in.chunks = append(in.chunks, in.chunk)
	}
	if err := in.finish(); err != nil {
		in.drop()
		return fmt.Errorf("checkpoint: keep %v: %w", in.name, err)
	}
	s := in.store
	s.mu.Lock()
	delete(s.incoming, in.name)
	s.held[in.name] = true
	s.mu.Unlock()
	s.options.Logger.Info("holding checkpoint", "checkpoint", in.name.String(), "bytes", in.name.SizeBytes)
	return nil
}

// finish writes the footer, syncs, and gives the file its name.
func (in *Incoming) finish() error {
	s, file := in.store, in.name.file()
	if _, err := in.file.WriteAt(encodeFooter(in.name, in.chunks), in.offset); err != nil {
		return err
	}
	if err := in.file.Datasync(); err != nil {
		return err
	}
	if err := s.fs.Rename(s.path(file+temporary), s.path(file)); err != nil {
		return err
	}
	err := s.fs.SyncDir(s.dir)
	if err != nil {
		// It may be found under its name after a crash, whole; until then it does not count.
		err = errors.Join(err, s.fs.Remove(s.path(file)))
	}
	if closeErr := in.file.Close(); err == nil {
		return closeErr
	}
	return err
}

// Pause leaves what was received for another sender to go on with.
func (in *Incoming) Pause() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.taken = false
}

// drop forgets what was received.
func (in *Incoming) drop() {
	in.store.mu.Lock()
	delete(in.store.incoming, in.name)
	in.store.mu.Unlock()
	in.discardFile()
}

func (in *Incoming) discardFile() {
	s := in.store
	err := in.file.Close()
	if removeErr := s.fs.Remove(s.path(in.name.file() + temporary)); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		s.options.Logger.Warn("what was received of a checkpoint can't be removed", "checkpoint", in.name.String(), "error", err)
	}
}
