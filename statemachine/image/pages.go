package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"
	"sync/atomic"
)

// bbolt trusts the structure of its file: a page that refers to itself, or beyond the end of the file, makes it loop or
// ends the process. So the file is read here, with every reference checked, before bbolt opens it; and since every page
// passes by then, what is in it is read here too. The layout is that of bbolt's version 2, in the byte order of the machine.
const (
	pageHeaderBytes  = 16
	pageElementBytes = 16
	metaBytes        = 64
	pageBranch       = 0x01
	pageLeaf         = 0x02
	elementBucket    = 0x01
	boltMagic        = 0xED0CDAED
	boltVersion      = 2
	noFreelist       = math.MaxUint64
)

type boltMeta struct {
	root, freelist, pages, transaction uint64
}

// pageReader reads the trees of one transaction. Pages that a branch names are read by several goroutines at once.
//
// Invariant: a page is entered at most once, so that reading ends.
type pageReader struct {
	file     io.ReaderAt
	pageSize int64
	meta     boltMeta
	reached  []atomic.Bool
}

// openPages begins to read a file as of its newest transaction. empty tells that nothing was committed yet. The error
// matches ErrCorrupt, or is the file's.
func openPages(file *os.File) (r *pageReader, empty bool, err error) {
	info, err := file.Stat()
	if err != nil {
		return nil, false, err
	}
	r = &pageReader{file: file, pageSize: int64(os.Getpagesize())}
	found := false
	for page := range int64(2) {
		if m, ok := r.readMeta(page); ok && (!found || m.transaction > r.meta.transaction) {
			r.meta, found = m, true
		}
	}
	switch {
	case !found:
		return nil, false, fmt.Errorf("%w: no valid meta page", ErrCorrupt)
	case r.meta.transaction <= 1:
		return nil, true, nil
	case r.meta.freelist != noFreelist:
		return nil, false, fmt.Errorf("%w: a list of free pages, which is never written", ErrCorrupt)
	case r.meta.pages > uint64(info.Size()/r.pageSize):
		return nil, false, fmt.Errorf("%w: %d bytes, for %d pages", ErrCorrupt, info.Size(), r.meta.pages)
	}
	r.reached = make([]atomic.Bool, r.meta.pages)
	return r, false, nil
}

// again returns a reader of the same transaction that has entered no page.
func (r *pageReader) again() *pageReader {
	return &pageReader{file: r.file, pageSize: r.pageSize, meta: r.meta, reached: make([]atomic.Bool, r.meta.pages)}
}

func (r *pageReader) readMeta(page int64) (m boltMeta, ok bool) {
	var b [pageHeaderBytes + metaBytes]byte
	if _, err := r.file.ReadAt(b[:], page*r.pageSize); err != nil {
		return m, false
	}
	meta, order := b[pageHeaderBytes:], binary.NativeEndian
	sum := fnv.New64a()
	_, _ = sum.Write(meta[:56])
	ok = order.Uint32(meta) == boltMagic && order.Uint32(meta[4:]) == boltVersion &&
		int64(order.Uint32(meta[8:])) == r.pageSize && order.Uint64(meta[56:]) == sum.Sum64()
	return boltMeta{
		root: order.Uint64(meta[16:]), freelist: order.Uint64(meta[32:]), pages: order.Uint64(meta[40:]),
		transaction: order.Uint64(meta[48:]),
	}, ok
}

// corruptPage says what is wrong with a page; page 0 stands for a bucket in its parent's leaf.
func corruptPage(id uint64, why string) error {
	if id == 0 {
		return fmt.Errorf("%w: bucket in place: %s", ErrCorrupt, why)
	}
	return fmt.Errorf("%w: page %d: %s", ErrCorrupt, id, why)
}

// bounds of the keys that a page may hold: at least low, below high where there is one.
type bounds struct{ low, high []byte }

func (b bounds) hold(key []byte) bool {
	return bytes.Compare(key, b.low) >= 0 && (b.high == nil || bytes.Compare(key, b.high) < 0)
}

// meet tells whether some key could be within both.
func (b bounds) meet(other bounds) bool {
	return (other.high == nil || bytes.Compare(b.low, other.high) < 0) && (b.high == nil || bytes.Compare(other.low, b.high) < 0)
}

// tree is what a bucket holds: pages below a root or, where root is zero, one leaf that stands in its parent's.
type tree struct {
	root   uint64
	inline []byte
}

// buckets reads the root of the file, which names trees.
func (r *pageReader) buckets() (map[string]tree, error) {
	found := make(map[string]tree)
	err := r.rows(tree{root: r.meta.root}, bounds{}, func(key, value []byte, kind uint32) error {
		if kind != elementBucket || len(value) < 16 {
			return fmt.Errorf("%w: %x in place of a bucket", ErrCorrupt, key)
		}
		t := tree{root: binary.NativeEndian.Uint64(value)}
		if t.root == 0 {
			t.inline = bytes.Clone(value[16:])
		}
		found[string(key)] = t
		return nil
	})
	return found, err
}

// rowVisit takes a row. Key and value are good until it returns, or for as long as whoever calls it says.
type rowVisit func(key, value []byte, kind uint32) error

// plainRows refuses buckets below buckets, which are never made.
func plainRows(visit func(key, value []byte) error) rowVisit {
	return func(key, value []byte, kind uint32) error {
		if kind != 0 {
			return fmt.Errorf("%w: row %x is of an unknown kind", ErrCorrupt, key)
		}
		return visit(key, value)
	}
}

// rows visits, in order, the rows of a tree on all leaves that may hold rows within the bounds.
func (r *pageReader) rows(t tree, within bounds, visit rowVisit) error {
	if t.root == 0 {
		return leafRows(0, t.inline, bounds{}, visit)
	}
	var buffer pageBuffer
	return r.leaves(t.root, within, func(leaf leafPage) error {
		return r.readLeaves([]leafPage{leaf}, &buffer, func() {}, visit)
	})
}

// leafPage is a leaf as a branch names it, or the only page of its tree.
type leafPage struct {
	id     uint64
	within bounds
}

// leaves visits, in order, the leaves of a tree that may hold rows within the bounds. It reads the branches.
func (r *pageReader) leaves(root uint64, within bounds, visit func(leafPage) error) error {
	leaf, err := r.isLeaf(root)
	if err != nil {
		return err
	}
	if leaf {
		return visit(leafPage{id: root})
	}
	return r.branch(leafPage{id: root}, within, visit)
}

func (r *pageReader) branch(page leafPage, within bounds, visit func(leafPage) error) error {
	content, err := r.readBranch(page.id)
	if err != nil {
		return err
	}
	// bbolt keeps its trees level: what the first child is, all are, and whoever reads them checks that.
	next := visit
	if first, ok := elementAt(content, 0, pageBranch); ok {
		leaf, err := r.isLeaf(first.child)
		if err != nil {
			return err
		}
		if !leaf {
			next = func(child leafPage) error { return r.branch(child, within, visit) }
		}
	}
	var last *leafPage
	err = elements(page.id, content, pageBranch, page.within, func(e *element) error {
		before := last
		last = &leafPage{id: e.child, within: bounds{low: e.key, high: page.within.high}}
		if before == nil {
			return nil
		}
		before.within.high = e.key
		if !before.within.meet(within) {
			return nil
		}
		return next(*before)
	})
	if err != nil || !last.within.meet(within) {
		return err
	}
	return next(*last)
}

func (r *pageReader) header(id uint64) (header [pageHeaderBytes]byte, err error) {
	if id < 2 || id >= r.meta.pages {
		return header, corruptPage(id, "outside the file")
	}
	_, err = r.file.ReadAt(header[:], int64(id)*r.pageSize)
	return header, err
}

func (r *pageReader) isLeaf(id uint64) (bool, error) {
	header, err := r.header(id)
	return binary.NativeEndian.Uint16(header[8:]) == pageLeaf, err
}

// enter marks a page, whose header is given, and those that it overflows to. It returns how many they are.
func (r *pageReader) enter(id uint64, header []byte) (pages int64, err error) {
	overflow := uint64(binary.NativeEndian.Uint32(header[12:]))
	if binary.NativeEndian.Uint64(header) != id || overflow >= r.meta.pages-id {
		return 0, corruptPage(id, "header")
	}
	for i := id; i <= id+overflow; i++ {
		if r.reached[i].Swap(true) {
			return 0, corruptPage(id, "reached twice")
		}
	}
	return int64(overflow) + 1, nil
}

func (r *pageReader) readBranch(id uint64) ([]byte, error) {
	header, err := r.header(id)
	if err != nil {
		return nil, err
	}
	pages, err := r.enter(id, header[:])
	if err != nil {
		return nil, err
	}
	content := make([]byte, pages*r.pageSize)
	_, err = r.file.ReadAt(content, int64(id)*r.pageSize)
	return content, err
}

// readLeaves visits the rows of leaves. Leaves that lie beside each other in the file are read at once. Rows stay good until
// the buffer is used anew, and flush is called before that.
func (r *pageReader) readLeaves(leaves []leafPage, buffer *pageBuffer, flush func(), visit rowVisit) error {
	for len(leaves) > 0 {
		first, n := leaves[0].id, 1
		for n < len(leaves) && leaves[n].id == first+uint64(n) {
			n++
		}
		if first < 2 || first >= r.meta.pages || uint64(n) > r.meta.pages-first {
			return corruptPage(first, "outside the file")
		}
		run := buffer.take(n*int(r.pageSize), flush)
		if _, err := r.file.ReadAt(run, int64(first)*r.pageSize); err != nil {
			return err
		}
		for i, leaf := range leaves[:n] {
			content := run[i*int(r.pageSize) : (i+1)*int(r.pageSize)]
			pages, err := r.enter(leaf.id, content)
			if err != nil {
				return err
			}
			if pages > 1 {
				if i < n-1 {
					return corruptPage(leaf.id, "overflows to a leaf")
				}
				content = buffer.take(int(pages*r.pageSize), flush)
				if _, err := r.file.ReadAt(content, int64(leaf.id)*r.pageSize); err != nil {
					return err
				}
			}
			if err := leafRows(leaf.id, content, leaf.within, visit); err != nil {
				return err
			}
		}
		leaves = leaves[n:]
	}
	return nil
}

// pageBuffer is memory that pages are read into, used again and again.
type pageBuffer struct {
	memory []byte
	used   int
}

// take returns n bytes. Where there is no room left flush is called, and all is used anew.
func (b *pageBuffer) take(n int, flush func()) []byte {
	if n > len(b.memory)-b.used {
		flush()
		b.used = 0
		if n > len(b.memory) {
			b.memory = make([]byte, n)
		}
	}
	b.used += n
	return b.memory[b.used-n : b.used : b.used]
}

func leafRows(id uint64, content []byte, within bounds, visit rowVisit) error {
	return elements(id, content, pageLeaf, within, func(e *element) error { return visit(e.key, e.value, e.kind) })
}

// elements visits the elements of a page of the kind given, or of a bucket that stands in its parent's leaf, in order.
func elements(id uint64, content []byte, flags uint16, within bounds, visit func(*element) error) error {
	if len(content) < pageHeaderBytes {
		return corruptPage(id, "cut short")
	}
	count := int(binary.NativeEndian.Uint16(content[10:]))
	switch {
	case binary.NativeEndian.Uint16(content[8:]) != flags, pageHeaderBytes+count*pageElementBytes > len(content):
		return corruptPage(id, "not the leaf or branch that it should be")
	case flags == pageBranch && count == 0:
		return corruptPage(id, "branch without children")
	}
	var previous []byte
	for i := range count {
		e, ok := elementAt(content, i, flags)
		if !ok {
			return corruptPage(id, "element outside the page")
		}
		if len(e.key) == 0 || bytes.Compare(previous, e.key) >= 0 {
			return corruptPage(id, "keys out of order")
		}
		if (i == 0 || i == count-1) && !within.hold(e.key) {
			return corruptPage(id, "keys of another page")
		}
		previous = e.key
		if err := visit(&e); err != nil {
			return err
		}
	}
	return nil
}

// element is one of a leaf, with kind and value, or of a branch, with child.
type element struct {
	key, value []byte
	kind       uint32
	child      uint64
}

// elementAt returns an element; false if it does not lie within the page.
func elementAt(b []byte, i int, flags uint16) (e element, ok bool) {
	at := pageHeaderBytes + i*pageElementBytes
	if at+pageElementBytes > len(b) {
		return e, false
	}
	order, head := binary.NativeEndian, b[at:at+pageElementBytes]
	var position, keyBytes, valueBytes uint32
	if flags == pageBranch {
		position, keyBytes, e.child = order.Uint32(head), order.Uint32(head[4:]), order.Uint64(head[8:])
	} else {
		e.kind, position = order.Uint32(head), order.Uint32(head[4:])
		keyBytes, valueBytes = order.Uint32(head[8:]), order.Uint32(head[12:])
	}
	begin := uint64(at) + uint64(position)
	middle := begin + uint64(keyBytes)
	end := middle + uint64(valueBytes)
	if end > uint64(len(b)) {
		return e, false
	}
	e.key, e.value = b[begin:middle], b[middle:end]
	return e, true
}
