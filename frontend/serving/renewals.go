package serving

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/logmirror/logmirror/lease/keeper"
)

// renewalsWaitingMax bounds the renewals of one stream that wait for an entry of the log. Past it the stream is not read.
const renewalsWaitingMax = 1024

// Renewer renews leases; *keeper.Keeper does.
type Renewer interface {
	// BeginRenewal decides a renewal where that needs no waiting, and returns the TTL and no wait. Otherwise wait gives
	// the decision; its error matches keeper.ErrLeaseNotFound where there is no such lease.
	BeginRenewal(id int64) (ttlSeconds int64, wait func(context.Context) (int64, error))
}

// RenewalStream is a client's stream of renewals, whichever API it speaks. Receive and Send are each called by one
// goroutine at a time.
type RenewalStream interface {
	Context() context.Context
	// Receive returns the lease that the client wants to renew; io.EOF when it wants no more.
	Receive() (id int64, err error)
	// Send answers with a TTL of zero where there is no such lease. The facts are from before the renewal was decided.
	Send(f Facts, id, ttlSeconds int64) error
}

// KeepAlive serves a stream of renewals until the client ends it, a renewal cannot be vouched for, or the frontend stops.
//
// What is decided at once is answered in order. A renewal that has to wait for the log, because the lease is owned
// elsewhere, does not hold up those behind it: a client that comes with a thousand leases from another region, all on
// one stream, waits for one round trip and not for a thousand.
func (r *Region) KeepAlive(renewer Renewer, stream RenewalStream) error {
	if err := r.CheckReady(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s := &renewals{
		region: r, renewer: renewer, stream: stream, ctx: ctx, cancel: cancel, slots: make(chan struct{}, renewalsWaitingMax),
	}
	defer s.end()
	received := make(chan error, 1)
	go func() { received <- s.receive() }()
	select {
	case err := <-received:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.stopping:
		return ErrStopping
	}
}

// renewals is one stream that is being served.
type renewals struct {
	region  *Region
	renewer Renewer
	stream  RenewalStream
	ctx     context.Context
	cancel  context.CancelCauseFunc
	// slots holds one for each renewal that waits.
	slots   chan struct{}
	waiting sync.WaitGroup

	sending sync.Mutex
	ended   bool
}

func (s *renewals) receive() error {
	for {
		id, err := s.stream.Receive()
		if errors.Is(err, io.EOF) {
			s.waiting.Wait()
			return context.Cause(s.ctx)
		}
		if err != nil {
			return err
		}
		// The facts are taken first: a client must not see a renewal at a revision at which the lease was gone already.
		facts := s.region.Facts()
		ttl, wait := s.renewer.BeginRenewal(id)
		if wait == nil {
			if err := s.send(facts, id, ttl); err != nil {
				return err
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
		s.waiting.Go(func() {
			defer func() { <-s.slots }()
			ttl, err := wait(s.ctx)
			if errors.Is(err, keeper.ErrLeaseNotFound) {
				ttl, err = 0, nil
			}
			if err == nil {
				err = s.send(facts, id, ttl)
			}
			if err != nil {
				s.cancel(err)
			}
		})
	}
}

func (s *renewals) send(f Facts, id, ttl int64) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.ended {
		return context.Canceled
	}
	return s.stream.Send(f, id, ttl)
}

// end lets nothing be sent any more: the handler of the stream returns.
func (s *renewals) end() {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.ended = true
}
