package peer

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Register serves PeerService on a gRPC server.
func (t *Transport) Register(registrar grpc.ServiceRegistrar) {
	logv1.RegisterPeerServiceServer(registrar, service{transport: t})
}

// service is the receiving side of a transport.
type service struct {
	logv1.UnimplementedPeerServiceServer
	transport *Transport
}

// Send implements PeerService: the stream on which another member sends to this one.
func (s service) Send(stream logv1.PeerService_SendServer) error {
	t := s.transport
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHandshake()
	answer, err := t.greet(hello)
	if err != nil {
		return err
	}
	from := hello.GetMemberId()
	ctx, done, err := t.takeOver(stream.Context(), from)
	if err != nil {
		return err
	}
	defer done()
	if err := stream.Send(&logv1.SendResponse{Handshake: answer}); err != nil {
		return err
	}
	return s.receive(ctx, stream, from)
}

// greet decides on whoever begins a call, and returns this member's own handshake.
func (t *Transport) greet(hello *logv1.PeerHandshake) (answer *logv1.PeerHandshake, err error) {
	if hello == nil {
		return nil, status.Error(codes.InvalidArgument, "the first message of a stream between members introduces the sender")
	}
	if hello.GetTargetId() != t.config.ID {
		return nil, status.Errorf(codes.FailedPrecondition, "this is member %016x, not %016x", t.config.ID, hello.GetTargetId())
	}
	if err := t.config.Handler.Check(hello); err != nil {
		if _, ok := status.FromError(err); ok {
			return nil, err
		}
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	answer = t.config.Handler.Handshake()
	answer.TargetId = hello.GetMemberId()
	return answer, nil
}

// FetchLog implements PeerService.
func (s service) FetchLog(request *logv1.FetchLogRequest, stream logv1.PeerService_FetchLogServer) error {
	answer, err := s.transport.greet(request.GetHandshake())
	if err != nil {
		return err
	}
	if s.transport.config.Fetches == nil {
		return s.UnimplementedPeerServiceServer.FetchLog(request, stream)
	}
	return s.transport.config.Fetches.FetchLog(answer, request, stream)
}

// FetchCheckpoint implements PeerService.
func (s service) FetchCheckpoint(request *logv1.FetchCheckpointRequest, stream logv1.PeerService_FetchCheckpointServer) error {
	answer, err := s.transport.greet(request.GetHandshake())
	if err != nil {
		return err
	}
	if s.transport.config.Fetches == nil {
		return s.UnimplementedPeerServiceServer.FetchCheckpoint(request, stream)
	}
	return s.transport.config.Fetches.FetchCheckpoint(answer, request, stream)
}

// receive hands the frames of one stream on until it ends or another stream of the same member takes its place. It
// returns when no frame of this stream is being handled any more.
func (s service) receive(ctx context.Context, stream logv1.PeerService_SendServer, from uint64) error {
	failed := make(chan error, 1)
	// handling has room while no frames are handled; the end of the stream takes it for ever.
	handling := make(chan struct{}, 1)
	// Recv can't be interrupted but by returning from the handler, so it has a goroutine of its own, which the end of the
	// handler ends.
	go func() {
		for {
			request, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case handling <- struct{}{}:
			case <-ctx.Done():
				return
			}
			if ctx.Err() != nil {
				<-handling
				return
			}
			if frames := s.transport.answerPings(from, request.GetFrames()); len(frames) > 0 {
				s.transport.config.Handler.Receive(ctx, from, frames)
			}
			<-handling
		}
	}()
	select {
	case <-ctx.Done():
		handling <- struct{}{} // Receive returns when ctx ends
		return status.Error(codes.Aborted, "another stream of the same member took over")
	case err := <-failed:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}

// takeOver makes a stream the only one of its sender: the one before it is ended and its last frame handled, so that
// frames of two streams never mix.
func (t *Transport) takeOver(parent context.Context, from uint64) (ctx context.Context, done func(), err error) {
	ctx, cancel := context.WithCancel(parent)
	stopped := context.AfterFunc(t.ctx, cancel)
	mine := &incomingStream{cancel: cancel, done: make(chan struct{})}
	done = func() {
		cancel()
		stopped()
		close(mine.done)
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.incoming[from] == mine {
			delete(t.incoming, from)
		}
	}
	t.mu.Lock()
	before := t.incoming[from]
	t.incoming[from] = mine
	t.mu.Unlock()
	if before != nil {
		before.cancel()
		select {
		case <-before.done:
		case <-ctx.Done():
			done()
			return nil, nil, status.Error(codes.Aborted, errClosed.Error())
		}
	}
	return ctx, done, nil
}

// answerPings takes out what only measures, and returns the rest.
func (t *Transport) answerPings(from uint64, frames []*logv1.PeerFrame) []*logv1.PeerFrame {
	l := t.link(from)
	if l == nil {
		return frames
	}
	kept := frames[:0]
	var answers []*logv1.PeerFrame
	var pong *logv1.Ping
	for _, f := range frames {
		switch frame := f.GetFrame().(type) {
		case *logv1.PeerFrame_Ping:
			answers = append(answers, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Pong{Pong: frame.Ping}})
		case *logv1.PeerFrame_Pong:
			pong = frame.Pong
		default:
			kept = append(kept, f)
		}
	}
	l.heard(pong)
	if len(answers) > 0 {
		l.send(answers)
	}
	return kept
}
