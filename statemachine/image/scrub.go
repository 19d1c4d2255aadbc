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

// Scrub reads the whole file as of one transaction, beside the writer, and checks its structure, every row, and that the rows
// add up to what was written. pause is called for every piece read, with its bytes; an error of its own ends the scrub.
// An error that matches ErrCorrupt says what is damaged. Until it returns the file grows instead of using pages again.
// Any goroutine may call it, between Start and Close.
func (im *Image) Scrub(pause func(bytes int) error) error {
	if im.abandoned.Load() || im.committed.Load() == 0 {
		return nil
	}
	var stopped error
	read := func(bytes int) error {
		if stopped == nil {
			stopped = pause(bytes)
		}
		return stopped
	}
	err := guard(func() error {
		tx, walk, err := im.beginScrub()
		if err != nil {
			return err
		}
		defer func() {
			dropResident(tx)
			_ = tx.Rollback()
		}()
		file, err := os.Open(im.config.Path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		walk.file = &pausingReader{file, read}
		if err := walk.page(walk.meta.root, bounds{}, true); err != nil {
			return err
		}
		return checkRows(tx, read)
	})
	switch {
	case stopped != nil:
		return stopped
	case errors.Is(err, errNoMeta):
		return nil // two commits came in between: the next pass has better luck
	}
	return err
}

// beginScrub begins a transaction and a walk over its pages, which nobody changes until the transaction ends.
func (im *Image) beginScrub() (*bbolt.Tx, *pageWalk, error) {
	tx, err := im.db.Begin(false)
	if err != nil {
		return nil, nil, err
	}
	file, err := os.Open(im.config.Path)
	if err != nil {
		return nil, nil, errors.Join(err, tx.Rollback())
	}
	defer func() { _ = file.Close() }()
	w := &pageWalk{file: file, pageSize: int64(os.Getpagesize())}
	valid := 0
	for page := range int64(2) {
		if m, ok := w.readMeta(page); ok {
			valid++
			if m.transaction == uint64(tx.ID()) {
				w.meta = m
			}
		}
	}
	switch {
	case w.meta.root != 0:
		w.reached = make([]bool, w.meta.pages)
		return tx, w, nil
	case valid < 2:
		err = fmt.Errorf("%w: a meta page is not valid", ErrCorrupt)
	default:
		err = errNoMeta
	}
	return nil, nil, errors.Join(err, tx.Rollback())
}

// checkRows checks every row, and the rows of each bucket together.
func checkRows(tx *bbolt.Tx, read func(bytes int) error) error {
	h, err := readHead(tx)
	if err != nil || h == nil {
		return err
	}
	if _, err := open(keyState, tx.Bucket(bucketMeta).Get(keyState)); err != nil {
		return err
	}
	for _, b := range []struct {
		name []byte
		want tally
	}{{bucketLeases, h.Leases}, {bucketRequests, h.Request}, {bucketVersions, h.Versions}} {
		bucket := tx.Bucket(b.name)
		if bucket == nil {
			return fmt.Errorf("%w: no bucket of %s", ErrCorrupt, b.name)
		}
		var have tally
		if err := bucket.ForEach(func(key, value []byte) error {
			if _, err := open(key, value); err != nil {
				return fmt.Errorf("%s: %w", b.name, err)
			}
			have.add(key, value)
			return read(len(key) + len(value))
		}); err != nil {
			return err
		}
		if have != b.want {
			return fmt.Errorf("%w: rows of %s do not add up: %d, want %d", ErrCorrupt, b.name, have.Count, b.want.Count)
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
