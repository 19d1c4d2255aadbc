package logclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Round is the answer to a read round.
type Round struct {
	// Index: every write acknowledged anywhere before the round began lies at or below it.
	Index uint64
	// Began is when the question that was answered was asked, at or after the call.
	Began time.Time
}

// ReadRound asks the log how far a reader must have come to see every write that was acknowledged anywhere before this
// call. A question that fails is asked again, under a fresh id, at the next best member, until ctx ends. The error
// is ErrTooManyRounds, or wraps ctx's and says why the last question failed.
func (c *Client) ReadRound(ctx context.Context) (Round, error) {
	c.mu.Lock()
	if c.roundsOpen >= c.config.Rounds {
		c.mu.Unlock()
		return Round{}, ErrTooManyRounds
	}
	c.roundsOpen++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.roundsOpen--
		c.mu.Unlock()
	}()

	var tried []string
	last := ErrUnreachable
	pause := c.config.RetryMin
	for {
		address, roundTrip, err := c.memberForRound(ctx, tried)
		if err != nil {
			return Round{}, fmt.Errorf("read round: %w: %w", last, err)
		}
		began := time.Now()
		index, err := c.askRound(ctx, address, c.config.RoundTimeout+roundTrip)
		if err == nil {
			c.metrics.rounds.WithLabelValues("answered").Inc()
			if len(tried) > 0 {
				c.roundWorkedElsewhere(tried)
			}
			return Round{Index: index, Began: began}, nil
		}
		if ctx.Err() != nil {
			return Round{}, fmt.Errorf("read round: %w: %w", err, context.Cause(ctx))
		}
		if c.ctx.Err() != nil {
			return Round{}, fmt.Errorf("read round: %w", context.Cause(c.ctx))
		}
		c.metrics.rounds.WithLabelValues("failed").Inc()
		last = err
		tried = append(tried, address)
		if err := sleep(ctx, jitter(pause)); err != nil {
			return Round{}, fmt.Errorf("read round: %w: %w", last, err)
		}
		pause = min(2*pause, time.Second)
	}
}

// memberForRound returns the member in use, or after failures the nearest one not tried yet; when all were tried, it
// begins again.
func (c *Client) memberForRound(ctx context.Context, tried []string) (address string, roundTrip time.Duration, err error) {
	if len(tried) > 0 {
		c.mu.Lock()
		m := c.tracker.best(time.Now(), tried...)
		if m != nil {
			address, roundTrip = m.address, m.roundTrip
		}
		c.mu.Unlock()
		if m != nil {
			return address, roundTrip, nil
		}
	}
	merged, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	defer stop()
	address, roundTrip, err = c.await(merged)
	return address, roundTrip, err
}

// roundWorkedElsewhere leaves the member in use when it failed a round that another member answered.
func (c *Client) roundWorkedElsewhere(tried []string) {
	c.update(func(t *tracker, now time.Time) {
		for _, address := range tried {
			if address == t.current {
				t.failed(address, now)
				return
			}
		}
	})
}

// askRound asks one member one question.
func (c *Client) askRound(ctx context.Context, address string, timeout time.Duration) (uint64, error) {
	stream := c.roundStreamTo(address)
	question := stream.ask()
	if question == nil {
		return 0, errSilent
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case answer := <-question.answer:
		return answer.index, answer.err
	case <-timer.C:
		// A member that cannot answer says so in time. This stream may be one whose packets are lost: the next question
		// opens another.
		stream.cancel(errSilent)
		stream.forget(question)
		return 0, fmt.Errorf("%s: %w", address, errSilent)
	case <-ctx.Done():
		stream.forget(question)
		return 0, context.Cause(ctx)
	}
}

// roundStream is the stream for read rounds to one member. It is opened by the first question, or beside the stream of an
// Appender, and ends with the first failure; the next question opens another.
type roundStream struct {
	client  *Client
	address string
	ctx     context.Context
	cancel  context.CancelCauseFunc

	mu     sync.Mutex
	broken bool
	nextID uint64
	// open holds the questions without an answer, unsent the ids among them that are still to be sent.
	open   map[uint64]*question
	unsent []uint64
	// more wakes the sender; one waiting signal is enough.
	more chan struct{}
}

type question struct {
	id     uint64
	answer chan roundAnswer
}

type roundAnswer struct {
	index uint64
	err   error
}

func (c *Client) roundStreamTo(address string) *roundStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.rounds[address]; s != nil {
		return s
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	s := &roundStream{
		client:  c,
		address: address,
		ctx:     ctx,
		cancel:  cancel,
		nextID:  1,
		open:    make(map[uint64]*question),
		more:    make(chan struct{}, 1),
	}
	if c.closed {
		cancel(ErrClosed)
		s.broken = true
		return s
	}
	c.rounds[address] = s
	c.goroutines.Go(s.run)
	return s
}

// ask queues a question under a fresh id; nil if the stream has just ended.
func (s *roundStream) ask() *question {
	s.mu.Lock()
	if s.broken {
		s.mu.Unlock()
		return nil
	}
	q := &question{id: s.nextID, answer: make(chan roundAnswer, 1)}
	s.nextID++
	s.open[q.id] = q
	s.unsent = append(s.unsent, q.id)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return q
}

func (c *Client) isCurrent(address string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracker.current == address
}

func (s *roundStream) forget(q *question) {
	s.mu.Lock()
	delete(s.open, q.id)
	s.mu.Unlock()
}

// run serves the stream and, at its end, fails the questions that are open.
func (s *roundStream) run() {
	c := s.client
	err := s.serve()
	c.mu.Lock()
	if c.rounds[s.address] == s {
		delete(c.rounds, s.address)
	}
	c.mu.Unlock()
	s.mu.Lock()
	s.broken = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for _, q := range open {
		q.answer <- roundAnswer{err: fmt.Errorf("%s: %w", s.address, err)}
	}
	if c.ctx.Err() == nil && !errors.Is(err, errIdle) {
		c.config.Logger.Info("read round stream ends", "member", s.address, "reason", err)
		c.metrics.streamFailures.WithLabelValues("read_round").Inc()
		if isOtherLog(err) {
			_ = c.refuse(s.address, err)
		}
	}
}

var errIdle = errors.New("stream is idle")

func (s *roundStream) serve() error {
	c := s.client
	connection, err := c.connect(s.address)
	if err != nil {
		return err
	}
	ctx, cancel := s.ctx, s.cancel
	defer cancel(nil)
	stream, err := connection.service.ReadRound(ctx)
	if err != nil {
		return streamError(ctx, err)
	}
	if err := stream.Send(&logv1.ReadRoundRequest{Handshake: c.handshake()}); err != nil && !errors.Is(err, io.EOF) {
		return streamError(ctx, err)
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel(nil)
	sender.Go(func() {
		if err := s.send(ctx, stream.Send); err != nil && !errors.Is(err, io.EOF) {
			cancel(err)
		}
	})
	for {
		answer, err := stream.Recv()
		if err != nil {
			return streamError(ctx, unexpectedEOF(err))
		}
		if answer.GetHandshake() != nil {
			if err := c.checkHandshake(answer.GetHandshake()); err != nil {
				return err
			}
		}
		s.answered(answer)
	}
}

// send gives questions to the stream as they come. A stream whose questions find no answer is given up, so that the
// next question dials afresh; one without questions is given up too, unless it goes to the member in use: the next
// question must not wait for a connection.
func (s *roundStream) send(ctx context.Context, send func(*logv1.ReadRoundRequest) error) error {
	idle := time.NewTimer(s.client.config.PreferAfter)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-idle.C:
			if s.client.isCurrent(s.address) {
				idle.Reset(s.client.config.PreferAfter)
				continue
			}
			return errIdle
		case <-s.more:
		}
		idle.Reset(s.client.config.PreferAfter)
		s.mu.Lock()
		unsent := s.unsent
		s.unsent = nil
		s.mu.Unlock()
		for _, id := range unsent {
			if err := send(&logv1.ReadRoundRequest{Id: id}); err != nil {
				return err
			}
		}
	}
}

func (s *roundStream) answered(answer *logv1.ReadRoundResponse) {
	s.mu.Lock()
	q := s.open[answer.GetId()]
	delete(s.open, answer.GetId())
	s.mu.Unlock()
	switch {
	case q == nil:
	case answer.GetFailure() != "" || answer.GetIndex() == 0:
		q.answer <- roundAnswer{err: fmt.Errorf("%s: %s", s.address, answer.GetFailure())}
	default:
		q.answer <- roundAnswer{index: answer.GetIndex()}
	}
}

// sleep pauses for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
