package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"
	"slices"
)

// bbolt trusts the structure of its file: a page that refers to itself, or beyond the end of the file, makes it loop or
// ends the process. So the file is walked once, with every reference checked, before bbolt opens it. The layout is that
// of bbolt's version 2, in the byte order of the machine.
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

// pageWalk visits every page that can be reached.
//
// Invariant: a page is entered at most once, so the walk ends.
type pageWalk struct {
	file     io.ReaderAt
	pageSize int64
	meta     boltMeta
	reached  []bool
	// leaf is room for one leaf below which nothing is.
	leaf []byte
}

// checkPages walks the file as of its newest transaction. empty tells that nothing was committed yet. The error matches
// ErrCorrupt, or is the file's.
func checkPages(path string) (empty bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	w := &pageWalk{file: file, pageSize: int64(os.Getpagesize())}
	found := false
	for page := range int64(2) {
		if m, ok := w.readMeta(page); ok && (!found || m.transaction > w.meta.transaction) {
			w.meta, found = m, true
		}
	}
	switch {
	case !found:
		return false, fmt.Errorf("%w: no valid meta page", ErrCorrupt)
	case w.meta.transaction <= 1:
		return true, nil
	case w.meta.freelist != noFreelist:
		return false, fmt.Errorf("%w: a list of free pages, which is never written", ErrCorrupt)
	case w.meta.pages > uint64(info.Size()/w.pageSize):
		return false, fmt.Errorf("%w: %d bytes, for %d pages", ErrCorrupt, info.Size(), w.meta.pages)
	}
	w.reached = make([]bool, w.meta.pages)
	return false, w.page(w.meta.root, bounds{}, true)
}

func (w *pageWalk) readMeta(page int64) (m boltMeta, ok bool) {
	var b [pageHeaderBytes + metaBytes]byte
	if _, err := w.file.ReadAt(b[:], page*w.pageSize); err != nil {
		return m, false
	}
	meta, order := b[pageHeaderBytes:], binary.NativeEndian
	sum := fnv.New64a()
	_, _ = sum.Write(meta[:56])
	ok = order.Uint32(meta) == boltMagic && order.Uint32(meta[4:]) == boltVersion &&
		int64(order.Uint32(meta[8:])) == w.pageSize && order.Uint64(meta[56:]) == sum.Sum64()
	return boltMeta{
		root: order.Uint64(meta[16:]), freelist: order.Uint64(meta[32:]), pages: order.Uint64(meta[40:]),
		transaction: order.Uint64(meta[48:]),
	}, ok
}

// bounds of the keys that a page may hold: at least low, below high where there is one.
type bounds struct{ low, high []byte }

func (b bounds) hold(key []byte) bool {
	return bytes.Compare(key, b.low) >= 0 && (b.high == nil || bytes.Compare(key, b.high) < 0)
}

// page checks one page and all below it. buckets tells whether its leaves may name buckets.
func (w *pageWalk) page(id uint64, within bounds, buckets bool) error {
	corrupt := func(why string) error { return fmt.Errorf("%w: page %d: %s", ErrCorrupt, id, why) }
	if id < 2 || id >= w.meta.pages {
		return corrupt("outside the file")
	}
	var header [pageHeaderBytes]byte
	if _, err := w.file.ReadAt(header[:], int64(id)*w.pageSize); err != nil {
		return err
	}
	overflow := uint64(binary.NativeEndian.Uint32(header[12:]))
	if binary.NativeEndian.Uint64(header[:]) != id || overflow >= w.meta.pages-id {
		return corrupt("header")
	}
	for i := id; i <= id+overflow; i++ {
		if w.reached[i] {
			return corrupt("reached twice")
		}
		w.reached[i] = true
	}
	var content []byte
	if size := int64(overflow+1) * w.pageSize; buckets || binary.NativeEndian.Uint16(header[8:]) != pageLeaf {
		content = make([]byte, size) // it is needed until all below it has been walked
	} else {
		w.leaf = slices.Grow(w.leaf[:0], int(size))
		content = w.leaf[:size]
	}
	if _, err := w.file.ReadAt(content, int64(id)*w.pageSize); err != nil {
		return err
	}
	return w.content(content, within, buckets, corrupt)
}

// content checks the elements of a page, or of a bucket that stands in its parent's leaf.
func (w *pageWalk) content(b []byte, within bounds, buckets bool, corrupt func(string) error) error {
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	switch {
	case flags != pageBranch && flags != pageLeaf, pageHeaderBytes+count*pageElementBytes > len(b):
		return corrupt("neither branch nor leaf")
	case flags == pageBranch && count == 0:
		return corrupt("branch without children")
	}
	var previous element
	for i := range count {
		e, ok := elementAt(b, i, flags)
		if !ok {
			return corrupt("element outside the page")
		}
		if len(e.key) == 0 || !within.hold(e.key) || i > 0 && bytes.Compare(previous.key, e.key) >= 0 {
			return corrupt("keys out of order")
		}
		if flags == pageBranch && i > 0 {
			if err := w.page(previous.child, bounds{previous.key, e.key}, buckets); err != nil {
				return err
			}
		}
		previous = e
		switch {
		case flags == pageBranch || e.kind == 0:
		case e.kind == elementBucket && buckets:
			if err := w.bucket(e.value, corrupt); err != nil {
				return err
			}
		default:
			return corrupt("element of an unknown kind")
		}
	}
	if flags == pageBranch {
		return w.page(previous.child, bounds{previous.key, within.high}, buckets)
	}
	return nil
}

// element is one of a leaf, with kind and value, or of a branch, with child.
type element struct {
	key, value []byte
	kind       uint32
	child      uint64
}

// elementAt returns an element whose head lies within the page; false if its key or value does not.
func elementAt(b []byte, i int, flags uint16) (e element, ok bool) {
	at := pageHeaderBytes + i*pageElementBytes
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

func (w *pageWalk) bucket(value []byte, corrupt func(string) error) error {
	if len(value) < 16 {
		return corrupt("bucket cut short")
	}
	root, inline := binary.NativeEndian.Uint64(value), value[16:]
	if root != 0 {
		return w.page(root, bounds{}, false)
	}
	if len(inline) < pageHeaderBytes || binary.NativeEndian.Uint16(inline[8:]) != pageLeaf {
		return corrupt("bucket in place")
	}
	return w.content(inline, bounds{}, false, corrupt)
}
