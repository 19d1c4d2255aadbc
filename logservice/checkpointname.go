package logservice

import (
	"errors"
	"fmt"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice/checkpoint"
)

// CheckpointName names the bytes of a checkpoint.
type CheckpointName = checkpoint.Name

var errCheckpointName = errors.New("logservice: not the name of a checkpoint")

// checkpointName reads a name that came in a message.
func checkpointName(n *logv1.CheckpointName) (name CheckpointName, err error) {
	switch {
	case n == nil:
		return name, fmt.Errorf("%w: it is missing", errCheckpointName)
	case n.Index == 0:
		return name, fmt.Errorf("%w: index 0", errCheckpointName)
	case len(n.Sha256) != len(name.SHA256):
		return name, fmt.Errorf("%w: sha256 has %d bytes, want %d", errCheckpointName, len(n.Sha256), len(name.SHA256))
	case n.SizeBytes > 1<<62:
		return name, fmt.Errorf("%w: size_bytes %d", errCheckpointName, n.SizeBytes)
	}
	return CheckpointName{Index: n.Index, SHA256: [32]byte(n.Sha256), SizeBytes: int64(n.SizeBytes), FormatVersion: n.FormatVersion}, nil
}

// wireName is the name as messages have it.
func wireName(n CheckpointName) *logv1.CheckpointName {
	return &logv1.CheckpointName{Index: n.Index, Sha256: n.SHA256[:], SizeBytes: uint64(n.SizeBytes), FormatVersion: n.FormatVersion}
}
