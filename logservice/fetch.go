package logservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice/checkpoint"
)

// fetchServer is what other members fetch from this one.
type fetchServer struct{ *Server }

// FetchLog implements peer.Fetches.
func (s fetchServer) FetchLog(hello *logv1.PeerHandshake, request *logv1.FetchLogRequest, stream logv1.PeerService_FetchLogServer) error {
	from, to := request.GetFromIndex(), request.GetToIndex()
	if from == 0 || from > to {
		return status.Errorf(codes.InvalidArgument, "entries from %d to %d", from, to)
	}
	if published := s.published.view().index; to > published {
		return status.Errorf(codes.OutOfRange, "entry %d is not published here, the last one is %d", to, published)
	}
	if !s.fetches.acquire() {
		return status.Errorf(codes.ResourceExhausted, "%d fetches are under way", maxFetches)
	}
	defer s.fetches.release()
	pin := s.pins.add(from)
	defer pin.release(0)
	return whileMoving(stream.Context(), s.Server, func(_ context.Context, moved func() error) error {
		response := &logv1.FetchLogResponse{Handshake: hello}
		for next := from; next <= to; {
			entries, err := s.storage.Entries(next, to+1, maxChunkBytes)
			if err != nil {
				return s.logReadError(next, err)
			}
			for _, e := range entries {
				response.Entries = append(response.Entries, &logv1.LogEntry{Index: e.Index, Term: e.Term, Type: uint32(e.Type), Data: e.Data})
			}
			if err := moved(); err != nil {
				return err
			}
			if err := stream.Send(response); err != nil {
				return err
			}
			next += uint64(len(entries))
			pin.move(next)
			response = &logv1.FetchLogResponse{}
		}
		return nil
	})
}

// FetchCheckpoint implements peer.Fetches.
func (s fetchServer) FetchCheckpoint(hello *logv1.PeerHandshake, request *logv1.FetchCheckpointRequest,
	stream logv1.PeerService_FetchCheckpointServer,
) error {
	name, err := checkpointName(request.GetName())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "name: %v", err)
	}
	if request.GetOffsetBytes() > uint64(name.SizeBytes) {
		return status.Errorf(codes.InvalidArgument, "offset_bytes is %d, the checkpoint has %d bytes", request.GetOffsetBytes(), name.SizeBytes)
	}
	if !s.fetches.acquire() {
		return status.Errorf(codes.ResourceExhausted, "%d fetches are under way", maxFetches)
	}
	defer s.fetches.release()
	reader, err := s.store.Open(name)
	if err != nil {
		return s.storeError(err)
	}
	return whileMoving(stream.Context(), s.Server, func(_ context.Context, moved func() error) error {
		defer reader.Close() //nolint:errcheck // it was only read
		response := &logv1.FetchCheckpointResponse{Handshake: hello}
		return s.sendCheckpoint(reader, int64(request.GetOffsetBytes()), func(data []byte) error {
			if err := moved(); err != nil {
				return err
			}
			response.Data = data
			err := stream.Send(response)
			response = &logv1.FetchCheckpointResponse{}
			return err
		})
	})
}

// fetchCheckpoint fetches a checkpoint from the members that hold it, the nearest first; where one stops another goes on.
// On return without an error the store holds it, and the loop has been told.
func (s *Server) fetchCheckpoint(ctx context.Context, name CheckpointName, holders []uint64) (err error) {
	began := time.Now()
	err = fmt.Errorf("nobody holds checkpoint %v", name)
	for _, holder := range s.nearestFirst(holders) {
		if err = s.fetchCheckpointFrom(ctx, name, holder); err == nil {
			s.tellHeld()
			s.logger.Info("fetched checkpoint", "checkpoint", name.String(), "from", memberName(holder), "took", time.Since(began))
			return nil
		}
		s.logger.Info("checkpoint was not fetched", "checkpoint", name.String(), "from", memberName(holder), "error", err)
	}
	return err
}

func (s *Server) fetchCheckpointFrom(ctx context.Context, name CheckpointName, holder uint64) error {
	incoming, err := s.store.Receive(name)
	if errors.Is(err, checkpoint.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	client, hello, err := s.transport.Fetch(holder)
	if err != nil {
		incoming.Pause()
		return err
	}
	// The store's errors end what was received; those of the stream leave it for the next one.
	var storeErr error
	err = fetchAll(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[logv1.FetchCheckpointResponse], error) {
		return client.FetchCheckpoint(ctx, &logv1.FetchCheckpointRequest{Handshake: hello, Name: wireName(name),
			OffsetBytes: uint64(incoming.Offset())}, grpc.WaitForReady(true))
	}, func(response *logv1.FetchCheckpointResponse) error {
		storeErr = incoming.Write(response.GetData())
		return storeErr
	})
	switch {
	case storeErr != nil:
		return storeErr
	case err != nil:
		incoming.Pause()
		return err
	}
	return incoming.Commit()
}

// fetchAll receives a whole stream from another member, as long as something moves.
func fetchAll[T any](parent context.Context, open func(context.Context) (grpc.ServerStreamingClient[T], error),
	each func(*T) error,
) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	idle := time.AfterFunc(idleLimit, cancel)
	defer idle.Stop()
	stream, err := open(ctx)
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if ctx.Err() != nil && parent.Err() == nil {
				return fmt.Errorf("nothing has moved for %v: %w", idleLimit, err)
			}
			return err
		}
		idle.Reset(idleLimit)
		if err := each(response); err != nil {
			return err
		}
	}
}

// nearestFirst sorts other members by their measured round trip, unknown ones last.
func (s *Server) nearestFirst(ids []uint64) []uint64 {
	distance := func(id uint64) time.Duration {
		if d := s.transport.Health(id).RoundTrip; d >= 0 {
			return d
		}
		return time.Hour
	}
	sorted := slices.Clone(ids)
	slices.SortStableFunc(sorted, func(a, b uint64) int { return int(distance(a) - distance(b)) })
	return sorted
}
