// Package disk is the seam between what logmirror keeps on disk and the file system, narrow enough that a disk which
// loses, damages or refuses data can stand in for the real one.
//
// OS is the real one. NewMemory is a seeded one in memory that knows what was synced: a crash takes away what was not,
// wholly or in part, in the ways in which real disks do.
//
// What a caller may rely on, with either:
//
//   - A write is durable when Datasync has returned nil after it, and not before: until then a crash may keep all of
//     it, none of it, or any of its 512-byte sectors. Bytes outside the write are never touched.
//   - A name (Create, Rename, Remove) is durable when SyncDir has returned nil after it. A crash before that keeps the
//     changes of a directory up to some point in their order.
//   - After a failed write or Datasync nothing may be assumed of what was written since the last sync that succeeded:
//     the caller has to give up, because a second Datasync may succeed without having written anything.
//   - A lock ends with the process that holds it.
//
// Names are paths as package os takes them. All methods may be called from any goroutine; what two writes to
// overlapping ranges of one file leave behind is undefined. No method retries.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

var (
	// ErrNoSpace says that the device, the quota or the capacity of a Memory has no room for what was asked.
	ErrNoSpace = errors.New("no space left on disk")
	// ErrLocked says that another process, or another holder in this one, has the lock.
	ErrLocked = errors.New("locked by another process")
)

// FS is a file system. Errors are those of package io/fs where it has them (fs.ErrNotExist), else ErrNoSpace and
// ErrLocked, wrapped with the operation and the name.
type FS interface {
	// OpenFile opens an existing file for reading and writing.
	OpenFile(name string) (File, error)
	// Create opens an empty file for reading and writing, in place of one that may be there.
	Create(name string) (File, error)
	// Remove takes a file's name away. Open handles stay usable.
	Remove(name string) error
	// Rename gives a file another name, in place of a file that may have it, atomically.
	Rename(from, to string) error
	// ReadDir returns the names in a directory, sorted, without the directory's own path.
	ReadDir(dir string) ([]string, error)
	// MkdirAll makes a directory and its missing parents, durably.
	MkdirAll(dir string) error
	// SyncDir makes all changes of names in a directory durable.
	SyncDir(dir string) error
	// Lock takes the exclusive lock of a file, which is made if it is missing, or returns ErrLocked at once. Closing the
	// result releases it.
	Lock(name string) (io.Closer, error)
}

// File is an open file.
type File interface {
	// ReadAt is that of io.ReaderAt: fewer bytes than asked for come with an error, io.EOF at the end of the file.
	io.ReaderAt
	// WriteAt is that of io.WriterAt. After an error some of the bytes may have been written.
	io.WriterAt
	// Direct has later writes of whole blocks (BlockBytes) go to the disk past the system's page cache, where the system can do
	// that: it spares the copy and the memory where what is written is hardly ever read. The memory of what is written has to
	// begin at a multiple of BlockBytes as well. Other writes go the usual way, and nothing is durable before Datasync either
	// way. To be called before anything else uses the file.
	Direct()
	// Truncate sets the file's size. New bytes are zero, and have no room on the disk yet.
	Truncate(size int64) error
	// Allocate makes the file size bytes long, all of them zeros that have their room on the disk, so that later writes
	// within size need no more of it and change no metadata. For new files only: what the file held is overwritten.
	// ErrNoSpace leaves a file that should be removed. Not durable before Datasync.
	Allocate(size int64) error
	// Datasync makes durable what was written and all that is needed to read it back, the size included.
	Datasync() error
	// Size returns the file's size in bytes.
	Size() (int64, error)
	Close() error
}

// ReadFile returns all of a file, which must not be larger than limit bytes.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	file, err := fsys.OpenFile(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d", name, size, limit)
	}
	data = make([]byte, size)
	if n, err := file.ReadAt(data, 0); n < len(data) {
		return nil, fmt.Errorf("read %s: %w", name, unexpectedEOF(err))
	}
	return data, nil
}

// WriteFile replaces a file with data, atomically and durably: after a crash at any moment the name holds what it held
// before or all of data. It uses the name with ".new" appended on the way.
func WriteFile(fsys FS, name string, data []byte) error {
	temporary := name + ".new"
	if err := writeNew(fsys, temporary, data); err != nil {
		return errors.Join(err, ignoreMissing(fsys.Remove(temporary)))
	}
	if err := fsys.Rename(temporary, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

func writeNew(fsys FS, name string, data []byte) (err error) {
	file, err := fsys.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if len(data) > 0 {
		if _, err := file.WriteAt(data, 0); err != nil {
			return err
		}
	}
	return file.Datasync()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func unexpectedEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
