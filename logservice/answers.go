package logservice

import (
	"context"
	"sync"
	"sync/atomic"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// answers routes what the loop has to say to those who wait for it.
type answers struct {
	// tokens counts the tokens given out, which are unique over all kinds.
	tokens      atomic.Uint64
	streams     callbacks[*logv1.AppendRejection]
	rounds      callbacks[RoundResult]
	transfers   callbacks[TransferResult]
	changes     callbacks[ChangeResult]
	offers      callbacks[OfferResult]
	checkpoints callbacks[CheckpointResult]
}

// callbacks are functions by token. None of them may block.
type callbacks[T any] struct {
	mu      sync.Mutex
	byToken map[uint64]func(T)
}

func (c *callbacks[T]) expect(token uint64, answered func(T)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byToken == nil {
		c.byToken = map[uint64]func(T){}
	}
	c.byToken[token] = answered
}

// settle hands an answer over, as the last one.
func (c *callbacks[T]) settle(token uint64, result T) {
	if answered := c.forget(token); answered != nil {
		answered(result)
	}
}

// call hands one of several answers over.
func (c *callbacks[T]) call(token uint64, result T) {
	c.mu.Lock()
	answered := c.byToken[token]
	c.mu.Unlock()
	if answered != nil {
		answered(result)
	}
}

func (c *callbacks[T]) forget(token uint64) func(T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answered := c.byToken[token]
	delete(c.byToken, token)
	return answered
}

func (c *callbacks[T]) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byToken)
}

// openStream returns the id of a frontend's stream. rejected must not block.
func (a *answers) openStream(rejected func(*logv1.AppendRejection)) uint64 {
	token := a.tokens.Add(1)
	a.streams.expect(token, rejected)
	return token
}

// ask hands an event to the loop and waits for the one answer to its token.
func ask[T any](ctx context.Context, s *Server, waiting *callbacks[T], event func(token uint64) Event) (result T, err error) {
	token := s.answers.tokens.Add(1)
	answer := make(chan T, 1)
	waiting.expect(token, func(r T) { answer <- r })
	defer func() { _ = waiting.forget(token) }()
	if err := s.post(ctx, event(token)); err != nil {
		return result, err
	}
	select {
	case result = <-answer:
		return result, nil
	case <-ctx.Done():
		return result, ctx.Err()
	case <-s.ctx.Done():
		return result, ErrStopped
	}
}
