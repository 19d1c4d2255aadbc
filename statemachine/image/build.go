package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// Builder makes an image of a state that comes from elsewhere. Until Finish nothing is at the image's path.
type Builder struct {
	config  Config
	staging Image
	// compacted is the compact revision. Versions below it come in the order of keys, and stand in that of revisions: they
	// wait in base until all are there.
	compacted int64
	base      []pendingVersion
	pending   []pendingVersion
	bytes     int
}

// stagingSuffix is of the file that is being built.
const stagingSuffix = ".new"

// NewBuilder begins an image of a state whose compact revision is the one given. Path, Identity and NoSync of c count.
func NewBuilder(c Config, compactRevision int64) (*Builder, error) {
	c = c.withDefaults()
	b := &Builder{config: c, compacted: compactRevision}
	b.staging.config, b.staging.disk = c, realDisk()
	b.staging.config.Path += stagingSuffix
	// Finish syncs once.
	b.staging.config.NoSync = true
	if err := removeStaging(c.Path); err != nil {
		return nil, err
	}
	return b, b.staging.openFile()
}

func removeStaging(path string) error {
	if err := os.Remove(path + stagingSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Version takes the versions in the order in which a key space is restored. previous is the live version that it
// supersedes, if there is one that was restored before. Both must stay as they are until Finish.
func (b *Builder) Version(v keyspace.Version, previous *keyspace.Version) error {
	p := pendingVersion{at: revision{v.ModRevision, v.Sub}, row: versionRow{tombstone: v.Tombstone, encoded: v.Encoded}}
	if v.ModRevision < b.compacted {
		b.base = append(b.base, p)
		return nil
	}
	if err := b.flushBase(); err != nil {
		return err
	}
	if previous != nil {
		p.row.hasPredecessor, p.row.predecessor = true, revision{previous.ModRevision, previous.Sub}
	}
	return b.add(p)
}

func (b *Builder) add(p pendingVersion) error {
	b.pending = append(b.pending, p)
	if b.bytes += revisionBytes + p.row.bytes(); b.bytes < b.config.CommitBytes {
		return nil
	}
	return b.flush()
}

func (b *Builder) flushBase() error {
	slices.SortFunc(b.base, func(x, y pendingVersion) int {
		if x.at == y.at {
			return 0
		}
		if x.at.Main < y.at.Main || x.at.Main == y.at.Main && x.at.Sub < y.at.Sub {
			return -1
		}
		return 1
	})
	for _, p := range b.base {
		if err := b.add(p); err != nil {
			return err
		}
	}
	b.base = nil
	return nil
}

// flush writes versions without a head: the file is no image yet.
func (b *Builder) flush() error {
	err := guard(func() error {
		return b.staging.disk.update(b.staging.db, func(tx *bbolt.Tx) error {
			if err := createBuckets(tx); err != nil {
				return err
			}
			return b.staging.head.writeVersions(tx, b.pending)
		})
	})
	b.pending, b.bytes = b.pending[:0], 0
	return err
}

// Finish writes the tables and puts the file, which is durable then, into its place. export is of all leases and request
// ids.
func (b *Builder) Finish(export *statemachine.Export) error {
	err := b.flushBase()
	if err == nil {
		err = b.complete(b.config.Identity, export)
	}
	if err == nil && !b.config.NoSync {
		err = b.staging.db.Sync()
	}
	if err != nil {
		b.Abort()
		return fmt.Errorf("build the image: %w", err)
	}
	b.staging.closeFile()
	if err := os.Rename(b.staging.config.Path, b.config.Path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(b.config.Path))
}

// complete writes the tables and the head: the file is an image from then on.
func (b *Builder) complete(identity Identity, export *statemachine.Export) error {
	if b.compacted > 0 {
		b.staging.head.Compacted = endOf(b.compacted - 1) // nothing that is compacted was written
	}
	err := guard(func() error {
		return b.staging.commit(&commit{identity: identity, versions: b.pending, export: export})
	})
	b.pending, b.bytes = nil, 0
	return err
}

// Abort throws away what was built. After Finish it does nothing.
func (b *Builder) Abort() {
	b.staging.closeFile()
	if err := removeStaging(b.config.Path); err != nil {
		b.config.Logger.Warn("remove what was built of an image", "reason", err)
	}
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}
