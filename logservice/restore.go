package logservice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/logservice/segment"
)

// Restoration is a log that begins after a checkpoint instead of at index 1.
type Restoration struct {
	// FS holds Dir; nil for the operating system's.
	FS disk.FS
	// Dir gets a data directory for each member, under its name.
	Dir string
	// InitialCluster are the members, all of which vote: those that they are started with.
	InitialCluster []InitialMember
	// ClusterID is the log's name, random and not zero: no entry of the log names it.
	ClusterID uint64
	// Checkpoint is what the log begins after. Term and LogTime are those at its index, and the checkpoint says the same.
	Checkpoint CheckpointName
	Term       uint64
	LogTime    uint64
	// Write writes the checkpoint's bytes, for each member again.
	Write func(io.Writer) error
}

var errRestore = errors.New("logservice: restore")

// ErrRestoreUnfinished is returned for directories that an interrupted Restore has left: some members may have theirs and
// others not, and those that began with nothing would begin another log.
var ErrRestoreUnfinished = errors.New("a restore did not finish here")

// restoreMarker is a file beside the members' directories, there from before the first is written until the last has its
// name. It lists them, a line each.
const restoreMarker = "restore-unfinished"

// Restore writes the data directories of all members of a new log, each of which holds the checkpoint as one that is
// sealed. They are made under other names and get their own at the end, once all are durable. After an error none is left
// that has its name, unless the error comes from giving them; then, and after a crash at any time, a marker is left for which
// members do not start and another Restore is refused, with ErrRestoreUnfinished. It refuses a directory that holds anything.
// Nobody else may use the directories meanwhile.
func Restore(r Restoration) error {
	cluster, err := newInitialCluster(r.InitialCluster)
	switch {
	case err != nil:
		return err
	case r.ClusterID == 0 || r.Term == 0 || r.LogTime == 0 || r.Checkpoint.Index == 0:
		return fmt.Errorf("%w: cluster id, term, log time and index must not be 0", errRestore)
	}
	if r.FS == nil {
		r.FS = disk.OS()
	}
	if err := r.checkFinished(); err != nil {
		return err
	}
	for _, m := range cluster.members {
		if filepath.Base(m.Name) != m.Name || !filepath.IsLocal(m.Name) || m.Name == "." || m.Name == restoreMarker {
			return fmt.Errorf("%w: name %q can't be that of a directory", errRestore, m.Name)
		}
		for _, path := range []string{r.path(m.Name), r.unfinished(m.Name)} {
			if names, err := r.FS.ReadDir(path); err == nil && len(names) > 0 {
				return fmt.Errorf("%w: %s is not empty: it holds %q", errRestore, path, names[0])
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: %w", errRestore, err)
			}
		}
	}
	if err := r.FS.MkdirAll(r.Dir); err != nil {
		return fmt.Errorf("%w: %w", errRestore, err)
	}
	marker := filepath.Join(r.Dir, restoreMarker)
	var names strings.Builder
	for _, m := range cluster.members {
		names.WriteString(m.Name + "\n")
	}
	if err := disk.WriteFile(r.FS, marker, []byte(names.String())); err != nil {
		return fmt.Errorf("%w: %w", errRestore, err)
	}
	for _, m := range cluster.members {
		if err := r.writeMember(cluster, m.Name); err != nil {
			err = fmt.Errorf("%w: member %q: %w", errRestore, m.Name, err)
			if left := r.discard(cluster); left != nil {
				return errors.Join(err, left)
			}
			return errors.Join(err, r.FS.Remove(marker))
		}
	}
	for _, m := range cluster.members {
		// An empty directory may have the name.
		if err := r.FS.Remove(r.path(m.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errRestore, err)
		}
		if err := r.FS.Rename(r.unfinished(m.Name), r.path(m.Name)); err != nil {
			return fmt.Errorf("%w: %w", errRestore, err)
		}
	}
	// All names are durable before the marker goes.
	if err := r.FS.SyncDir(r.Dir); err != nil {
		return fmt.Errorf("%w: %w", errRestore, err)
	}
	if err := errors.Join(r.FS.Remove(marker), r.FS.SyncDir(r.Dir)); err != nil {
		return fmt.Errorf("%w: %w", errRestore, err)
	}
	return nil
}

// checkFinished refuses a directory in which another restore was interrupted.
func (r *Restoration) checkFinished() error {
	names, err := unfinishedRestore(r.FS, r.Dir)
	if err != nil {
		return fmt.Errorf("%w: %w", errRestore, err)
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w: remove the directories of %s in %s, with those of the same names and %q after them, and then %s",
		errRestore, ErrRestoreUnfinished, strings.Join(names, ", "), r.Dir, unfinishedSuffix, restoreMarker)
}

// unfinishedRestore returns the members whose restore into a directory did not finish.
func unfinishedRestore(fsys disk.FS, dir string) ([]string, error) {
	content, err := disk.ReadFile(fsys, filepath.Join(dir, restoreMarker), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := strings.Fields(string(content))
	if len(names) == 0 {
		names = []string{"all members"} // it was cut short, before anything else was written
	}
	return names, nil
}

// checkRestored refuses the data directory of a member that a restore did not finish.
func checkRestored(fsys disk.FS, dataDir string) error {
	names, err := unfinishedRestore(fsys, filepath.Dir(dataDir))
	if err != nil || !slices.Contains(names, filepath.Base(dataDir)) {
		return nil //nolint:nilerr // what is beside the data directory need not be readable for who runs a member
	}
	return fmt.Errorf("%w: data directory %s is one of those of %s: restore all of them again", ErrRestoreUnfinished, dataDir,
		strings.Join(names, ", "))
}

func (r *Restoration) path(name string) string { return filepath.Join(r.Dir, name) }

// unfinished is where a member's directory is until all are whole.
func (r *Restoration) unfinished(name string) string {
	return filepath.Join(r.Dir, name+unfinishedSuffix)
}

const unfinishedSuffix = ".restoring"

// writeMember makes one member's directory: as it would be after the installation of a snapshot at the checkpoint's index.
func (r *Restoration) writeMember(cluster initialCluster, name string) (err error) {
	// The log has no entry to sum up yet. What it begins with must not be that of another log.
	point := logPoint{index: r.Checkpoint.Index, term: r.Term, stamp: r.LogTime, digest: binary.LittleEndian.Uint64(r.Checkpoint.SHA256[:])}
	first := cluster.record()
	first.applied, first.clusterID, first.stamp = point.index, r.ClusterID, point.stamp
	first.sealed = []sealedCheckpoint{{name: r.Checkpoint, point: point, sealedIndex: point.index}}
	path := r.unfinished(name)
	directory, err := openDirectory(r.FS, path, name, func() (*beginning, error) {
		return &beginning{clusterHash: cluster.hash, memberID: cluster.id(name), term: r.Term, record: first}, nil
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, directory.close()) }()
	// The beginning is in the log at once, and in the directory's file it would name an index that an empty log lacks.
	directory.record.Beginning, directory.record.BeginningTerm = nil, 0
	if err := directory.save(); err != nil {
		return err
	}
	if err := r.writeCheckpoint(filepath.Join(path, "checkpoints")); err != nil {
		return err
	}
	log, err := segment.Open(r.FS, filepath.Join(path, "log"), segment.Options{Identity: directory.identity(), ManualReserve: true})
	if err != nil {
		return err
	}
	err = log.Append(Group{HardState: HardState{Term: r.Term}, Membership: first.encode()})
	if err == nil {
		err = log.Reset(point.index, point.term, point.digest)
	}
	return errors.Join(err, log.Close())
}

func (r *Restoration) writeCheckpoint(dir string) error {
	store, err := checkpoint.Open(r.FS, dir, checkpoint.Options{MaxCheckpointBytes: r.Checkpoint.SizeBytes})
	if err != nil {
		return err
	}
	in, err := store.Receive(r.Checkpoint)
	if err != nil {
		return err
	}
	if err := r.Write(incomingWriter{in}); err != nil {
		return errors.Join(err, store.Remove(r.Checkpoint))
	}
	return in.Commit()
}

type incomingWriter struct{ in *checkpoint.Incoming }

func (w incomingWriter) Write(p []byte) (int, error) {
	if err := w.in.Write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// discard removes what was written before an error.
func (r *Restoration) discard(cluster initialCluster) (err error) {
	for _, m := range cluster.members {
		path := r.unfinished(m.Name)
		for _, dir := range []string{filepath.Join(path, "log"), filepath.Join(path, "checkpoints"), path} {
			names, listErr := r.FS.ReadDir(dir)
			if errors.Is(listErr, fs.ErrNotExist) {
				continue
			}
			err = errors.Join(err, listErr)
			for _, name := range names {
				if file := filepath.Join(dir, name); dir != path || name != "log" && name != "checkpoints" {
					err = errors.Join(err, r.FS.Remove(file))
				}
			}
			err = errors.Join(err, r.FS.Remove(dir))
		}
	}
	return err
}
