package logservice

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice/checkpoint"
)

const (
	// maxUploads, maxDownloads and maxFetches bound the calls under way that carry checkpoints or bulk of the log.
	maxUploads, maxDownloads, maxFetches = 8, 16, 8
	// maxChunkBytes bounds one message of bytes.
	maxChunkBytes = 1 << 20
	// idleLimit ends a call that carries bytes and on which nothing has moved for so long.
	idleLimit = 30 * time.Second
	// bootstrapPin is how long the log above a downloaded checkpoint is kept for the one who downloaded it.
	bootstrapPin = 2 * time.Minute
)

// semaphore bounds what is under way.
type semaphore chan struct{}

func (s semaphore) acquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s semaphore) release() { <-s }

// whileMoving runs a call that carries bytes and ends it when nothing has moved for a while: f says before each Send, and
// after each Recv, that something has. Where the call ends early, f may still be inside Send or Recv, which the end of the
// call ends, and moved tells it then not to begin another one.
func whileMoving(parent context.Context, srv *Server, f func(ctx context.Context, moved func() error) error) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stopped := context.AfterFunc(srv.ctx, cancel)
	defer stopped()
	idle := time.NewTimer(idleLimit)
	defer idle.Stop()
	ended := make(chan error, 1)
	go func() {
		ended <- f(ctx, func() error { idle.Reset(idleLimit); return ctx.Err() })
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return callerError(ctx.Err(), srv)
	case <-idle.C:
		return status.Errorf(codes.DeadlineExceeded, "nothing has moved for %v", idleLimit)
	}
}

// storeError is what a caller is told of an error of the store.
func (s *Server) storeError(err error) error {
	switch {
	case errors.Is(err, checkpoint.ErrMismatch):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, checkpoint.ErrBusy), errors.Is(err, checkpoint.ErrTooLarge), errors.Is(err, checkpoint.ErrNoSpace):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, checkpoint.ErrNotHeld):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, checkpoint.ErrDamaged):
		s.tellHeld()
		return status.Error(codes.DataLoss, err.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// tellHeld tells the loop what the store holds.
func (s *Server) tellHeld() {
	s.held.Lock()
	defer s.held.Unlock()
	_ = s.post(s.ctx, HeldCheckpoints{s.store.List()})
}

// performCheckpoints does what the member wants done about checkpoints.
func (s *Server) performCheckpoints(effects *Effects) {
	for _, r := range effects.Offers {
		s.answers.offers.settle(r.Token, r)
	}
	for _, r := range effects.Checkpoints {
		s.answers.checkpoints.settle(r.Token, r)
	}
	if fetch := effects.Fetch; fetch != nil {
		s.wait.Go(func() {
			err := s.fetchCheckpoint(s.ctx, fetch.Name, fetch.Holders)
			_ = s.post(s.ctx, FetchedCheckpoint{Name: fetch.Name, Err: err})
		})
	}
	if names := effects.Remove; len(names) > 0 {
		s.wait.Go(func() {
			for _, name := range names {
				if err := s.store.Remove(name); err != nil {
					s.logger.Warn("checkpoint was not removed", "error", err)
				}
			}
		})
	}
	if stage := effects.Stage; stage != nil {
		s.wait.Go(func() { s.stage(stage) })
	}
	if index := effects.Unstage; index != 0 {
		s.wait.Go(func() {
			s.staged.Lock()
			defer s.staged.Unlock()
			if s.staging.index == index {
				s.clearStaging()
			}
		})
	}
	s.metrics.snapshotsSent.Add(float64(effects.SnapshotsSent))
	s.metrics.snapshotsInstalled.Add(float64(effects.SnapshotsInstalled))
	if effects.Install != nil {
		s.installs <- effects.Install // has room: one group at a time
	}
	if effects.Trim != 0 {
		select {
		case <-s.trims:
		default:
		}
		s.trims <- effects.Trim // has room: nobody else puts anything in
	}
}

// UploadCheckpoint implements LogService.
func (s *service) UploadCheckpoint(stream logv1.LogService_UploadCheckpointServer) error {
	if !s.server.uploads.acquire() {
		return status.Errorf(codes.ResourceExhausted, "%d uploads are under way", maxUploads)
	}
	defer s.server.uploads.release()
	return whileMoving(stream.Context(), s.server, func(ctx context.Context, moved func() error) error {
		return s.upload(ctx, stream, moved)
	})
}

func (s *service) upload(ctx context.Context, stream logv1.LogService_UploadCheckpointServer, moved func() error) error {
	srv := s.server
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := srv.checkCaller(first.GetHandshake()); err != nil {
		return err
	}
	name, err := checkpointName(first.GetReport().GetName())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "report.name: %v", err)
	}
	result, err := ask(ctx, srv, &srv.answers.offers, func(token uint64) Event {
		return OfferCheckpoint{Token: token, Session: first.GetReport().GetSession(), Name: name}
	})
	if err != nil {
		return callerError(err, srv)
	}
	switch {
	case errors.Is(result.Err, ErrTooManyCheckpointCalls):
		return status.Error(codes.ResourceExhausted, result.Err.Error())
	case result.Err != nil:
		return status.Error(codes.FailedPrecondition, result.Err.Error())
	}
	response := &logv1.UploadCheckpointResponse{Handshake: srv.handshake()}
	incoming, err := srv.store.Receive(name)
	switch {
	case errors.Is(err, checkpoint.ErrHeld), errors.Is(err, checkpoint.ErrReceiving):
	case err != nil:
		return srv.storeError(err)
	default:
		response.Wanted, response.OffsetBytes = true, uint64(incoming.Offset())
	}
	if err := stream.Send(response); err != nil {
		if incoming != nil {
			incoming.Pause()
		}
		return err
	}
	if incoming != nil {
		if err := s.receiveUpload(stream, incoming, moved); err != nil {
			return srv.storeError(err)
		}
		srv.tellHeld()
	}
	if err := moved(); err != nil {
		return err
	}
	return stream.Send(&logv1.UploadCheckpointResponse{Done: true})
}

// receiveUpload takes the bytes that are missing and makes them durable. What came before a stream broke is kept.
func (s *service) receiveUpload(stream logv1.LogService_UploadCheckpointServer, incoming *checkpoint.Incoming, moved func() error) error {
	for !incoming.Complete() {
		request, err := stream.Recv()
		if err != nil {
			incoming.Pause()
			if errors.Is(err, io.EOF) {
				return status.Error(codes.InvalidArgument, "the stream ended before the checkpoint was complete")
			}
			return err
		}
		if n := len(request.GetData()); n > maxChunkBytes {
			incoming.Pause()
			return status.Errorf(codes.InvalidArgument, "data of %d bytes, at most %d in one message", n, maxChunkBytes)
		}
		if err := incoming.Write(request.GetData()); err != nil {
			return err
		}
		if err := moved(); err != nil {
			incoming.Pause()
			return err
		}
	}
	return incoming.Commit()
}

// DownloadCheckpoint implements LogService.
func (s *service) DownloadCheckpoint(request *logv1.DownloadCheckpointRequest, stream logv1.LogService_DownloadCheckpointServer) error {
	srv := s.server
	if err := srv.checkCaller(request.GetHandshake()); err != nil {
		return err
	}
	if !srv.downloads.acquire() {
		return status.Errorf(codes.ResourceExhausted, "%d downloads are under way", maxDownloads)
	}
	defer srv.downloads.release()
	// What is chosen must not be trimmed above before it is pinned.
	pin := srv.pins.add(1)
	defer pin.release(bootstrapPin)
	sealed, err := s.chooseCheckpoint(request)
	if err != nil {
		pin.release(0)
		return err
	}
	pin.move(sealed.Name.Index + 1)
	reader, err := srv.store.Open(sealed.Name)
	if err != nil {
		return srv.storeError(err)
	}
	return whileMoving(stream.Context(), srv, func(_ context.Context, moved func() error) error {
		defer reader.Close() //nolint:errcheck // it was only read
		response := &logv1.DownloadCheckpointResponse{Handshake: srv.handshake(), Name: wireName(sealed.Name),
			Term: sealed.Term, LogDigest: sealed.Digest}
		return srv.sendCheckpoint(reader, int64(request.GetOffsetBytes()), func(data []byte) error {
			if err := moved(); err != nil {
				return err
			}
			response.Data = data
			err := stream.Send(response)
			response = &logv1.DownloadCheckpointResponse{}
			return err
		})
	})
}

// chooseCheckpoint finds what a caller wants among the sealed checkpoints that this member holds.
func (s *service) chooseCheckpoint(request *logv1.DownloadCheckpointRequest) (chosen SealedState, err error) {
	var wanted CheckpointName
	if request.GetName() != nil {
		if wanted, err = checkpointName(request.GetName()); err != nil {
			return chosen, status.Errorf(codes.InvalidArgument, "name: %v", err)
		}
	} else if request.GetOffsetBytes() != 0 {
		return chosen, status.Error(codes.InvalidArgument, "offset_bytes without a name")
	}
	for _, sealed := range s.server.state().Checkpoints.Sealed {
		if sealed.Held && (request.GetName() == nil || sealed.Name == wanted) {
			if request.GetOffsetBytes() > uint64(sealed.Name.SizeBytes) {
				return chosen, status.Errorf(codes.InvalidArgument, "offset_bytes is %d, the checkpoint has %d bytes",
					request.GetOffsetBytes(), sealed.Name.SizeBytes)
			}
			return sealed, nil
		}
	}
	if request.GetName() != nil {
		return chosen, status.Errorf(codes.NotFound, "this member does not hold checkpoint %v as a sealed one", wanted)
	}
	return chosen, status.Error(codes.NotFound, "this member holds no sealed checkpoint")
}

// sendCheckpoint sends the bytes from an offset on; the first message goes out even where there are none.
func (s *Server) sendCheckpoint(reader *checkpoint.Reader, offset int64, send func([]byte) error) error {
	for first := true; ; first = false {
		data, err := reader.ReadFrom(offset)
		if errors.Is(err, io.EOF) {
			if first {
				return send(nil)
			}
			return nil
		}
		if err != nil {
			return s.storeError(err)
		}
		offset += int64(len(data))
		if err := send(data); err != nil {
			return err
		}
	}
}

// RequestCheckpoint implements LogService.
func (s *service) RequestCheckpoint(ctx context.Context, _ *logv1.RequestCheckpointRequest) (*logv1.RequestCheckpointResponse, error) {
	result, err := ask(ctx, s.server, &s.server.answers.checkpoints, func(token uint64) Event { return AskCheckpoint{Token: token} })
	switch {
	case err != nil:
		return nil, callerError(err, s.server)
	case errors.Is(result.Err, ErrTooManyCheckpointCalls):
		return nil, status.Error(codes.ResourceExhausted, result.Err.Error())
	case result.Err != nil:
		return nil, status.Error(codes.DeadlineExceeded, result.Err.Error())
	}
	return &logv1.RequestCheckpointResponse{Checkpoint: wireName(result.Name)}, nil
}

// checkpointStatus adds to the status what this member knows of checkpoints.
func (s *Server) checkpointStatus(answer *logv1.StatusResponse, state *CheckpointState) {
	for _, sealed := range state.Sealed {
		answer.Checkpoints = append(answer.Checkpoints, &logv1.CheckpointStatus{Name: wireName(sealed.Name),
			SealedIndex: sealed.SealedIndex, Held: sealed.Held, Holders: sealed.Holders})
	}
	if state.RequestIndex != 0 {
		progress := &logv1.CheckpointProgress{Index: state.RequestIndex, BuilderSessions: state.RequestBuilders, Holders: state.Holders}
		for _, session := range slices.Sorted(maps.Keys(state.Reports)) {
			progress.Reports = append(progress.Reports, &logv1.CheckpointReport{Session: session, Name: wireName(state.Reports[session])})
		}
		answer.CheckpointProgress = progress
	}
	if state.Failure != "" {
		answer.Alarms = append(answer.Alarms, "checkpoint: "+state.Failure)
	}
}
