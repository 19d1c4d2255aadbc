package logclient

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// ReportHandler is told what other mirrors report. Its methods are called one at a time and must not block; they may call
// the Reporter.
type ReportHandler interface {
	// ReportUp says that a new stream is there: what was reported on the one before may be lost.
	ReportUp()
	// Reported hands on what came for the session given to Listen. The same may come more than once.
	Reported(reports []*logv1.AppliedReport)
	// Judged hands on what the log says of digests that were reported.
	Judged(verdicts []*logv1.DigestVerdict)
}

// reportsMax bounds the reports that wait to be sent, and those in one message.
const reportsMax = 4096

// Reporter carries reports between mirrors, by way of the member in use. They may be lost.
type Reporter struct {
	client  *Client
	handler ReportHandler
	ctx     context.Context
	cancel  context.CancelCauseFunc
	stopped chan struct{}

	mu      sync.Mutex
	up      bool
	session uint64
	queue   []*logv1.AppliedReport
	// digest is the latest one that was not given to the stream yet; nil for none.
	digest *logv1.DigestReport
	more   chan struct{}
}

// Reporter starts to hold a stream for reports at the member in use. Close ends it.
func (c *Client) Reporter(handler ReportHandler) *Reporter {
	ctx, cancel := context.WithCancelCause(c.ctx)
	r := &Reporter{client: c, handler: handler, ctx: ctx, cancel: cancel, stopped: make(chan struct{}), more: make(chan struct{}, 1)}
	c.goroutines.Go(r.run)
	return r
}

// Listen names the session whose reports are wanted, now and on later streams.
func (r *Reporter) Listen(session uint64) {
	r.mu.Lock()
	r.session = session
	r.mu.Unlock()
	r.wake()
}

// Send gives reports to the present stream and returns at once. Without a stream, and beyond the bound, they are dropped.
func (r *Reporter) Send(reports ...*logv1.AppliedReport) {
	r.mu.Lock()
	if r.up {
		r.queue = append(r.queue, reports[:min(len(reports), reportsMax-len(r.queue))]...)
	}
	r.mu.Unlock()
	r.wake()
}

// SendDigest gives a digest to the present stream, or to the next one, and returns at once. One that was not sent gives way
// to the next.
func (r *Reporter) SendDigest(digest *logv1.DigestReport) {
	r.mu.Lock()
	r.digest = digest
	r.mu.Unlock()
	r.wake()
}

// Close ends the stream and waits for the goroutines. The handler is not called any more once it returns.
func (r *Reporter) Close() {
	r.cancel(ErrClosed)
	<-r.stopped
}

func (r *Reporter) wake() {
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// run holds one stream after another. Whether a member works is for the tail and the appender to find out: a stream that
// fails here is only opened again after a pause.
func (r *Reporter) run() {
	defer close(r.stopped)
	c := r.client
	pause := c.config.RetryMin
	for r.ctx.Err() == nil {
		address, _, err := c.await(r.ctx)
		if err != nil {
			return
		}
		began := time.Now()
		err = r.stream(address)
		if r.ctx.Err() != nil {
			return
		}
		if errors.Is(err, errMemberChanged) {
			continue
		}
		if time.Since(began) > c.config.RetryMax {
			pause = c.config.RetryMin
		}
		if status.Code(err) == codes.Unimplemented {
			// A member of an older version: there is nothing to be had from it.
			pause = c.config.RetryMax
		}
		c.config.Logger.Debug("report stream ends", "member", address, "reason", err)
		c.metrics.streamFailures.WithLabelValues("report").Inc()
		if sleep(r.ctx, jitter(pause)) != nil {
			return
		}
		pause = min(2*pause, c.config.RetryMax)
	}
}

// stream serves one stream from its handshake to its end.
func (r *Reporter) stream(address string) error {
	c := r.client
	connection, err := c.connect(address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	defer cancel(nil)
	c.cancelWhenMoved(ctx, cancel, address)
	stream, err := connection.service.Report(ctx)
	if err != nil {
		return streamError(ctx, err)
	}
	r.mu.Lock()
	session := r.session
	r.mu.Unlock()
	err = stream.Send(&logv1.ReportRequest{Handshake: c.handshake(), Session: session})
	if err != nil && !errors.Is(err, io.EOF) {
		return streamError(ctx, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return streamError(ctx, unexpectedEOF(err))
	}
	if answer.GetHandshake() == nil {
		return errHandshake
	}
	if err := c.checkHandshake(answer.GetHandshake()); err != nil {
		return err
	}
	r.mu.Lock()
	r.up, r.queue = true, nil
	r.mu.Unlock()
	var sender sync.WaitGroup
	sender.Go(func() {
		if err := r.send(ctx, stream, session); err != nil && !errors.Is(err, io.EOF) {
			cancel(err)
		}
	})
	r.handler.ReportUp()
	for err == nil {
		if len(answer.GetApplied()) > 0 {
			r.handler.Reported(answer.GetApplied())
		}
		if len(answer.GetVerdicts()) > 0 {
			r.handler.Judged(answer.GetVerdicts())
		}
		answer, err = stream.Recv()
	}
	err = streamError(ctx, unexpectedEOF(err))
	cancel(err)
	r.mu.Lock()
	r.up, r.queue = false, nil
	r.mu.Unlock()
	sender.Wait()
	return err
}

// send gives what is queued to the stream. told is the session that the member was told of.
func (r *Reporter) send(ctx context.Context, stream logv1.LogService_ReportClient, told uint64) error {
	for {
		r.mu.Lock()
		session, queue, digest := r.session, r.queue, r.digest
		r.queue, r.digest = nil, nil
		r.mu.Unlock()
		if session != told || len(queue) > 0 || digest != nil {
			if err := stream.Send(&logv1.ReportRequest{Session: session, Applied: queue, Digest: digest}); err != nil {
				return err
			}
			told = session
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.more:
		}
	}
}
