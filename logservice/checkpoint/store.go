package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/logmirror/logmirror/internal/disk"
)

var (
	// ErrNotHeld says that the store does not hold the checkpoint.
	ErrNotHeld = errors.New("checkpoint: it is not held here")
	// ErrHeld says that the store holds the checkpoint already.
	ErrHeld = errors.New("checkpoint: it is held already")
	// ErrReceiving says that the checkpoint is being received from somebody else.
	ErrReceiving = errors.New("checkpoint: it is being received from somebody else")
	// ErrBusy says that too many are being received, or held.
	ErrBusy = errors.New("checkpoint: too much is being received")
	// ErrMismatch says that the bytes received are not those of the name.
	ErrMismatch = errors.New("checkpoint: the bytes are not those of its name")
	// ErrDamaged says that what is on disk is not what was received.
	ErrDamaged = errors.New("checkpoint: the file is damaged")
	// ErrTooLarge says that a checkpoint is beyond the bounds of the store.
	ErrTooLarge = errors.New("checkpoint: it is too large for the store")
	// ErrNoSpace says that the disk is full.
	ErrNoSpace = disk.ErrNoSpace
)

// Options configure a store.
type Options struct {
	// MaxCheckpointBytes bounds one checkpoint, MaxBytes all that is held and received together; zero for 16 GiB and 64 GiB.
	MaxCheckpointBytes, MaxBytes int64
	// MaxHeld bounds the number of checkpoints held, MaxIncoming those received at once or in part; zero for 16 and 4.
	MaxHeld, MaxIncoming int
	// Logger gets what an operator should know; nil for nothing.
	Logger *slog.Logger
}

// Store holds checkpoints.
type Store struct {
	fs      disk.FS
	dir     string
	options Options

	mu       sync.Mutex
	held     map[Name]bool
	incoming map[Name]*Incoming
}

// Open opens a store in a directory, which is made if it is missing. What is there in part is removed; what is damaged is
// set aside.
func Open(fsys disk.FS, dir string, o Options) (*Store, error) {
	if o.MaxCheckpointBytes == 0 {
		o.MaxCheckpointBytes = 16 << 30
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 30
	}
	if o.MaxHeld == 0 {
		o.MaxHeld = 16
	}
	if o.MaxIncoming == 0 {
		o.MaxIncoming = 4
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{fs: fsys, dir: dir, options: o, held: map[Name]bool{}, incoming: map[Name]*Incoming{}}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("checkpoint: open %s: %w", dir, err)
	}
	files, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: open %s: %w", dir, err)
	}
	for _, file := range files {
		if err := s.load(file); err != nil {
			return nil, fmt.Errorf("checkpoint: open %s: %w", s.path(file), err)
		}
	}
	// The names that were seen may come from before a crash that came before their sync.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, fmt.Errorf("checkpoint: open %s: %w", dir, err)
	}
	return s, nil
}

// load takes in one file of the directory.
func (s *Store) load(file string) error {
	if strings.HasSuffix(file, temporary) || strings.HasSuffix(file, damaged) {
		return s.fs.Remove(s.path(file))
	}
	name, ok := parseFile(file)
	if !ok {
		return nil
	}
	opened, err := s.fs.OpenFile(s.path(file))
	if err != nil {
		return err
	}
	name, _, err = readFooter(opened, name)
	if closeErr := opened.Close(); err == nil && closeErr != nil {
		return closeErr
	}
	if errors.Is(err, ErrDamaged) {
		s.options.Logger.Error("checkpoint is damaged and set aside", "file", s.path(file), "error", err)
		return s.fs.Rename(s.path(file), s.path(file+damaged))
	}
	if err != nil {
		return err
	}
	s.held[name] = true
	return nil
}

func (s *Store) path(file string) string { return filepath.Join(s.dir, file) }

// List returns what the store holds durably, newest first.
func (s *Store) List() []Name {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]Name, 0, len(s.held))
	for name := range s.held {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b Name) int {
		if a.Index != b.Index {
			if a.Index > b.Index {
				return -1
			}
			return 1
		}
		return slices.Compare(a.SHA256[:], b.SHA256[:])
	})
	return names
}

// Holds tells whether the store holds a checkpoint durably.
func (s *Store) Holds(name Name) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[name]
}

// Bytes is the sum of the sizes of what the store holds and receives.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes()
}

func (s *Store) bytes() (total int64) {
	for name := range s.held {
		total += name.SizeBytes
	}
	for name := range s.incoming {
		total += name.SizeBytes
	}
	return total
}

// Remove gives a checkpoint up, whether it is held or was received in part. Readers that have it open go on.
func (s *Store) Remove(name Name) error {
	s.mu.Lock()
	held, partial := s.held[name], s.incoming[name]
	delete(s.held, name)
	s.mu.Unlock()
	if partial != nil && partial.take() {
		partial.drop()
	}
	if !held {
		return nil
	}
	if err := s.fs.Remove(s.path(name.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("checkpoint: remove %v: %w", name, err)
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return fmt.Errorf("checkpoint: remove %v: %w", name, err)
	}
	s.options.Logger.Info("removed checkpoint", "checkpoint", name.String())
	return nil
}

// setAside stops holding a checkpoint whose file is not what was received.
func (s *Store) setAside(name Name, why error) {
	s.mu.Lock()
	was := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if !was {
		return
	}
	file := s.path(name.file())
	s.options.Logger.Error("checkpoint is damaged and set aside", "file", file, "error", why)
	err := s.fs.Rename(file, file+damaged)
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		s.options.Logger.Error("a damaged checkpoint keeps its name", "file", file, "error", err)
	}
}
