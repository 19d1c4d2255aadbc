package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// errNoMeta: the meta page of a transaction was replaced before it was read.
var errNoMeta = errors.New("image: the transaction's meta page is gone")

// errAbandoned: the image was abandoned while it was read.
var errAbandoned = errors.New("image: abandoned")

// Scrub reads the whole file as of one transaction, beside the writer, and checks its structure, every row, and that the rows
// add up to what was written. pause is called for every piece read, with its bytes; an error of its own ends the scrub.
// An error that matches ErrCorrupt says what is damaged, also where the writer has found it before. An image that is
// abandoned for another reason is not looked at. Until it returns the file grows instead of using pages again.
// Any goroutine may call it, between Start and Close.
func (im *Image) Scrub(pause func(bytes int) error) error {
	if damage := im.damaged.Load(); damage != nil {
		return *damage
	}
	if im.abandoned.Load() || im.committed.Load() == 0 {
		return nil
	}
	var stopped error
	read := func(bytes int) error {
		switch {
		case stopped != nil:
		case im.abandoned.Load():
			stopped = errAbandoned // it would hold up its replacement
		default:
			stopped = pause(bytes)
		}
		return stopped
	}
	err := guard(func() error {
		file, tx, err := im.beginScrub()
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		defer func() {
			dropResident(tx) // what compaction has looked at since the last pass
			_ = tx.Rollback()
		}()
		r, err := pagesOf(tx, file)
		if err != nil {
			return err
		}
		r.file = &pausingReader{file, read}
		return checkRows(r)
	})
	switch {
	case errors.Is(stopped, errAbandoned):
		return nil
	case stopped != nil:
		return stopped
	case errors.Is(err, errNoMeta):
		return nil // two commits came in between: the next pass has better luck
	}
	return err
}

// beginScrub opens the file beside its database, and begins a transaction of the latter.
func (im *Image) beginScrub() (*os.File, *bbolt.Tx, error) {
	im.opening.Lock()
	defer im.opening.Unlock()
	if err := im.openDatabase(); err != nil {
		return nil, nil, err
	}
	file, err := os.Open(im.config.Path)
	if err != nil {
		return nil, nil, err
	}
	tx, err := im.db.Begin(false)
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, tx, nil
}

// pagesOf returns a reader of the pages of a transaction, which nobody changes until that ends.
func pagesOf(tx *bbolt.Tx, file *os.File) (*pageReader, error) {
	r := &pageReader{file: file, pageSize: int64(os.Getpagesize())}
	valid := 0
	for page := range int64(2) {
		if m, ok := r.readMeta(page); ok {
			valid++
			if m.transaction == uint64(tx.ID()) {
				r.meta = m
			}
		}
	}
	switch {
	case r.meta.root != 0:
		return r.again(), nil
	case valid < 2:
		return nil, fmt.Errorf("%w: a meta page is not valid", ErrCorrupt)
	default:
		return nil, errNoMeta
	}
}

// checkRows checks every page, every row, and the rows of each bucket together.
func checkRows(r *pageReader) error {
	c, err := r.contents()
	if err != nil {
		return err
	}
	h, _, err := r.readHead(c)
	if err != nil {
		return err
	}
	good := func(_, _ []byte) error { return nil }
	for _, b := range []struct {
		name []byte
		tree tree
		want tally
	}{{bucketLeases, c.leases, h.Leases}, {bucketRequests, c.requests, h.Request}, {bucketVersions, c.versions, h.Versions}} {
		if err := r.sealedRows(b.name, b.tree, b.want, good); err != nil {
			return err
		}
	}
	return nil
}

// pausingReader tells of every read before it is made.
type pausingReader struct {
	io.ReaderAt
	read func(bytes int) error
}

func (r *pausingReader) ReadAt(b []byte, at int64) (int, error) {
	if err := r.read(len(b)); err != nil {
		return 0, err
	}
	return r.ReaderAt.ReadAt(b, at)
}
