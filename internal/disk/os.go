package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// OS returns the file system of the operating system.
func OS() FS { return osFS{} }

type osFS struct{}

type osFile struct {
	file *os.File
	// direct writes past the page cache; nil where nobody asked for it or the system can't. refused: it takes no blocks of BlockBytes.
	direct  *os.File
	refused atomic.Bool
}

// translate gives an error of the operating system this package's name where it has one. A quota that is used up is a
// full disk to whoever writes.
func translate(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func (osFS) OpenFile(name string) (File, error) { return openOS(name, os.O_RDWR) }

func (osFS) Create(name string) (File, error) {
	return openOS(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func openOS(name string, flags int) (File, error) {
	file, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, translate(err)
	}
	return &osFile{file: file}, nil
}

func (osFS) Remove(name string) error { return translate(os.Remove(name)) }

func (osFS) Rename(from, to string) error { return translate(os.Rename(from, to)) }

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	slices.Sort(names)
	return names, nil
}

// MkdirAll syncs the parent of each directory it makes: a directory whose name is lost takes its files with it.
func (f osFS) MkdirAll(dir string) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("make directory %s: a file has this name", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := f.MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return translate(err)
	}
	return f.SyncDir(parent)
}

func (osFS) SyncDir(dir string) (err error) {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return translate(file.Sync())
}

func (osFS) Lock(name string) (io.Closer, error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, translate(err)
	}
	if err := lockFile(file); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), file.Close())
	}
	return file, nil
}

func (f *osFile) ReadAt(p []byte, offset int64) (int, error) { return f.file.ReadAt(p, offset) }

func (f *osFile) Direct() {
	if f.direct == nil {
		f.direct = openDirect(f.file)
	}
}

func (f *osFile) WriteAt(p []byte, offset int64) (int, error) {
	if f.direct != nil && wholeBlocks(p, offset) && !f.refused.Load() {
		n, err := f.direct.WriteAt(p, offset)
		if !errors.Is(err, syscall.EINVAL) {
			return n, translate(err)
		}
		// A file system that has rules of its own, or a write that stopped within a block. What of it was written is written again.
		f.refused.Store(true)
	}
	n, err := f.file.WriteAt(p, offset)
	return n, translate(err)
}

// wholeBlocks tells whether a write past the page cache may be tried: the disk itself takes the bytes from p then.
func wholeBlocks(p []byte, offset int64) bool {
	address := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return len(p) > 0 && offset%BlockBytes == 0 && len(p)%BlockBytes == 0 && address%BlockBytes == 0
}

func (f *osFile) Truncate(size int64) error { return translate(f.file.Truncate(size)) }

// Allocate reserves the room first, so that a full disk is found before anything is written, and then writes the zeros:
// blocks that were only reserved change their state in the file system's journal when they are first written, which
// every later Datasync would pay for.
func (f *osFile) Allocate(size int64) error {
	if err := preallocate(f.file, size); err != nil {
		return translate(fmt.Errorf("allocate %d bytes for %s: %w", size, f.file.Name(), err))
	}
	const chunkBytes = 1 << 20
	zeros := make([]byte, min(size, chunkBytes))
	for offset := int64(0); offset < size; offset += chunkBytes {
		if _, err := f.WriteAt(zeros[:min(size-offset, chunkBytes)], offset); err != nil {
			return err
		}
	}
	return f.Truncate(size)
}

func (f *osFile) Datasync() error { return translate(datasync(f.file)) }

func (f *osFile) Size() (int64, error) {
	info, err := f.file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *osFile) Close() error {
	if f.direct == nil {
		return f.file.Close()
	}
	return errors.Join(f.file.Close(), f.direct.Close())
}
