package watch

import (
	"context"
	"sync"
)

// wakes has a channel for each stream of open, with a token in it while there may be something to take.
var wakes sync.Map

// open opens a stream that Next can wait on.
func open(h *Hub, o StreamOptions) *Stream {
	wake := make(chan struct{}, 1)
	o.Ready = func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	s := h.NewStream(o)
	wakes.Store(s, wake)
	return s
}

// Next waits for the next response and takes it alone, as a reader does that is as slow as can be.
func (s *Stream) Next(ctx context.Context) (Response, error) {
	wake, _ := wakes.Load(s)
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return Response{}, ErrClosed
		case s.head < len(s.queue):
			r := s.take()
			s.finishTake()
			return r, nil
		}
		s.mu.Unlock()
		select {
		case <-wake.(chan struct{}):
		case <-ctx.Done():
			return Response{}, ctx.Err()
		}
	}
}
