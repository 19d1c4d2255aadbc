package frontend

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

// saveTimeout bounds the sending of a snapshot: until it is sent, what compaction frees stays in memory.
const saveTimeout = time.Hour

// SaveSnapshot sends the whole state.
func (s *adminServer) SaveSnapshot(r *kvv1.SaveSnapshotRequest, stream kvv1.AdminService_SaveSnapshotServer) error {
	ctx, cancel := context.WithTimeout(stream.Context(), saveTimeout)
	defer cancel()
	if _, err := s.read(ctx, r.GetConsistency()); err != nil {
		return err
	}
	if !s.saving.CompareAndSwap(false, true) {
		return status.Error(codes.ResourceExhausted, "this frontend sends another snapshot at present")
	}
	defer s.saving.Store(false)
	source := checkpoint.Pin(s.region.Machine(), s.region.Identity().Epoch)
	defer source.Release()
	h := source.Header()
	out := &snapshotStream{ctx: ctx, stream: stream, header: header(s.region.FactsAt(h.Index, h.Revision))}
	sum, _, err := source.WriteBackup(out)
	if err != nil {
		return serving.Status(err, "")
	}
	return stream.Send(&kvv1.SaveSnapshotResponse{SizeBytes: out.bytes, Sha256: sum[:]})
}

// snapshotStream sends what is written to it.
type snapshotStream struct {
	ctx    context.Context
	stream kvv1.AdminService_SaveSnapshotServer
	header *kvv1.ResponseHeader
	bytes  uint64
}

func (s *snapshotStream) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	err := s.stream.Send(&kvv1.SaveSnapshotResponse{Header: s.header, Data: p})
	s.header = nil
	s.bytes += uint64(len(p))
	return len(p), err
}
