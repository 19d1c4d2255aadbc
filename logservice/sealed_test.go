package logservice

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// A member keeps the newest sealed checkpoints and, where it holds none of these, the newest that it holds: what its log
// does not have any more is in that one alone.
func TestSealedCheckpointsThatAreKept(t *testing.T) {
	for _, test := range []struct {
		name       string
		held, kept []uint64
	}{
		{"all are held", []uint64{10, 20, 30, 40}, []uint64{40, 30}},
		{"none is held", nil, []uint64{40, 30}},
		{"the newest is held", []uint64{10, 40}, []uint64{40, 30}},
		{"the second is held", []uint64{10, 20, 30}, []uint64{40, 30}},
		{"the third is held", []uint64{20}, []uint64{40, 30, 20}},
		{"the oldest is held", []uint64{10}, []uint64{40, 30, 10}},
		{"one is held that was never sealed", []uint64{15}, []uint64{40, 30}},
	} {
		t.Run(test.name, func(t *testing.T) {
			held := map[CheckpointName]bool{}
			for _, index := range test.held {
				held[CheckpointName{Index: index}] = true
			}
			r := &record{}
			for _, index := range []uint64{10, 20, 30, 40} {
				sealCheckpoint(t, r, CheckpointName{Index: index}, held)
			}
			var kept []uint64
			for _, s := range r.sealed {
				kept = append(kept, s.name.Index)
			}
			if !slices.Equal(kept, test.kept) {
				t.Errorf("kept %v, want %v", kept, test.kept)
			}
		})
	}
}

// sealCheckpoint gives a record the request for a checkpoint and its seal.
func sealCheckpoint(t *testing.T, r *record, name CheckpointName, held map[CheckpointName]bool) {
	t.Helper()
	request, err := proto.Marshal(&logv1.CheckpointRequest{FormatVersion: checkpointFormat, BuilderSessions: []uint64{1}})
	if err != nil {
		t.Fatal(err)
	}
	seal, err := proto.Marshal(&logv1.CheckpointSealed{Checkpoint: wireName(name)})
	if err != nil {
		t.Fatal(err)
	}
	at, term := name.Index, uint64(1)
	r.noteCheckpoint(&raftpb.Entry{Index: &at, Term: &term},
		envelopeHeader{kind: logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST, payload: request}, 0, held)
	at++
	if !r.noteCheckpoint(&raftpb.Entry{Index: &at, Term: &term},
		envelopeHeader{kind: logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED, payload: seal}, 0, held) {
		t.Fatalf("checkpoint %v was not sealed", name)
	}
}
