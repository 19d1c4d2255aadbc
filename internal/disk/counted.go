package disk

import "sync/atomic"

// BlockBytes is the unit in which file systems write.
const BlockBytes = 4 << 10

// Counted is a file system that counts what is written through it. Reading a counter costs nothing and needs no lock.
type Counted struct {
	FS
	// written counts the bytes of the blocks that writes touched, reserved those of files that were allocated.
	written, reserved atomic.Int64
}

// Count returns a file system over another one, with its counters at zero.
func Count(fsys FS) *Counted { return &Counted{FS: fsys} }

// WrittenBytes is how many bytes a disk has to write for the writes so far, at least where each was made durable before the
// next: those of all blocks that they touched.
func (c *Counted) WrittenBytes() int64 { return c.written.Load() }

// ReservedBytes is how many bytes of zeros were written ahead, by Allocate.
func (c *Counted) ReservedBytes() int64 { return c.reserved.Load() }

// OpenFile implements FS.
func (c *Counted) OpenFile(name string) (File, error) { return c.count(c.FS.OpenFile(name)) }

// Create implements FS.
func (c *Counted) Create(name string) (File, error) { return c.count(c.FS.Create(name)) }

func (c *Counted) count(file File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &countedFile{File: file, counters: c}, nil
}

type countedFile struct {
	File
	counters *Counted
}

func (f *countedFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(p, offset)
	if n > 0 {
		first, last := offset/BlockBytes, (offset+int64(n)-1)/BlockBytes
		f.counters.written.Add((last - first + 1) * BlockBytes)
	}
	return n, err
}

func (f *countedFile) Allocate(size int64) error {
	err := f.File.Allocate(size)
	if err == nil {
		f.counters.reserved.Add(size)
	}
	return err
}
