package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

const (
	// rebuildPasses is how often the making of a new image catches up at most before it is given up, each time with less.
	rebuildPasses = 16
	// rebuildStepBytes is after how much work the rate, and the memory that is held, are looked at.
	rebuildStepBytes = 256 << 10
	// scannedBytes is what one version counts that is looked at and not written.
	scannedBytes = 16
	// roomBytes is after how much of the file the room on the disk is looked at.
	roomBytes = 64 << 20
	// heldBytesMin is what the memory that is held may be at least.
	heldBytesMin = 256 << 20
	// rebuildSlack is how far the work may be ahead of the rate.
	rebuildSlack = 20 * time.Millisecond
)

var (
	errUnknownState = errors.New("it is not known whose state it is")
	errTooFast      = errors.New("entries come faster than the new image is written")
	errFellBehind   = errors.New("the disk fell behind while the new image was finished")
	errStuck        = errors.New("the disk takes nothing")
	errHeld         = errors.New("too much memory is kept from being freed")
	errRotten       = errors.New("a version is corrupt in memory")
)

// Rebuilds tells of the images that were made anew because the one before was abandoned.
type Rebuilds struct {
	// Done counts those that are written since; Failed those that were given up, or fell behind as they were finished.
	Done, Failed uint64
	// Bytes of the one that is being made; zero while none is.
	Bytes uint64
}

// Rebuilds may be called by any goroutine.
func (im *Image) Rebuilds() Rebuilds {
	return Rebuilds{Done: im.rebuilt.done.Load(), Failed: im.rebuilt.failed.Load(), Bytes: im.rebuilt.bytes.Load()}
}

type rebuilt struct {
	done, failed, bytes atomic.Uint64
	// pause came before the last attempt, and resumed is when the last new image took its place. They belong to the goroutine
	// that writes.
	pause   time.Duration
	resumed time.Time
}

// rebuild makes a new image, in as many attempts as it takes, and returns when it is to be written. It returns false when the
// image is closed.
func (im *Image) rebuild() bool {
	if r := &im.rebuilt; time.Since(r.resumed) >= im.config.RebuildPauseMax {
		r.pause = 0
	}
	for {
		r := &im.rebuilt
		r.pause = min(max(2*r.pause, im.config.RebuildPause), im.config.RebuildPauseMax)
		if !im.rest(r.pause) {
			return false
		}
		began := time.Now()
		file, err := im.attempt()
		r.bytes.Store(0)
		switch {
		case err == nil:
			r.done.Add(1)
			r.resumed = time.Now()
			im.config.Logger.Info("a new image was made and has taken its place", "file", im.config.Path,
				"index", im.committed.Load(), "versions", file.versions, "passes", file.passes,
				"duration", time.Since(began).Round(time.Millisecond))
			return true
		case im.ctx.Err() != nil:
			return false
		default:
			r.failed.Add(1)
			im.config.Logger.Warn("a new image was not made; it is tried again", "file", im.config.Path,
				"index", im.committed.Load(), "reason", err, "pause", min(2*r.pause, im.config.RebuildPauseMax))
		}
	}
}

// rest waits, and lets nobody wait who has something to hand over. It returns false when the image is closed; with an image
// that is damaged not before.
func (im *Image) rest(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	work := im.work
	for {
		select {
		case <-im.ctx.Done():
			return false
		case _, ok := <-work:
			if !ok {
				work = nil
			}
		case <-timer.C:
			if im.damaged.Load() == nil {
				return true
			}
		}
	}
}

// attempt makes one new image. The goroutine that writes runs it: it writes, and another one reads the state for it, so that
// a write that hangs keeps no snapshot.
func (im *Image) attempt() (*stateReader, error) {
	im.mu.Lock()
	_, known := im.identity()
	im.mu.Unlock()
	if !known {
		return nil, errUnknownState
	}
	if err := im.config.Room(im.config.Path, uint64(max(0, im.machine.SizeBytes()))); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(im.ctx)
	defer cancel(nil)
	first := im.machine.Space().Acquire()
	b, err := im.newStaging(first.CompactRevision())
	if err != nil {
		first.Release()
		return nil, err
	}
	im.config.Logger.Info("a new image is being made", "file", im.config.Path, "index", first.Index())
	pieces := make(chan piece)
	r := newStateReader(ctx, im, pieces)
	read := make(chan error, 1)
	go func() {
		read <- r.run(first)
		close(pieces)
	}()
	var last *piece
	for p := range pieces {
		if last = &p; err == nil && p.export == nil {
			if err = im.writePiece(b, &p); err != nil {
				cancel(err)
			}
		}
	}
	if last != nil && last.export != nil {
		defer last.export.Release()
	}
	if readErr := <-read; err == nil {
		err = readErr
	}
	if err == nil {
		err = im.finish(b, last)
	}
	if err != nil {
		im.part()
		b.Abort()
		return nil, err
	}
	return r, nil
}

// newStaging opens the file that is to become the image.
func (im *Image) newStaging(compactRevision int64) (*Builder, error) {
	b := &Builder{config: im.config, compacted: compactRevision}
	b.staging.config, b.staging.disk = im.config, im.disk
	b.staging.config.Path += stagingSuffix
	err := removeStaging(im.config.Path)
	if err == nil {
		err = guard(b.staging.openFile)
	}
	if err != nil {
		b.Abort()
		return nil, err
	}
	return b, nil
}

func (im *Image) writePiece(b *Builder, p *piece) error {
	written := im.rebuilt.bytes.Add(uint64(p.bytes))
	if before := written - uint64(p.bytes); before/roomBytes != written/roomBytes {
		if err := im.config.Room(im.config.Path, roomBytes); err != nil {
			return err
		}
	}
	b.pending = p.rows
	err := b.flush()
	b.pending = nil // who read them may still look at them
	return err
}

// finish makes the file an image, puts it into its place, and goes on with what was applied since its state was pinned.
func (im *Image) finish(b *Builder, last *piece) error {
	b.pending = last.rows
	if err := b.complete(last.identity, last.export); err != nil {
		return err
	}
	// All of it is durable: each transaction was synced.
	im.opening.Lock()
	err := im.disk.rename(b.staging.config.Path, im.config.Path)
	old := im.db
	if err == nil {
		im.db, b.staging.db = b.staging.db, nil
	}
	im.opening.Unlock()
	if err != nil {
		return err
	}
	im.head = b.staging.head
	im.committed.Store(im.head.Index)
	if old != nil {
		im.closing.Go(func() { // a scrub may hold it for a moment
			if err := guard(old.Close); err != nil {
				im.config.Logger.Warn("closing the image that was replaced", "reason", err)
			}
		})
	}
	// Until the directory is synced, a crash may bring the old image back, which is valid too.
	err = im.disk.syncDirectory(filepath.Dir(im.config.Path))
	im.mu.Lock()
	defer im.mu.Unlock()
	if err == nil && !im.joined {
		err = errFellBehind
	}
	if err == nil {
		im.joined = false
		im.abandoned.Store(false)
	}
	return err
}

// join pins the state, and begins to collect what is applied after it. Export and snapshot are to be released.
func (im *Image) join() (*piece, *keyspace.Snapshot, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	identity, known := im.identity()
	if !known {
		return nil, nil, errUnknownState
	}
	for len(im.work) > 0 {
		<-im.work // from before it was abandoned; nobody hands over meanwhile
	}
	export, snapshot := im.machine.Pin()
	im.joined, im.joinedAt = true, export.Index
	im.exported, im.next = export.Index, export.Index+1
	im.pending, im.cutAt = &commit{}, time.Now()
	clear(im.leases)
	return &piece{identity: identity, export: export}, snapshot, nil
}

// part ends the collecting for a new image that is not to be.
func (im *Image) part() {
	im.mu.Lock()
	im.joined = false
	im.drop()
	im.mu.Unlock()
}

// piece is what is written into a new image in one transaction: versions, and in the last one what makes it an image.
type piece struct {
	rows     []pendingVersion
	bytes    int
	identity Identity
	export   *statemachine.Export
}

// stateReader reads all versions of a state in the order of revisions, then what was written meanwhile, until little is
// left; then it joins. It holds one snapshot, or two.
type stateReader struct {
	ctx    context.Context
	im     *Image
	out    chan<- piece
	piece  piece
	window []windowRow

	// due is when the work so far would have been done at the rate; pending is the work since it was looked at.
	due     time.Time
	pending int
	// heldAtFirst is what heldBytes was at first.
	heldAtFirst int64

	versions, passes int
}

// windowRow is a version that was changed last below the compact revision.
type windowRow struct {
	at      revision
	encoded []byte
}

func newStateReader(ctx context.Context, im *Image, out chan<- piece) *stateReader {
	r := &stateReader{ctx: ctx, im: im, out: out, due: time.Now()}
	r.heldAtFirst = r.heldBytes()
	return r
}

// run sends the whole state, and closes nothing. It takes care of the snapshot.
func (r *stateReader) run(held *keyspace.Snapshot) error {
	defer func() { held.Release() }()
	before, err := r.base(held)
	if err != nil {
		return err
	}
	written, err := r.history(held, nil)
	if err != nil {
		return err
	}
	for before += written; written > r.im.config.CommitBytes || r.passes == 0; before = written {
		if r.passes++; r.passes > rebuildPasses {
			return errTooFast
		}
		later := r.im.machine.Space().Acquire()
		written, err = r.history(later, held)
		held.Release()
		if held = later; err != nil {
			return err
		}
		if written > r.im.config.CommitBytes && written >= before {
			return errTooFast
		}
	}
	last, later, err := r.im.join()
	if err != nil {
		return err
	}
	_, err = r.history(later, held)
	held.Release()
	if held = later; err == nil {
		last.rows, last.bytes = r.piece.rows, r.piece.bytes
		err = r.send(*last)
	}
	if err != nil {
		last.export.Release() // who gets it releases it otherwise
	}
	return err
}

// base sends the keys that exist at the compact revision and were changed last below it. The index has them by key, and the
// file by revision: each pass over the index takes the lowest that were not sent yet. It returns how many bytes that were.
func (r *stateReader) base(held *keyspace.Snapshot) (bytes int, err error) {
	compacted, limit := held.CompactRevision(), r.im.config.RebuildRows
	if compacted == 0 {
		return 0, nil // everything is history
	}
	for sent, more := (revision{}), true; more; {
		window, ceiling := r.window[:0], endOf(compacted)
		more = false
		cut := func() {
			slices.SortFunc(window, func(x, y windowRow) int {
				return cmp.Or(cmp.Compare(x.at.Main, y.at.Main), cmp.Compare(x.at.Sub, y.at.Sub))
			})
			if len(window) > limit {
				window, more = window[:limit], true
				ceiling = window[limit-1].at
			}
		}
		var failed error
		err := held.Range(nil, nil, compacted, func(v keyspace.Version) bool {
			at := revision{v.ModRevision, v.Sub}
			if at.Main < compacted && !sent.atLeast(at) && !at.atLeast(ceiling) {
				if failed = intact(&v); failed != nil {
					return false
				}
				if window = append(window, windowRow{at, v.Encoded}); len(window) == 2*limit {
					cut()
				}
			}
			failed = r.spend(scannedBytes)
			return failed == nil
		})
		if err = errors.Join(err, failed); err != nil {
			return bytes, err
		}
		cut()
		for _, row := range window {
			p := pendingVersion{at: row.at, row: versionRow{encoded: row.encoded}}
			bytes += revisionBytes + p.row.bytes()
			if err := r.take(p); err != nil {
				return bytes, err
			}
			sent = row.at
		}
		r.window = window
	}
	r.window = nil
	return bytes, nil
}

// history sends what was written after older; all history where that is nil. It returns how many bytes that were.
func (r *stateReader) history(held, older *keyspace.Snapshot) (bytes int, err error) {
	held.HistorySince(older, func(v keyspace.Version, superseded keyspace.Place) bool {
		if err = intact(&v); err != nil {
			return false
		}
		p := pendingVersion{at: revision{v.ModRevision, v.Sub}, row: versionRow{tombstone: v.Tombstone, encoded: v.Encoded}}
		if superseded != (keyspace.Place{}) {
			p.row.hasPredecessor, p.row.predecessor = true, revision{superseded.Main, superseded.Sub}
		}
		bytes += revisionBytes + p.row.bytes()
		err = r.take(p)
		return err == nil
	})
	return bytes, err
}

func intact(v *keyspace.Version) error {
	if !v.Intact() {
		return fmt.Errorf("%w: %q at (%d, %d)", errRotten, v.Key, v.ModRevision, v.Sub)
	}
	return nil
}

// take adds a version to the piece, and sends that when it is full.
func (r *stateReader) take(p pendingVersion) error {
	n := revisionBytes + p.row.bytes()
	if err := r.spend(n); err != nil {
		return err
	}
	r.versions++
	r.piece.rows = append(r.piece.rows, p)
	if r.piece.bytes += n; r.piece.bytes < r.im.config.CommitBytes {
		return nil
	}
	full := r.piece
	r.piece = piece{}
	return r.send(full)
}

// send hands a piece over. It does not wait for ever: what it holds of the state is not freed meanwhile.
func (r *stateReader) send(p piece) error {
	stuck := time.NewTimer(r.im.config.RebuildStallTimeout)
	defer stuck.Stop()
	select {
	case r.out <- p:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	case <-stuck.C:
		return fmt.Errorf("%w for %s", errStuck, r.im.config.RebuildStallTimeout)
	}
}

// spend counts work, waits where it goes on faster than it may, and ends it where it keeps too much memory from being freed.
func (r *stateReader) spend(bytes int) error {
	if r.pending += bytes; r.pending < min(rebuildStepBytes, r.im.config.CommitBytes) {
		return nil
	}
	r.due = r.due.Add(time.Duration(int64(r.pending) * int64(time.Second) / int64(r.im.config.RebuildBytesPerSecond)))
	r.pending = 0
	limit := r.im.config.RebuildHeldBytes
	if limit <= 0 {
		limit = max(heldBytesMin, r.im.machine.Space().Stats().LogicalBytes/4)
	}
	if held := r.heldBytes() - r.heldAtFirst; held > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", errHeld, held, limit)
	}
	now := time.Now()
	if r.due.Before(now) {
		r.due = now // idle time is not made up for
	}
	if ahead := r.due.Sub(now); ahead > rebuildSlack {
		timer := time.NewTimer(ahead)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.ctx.Done():
		}
	}
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return nil
}

// heldBytes is about how much of the memory of versions is of those that no compaction has left. Its growth is what was not
// freed meanwhile.
func (r *stateReader) heldBytes() int64 {
	const headerBytes = 16 // of a version in memory, which LogicalBytes counts with its overhead
	s := r.im.machine.Space().Stats()
	return s.SlabBytes + int64(s.Versions)*(keyspace.VersionOverheadBytes-headerBytes) - s.LogicalBytes
}
