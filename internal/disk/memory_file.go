package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
)

const (
	pageBytes = 4096
	// sectorBytes is what a disk writes wholly or not at all.
	sectorBytes = 512
)

// content is a sparse sequence of bytes: pages that were never written with anything but zeros are not there.
type content struct {
	pages map[int64]*[pageBytes]byte
	size  int64
}

var zeroPage [pageBytes]byte

func isZero(p []byte) bool {
	for len(p) > pageBytes {
		if string(p[:pageBytes]) != string(zeroPage[:]) {
			return false
		}
		p = p[pageBytes:]
	}
	return string(p) == string(zeroPage[:len(p)])
}

// write puts p at offset and grows the content as far as needed.
func (c *content) write(p []byte, offset int64) {
	c.size = max(c.size, offset+int64(len(p)))
	for len(p) > 0 {
		start := offset % pageBytes
		n := min(int64(len(p)), pageBytes-start)
		page := c.pages[offset/pageBytes]
		if page == nil && !isZero(p[:n]) {
			if c.pages == nil {
				c.pages = make(map[int64]*[pageBytes]byte)
			}
			page = new([pageBytes]byte)
			c.pages[offset/pageBytes] = page
		}
		if page != nil {
			copy(page[start:], p[:n])
		}
		p, offset = p[n:], offset+n
	}
}

// read fills p from offset; the whole range must lie within the content.
func (c *content) read(p []byte, offset int64) {
	for len(p) > 0 {
		start := offset % pageBytes
		n := min(int64(len(p)), pageBytes-start)
		if page := c.pages[offset/pageBytes]; page != nil {
			copy(p[:n], page[start:])
		} else {
			clear(p[:n])
		}
		p, offset = p[n:], offset+n
	}
}

func (c *content) resize(size int64) {
	if size < c.size {
		for number, page := range c.pages {
			switch begin := number * pageBytes; {
			case begin >= size:
				delete(c.pages, number)
			case begin+pageBytes > size:
				clear(page[size-begin:])
			}
		}
	}
	c.size = size
}

func (c *content) clone() content {
	copied := content{size: c.size, pages: make(map[int64]*[pageBytes]byte, len(c.pages))}
	for number, page := range c.pages {
		duplicate := *page
		copied.pages[number] = &duplicate
	}
	return copied
}

func (d dataChange) applyTo(c *content) {
	if d.size >= 0 {
		c.resize(d.size)
		return
	}
	c.write(d.data, d.offset)
}

// memoryFile is a handle.
type memoryFile struct {
	memory *Memory
	name   string
	node   *inode
	life   uint64
	closed bool
}

func (f *memoryFile) begin(op Operation, changes bool) (bool, error) {
	crashes, err := f.memory.begin(op, f.life, changes)
	if err == nil && f.closed {
		f.memory.mu.Unlock()
		return false, fmt.Errorf("%s %s: %w", op.Kind, op.Name, fs.ErrClosed)
	}
	return crashes, err
}

// ReadAt implements File.
func (f *memoryFile) ReadAt(p []byte, offset int64) (int, error) {
	op := Operation{Kind: OpRead, Name: f.name, Offset: offset, Length: int64(len(p))}
	if _, err := f.begin(op, false); err != nil {
		return 0, err
	}
	defer f.memory.mu.Unlock()
	if f.memory.shortReads && len(p) > 0 {
		p = p[:f.memory.random.IntN(len(p))]
		n := max(0, min(int64(len(p)), f.node.current.size-offset))
		f.node.current.read(p[:n], offset)
		return int(n), io.ErrUnexpectedEOF
	}
	if offset < 0 {
		return 0, fmt.Errorf("read %s: negative offset: %w", f.name, fs.ErrInvalid)
	}
	n := max(0, min(int64(len(p)), f.node.current.size-offset))
	f.node.current.read(p[:n], offset)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteAt implements File. A full disk takes the bytes that still fit.
func (f *memoryFile) WriteAt(p []byte, offset int64) (int, error) {
	op := Operation{Kind: OpWrite, Name: f.name, Offset: offset, Length: int64(len(p))}
	var partial *PartialWrite
	crashes, err := f.begin(op, true)
	if errors.As(err, &partial) && !errors.Is(err, ErrCrashed) {
		f.memory.mu.Lock()
		defer f.memory.mu.Unlock()
		n := min(partial.Bytes, len(p))
		f.change(dataChange{offset: offset, data: append([]byte(nil), p[:n]...), size: -1})
		return n, err
	}
	if err != nil {
		return 0, err
	}
	if offset < 0 {
		return 0, f.memory.end(op, crashes, fs.ErrInvalid)
	}
	n := len(p)
	if growth := offset + int64(n) - f.node.current.size; growth > 0 {
		if room := f.memory.room(); growth > room {
			n = int(max(0, int64(n)-(growth-room)))
			err = ErrNoSpace
		}
	}
	if n > 0 {
		f.change(dataChange{offset: offset, data: append([]byte(nil), p[:n]...), size: -1})
	}
	return n, f.memory.end(op, crashes, err)
}

// Direct implements File. There is no page cache.
func (f *memoryFile) Direct() {}

// Truncate implements File.
func (f *memoryFile) Truncate(size int64) error {
	op := Operation{Kind: OpTruncate, Name: f.name, Length: size}
	crashes, err := f.begin(op, true)
	if err != nil {
		return err
	}
	if size-f.node.current.size > f.memory.room() {
		return f.memory.end(op, crashes, ErrNoSpace)
	}
	f.change(dataChange{size: size})
	return f.memory.end(op, crashes, nil)
}

// Allocate implements File.
func (f *memoryFile) Allocate(size int64) error {
	op := Operation{Kind: OpAllocate, Name: f.name, Length: size}
	crashes, err := f.begin(op, true)
	if err != nil {
		return err
	}
	if size-f.node.current.size > f.memory.room() {
		return f.memory.end(op, crashes, ErrNoSpace)
	}
	f.change(dataChange{size: 0})
	f.change(dataChange{size: size})
	return f.memory.end(op, crashes, nil)
}

func (f *memoryFile) change(change dataChange) {
	before := f.node.current.size
	change.applyTo(&f.node.current)
	f.node.pending = append(f.node.pending, change)
	f.memory.used += f.node.current.size - before
}

// room returns how many bytes the disk still takes.
func (m *Memory) room() int64 {
	if m.capacity == 0 {
		return math.MaxInt64
	}
	return max(0, m.capacity-m.used)
}

// Datasync implements File. Where the hook has it fail, what it should have made durable never will be, by no later sync
// either, though reads go on to see it: systems drop what they could not write and take it for clean.
func (f *memoryFile) Datasync() error {
	op := Operation{Kind: OpSync, Name: f.name}
	crashes, err := f.begin(op, true)
	if err != nil {
		f.memory.mu.Lock()
		defer f.memory.mu.Unlock()
		if f.life == f.memory.life {
			f.node.pending = nil
		}
		return err
	}
	if !crashes {
		for _, change := range f.node.pending {
			change.applyTo(&f.node.durable)
		}
		f.node.pending = nil
	}
	return f.memory.end(op, crashes, nil)
}

// Size implements File.
func (f *memoryFile) Size() (int64, error) {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if f.memory.crashed || f.life != f.memory.life {
		return 0, fmt.Errorf("size of %s: %w", f.name, ErrCrashed)
	}
	return f.node.current.size, nil
}

// Close implements File. Closing twice is an error, as with a real file.
func (f *memoryFile) Close() error {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	if f.closed {
		return fmt.Errorf("close %s: %w", f.name, fs.ErrClosed)
	}
	f.closed = true
	if f.life == f.memory.life {
		f.node.handles--
		f.memory.release(f.node)
	}
	return nil
}
