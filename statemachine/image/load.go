package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// guard turns what bbolt does with a file that changed beneath it into an error.
func guard(work func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return work()
}

// contents are the trees of an image.
type contents struct{ versions, leases, requests, meta tree }

func (r *pageReader) contents() (c contents, err error) {
	buckets, err := r.buckets()
	if err != nil {
		return c, err
	}
	for _, b := range []struct {
		name []byte
		tree *tree
	}{{bucketVersions, &c.versions}, {bucketLeases, &c.leases}, {bucketRequests, &c.requests}, {bucketMeta, &c.meta}} {
		t, ok := buckets[string(b.name)]
		if !ok {
			return c, fmt.Errorf("%w: no bucket of %s", ErrCorrupt, b.name)
		}
		*b.tree = t
		delete(buckets, string(b.name))
	}
	if len(buckets) > 0 {
		return c, fmt.Errorf("%w: %d buckets too many", ErrCorrupt, len(buckets))
	}
	return c, nil
}

// readHead reads the head and the small part of the state.
func (r *pageReader) readHead(c contents) (h *head, state []byte, err error) {
	err = r.rows(c.meta, bounds{}, plainRows(func(key, value []byte) (err error) {
		switch string(key) {
		case string(keyHead):
			h, err = decodeHead(value)
		case string(keyState):
			state, err = open(key, value)
			state = bytes.Clone(state)
		default:
			err = fmt.Errorf("%w: a row of %q", ErrCorrupt, key)
		}
		return err
	}))
	if err == nil && (h == nil || state == nil) {
		err = fmt.Errorf("%w: no head or no state", ErrCorrupt)
	}
	return h, state, err
}

// load reads the whole file.
func load(r *pageReader, identity Identity, options statemachine.Options) (*statemachine.Machine, *head, error) {
	c, err := r.contents()
	if err != nil {
		return nil, nil, err
	}
	h, state, err := r.readHead(c)
	if err != nil {
		return nil, nil, err
	}
	if !h.Identity.fits(identity) {
		return nil, nil, fmt.Errorf("%w: it is of %+v, this is %+v", ErrForeign, h.Identity, identity)
	}
	restorer, err := statemachine.NewRestorer(options, state)
	if err != nil {
		return nil, nil, err
	}
	if restorer.Index() != h.Index || restorer.CompactRevision() != h.CompactRevision {
		return nil, nil, fmt.Errorf("%w: head of index %d, state of %d", ErrCorrupt, h.Index, restorer.Index())
	}
	// Versions only become blocks here, so that the restorer is the tables' until they are done.
	var blocks []*keyspace.Block
	var both errgroup.Group
	both.Go(func() error { return guard(func() error { return loadTables(r, c, h, restorer) }) })
	both.Go(func() error {
		return guard(func() (err error) {
			blocks, err = loadVersions(r, c.versions, h)
			return err
		})
	})
	if err := both.Wait(); err != nil {
		return nil, nil, err
	}
	if err := restorer.Blocks(blocks); err != nil {
		return nil, nil, err
	}
	machine, err := restorer.Machine()
	return machine, h, err
}

func loadTables(r *pageReader, c contents, h *head, restorer *statemachine.Restorer) error {
	if err := eachNumber(r, bucketLeases, c.leases, h.Leases, func(id uint64, row []byte) error {
		return restorer.Lease(int64(id), row)
	}); err != nil {
		return err
	}
	next := h.FirstRequest
	err := eachNumber(r, bucketRequests, c.requests, h.Request, func(ordinal uint64, row []byte) error {
		if ordinal != next {
			return fmt.Errorf("%w: request id %d follows %d", ErrCorrupt, ordinal, next)
		}
		next++
		return restorer.RequestID(row)
	})
	if err == nil && next != h.NextRequest {
		err = fmt.Errorf("%w: request ids up to %d, want %d", ErrCorrupt, next, h.NextRequest)
	}
	return err
}

// eachNumber visits the rows of a bucket whose keys are numbers, and checks them one by one and together.
func eachNumber(r *pageReader, bucket []byte, t tree, want tally, visit func(number uint64, row []byte) error) error {
	return r.sealedRows(bucket, t, want, func(key, row []byte) error {
		if len(key) != 8 {
			return fmt.Errorf("%w: key %x in %s", ErrCorrupt, key, bucket)
		}
		return visit(number(key), row)
	})
}

// sealedRows visits the rows of a bucket without their checksums, and checks them one by one and together.
func (r *pageReader) sealedRows(bucket []byte, t tree, want tally, visit func(key, row []byte) error) error {
	var have tally
	err := r.rows(t, bounds{}, plainRows(func(key, value []byte) error {
		row, err := open(key, value)
		if err != nil {
			return fmt.Errorf("%s: %w", bucket, err)
		}
		have.add(key, value)
		return visit(key, row)
	}))
	if err != nil {
		return err
	}
	return have.check(bucket, want)
}

// loadBytes of pages are read by one goroutine at a time, and become about one block.
const loadBytes = 1 << 20

// loadVersions reads the versions that the compact revision leaves, in their order, on all processors.
func loadVersions(r *pageReader, t tree, h *head) ([]*keyspace.Block, error) {
	gone, err := compactedAway(r.again(), t, h)
	if err != nil {
		return nil, err
	}
	if t.root == 0 {
		l := newVersionLoader(r, gone)
		err := leafRows(0, t.inline, bounds{}, plainRows(l.row))
		l.seal()
		return l.blocks, errors.Join(err, l.have.check(bucketVersions, h.Versions))
	}
	var leaves []leafPage
	if err := r.leaves(t.root, bounds{}, func(leaf leafPage) error {
		leaves = append(leaves, leaf)
		return nil
	}); err != nil {
		return nil, err
	}
	batches := slices.Collect(slices.Chunk(leaves, max(1, loadBytes/int(r.pageSize))))
	blocks, loaders := make([][]*keyspace.Block, len(batches)), make([]*versionLoader, runtime.GOMAXPROCS(0))
	group, ctx := errgroup.WithContext(context.Background())
	var taken atomic.Int64
	for i := range loaders {
		l := newVersionLoader(r, gone)
		loaders[i] = l
		group.Go(func() error {
			return guard(func() error {
				for ctx.Err() == nil {
					n := int(taken.Add(1)) - 1
					if n >= len(batches) {
						return nil
					}
					if err := l.load(batches[n]); err != nil {
						return err
					}
					blocks[n] = l.blocks
				}
				return nil
			})
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var have tally
	for _, l := range loaders {
		have.join(l.have)
	}
	return slices.Concat(blocks...), have.check(bucketVersions, h.Versions)
}

// versionLoader makes blocks of rows. It belongs to one goroutine.
type versionLoader struct {
	pages  *pageReader
	gone   map[revision]struct{}
	buffer pageBuffer
	block  *keyspace.Block
	// blocks are those of the leaves that were loaded last, have the sum of all rows.
	blocks []*keyspace.Block
	have   tally
}

func newVersionLoader(r *pageReader, gone map[revision]struct{}) *versionLoader {
	return &versionLoader{pages: r, gone: gone, block: new(keyspace.Block), buffer: pageBuffer{memory: make([]byte, loadBytes)}}
}

func (l *versionLoader) load(leaves []leafPage) error {
	l.buffer.used, l.blocks = 0, nil
	if err := l.pages.readLeaves(leaves, &l.buffer, l.seal, plainRows(l.row)); err != nil {
		return err
	}
	l.seal()
	return nil
}

func (l *versionLoader) row(key, value []byte) error {
	at, row, err := openVersion(key, value)
	if err != nil {
		return err
	}
	l.have.add(key, value)
	if _, ok := l.gone[at]; ok {
		return nil
	}
	return l.block.Add(at.Main, at.Sub, row.encoded)
}

// seal ends the block before the pages that its rows stand on are overwritten.
func (l *versionLoader) seal() {
	if l.block.Bytes() == 0 {
		return
	}
	l.block.Seal()
	l.blocks, l.block = append(l.blocks, l.block), new(keyspace.Block)
}

func openVersion(key, value []byte) (revision, versionRow, error) {
	at, err := revisionOf(key)
	if err != nil {
		return at, versionRow{}, err
	}
	row, err := open(key, value)
	if err != nil {
		return at, versionRow{}, err
	}
	v, err := decodeVersionRow(row)
	return at, v, err
}

// removal is a slice of what compaction takes away.
type removal struct {
	rows []revision
	// reached is the last row that was looked at, or the end of those there are.
	reached revision
}

// take adds what a row below the compact revision says: its predecessor can go; a tombstone can go itself.
func (r *removal) take(at revision, row *versionRow) {
	if row.hasPredecessor {
		r.rows = append(r.rows, row.predecessor)
	}
	if row.tombstone {
		r.rows = append(r.rows, at)
	}
	r.reached = at
}

// superseded looks at up to budget rows between what the removal has seen and the compact revision, which itself is
// history still.
func superseded(tx *bbolt.Tx, h *head, budget int) (removal, error) {
	out := removal{reached: h.Compacted}
	cursor := tx.Bucket(bucketVersions).Cursor()
	after := h.Compacted.appendTo(nil)
	key, value := cursor.Seek(after)
	if key != nil && string(key) == string(after) {
		key, value = cursor.Next()
	}
	for ; key != nil; key, value = cursor.Next() {
		at, row, err := openVersion(key, value)
		if err != nil {
			return out, err
		}
		if at.Main >= h.CompactRevision {
			break
		}
		if budget--; budget < 0 {
			return out, nil
		}
		out.take(at, &row)
	}
	out.reached = endOf(h.CompactRevision - 1)
	return out, nil
}

// compactedAway finds the rows that are in the file still and that a restored state has no use for: what the removal has not
// come to, and what the rows of the compact revision superseded, which the file keeps until the next compaction.
func compactedAway(r *pageReader, t tree, h *head) (map[revision]struct{}, error) {
	if h.CompactRevision == 0 {
		return nil, nil
	}
	var dead removal
	unseen := bounds{low: h.Compacted.appendTo(nil), high: revision{Main: h.CompactRevision + 1}.appendTo(nil)}
	if err := r.rows(t, unseen, plainRows(func(key, value []byte) error {
		if !unseen.hold(key) {
			return nil // on the same leaf
		}
		at, row, err := openVersion(key, value)
		switch {
		case err != nil || at == h.Compacted:
			return err
		case at.Main < h.CompactRevision:
			dead.take(at, &row)
		case row.hasPredecessor && row.predecessor.Main < h.CompactRevision:
			dead.rows = append(dead.rows, row.predecessor)
		}
		return nil
	})); err != nil {
		return nil, err
	}
	gone := make(map[revision]struct{}, len(dead.rows))
	for _, at := range dead.rows {
		gone[at] = struct{}{}
	}
	return gone, nil
}
