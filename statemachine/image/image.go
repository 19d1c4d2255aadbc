package image

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/logmirror/logmirror/statemachine"
)

// Config says where an image is and how it is written. Zero values mean the defaults named beside them.
type Config struct {
	// Path is the file. What cannot be used is moved to Path + ".bad".
	Path string
	// Identity is whose image it may be. Cluster and epoch are zero where they cannot be told yet: then a file of this
	// frontend fits, and Image.Identity tells what it is of.
	Identity Identity
	// StateMachine is handed to the machine that is restored.
	StateMachine statemachine.Options
	// Interval is how long applied entries wait at least until they are committed. 1 s.
	Interval time.Duration
	// CommitBytes is after how many bytes they are committed before that. 8 MiB.
	CommitBytes int
	// BacklogCommits is how many commits may wait for the disk, besides the one that is collected. 4.
	BacklogCommits int
	// StallTimeout is how long Applied waits for a disk that is behind by all that before the image is given up. 2 s.
	StallTimeout time.Duration
	// CompactRows is how many rows a transaction looks at for compaction. 10,000.
	CompactRows int
	// NoSync leaves out the sync of each commit, for tests.
	NoSync bool
	// Logger takes what operators may want to know; nil discards it.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Interval <= 0 {
		c.Interval = time.Second
	}
	if c.CommitBytes <= 0 {
		c.CommitBytes = 8 << 20
	}
	if c.BacklogCommits <= 0 {
		c.BacklogCommits = 4
	}
	if c.StallTimeout <= 0 {
		c.StallTimeout = 2 * time.Second
	}
	if c.CompactRows <= 0 {
		c.CompactRows = 10_000
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Image is the durable copy of one machine.
type Image struct {
	config Config
	// opening guards db, which is nil until it is needed.
	opening   sync.Mutex
	db        *bbolt.DB
	opened    Identity
	committed atomic.Uint64
	abandoned atomic.Bool

	// The goroutine that applies owns these.
	machine  *statemachine.Machine
	identity func() (Identity, bool)
	pending  *commit
	leases   map[int64]struct{}
	next     uint64 // the entry that comes next
	exported uint64 // the last entry of the commit handed over before
	cutAt    time.Time

	work    chan *commit
	stopped chan struct{}
	once    sync.Once

	// The goroutine that writes owns it.
	head head
}

// commit is what one transaction brings.
type commit struct {
	identity Identity
	versions []pendingVersion
	bytes    int
	export   *statemachine.Export
}

type pendingVersion struct {
	at  revision
	row versionRow
}

// Open opens the image and returns the machine that it holds, nil where there is none: the caller then begins with a new one
// and the first entry of the log. A file that is damaged, foreign or of an unknown version is set aside, with its reason in
// the log. An error means that there can be no image at this path, or that a newer build has gone on with the state, as
// statemachine.ErrNewer: the file is left for that build, since the log would stop this one anyway.
func Open(c Config) (*Image, *statemachine.Machine, error) {
	c = c.withDefaults()
	if err := removeStaging(c.Path); err != nil {
		return nil, nil, err
	}
	im := &Image{config: c, leases: make(map[int64]struct{}), pending: &commit{}}
	machine, err := im.restore()
	if errors.Is(err, statemachine.ErrNewer) {
		return nil, nil, fmt.Errorf("image %s: %w", c.Path, err)
	}
	if err != nil {
		c.Logger.Warn("the image cannot be used: the state is built from the log", "file", c.Path, "reason", err)
		if err := os.Rename(c.Path, c.Path+".bad"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("set the image aside: %w", err)
		}
		machine, im.head = nil, head{}
	}
	if machine == nil {
		if err := im.openFile(); err != nil {
			return nil, nil, err
		}
	}
	return im, machine, nil
}

// restore reads the file, if there is one.
func (im *Image) restore() (*statemachine.Machine, error) {
	file, err := os.Open(im.config.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	pages, empty, err := openPages(file)
	switch {
	case err != nil:
		return nil, err
	case empty:
		return nil, os.Remove(im.config.Path)
	}
	var machine *statemachine.Machine
	if err := guard(func() error {
		m, h, err := load(pages, im.config.Identity, im.config.StateMachine)
		if err == nil {
			machine, im.head = m, *h
		}
		return err
	}); err != nil {
		return nil, err
	}
	im.opened = im.head.Identity
	im.committed.Store(im.head.Index)
	return machine, nil
}

// database returns the database of the file. Opening one that was read takes as long as looking at all its pages once
// more, so it is opened when it is first needed, which is when the machine is in use.
func (im *Image) database() (*bbolt.DB, error) {
	im.opening.Lock()
	defer im.opening.Unlock()
	if im.db == nil {
		if err := im.openFile(); err != nil {
			return nil, err
		}
	}
	return im.db, nil
}

func (im *Image) openFile() error {
	db, err := bbolt.Open(im.config.Path, 0o600, &bbolt.Options{
		Timeout: time.Second, NoSync: im.config.NoSync,
		// The list of free pages is found by a walk at the start: a damaged one would spoil pages in use.
		NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, PageSize: os.Getpagesize(),
	})
	if err != nil {
		return fmt.Errorf("open the image: %w", err)
	}
	im.db = db
	return db.View(func(tx *bbolt.Tx) error {
		dropResident(tx)
		return nil
	})
}

// closeFile closes the database, if it was opened. Nobody uses it any more.
func (im *Image) closeFile() {
	if im.db == nil {
		return
	}
	if err := guard(im.db.Close); err != nil {
		im.config.Logger.Warn("closing the image", "reason", err)
	}
	im.db = nil
}

// Start begins to write. machine is the one that Open returned or a new one. identity is asked at each commit, by the
// goroutine that applies; as long as it returns false nothing is committed.
func (im *Image) Start(machine *statemachine.Machine, identity func() (Identity, bool)) {
	im.machine, im.identity = machine, identity
	im.exported = machine.Index()
	im.next = im.exported + 1
	im.cutAt = time.Now()
	im.work = make(chan *commit, im.config.BacklogCommits)
	im.stopped = make(chan struct{})
	go im.write()
}

// Identity tells whose image was opened; zero where there was none.
func (im *Image) Identity() Identity { return im.opened }

// CommittedIndex is the entry that the file is the state after; zero for none.
func (im *Image) CommittedIndex() uint64 { return im.committed.Load() }

// Abandoned tells that the image is no longer written.
func (im *Image) Abandoned() bool { return im.abandoned.Load() }

// Applied takes what an entry did. The goroutine that applies calls it for every entry, in order, before the next one is
// applied.
func (im *Image) Applied(a *statemachine.Applied) {
	if im.abandoned.Load() {
		im.drop()
		return
	}
	if a.Index != im.next {
		im.abandon(fmt.Errorf("entry %d instead of %d", a.Index, im.next))
		return
	}
	im.next++
	im.pending.take(a)
	for i := range a.LeaseChanges {
		im.leases[a.LeaseChanges[i].ID] = struct{}{}
	}
	full := im.pending.bytes >= im.config.CommitBytes
	if !full && time.Since(im.cutAt) < im.config.Interval {
		return
	}
	if !full && len(im.work) == cap(im.work) {
		return // the disk is behind: it goes with a later one
	}
	im.cut()
}

// take adds what an entry did.
func (c *commit) take(a *statemachine.Applied) {
	const entryBytes, leaseBytes = 64, 128
	c.bytes += entryBytes + leaseBytes*len(a.LeaseChanges)
	for i := range a.Events {
		e := &a.Events[i]
		v := pendingVersion{
			at: revision{e.KV.ModRevision, e.KV.Sub},
			row: versionRow{
				tombstone: !e.Put, hasPredecessor: e.HasPrevious, encoded: e.KV.Encoded,
			},
		}
		if e.HasPrevious {
			v.row.predecessor = revision{e.Previous.ModRevision, e.Previous.Sub}
		}
		c.versions = append(c.versions, v)
		c.bytes += revisionBytes + v.row.bytes()
	}
}

// cut hands over what was collected. It waits for room.
func (im *Image) cut() {
	identity, known := im.identity()
	if im.pending.bytes == 0 {
		return
	}
	if !known {
		if im.pending.bytes > im.config.CommitBytes*im.config.BacklogCommits {
			im.abandon(errors.New("it is not known whose state it is"))
		}
		return
	}
	c := im.pending
	c.identity = identity
	ids := make([]int64, 0, len(im.leases))
	for id := range im.leases {
		ids = append(ids, id)
	}
	c.export = im.machine.Export(im.exported, ids)
	im.exported, im.pending, im.cutAt = c.export.Index, &commit{}, time.Now()
	clear(im.leases)
	select {
	case im.work <- c:
		return
	default:
	}
	stalled := time.NewTimer(im.config.StallTimeout)
	defer stalled.Stop()
	select {
	case im.work <- c:
	case <-stalled.C:
		im.abandon(fmt.Errorf("the disk is behind by %d commits for %s", cap(im.work), im.config.StallTimeout))
	}
}

// abandon gives the image up until the next start. What is committed stays.
func (im *Image) abandon(reason error) {
	if !im.abandoned.Swap(true) {
		im.config.Logger.Error("the image is no longer written; the next start reads more of the log",
			"file", im.config.Path, "index", im.committed.Load(), "reason", reason)
	}
}

// drop frees what nobody will write.
func (im *Image) drop() {
	if im.pending.bytes > 0 || len(im.leases) > 0 {
		im.pending = &commit{}
		clear(im.leases)
	}
}

// Close commits what was applied, if flush says so, and closes the file. No call of Applied runs or follows. It may be
// called on an image that was not started.
func (im *Image) Close(flush bool) {
	im.once.Do(func() {
		if im.work != nil {
			if !flush {
				im.abandoned.Store(true)
			} else if !im.abandoned.Load() {
				im.cut()
			}
			close(im.work)
			<-im.stopped
		}
		im.closeFile()
	})
}
