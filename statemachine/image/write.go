package image

import (
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// fillPercent of pages of versions: they are appended, and never grow.
const fillPercent = 0.95

// write commits what is handed over until the channel is closed, and compacts while there is nothing to commit. Where the
// image was abandoned it makes a new one.
func (im *Image) write() {
	defer close(im.stopped)
	more := !im.head.compactionDone()
	for {
		if im.abandoned.Load() {
			if !im.rebuild() {
				im.discard()
				return
			}
			more = !im.head.compactionDone()
		}
		var c *commit
		ok := true
		if more {
			select {
			case c, ok = <-im.work:
			default: // a transaction for compaction alone
			}
		} else {
			select {
			case c, ok = <-im.work:
			case <-im.wake:
				continue
			}
		}
		if !ok {
			return
		}
		if im.abandoned.Load() {
			continue
		}
		if err := guard(func() error { return im.commit(c) }); err != nil {
			im.abandon(err)
			continue
		}
		more = !im.head.compactionDone()
	}
}

// discard takes what is handed over until the channel is closed, so that nobody waits for room.
func (im *Image) discard() {
	for {
		if _, ok := <-im.work; !ok {
			return
		}
	}
}

func (h *head) compactionDone() bool {
	return h.CompactRevision == 0 || h.Compacted.atLeast(endOf(h.CompactRevision-1))
}

// commit makes one transaction of c, which is nil for one of compaction alone.
func (im *Image) commit(c *commit) error {
	db, err := im.database()
	if err != nil {
		return err
	}
	h := im.head
	err = im.disk.update(db, func(tx *bbolt.Tx) error {
		if err := createBuckets(tx); err != nil {
			return err
		}
		if c != nil {
			if err := h.write(tx, c); err != nil {
				return err
			}
		}
		if err := h.compact(tx, im.config.CompactRows); err != nil {
			return err
		}
		return writeHead(tx, &h)
	})
	if err != nil {
		return err
	}
	im.head = h
	im.committed.Store(h.Index)
	return nil
}

func createBuckets(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketVersions, bucketLeases, bucketRequests, bucketMeta} {
		bucket, err := tx.CreateBucketIfNotExists(name)
		if err != nil {
			return err
		}
		bucket.FillPercent = fillPercent
	}
	return nil
}

// write brings the rows of a commit.
func (h *head) write(tx *bbolt.Tx, c *commit) error {
	x := c.export
	if c.identity.ClusterID != x.ClusterID {
		return fmt.Errorf("a state of cluster %016x for an image of %016x", x.ClusterID, c.identity.ClusterID)
	}
	h.Format, h.Identity = formatVersion, c.identity
	h.Index, h.Term, h.CompactRevision = x.Index, x.Term, x.CompactRevision
	if err := h.writeVersions(tx, c.versions); err != nil {
		return err
	}
	if err := h.writeTables(tx, c); err != nil {
		return err
	}
	state, err := x.State()
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(keyState, seal(keyState, state))
}

func (h *head) writeVersions(tx *bbolt.Tx, rows []pendingVersion) error {
	versions := tx.Bucket(bucketVersions)
	for i := range rows {
		v := &rows[i]
		key := v.at.appendTo(make([]byte, 0, revisionBytes))
		value := seal(key, v.row.appendTo(make([]byte, 0, v.row.bytes())))
		if err := versions.Put(key, value); err != nil {
			return err
		}
		h.Versions.add(key, value)
	}
	return nil
}

func (h *head) writeTables(tx *bbolt.Tx, c *commit) error {
	leases, requests := tx.Bucket(bucketLeases), tx.Bucket(bucketRequests)
	if err := c.export.Leases(func(id int64, row []byte) error {
		key := numberKey(uint64(id))
		if old := leases.Get(key); old != nil {
			h.Leases.remove(key, old)
		}
		if row == nil {
			return leases.Delete(key)
		}
		row = seal(key, row)
		h.Leases.add(key, row)
		return leases.Put(key, row)
	}); err != nil {
		return err
	}
	if err := c.export.Requests(func(row []byte) error {
		key := numberKey(h.NextRequest)
		row = seal(key, row)
		h.NextRequest++
		h.Request.add(key, row)
		return requests.Put(key, row)
	}); err != nil {
		return err
	}
	if uint64(c.export.RequestCount) > h.NextRequest {
		return errors.New("more request ids are remembered than were written")
	}
	for first := h.NextRequest - uint64(c.export.RequestCount); h.FirstRequest < first; h.FirstRequest++ {
		if err := remove(requests, numberKey(h.FirstRequest), &h.Request); err != nil {
			return err
		}
	}
	return nil
}

// compact takes away a slice of what the compact revision does not leave.
func (h *head) compact(tx *bbolt.Tx, budget int) error {
	if h.compactionDone() {
		return nil
	}
	slice, err := superseded(tx, h, budget)
	if err != nil {
		return err
	}
	versions := tx.Bucket(bucketVersions)
	for _, at := range slice.rows {
		if err := remove(versions, at.appendTo(nil), &h.Versions); err != nil {
			return err
		}
	}
	h.Compacted = slice.reached
	return nil
}

// remove takes away a row that must be there.
func remove(bucket *bbolt.Bucket, key []byte, t *tally) error {
	value := bucket.Get(key)
	if value == nil {
		return fmt.Errorf("%w: row %x is missing", ErrCorrupt, key)
	}
	t.remove(key, value)
	return bucket.Delete(key)
}
