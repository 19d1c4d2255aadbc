package command

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

// restoreFlags are those of snapshot restore.
type restoreFlags struct {
	dataDir, initialCluster string
	revisionBump, idBump    int64
}

func newSnapshotRestore(o *options) *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore FILE --data-dir DIR --initial-cluster N1=ADDR1,N2=ADDR2,…",
		Short: "Make a new cluster of a backup: one data directory for each log member, without a cluster",
		Long: "Writes DIR/N1, DIR/N2, … for log members that are then started with the same --initial-cluster and --data-dir DIR/N1, …,\n" +
			"and for frontends with empty data directories. The cluster is another one than that of the backup, with an id of its\n" +
			"own: all its members come from one run of this command. Revisions and ids go on far above those of the backup, history\n" +
			"before is compacted, and leases have their whole TTL again.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return o.restoreSnapshot(args[0], &f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.dataDir, "data-dir", "", "`directory` that gets those of the members; they must not exist or be empty")
	flags.StringVar(&f.initialCluster, "initial-cluster", "", "the members of the new log, `NAME=HOST:PORT` with commas between")
	flags.Int64Var(&f.revisionBump, "revision-bump", 1_000_000_000,
		"how far revision and log index are raised: more than the old cluster wrote after the backup")
	flags.Int64Var(&f.idBump, "id-bump", 1_000_000,
		"how far sequences and ranges of ids are raised: more than the old cluster gave out of one after the backup")
	return c
}

func (o *options) restoreSnapshot(path string, f *restoreFlags) error {
	if f.dataDir == "" || f.initialCluster == "" {
		return exitError{exitUsage, errors.New("--data-dir and --initial-cluster are needed")}
	}
	members, err := logservice.ParseInitialCluster(f.initialCluster)
	if err != nil {
		return exitError{exitUsage, fmt.Errorf("--initial-cluster: %w", err)}
	}
	b, _, err := readBackup(path)
	if err != nil {
		return err
	}
	clusterID, err := newClusterID()
	if err != nil {
		return err
	}
	usedUp, err := b.Machine.BeginCluster(statemachine.NewCluster{ID: clusterID, Now: time.Now().UnixNano(),
		RevisionBump: f.revisionBump, IDBump: f.idBump})
	if err != nil {
		return exitError{exitUsage, err}
	}
	const firstEpoch = 1
	source := checkpoint.Pin(b.Machine, firstEpoch)
	defer source.Release()
	h := source.Header()
	name, err := nameCheckpoint(source)
	if err != nil {
		return err
	}
	if err := logservice.Restore(logservice.Restoration{Dir: f.dataDir, InitialCluster: members, ClusterID: clusterID,
		Checkpoint: name, Term: h.Term, LogTime: uint64(h.LogTime), Write: func(w io.Writer) error {
			_, err := source.Write(w)
			return err
		}}); err != nil {
		return err
	}
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name
	}
	if usedUp == nil {
		usedUp = []string{}
	}
	text := "restored %s into %s (%s): cluster %016x, log index %d, revision %d (compacted to there), %d keys, %d leases"
	if len(usedUp) > 0 {
		text += "\nranges of ids that --id-bump has used up: " + strings.ReplaceAll(strings.Join(usedUp, ", "), "%", "%%")
	}
	keys := b.Machine.Space().Stats().Keys
	return o.printSnapshot(map[string]any{
		"file": path, "data_dir": f.dataDir, "members": names, "cluster_id": fmt.Sprintf("%016x", clusterID), "index": h.Index,
		"revision": h.Revision, "keys": keys, "leases": b.Counts.Leases, "ranges_used_up": usedUp,
	}, text, path, f.dataDir, strings.Join(names, ", "), clusterID, h.Index, h.Revision, keys, b.Counts.Leases)
}

// nameCheckpoint finds what names the bytes of a checkpoint, which are the same each time that they are written.
func nameCheckpoint(source *checkpoint.Source) (name logservice.CheckpointName, err error) {
	sum := sha256.New()
	counted := &countingWriter{w: sum}
	if _, err := source.Write(counted); err != nil {
		return name, err
	}
	name = logservice.CheckpointName{Index: source.Header().Index, SizeBytes: counted.bytes, FormatVersion: checkpoint.FormatVersion}
	sum.Sum(name.SHA256[:0])
	return name, nil
}

type countingWriter struct {
	w     io.Writer
	bytes int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.bytes += int64(n)
	return n, err
}

// newClusterID is random and not zero.
func newClusterID() (id uint64, err error) {
	for id == 0 && err == nil {
		err = binary.Read(rand.Reader, binary.BigEndian, &id)
	}
	return id, err
}
