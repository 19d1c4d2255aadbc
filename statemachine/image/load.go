package image

import (
	"fmt"
	"math"
	"runtime/debug"

	"go.etcd.io/bbolt"

	"github.com/logmirror/logmirror/statemachine"
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

// load reads the whole file. Without anything committed it returns nils.
func load(db *bbolt.DB, identity Identity, options statemachine.Options) (*statemachine.Machine, *head, error) {
	tx, err := db.Begin(false)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		dropResident(tx)
		_ = tx.Rollback()
	}()
	h, err := readHead(tx)
	if h == nil || err != nil {
		return nil, nil, err
	}
	if !h.Identity.fits(identity) {
		return nil, nil, fmt.Errorf("%w: it is of %+v, this is %+v", ErrForeign, h.Identity, identity)
	}
	for _, name := range [][]byte{bucketVersions, bucketLeases, bucketRequests} {
		if tx.Bucket(name) == nil {
			return nil, nil, fmt.Errorf("%w: no bucket of %s", ErrCorrupt, name)
		}
	}
	state, err := open(keyState, tx.Bucket(bucketMeta).Get(keyState))
	if err != nil {
		return nil, nil, err
	}
	r, err := statemachine.NewRestorer(options, state)
	if err != nil {
		return nil, nil, err
	}
	if r.Index() != h.Index || r.CompactRevision() != h.CompactRevision {
		return nil, nil, fmt.Errorf("%w: head of index %d, state of %d", ErrCorrupt, h.Index, r.Index())
	}
	if err := loadTables(tx, h, r); err != nil {
		return nil, nil, err
	}
	if err := loadVersions(tx, h, r); err != nil {
		return nil, nil, err
	}
	machine, err := r.Machine()
	return machine, h, err
}

func loadTables(tx *bbolt.Tx, h *head, r *statemachine.Restorer) error {
	if err := eachNumber(tx, bucketLeases, h.Leases, func(id uint64, row []byte) error {
		return r.Lease(int64(id), row)
	}); err != nil {
		return err
	}
	next := h.FirstRequest
	err := eachNumber(tx, bucketRequests, h.Request, func(ordinal uint64, row []byte) error {
		if ordinal != next {
			return fmt.Errorf("%w: request id %d follows %d", ErrCorrupt, ordinal, next)
		}
		next++
		return r.RequestID(row)
	})
	if err == nil && next != h.NextRequest {
		err = fmt.Errorf("%w: request ids up to %d, want %d", ErrCorrupt, next, h.NextRequest)
	}
	return err
}

// eachNumber visits the rows of a bucket whose keys are numbers, and checks them one by one and together.
func eachNumber(tx *bbolt.Tx, bucket []byte, want tally, visit func(number uint64, row []byte) error) error {
	var have tally
	err := tx.Bucket(bucket).ForEach(func(key, value []byte) error {
		row, err := open(key, value)
		if err != nil {
			return fmt.Errorf("%s: %w", bucket, err)
		}
		if len(key) != 8 {
			return fmt.Errorf("%w: key %x in %s", ErrCorrupt, key, bucket)
		}
		have.add(key, value)
		return visit(number(key), row)
	})
	if err == nil && have != want {
		err = fmt.Errorf("%w: rows of %s do not add up", ErrCorrupt, bucket)
	}
	return err
}

// loadVersions restores the versions that the compact revision leaves, in their order.
func loadVersions(tx *bbolt.Tx, h *head, r *statemachine.Restorer) error {
	dead, err := superseded(tx, h, math.MaxInt)
	if err != nil {
		return err
	}
	gone := make(map[revision]struct{}, len(dead.rows))
	for _, at := range dead.rows {
		gone[at] = struct{}{}
	}
	if err := supersededAt(tx, h.CompactRevision, gone); err != nil {
		return err
	}
	var have tally
	err = tx.Bucket(bucketVersions).ForEach(func(key, value []byte) error {
		at, row, err := openVersion(key, value)
		if err != nil {
			return err
		}
		have.add(key, value)
		if _, ok := gone[at]; ok {
			return nil
		}
		return r.Version(row.encoded, at.Sub)
	})
	if err == nil && have != h.Versions {
		err = fmt.Errorf("%w: versions do not add up: %d, want %d", ErrCorrupt, have.Count, h.Versions.Count)
	}
	return err
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

// superseded looks at up to budget rows between what the removal has seen and the compact revision, which itself is
// history still. Each says that its predecessor can go; a tombstone can go itself.
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
		if row.hasPredecessor {
			out.rows = append(out.rows, row.predecessor)
		}
		if row.tombstone {
			out.rows = append(out.rows, at)
		}
		out.reached = at
	}
	out.reached = endOf(h.CompactRevision - 1)
	return out, nil
}

// supersededAt adds what the rows of the compact revision superseded. The file keeps it until the next compaction; a
// state that is restored has no use for it.
func supersededAt(tx *bbolt.Tx, compacted int64, gone map[revision]struct{}) error {
	cursor := tx.Bucket(bucketVersions).Cursor()
	for key, value := cursor.Seek(revision{Main: compacted}.appendTo(nil)); key != nil; key, value = cursor.Next() {
		at, row, err := openVersion(key, value)
		if err != nil {
			return err
		}
		if at.Main > compacted {
			break
		}
		if row.hasPredecessor && row.predecessor.Main < compacted {
			gone[row.predecessor] = struct{}{}
		}
	}
	return nil
}
