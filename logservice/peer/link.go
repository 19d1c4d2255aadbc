package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
)

// link is all that goes to one member: a queue, and a goroutine that keeps a stream and empties the queue into it.
type link struct {
	transport *Transport
	id        uint64
	address   string
	// conn carries what is fetched; the stream of frames has a connection of its own.
	conn    *grpc.ClientConn
	streams *directstream.Client
	cancel  context.CancelFunc
	logger  *slog.Logger
	// wake has a value when the queue may have become non-empty.
	wake chan struct{}

	mu        sync.Mutex
	connected bool
	queue     []*logv1.PeerFrame
	bytes     int
	// lost is set when frames were dropped and the handler has not been told.
	lost      bool
	pingID    uint64
	pingAt    time.Time
	roundTrip time.Duration
	lastHeard time.Time
}

// batchBytes is about how much is sent in one message; a single frame may be larger.
const batchBytes = 256 << 10

func (l *link) close() {
	l.cancel()
	l.streams.Close()
	_ = l.conn.Close()
}

func (l *link) health() Health {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := Health{RoundTrip: -1, LastHeard: l.lastHeard, Connected: l.connected, QueuedBytes: l.bytes}
	if l.roundTrip > 0 {
		h.RoundTrip = l.roundTrip
	}
	return h
}

func frameBytes(f *logv1.PeerFrame) int {
	if m := f.GetRaftMessage(); m != nil {
		return len(m) + 16
	}
	return proto.Size(f) + 16
}

// send queues frames; see Transport.Send.
func (l *link) send(frames []*logv1.PeerFrame) (unsent []*logv1.PeerFrame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.connected {
		return proposals(frames)
	}
	for _, f := range frames {
		l.queue = append(l.queue, f)
		l.bytes += frameBytes(f)
	}
	if l.bytes > l.transport.config.QueueBytes || len(l.queue) > l.transport.config.QueueFrames {
		unsent = l.makeRoom()
	}
	l.signal()
	return unsent
}

// makeRoom drops the oldest frames that may be lost until a quarter of the queue is free: dropping one at a time would
// lose a little of everything for ever. Where proposals alone fill the queue, the newest go back.
func (l *link) makeRoom() (unsent []*logv1.PeerFrame) {
	maxBytes, maxFrames := l.transport.config.QueueBytes*3/4, l.transport.config.QueueFrames*3/4
	kept := l.queue[:0]
	frames := len(l.queue)
	for _, f := range l.queue {
		if (l.bytes > maxBytes || frames > maxFrames) && f.GetProposal() == nil {
			l.bytes -= frameBytes(f)
			frames--
			l.lost = true
			continue
		}
		kept = append(kept, f)
	}
	for l.bytes > maxBytes || len(kept) > maxFrames {
		last := kept[len(kept)-1]
		kept = kept[:len(kept)-1]
		l.bytes -= frameBytes(last)
		unsent = append(unsent, last)
	}
	clear(l.queue[len(kept):])
	l.queue = kept
	return unsent
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take removes about batchBytes from the head of the queue.
func (l *link) take() (frames []*logv1.PeerFrame, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, bytes := 0, 0
	for n < len(l.queue) && bytes < batchBytes {
		bytes += frameBytes(l.queue[n])
		n++
	}
	frames = append(frames, l.queue[:n]...)
	clear(l.queue[:n])
	l.queue = l.queue[n:]
	if len(l.queue) == 0 {
		l.queue = nil
	} else {
		l.signal()
	}
	l.bytes -= bytes
	lost, l.lost = l.lost, false
	return frames, lost
}

var errUnreachable = errors.New("can't be reached")

// run keeps a stream to the member until the link is closed.
func (l *link) run(ctx context.Context) {
	const restMin, restMax = 20 * time.Millisecond, time.Second
	rest, reachable := restMin, true
	for ctx.Err() == nil {
		began := time.Now()
		err := l.stream(ctx)
		l.disconnect(ctx)
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.FailedPrecondition || status.Code(err) == codes.DataLoss {
			l.transport.config.Handler.Refused(l.id, err)
			rest = restMax
		}
		if unreachable := errors.Is(err, errUnreachable); reachable || !unreachable {
			l.logger.Info("stream to member ended", "error", err)
			reachable = !unreachable
		}
		if !reachable {
			rest = min(rest, redialMax)
		} else if time.Since(began) > 10*restMax {
			rest = restMin
		}
		timer := time.NewTimer(rest + rand.N(rest/2))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		rest = min(2*rest, restMax)
	}
}

// stream opens one stream, introduces this member, and sends until something fails.
func (l *link) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := logv1.NewPeerServiceClient(l.streams).Send(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	hello := l.transport.config.Handler.Handshake()
	hello.TargetId = l.id
	// An error of Send is found again, with its reason, by Recv.
	_ = stream.Send(&logv1.SendRequest{Handshake: hello})
	response, err := stream.Recv()
	if err != nil {
		return err
	}
	if answer := response.GetHandshake(); answer.GetMemberId() != l.id {
		return fmt.Errorf("%s is member %016x, not %016x", l.address, answer.GetMemberId(), l.id)
	} else if err := l.transport.config.Handler.Check(answer); err != nil {
		// Not wrapped: a status in it would look like a refusal by the other side.
		return fmt.Errorf("this member refuses the other: %s", err.Error())
	}
	l.connect()

	ended := make(chan error, 1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		_, err := stream.Recv()
		if err == nil {
			err = errors.New("unexpected message")
		}
		ended <- err
		cancel()
	}()
	defer func() { cancel(); <-received }()
	return l.sendQueue(ctx, stream, ended)
}

func (l *link) sendQueue(ctx context.Context, stream logv1.PeerService_SendClient, ended <-chan error) error {
	pings := time.NewTicker(l.transport.config.PingInterval)
	defer pings.Stop()
	l.ping()
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return errClosed
		case <-pings.C:
			l.ping()
		case <-l.wake:
			frames, lost := l.take()
			if lost {
				l.transport.config.Handler.Unreachable(ctx, l.id)
			}
			if len(frames) == 0 {
				continue
			}
			if err := stream.Send(&logv1.SendRequest{Frames: frames}); err != nil {
				// Those in this message may have arrived: they are lost as any frame may be, and not given back. The
				// reason is with the receiving side.
				return <-ended
			}
		}
	}
}

func (l *link) connect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected = true
	l.logger.Debug("stream to member opened")
}

// disconnect gives up what waits in the queue.
func (l *link) disconnect(ctx context.Context) {
	l.mu.Lock()
	was := l.connected
	l.connected, l.pingAt = false, time.Time{}
	unsent := proposals(l.queue)
	l.queue, l.bytes, l.lost = nil, 0, false
	l.mu.Unlock()
	if len(unsent) > 0 {
		l.transport.config.Handler.Unsent(ctx, l.id, unsent)
	}
	if was {
		l.transport.config.Handler.Unreachable(ctx, l.id)
	}
}

// ping sends one ping at a time.
func (l *link) ping() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pingID++
	l.pingAt = time.Now()
	l.queue = append(l.queue, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Ping{Ping: &logv1.Ping{Id: l.pingID}}})
	l.bytes += frameBytes(l.queue[len(l.queue)-1])
	l.signal()
}

// heard notes that something came from the member, and measures where it is the answer to the latest ping.
func (l *link) heard(pong *logv1.Ping) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.lastHeard = now
	if pong == nil || pong.Id != l.pingID || l.pingAt.IsZero() {
		return
	}
	sample := max(now.Sub(l.pingAt), 1)
	l.pingAt = time.Time{}
	if l.roundTrip == 0 || sample < l.roundTrip/2 {
		// The first sample may have waited for the other's stream. Who is near is asked first: that must not take a minute to be seen.
		l.roundTrip = sample
	} else {
		l.roundTrip += (sample - l.roundTrip) / 8
	}
}
