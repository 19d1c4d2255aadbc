package logclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

const (
	// checkpointPieceBytes is how many bytes of a checkpoint go into one message.
	checkpointPieceBytes = 256 << 10
	// checkpointPieceBytesMax is how many are taken.
	checkpointPieceBytesMax = 1 << 20
	// checkpointPauseMax bounds the pause between two attempts.
	checkpointPauseMax = 5 * time.Second
	// unwantedMax is how many members may say that a checkpoint is not wanted before that is believed: one that lags
	// does not know of the request yet.
	unwantedMax = 3
)

// Checkpoint describes a sealed checkpoint as a member told it.
type Checkpoint struct {
	Name *logv1.CheckpointName
	// Term and LogDigest are those of the log at Name.Index.
	Term, LogDigest uint64
	// Member is the address that told it.
	Member string
}

// UploadCheckpoint reports a checkpoint to the log and gives the member in use its bytes, if it wants them. An upload that
// breaks is taken up where the next member wants it, until ctx ends. The error matches ErrCheckpointUnwanted where asking
// again is no use, or wraps ctx's and says why the last attempt failed, or is that of reading content.
func (c *Client) UploadCheckpoint(ctx context.Context, report *logv1.CheckpointReport, content io.ReaderAt) error {
	var tried []string
	pause, unwanted, last := c.config.RetryMin, 0, ErrUnreachable
	for {
		address, _, err := c.memberForRound(ctx, tried)
		if err != nil {
			return fmt.Errorf("upload a checkpoint: %w: %w", last, err)
		}
		if err = c.upload(ctx, address, report, content); err == nil {
			return nil
		}
		c.metrics.streamFailures.WithLabelValues("upload").Inc()
		c.config.Logger.Info("upload of a checkpoint ends", "member", address, "index", report.GetName().GetIndex(), "reason", err)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("upload a checkpoint: %w: %w", err, context.Cause(ctx))
		case c.ctx.Err() != nil:
			return fmt.Errorf("upload a checkpoint: %w", context.Cause(c.ctx))
		case errors.Is(err, errContent):
			return err
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.Unimplemented:
			return fmt.Errorf("%w: %w", ErrCheckpointUnwanted, err)
		case codes.FailedPrecondition:
			if unwanted++; unwanted >= unwantedMax {
				return fmt.Errorf("%w: %w", ErrCheckpointUnwanted, err)
			}
		}
		last, tried = err, append(tried, address)
		if err := sleep(ctx, jitter(pause)); err != nil {
			return fmt.Errorf("upload a checkpoint: %w: %w", last, err)
		}
		pause = min(2*pause, checkpointPauseMax)
	}
}

var errContent = errors.New("the checkpoint cannot be read")

// upload makes one attempt at one member.
func (c *Client) upload(ctx context.Context, address string, report *logv1.CheckpointReport, content io.ReaderAt) error {
	connection, err := c.connect(address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	defer stopped()
	watchdog := time.AfterFunc(c.config.TransferTimeout, func() { cancel(errSilent) })
	defer watchdog.Stop()
	stream, err := connection.service.UploadCheckpoint(ctx)
	if err != nil {
		return streamCause(ctx, err)
	}
	if err := stream.Send(&logv1.UploadCheckpointRequest{Handshake: c.handshake(), Report: report}); err != nil {
		return recvError(ctx, stream, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return streamCause(ctx, err)
	}
	if err := c.checkHandshake(answer.GetHandshake()); err != nil {
		return err
	}
	if answer.GetWanted() {
		size, offset := report.GetName().GetSizeBytes(), answer.GetOffsetBytes()
		if offset > size {
			return fmt.Errorf("it wants the bytes from %d of %d", offset, size)
		}
		for buffer := make([]byte, checkpointPieceBytes); offset < size; {
			n := min(uint64(len(buffer)), size-offset)
			if _, err := content.ReadAt(buffer[:n], int64(offset)); err != nil {
				return fmt.Errorf("%w: %w", errContent, err)
			}
			// gRPC may hold the message for a while after Send returns.
			if err := stream.Send(&logv1.UploadCheckpointRequest{Data: bytes.Clone(buffer[:n])}); err != nil {
				return recvError(ctx, stream, err)
			}
			offset += n
			watchdog.Reset(c.config.TransferTimeout)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return recvError(ctx, stream, err)
	}
	for !answer.GetDone() {
		if answer, err = stream.Recv(); err != nil {
			return streamCause(ctx, err)
		}
	}
	return nil
}

// recvError finds out why a message could not be sent.
func recvError[Q, A any](ctx context.Context, stream interface {
	Send(*Q) error
	Recv() (*A, error)
}, err error) error {
	if errors.Is(err, io.EOF) {
		_, err = stream.Recv()
	}
	return streamCause(ctx, err)
}

// streamCause replaces the error of a stream by the reason for which its context was ended, where that is the cause.
func streamCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// CheckpointSink takes a checkpoint as it comes. An error of its methods ends the download and is returned by it.
type CheckpointSink interface {
	// Partial tells how much of which checkpoint is there already; nil for nothing.
	Partial() (name *logv1.CheckpointName, bytes uint64)
	// Begin makes ready for the bytes of a checkpoint from its first on. What was there is of no use.
	Begin(Checkpoint) error
	// Append takes the next bytes and does not keep the slice.
	Append([]byte) error
}

// DownloadCheckpoint fetches the newest sealed checkpoint from the nearest member that holds one. A download that breaks is
// taken up where it ended, at any member that holds the same. The caller checks what it has got: neither size nor digest
// are looked at here, but for more bytes than the name tells. The error matches ErrNoCheckpoint where every
// member that answers holds none, ErrOtherLog, or wraps ctx's and says why the last attempt failed, or is the sink's.
func (c *Client) DownloadCheckpoint(ctx context.Context, sink CheckpointSink) (Checkpoint, error) {
	var tried []string
	without := make(map[string]bool)
	pause, last := c.config.RetryMin, ErrUnreachable
	for {
		address, _, err := c.memberForRound(ctx, tried)
		if err != nil {
			return Checkpoint{}, fmt.Errorf("download a checkpoint: %w: %w", last, err)
		}
		name, have := sink.Partial()
		got, err := c.download(ctx, address, name, have, sink)
		if status.Code(err) == codes.NotFound && name != nil {
			got, err = c.download(ctx, address, nil, 0, sink)
		}
		if err == nil {
			return got, nil
		}
		c.config.Logger.Info("download of a checkpoint ends", "member", address, "reason", err)
		c.metrics.streamFailures.WithLabelValues("download").Inc()
		switch failed := (*sinkError)(nil); {
		case errors.As(err, &failed):
			return Checkpoint{}, failed.err
		case ctx.Err() != nil:
			return Checkpoint{}, fmt.Errorf("download a checkpoint: %w: %w", err, context.Cause(ctx))
		case c.ctx.Err() != nil:
			return Checkpoint{}, fmt.Errorf("download a checkpoint: %w", context.Cause(c.ctx))
		case isOtherLog(err):
			if final := c.refuse(address, err); final != nil {
				return Checkpoint{}, final
			}
		case status.Code(err) == codes.NotFound, status.Code(err) == codes.Unimplemented:
			if without[address] = true; c.noneHolds(without) {
				return Checkpoint{}, fmt.Errorf("%w: %w", ErrNoCheckpoint, err)
			}
		}
		if _, more := sink.Partial(); more > have {
			pause = c.config.RetryMin
		}
		last, tried = err, append(tried, address)
		if err := sleep(ctx, jitter(pause)); err != nil {
			return Checkpoint{}, fmt.Errorf("download a checkpoint: %w: %w", last, err)
		}
		pause = min(2*pause, checkpointPauseMax)
	}
}

// noneHolds tells whether all members that answer have said that they hold no checkpoint.
func (c *Client) noneHolds(without map[string]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.tracker.members {
		if m.refused == nil && m.reachable() && !without[m.address] {
			return false
		}
	}
	return true
}

// sinkError tells an error of the sink from one of the stream.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }

// download makes one attempt at one member.
func (c *Client) download(
	ctx context.Context, address string, name *logv1.CheckpointName, offset uint64, sink CheckpointSink,
) (Checkpoint, error) {
	connection, err := c.connect(address)
	if err != nil {
		return Checkpoint{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	defer stopped()
	watchdog := time.AfterFunc(c.config.TransferTimeout, func() { cancel(errSilent) })
	defer watchdog.Stop()
	stream, err := connection.service.DownloadCheckpoint(ctx, &logv1.DownloadCheckpointRequest{
		Handshake: c.handshake(), Name: name, OffsetBytes: offset,
	})
	if err != nil {
		return Checkpoint{}, streamCause(ctx, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return Checkpoint{}, streamCause(ctx, err)
	}
	if err := c.checkHandshake(answer.GetHandshake()); err != nil {
		return Checkpoint{}, err
	}
	got := Checkpoint{Name: answer.GetName(), Term: answer.GetTerm(), LogDigest: answer.GetLogDigest(), Member: address}
	switch {
	case got.Name == nil || name != nil && !SameCheckpoint(got.Name, name):
		return Checkpoint{}, fmt.Errorf("another checkpoint than was asked for: %v", got.Name)
	case name == nil:
		if err := sink.Begin(got); err != nil {
			return Checkpoint{}, &sinkError{err}
		}
	}
	for size := got.Name.GetSizeBytes(); ; {
		if data := answer.GetData(); len(data) > 0 {
			if len(data) > checkpointPieceBytesMax || uint64(len(data)) > size-offset {
				return Checkpoint{}, fmt.Errorf("%d bytes at %d of %d", len(data), offset, size)
			}
			if err := sink.Append(data); err != nil {
				return Checkpoint{}, &sinkError{err}
			}
			offset += uint64(len(data))
		}
		if offset == size {
			return got, nil
		}
		watchdog.Reset(c.config.TransferTimeout)
		if answer, err = stream.Recv(); err != nil {
			return Checkpoint{}, streamCause(ctx, err)
		}
	}
}

// SameCheckpoint tells whether two names name the same bytes.
func SameCheckpoint(a, b *logv1.CheckpointName) bool {
	return a.GetIndex() == b.GetIndex() && a.GetSizeBytes() == b.GetSizeBytes() &&
		a.GetFormatVersion() == b.GetFormatVersion() && bytes.Equal(a.GetSha256(), b.GetSha256())
}
