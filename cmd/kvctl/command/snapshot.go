package command

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

// newSnapshot groups what makes and checks backups.
func newSnapshot(o *options) *cobra.Command {
	c := &cobra.Command{Use: "snapshot", Short: "Save and check backups of the whole state, and begin clusters from them"}
	c.AddCommand(newSnapshotSave(o), newSnapshotVerify(o), newSnapshotRestore(o))
	return c
}

func newSnapshotSave(o *options) *cobra.Command {
	var limit time.Duration
	c := &cobra.Command{
		Use:   "save FILE",
		Short: "Save the whole state of the answering region, after one log entry, to a file",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			connection, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer connection.Close()
			ctx, cancel := context.WithTimeout(c.Context(), limit)
			defer cancel()
			return o.saveSnapshot(ctx, connection, args[0])
		},
	}
	c.Flags().DurationVar(&limit, "save-timeout", time.Hour, "how long the whole may take at most")
	return c
}

// saveSnapshot writes to a file beside, which takes the name once it is whole and durable.
func (o *options) saveSnapshot(ctx context.Context, connection *client.Client, path string) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	stream, err := connection.SaveSnapshot(ctx, &kvv1.SaveSnapshotRequest{Consistency: o.readConsistency()})
	if err != nil {
		return err
	}
	var header *kvv1.ResponseHeader
	var received uint64
	for {
		answer, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if answer.GetHeader() != nil {
			header = answer.GetHeader()
		}
		received += uint64(len(answer.GetData()))
		if _, err := file.Write(answer.GetData()); err != nil {
			return err
		}
		if len(answer.GetSha256()) == 0 {
			continue
		}
		if received != answer.GetSizeBytes() {
			return fmt.Errorf("%d bytes came of %d", received, answer.GetSizeBytes())
		}
		if err := finishSnapshot(file, path); err != nil {
			return err
		}
		return o.printSnapshot(map[string]any{
			"file": path, "index": header.GetLogIndex(), "revision": header.GetRevision(),
			"cluster_id": fmt.Sprintf("%016x", header.GetClusterId()), "size_bytes": received,
			"sha256": hex.EncodeToString(answer.GetSha256()),
		}, "saved %s: log index %d, revision %d, %s, sha256 %x", path, header.GetLogIndex(), header.GetRevision(),
			bytesText(int64(received)), answer.GetSha256())
	}
}

func finishSnapshot(file *os.File, path string) error {
	if err := file.Sync(); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	directory, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

func (o *options) printSnapshot(fields map[string]any, text string, args ...any) error {
	if o.output == "json" {
		data, err := json.Marshal(fields)
		if err != nil {
			return err
		}
		o.line("%s", data)
		return nil
	}
	o.line(text, args...)
	return nil
}

func newSnapshotVerify(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE",
		Short: "Read all of a backup, without a cluster, and tell what it holds",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, sizeBytes, err := readBackup(args[0])
			if err != nil {
				return err
			}
			h, stats := b.Header, b.Machine.Space().Stats()
			return o.printSnapshot(map[string]any{
				"file": args[0], "index": h.Index, "term": h.Term, "revision": h.Revision, "compact_revision": h.CompactRevision,
				"cluster_id": fmt.Sprintf("%016x", h.ClusterID), "epoch": h.Epoch, "keys": stats.Keys,
				"versions": b.Counts.Base + b.Counts.History, "leases": b.Counts.Leases, "size_bytes": sizeBytes,
				"sha256": hex.EncodeToString(b.SHA256[:]),
			}, "%s is whole: cluster %016x, epoch %d, log index %d (term %d), revision %d (compacted to %d)\n"+
				"%d keys, %d versions, %d leases, %s, sha256 %x", args[0], h.ClusterID, h.Epoch, h.Index, h.Term, h.Revision,
				h.CompactRevision, stats.Keys, b.Counts.Base+b.Counts.History, b.Counts.Leases, bytesText(sizeBytes), b.SHA256)
		},
	}
}

// readBackup reads all of a file and checks it.
func readBackup(path string) (b *checkpoint.Backup, sizeBytes int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	if b, err = checkpoint.ReadBackup(file, info.Size(), statemachine.Options{}); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return b, info.Size(), nil
}
