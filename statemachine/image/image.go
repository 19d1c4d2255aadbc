package image

import (
	"context"
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
	// RebuildPause is how long after that a new one is begun. The pause doubles with each that was begun, up to
	// RebuildPauseMax, until one was written for as long as that. 10 s and 10 min.
	RebuildPause    time.Duration
	RebuildPauseMax time.Duration
	// RebuildStallTimeout is how long the making of a new one waits for the disk to take CommitBytes. 30 s.
	RebuildStallTimeout time.Duration
	// RebuildBytesPerSecond bounds how fast a new one is made. 32 MiB.
	RebuildBytesPerSecond int
	// RebuildHeldBytes is how much memory the making of a new one may keep from being freed. A quarter of the key space's
	// size, at least 256 MiB.
	RebuildHeldBytes int64
	// RebuildRows is how many versions are brought into the order of revisions at once, of which twice as many are in
	// memory with 40 bytes each. 500,000.
	RebuildRows int
	// Room returns an error where the file system of a path has no room for that many bytes more; nil for never.
	Room func(path string, bytes uint64) error
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
	if c.RebuildPause <= 0 {
		c.RebuildPause = 10 * time.Second
	}
	if c.RebuildPauseMax <= 0 {
		c.RebuildPauseMax = 10 * time.Minute
	}
	if c.RebuildStallTimeout <= 0 {
		c.RebuildStallTimeout = 30 * time.Second
	}
	if c.RebuildBytesPerSecond <= 0 {
		c.RebuildBytesPerSecond = 32 << 20
	}
	if c.RebuildRows <= 0 {
		c.RebuildRows = 500_000
	}
	if c.Room == nil {
		c.Room = func(string, uint64) error { return nil }
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
	disk   disk
	// opening guards which file is at Config.Path, and db, its database, which is nil until it is needed.
	opening sync.Mutex
	db      *bbolt.DB
	opened  Identity

	committed atomic.Uint64
	abandoned atomic.Bool
	// wake has a token once abandoned was set: the goroutine that writes has something else to do.
	wake chan struct{}
	// damaged is why a damaged image was abandoned.
	damaged atomic.Pointer[error]
	rebuilt rebuilt

	// mu guards what follows: what was applied and waits, for whoever applies. Only the end of a rebuild takes it besides.
	mu       sync.Mutex
	machine  *statemachine.Machine
	identity func() (Identity, bool)
	pending  *commit
	leases   map[int64]struct{}
	next     uint64 // the entry that comes next
	exported uint64 // the last entry of the commit handed over before
	cutAt    time.Time
	// joined: the image is abandoned, and what is applied is collected for the new one that is being finished.
	// joinedAt is the entry whose state it was pinned at.
	joined   bool
	joinedAt uint64

	work    chan *commit
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	stopped chan struct{}
	once    sync.Once
	// closing waits for files that were replaced.
	closing sync.WaitGroup

	// The goroutine that writes owns it.
	head head
}

// disk is what writing asks of the file system, beside reading.
type disk struct {
	update        func(db *bbolt.DB, write func(*bbolt.Tx) error) error
	rename        func(from, to string) error
	syncDirectory func(path string) error
}

func realDisk() disk {
	return disk{update: (*bbolt.DB).Update, rename: os.Rename, syncDirectory: syncDirectory}
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
	im := &Image{config: c, disk: realDisk(), leases: make(map[int64]struct{}), pending: &commit{}, wake: make(chan struct{}, 1)}
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
	err := im.openDatabase()
	return im.db, err
}

// openDatabase opens the database, if it is not. The caller holds opening.
func (im *Image) openDatabase() error {
	if im.db != nil {
		return nil
	}
	return im.openFile()
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

// Start begins to write. machine is the one that Open returned or a new one. identity is asked at each commit, by one
// goroutine at a time; as long as it returns false nothing is committed.
func (im *Image) Start(machine *statemachine.Machine, identity func() (Identity, bool)) {
	im.machine, im.identity = machine, identity
	im.exported = machine.Index()
	im.next = im.exported + 1
	im.cutAt = time.Now()
	im.work = make(chan *commit, im.config.BacklogCommits)
	im.stopped = make(chan struct{})
	im.ctx, im.cancel = context.WithCancel(context.Background())
	go im.write()
}

// Identity tells whose image was opened; zero where there was none.
func (im *Image) Identity() Identity { return im.opened }

// CommittedIndex is the entry that the file is the state after; zero for none.
func (im *Image) CommittedIndex() uint64 { return im.committed.Load() }

// Abandoned tells that the image is not written at present: a new one is made of the state in memory, unless it is damaged.
func (im *Image) Abandoned() bool { return im.abandoned.Load() }

// Applied takes what an entry did. The goroutine that applies calls it for every entry, in order, before the next one is
// applied.
func (im *Image) Applied(a *statemachine.Applied) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.abandoned.Load() && !im.joined {
		im.drop()
		return
	}
	if a.Index == im.joinedAt && a.Index == im.next-1 {
		return // it was applied, and not told yet, when the state was pinned
	}
	if a.Index != im.next {
		im.giveUp(fmt.Errorf("entry %d instead of %d", a.Index, im.next))
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

// cut hands over what was collected. It waits for room, unless the image is one that is being finished.
func (im *Image) cut() {
	identity, known := im.identity()
	if im.pending.bytes == 0 {
		return
	}
	if !known {
		if im.pending.bytes > im.config.CommitBytes*im.config.BacklogCommits {
			im.giveUp(errors.New("it is not known whose state it is"))
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
	if im.joined {
		im.giveUp(nil)
		return
	}
	stalled := time.NewTimer(im.config.StallTimeout)
	defer stalled.Stop()
	select {
	case im.work <- c:
	case <-stalled.C:
		im.giveUp(fmt.Errorf("the disk is behind by %d commits for %s", cap(im.work), im.config.StallTimeout))
	}
}

// giveUp is abandon for the goroutine that applies, also of an image that is being finished.
func (im *Image) giveUp(reason error) {
	im.drop()
	if im.joined = false; !im.abandoned.Load() {
		im.abandon(reason)
	}
}

// abandon gives the image up until a new one has taken its place. What is committed stays.
func (im *Image) abandon(reason error) {
	damaged := errors.Is(reason, ErrCorrupt)
	if damaged {
		im.damaged.Store(&reason)
	}
	if im.abandoned.Swap(true) {
		return
	}
	select {
	case im.wake <- struct{}{}:
	default:
	}
	log := im.config.Logger.With("file", im.config.Path, "index", im.committed.Load(), "reason", reason)
	if damaged {
		log.Error("the image is no longer written: it is damaged")
	} else {
		log.Error("the image is no longer written; a new one is made of the state in memory")
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
// called on an image that was not started. A new image that is being made is given up.
func (im *Image) Close(flush bool) {
	im.once.Do(func() {
		if im.work != nil {
			im.cancel()
			if !flush {
				im.abandoned.Store(true)
			} else {
				im.mu.Lock()
				if !im.abandoned.Load() {
					im.cut()
				}
				im.mu.Unlock()
			}
			close(im.work)
			<-im.stopped
		}
		im.closing.Wait()
		im.closeFile()
	})
}
