package logclient

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// AppendHandler is told what becomes of the stream of an Appender. Its methods are called one at a time, from one
// goroutine, and must not block; they may call Send.
type AppendHandler interface {
	// AppendUp says that proposals given to Send from now on go to a new stream. Nothing given before goes there.
	AppendUp()
	// AppendDown says that the stream is lost. What was given to Send since AppendUp may or may not have been proposed.
	AppendDown(reason error)
	// AppendRejected hands on proposals that the member knows were not put into the log by this stream.
	AppendRejected(rejections []*logv1.AppendRejection)
}

// requestBytesMax bounds how many bytes of proposals are packed into one message.
const requestBytesMax = 1 << 20

// Appender hands proposals to the log in order.
type Appender struct {
	client  *Client
	handler AppendHandler
	ctx     context.Context
	cancel  context.CancelCauseFunc
	stopped chan struct{}

	mu sync.Mutex
	// up: proposals are taken. queue holds those not yet given to the stream, queueBytes their size.
	up         bool
	queue      []*logv1.Proposal
	queueBytes int
	overflow   context.CancelCauseFunc
	// more wakes the sender; one waiting signal is enough.
	more chan struct{}
}

// Appender starts to hold a stream for proposals at the member in use. Close ends it.
func (c *Client) Appender(handler AppendHandler) *Appender {
	ctx, cancel := context.WithCancelCause(c.ctx)
	a := &Appender{
		client:  c,
		handler: handler,
		ctx:     ctx,
		cancel:  cancel,
		stopped: make(chan struct{}),
		more:    make(chan struct{}, 1),
	}
	c.goroutines.Go(a.run)
	return a
}

// Send gives proposals to the present stream, in order, and returns at once. Without a stream they are dropped; when
// more bytes wait than the bound, the stream is ended, which the handler is told like any other loss. The proposals
// and their payloads must not be changed afterwards.
func (a *Appender) Send(proposals ...*logv1.Proposal) {
	a.mu.Lock()
	if !a.up {
		a.mu.Unlock()
		return
	}
	for _, p := range proposals {
		a.queueBytes += len(p.GetPayload()) + 32
		a.queue = append(a.queue, p)
	}
	if a.queueBytes > a.client.config.AppendQueueBytes {
		a.up = false
		a.overflow(errQueueFull)
	}
	a.mu.Unlock()
	select {
	case a.more <- struct{}{}:
	default:
	}
}

// Close ends the stream and waits for the goroutines. The handler is not called any more once it returns.
func (a *Appender) Close() {
	a.cancel(ErrClosed)
	<-a.stopped
}

func (a *Appender) run() {
	defer close(a.stopped)
	c := a.client
	for a.ctx.Err() == nil {
		address, roundTrip, err := c.await(a.ctx)
		if err != nil {
			return
		}
		err = a.stream(address, roundTrip)
		if a.ctx.Err() != nil {
			return
		}
		c.config.Logger.Info("append stream ends", "member", address, "reason", err)
		c.metrics.streamFailures.WithLabelValues("append").Inc()
		if errors.Is(err, errMemberChanged) {
			continue
		}
		if final := c.streamFailed(address, err); final != nil {
			return
		}
	}
}

// stream serves one stream from its handshake to its end.
func (a *Appender) stream(address string, roundTrip time.Duration) error {
	c := a.client
	connection, err := c.connect(address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	c.cancelWhenMoved(ctx, cancel, address)
	watchdog := time.AfterFunc(c.config.SilenceTimeout+2*roundTrip, func() { cancel(errSilent) })
	defer watchdog.Stop()

	stream, err := connection.service.Append(ctx)
	if err != nil {
		return streamError(ctx, err)
	}
	if err := stream.Send(&logv1.AppendRequest{Handshake: c.handshake()}); err != nil && !errors.Is(err, io.EOF) {
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
	watchdog.Stop()
	// Whoever writes here will read here: the first question finds its stream open.
	c.roundStreamTo(address)
	return a.serve(ctx, cancel, stream, answer)
}

// appendStream is what serve needs of the stream.
type appendStream interface {
	Send(*logv1.AppendRequest) error
	Recv() (*logv1.AppendResponse, error)
}

// serve carries proposals and rejections between AppendUp and AppendDown.
func (a *Appender) serve(ctx context.Context, cancel context.CancelCauseFunc, stream appendStream, answer *logv1.AppendResponse) error {
	a.mu.Lock()
	a.up, a.queue, a.queueBytes, a.overflow = true, nil, 0, cancel
	a.mu.Unlock()
	var sender sync.WaitGroup
	sender.Go(func() {
		if err := a.send(ctx, stream); err != nil && !errors.Is(err, io.EOF) {
			// The receiver learns the reason of an io.EOF from the stream itself.
			cancel(err)
		}
	})
	a.handler.AppendUp()

	var err error
	for {
		if len(answer.GetRejections()) > 0 {
			a.handler.AppendRejected(answer.GetRejections())
		}
		if answer, err = stream.Recv(); err != nil {
			break
		}
	}
	err = streamError(ctx, unexpectedEOF(err))
	cancel(err)
	a.mu.Lock()
	a.up, a.queue, a.queueBytes = false, nil, 0
	a.mu.Unlock()
	sender.Wait()
	a.handler.AppendDown(err)
	return err
}

// send gives what is queued to the stream, as many proposals to a message as fit.
func (a *Appender) send(ctx context.Context, stream appendStream) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.more:
		}
		a.mu.Lock()
		queue := a.queue
		a.queue, a.queueBytes = nil, 0
		a.mu.Unlock()
		for len(queue) > 0 {
			count, bytes := 0, 0
			for count < len(queue) && (count == 0 || bytes+proto.Size(queue[count]) <= requestBytesMax) {
				bytes += proto.Size(queue[count])
				count++
			}
			if err := stream.Send(&logv1.AppendRequest{Proposals: queue[:count]}); err != nil {
				return err
			}
			a.client.metrics.appendBytes.Add(float64(bytes))
			queue = queue[count:]
		}
	}
}

func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
