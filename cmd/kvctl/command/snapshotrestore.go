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

// beginFlags say what cluster begins with the state of an old one.
type beginFlags struct {
	dataDir, initialCluster string
	revisionBump, idBump    int64
}

// add adds the flags to a command; after is what the bumps must reach beyond.
func (f *beginFlags) add(c *cobra.Command, after string) {
	flags := c.Flags()
	flags.StringVar(&f.dataDir, "data-dir", "", "`directory` that gets those of the members; they must not exist or be empty")
	flags.StringVar(&f.initialCluster, "initial-cluster", "", "the members of the new log, `NAME=HOST:PORT` with commas between")
	flags.Int64Var(&f.revisionBump, "revision-bump", 1_000_000_000,
		"how far revision and log index are raised: more than the old cluster wrote after "+after)
	flags.Int64Var(&f.idBump, "id-bump", 1_000_000,
		"how far sequences and ranges of ids are raised: more than the old cluster gave out of one after "+after)
}

// members checks the flags, and returns those that begin the new log.
func (f *beginFlags) members() ([]logservice.InitialMember, error) {
	if f.dataDir == "" || f.initialCluster == "" {
		return nil, exitError{exitUsage, errors.New("--data-dir and --initial-cluster are needed")}
	}
	members, err := logservice.ParseInitialCluster(f.initialCluster)
	if err != nil {
		return nil, exitError{exitUsage, fmt.Errorf("--initial-cluster: %w", err)}
	}
	return members, nil
}

func newSnapshotRestore(o *options) *cobra.Command {
	var f beginFlags
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
	f.add(c, "the backup")
	return c
}

func (o *options) restoreSnapshot(path string, f *beginFlags) error {
	members, err := f.members()
	if err != nil {
		return err
	}
	b, _, err := readBackup(path)
	if err != nil {
		return err
	}
	begun, err := f.begin(b.Machine, members)
	if err != nil {
		return err
	}
	return o.printBegun("restored", path, f, begun)
}

// begunCluster is what a new cluster begins with.
type begunCluster struct {
	ClusterID    string   `json:"cluster_id"`
	Members      []string `json:"members"`
	Index        uint64   `json:"index"`
	Revision     int64    `json:"revision"`
	Keys         int      `json:"keys"`
	Leases       int      `json:"leases"`
	RangesUsedUp []string `json:"ranges_used_up"`
}

// begin makes the state that of a new cluster, and writes the data directories of its members.
func (f *beginFlags) begin(machine *statemachine.Machine, members []logservice.InitialMember) (*begunCluster, error) {
	clusterID, err := newClusterID()
	if err != nil {
		return nil, err
	}
	usedUp, err := machine.BeginCluster(statemachine.NewCluster{ID: clusterID, Now: time.Now().UnixNano(),
		RevisionBump: f.revisionBump, IDBump: f.idBump})
	if err != nil {
		return nil, exitError{exitUsage, err}
	}
	const firstEpoch = 1
	source := checkpoint.Pin(machine, firstEpoch)
	defer source.Release()
	h := source.Header()
	name, counts, err := nameCheckpoint(source)
	if err != nil {
		return nil, err
	}
	if err := logservice.Restore(logservice.Restoration{Dir: f.dataDir, InitialCluster: members, ClusterID: clusterID,
		Checkpoint: name, Term: h.Term, LogTime: uint64(h.LogTime), Write: func(w io.Writer) error {
			_, err := source.Write(w)
			return err
		}}); err != nil {
		return nil, err
	}
	begun := &begunCluster{ClusterID: fmt.Sprintf("%016x", clusterID), Index: h.Index, Revision: h.Revision,
		Keys: machine.Space().Stats().Keys, Leases: int(counts.Leases), RangesUsedUp: append([]string{}, usedUp...)}
	for _, m := range members {
		begun.Members = append(begun.Members, m.Name)
	}
	return begun, nil
}

func (o *options) printBegun(how, from string, f *beginFlags, b *begunCluster) error {
	return o.print(struct {
		File    string `json:"file"`
		DataDir string `json:"data_dir"`
		*begunCluster
	}{from, f.dataDir, b}, func() {
		o.line("%s %s into %s (%s): cluster %s, log index %d, revision %d (compacted to there), %d keys, %d leases",
			how, from, f.dataDir, strings.Join(b.Members, ", "), b.ClusterID, b.Index, b.Revision, b.Keys, b.Leases)
		if len(b.RangesUsedUp) > 0 {
			o.line("ranges of ids that --id-bump has used up: %s", strings.Join(b.RangesUsedUp, ", "))
		}
	})
}

// nameCheckpoint finds what names the bytes of a checkpoint, which are the same each time that they are written.
func nameCheckpoint(source *checkpoint.Source) (name logservice.CheckpointName, counts checkpoint.Counts, err error) {
	sum := sha256.New()
	counted := &countingWriter{w: sum}
	if counts, err = source.Write(counted); err != nil {
		return name, counts, err
	}
	name = logservice.CheckpointName{Index: source.Header().Index, SizeBytes: counted.bytes, FormatVersion: checkpoint.FormatVersion}
	sum.Sum(name.SHA256[:0])
	return name, counts, nil
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
