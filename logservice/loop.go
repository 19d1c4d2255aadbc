package logservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// maxBatch is from how many events on a step takes no more.
const maxBatch = 256

// loop is the one goroutine that steps the member.
func (s *Server) loop() {
	ticker := time.NewTicker(s.config.TickInterval)
	defer ticker.Stop()
	events := make([]Event, 0, maxBatch)
	for {
		events = events[:0]
		select {
		case <-s.ctx.Done():
			return
		case q := <-s.queries:
			q(s.member)
			continue
		case <-ticker.C:
			events = append(events, Tick{})
		case err := <-s.written:
			events = append(events, StorageDone{err})
		case more := <-s.events:
			events = append(events, more...)
		}
		events = s.gather(events)
		for len(events) > 0 {
			effects := s.member.Step(s.config.Now(), events...)
			clear(events)
			events = s.perform(&effects, events[:0])
		}
	}
}

// gather takes what else is waiting, without waiting for it.
func (s *Server) gather(events []Event) []Event {
	for len(events) < maxBatch {
		select {
		case more := <-s.events:
			events = append(events, more...)
		default:
			return events
		}
	}
	return events
}

// perform does what the member wants done. Events that come of it are appended to events.
func (s *Server) perform(effects *Effects, events []Event) []Event {
	if effects.Failure != nil {
		s.fail(effects.Failure)
		return events
	}
	s.clusterID.Store(s.member.ClusterID())
	if effects.MembershipChanged {
		if err := s.membershipChanged(); err != nil {
			s.logger.Error("could not reach a member", "error", err)
		}
	}
	events = s.sendFrames(effects.Frames, events)
	if effects.Append != nil {
		s.groups <- effects.Append // has room: one group at a time
	}
	s.published.advance(effects)
	for _, r := range effects.Rejections {
		s.answers.reject(r)
	}
	for _, r := range effects.Rounds {
		s.answers.rounds.settle(r.Token, r)
	}
	for _, r := range effects.Transfers {
		s.answers.transfers.settle(r.Token, r)
	}
	for _, r := range effects.Changes {
		s.answers.changes.settle(r.Token, r)
	}
	if effects.Removed {
		s.removed()
	}
	return events
}

// sendFrames hands frames to the transport, those of one target together.
func (s *Server) sendFrames(frames []OutgoingFrame, events []Event) []Event {
	for i, f := range frames {
		if f.Frame == nil {
			continue
		}
		run := []*logv1.PeerFrame{f.Frame}
		for j := i + 1; j < len(frames); j++ {
			if frames[j].To == f.To && frames[j].Frame != nil {
				run = append(run, frames[j].Frame)
				frames[j].Frame = nil
			}
		}
		if unsent := s.transport.Send(f.To, run); len(unsent) > 0 {
			events = append(events, Unsent{To: f.To, Frames: unsent})
		}
	}
	return events
}

// write is the one goroutine that writes to the log.
func (s *Server) write() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case group := <-s.groups:
			began := time.Now()
			err := s.storage.Append(*group)
			if err != nil && !errors.Is(err, ErrNoSpace) {
				// What of it is on the disk can't be known: nothing may be acknowledged any more.
				s.fail(fmt.Errorf("logservice: write to the log: %w", err))
				return
			}
			if err != nil {
				s.logger.Error("no space for the log: taking no appends", "error", err)
			}
			s.metrics.wrote(group, time.Since(began))
			s.written <- err // has room: one group at a time
		}
	}
}

// answers routes what the loop has to say to those who wait for it.
type answers struct {
	mu        sync.Mutex
	next      uint64
	streams   map[uint64]func(*logv1.AppendRejection)
	rounds    expected[RoundResult]
	transfers expected[TransferResult]
	changes   expected[ChangeResult]
}

// expected routes answers that come once each.
type expected[T any] struct {
	mu       sync.Mutex
	next     uint64
	answered map[uint64]func(T)
}

// expect returns the token of a question. answered is called once and must not block.
func (e *expected[T]) expect(answered func(T)) (token uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.answered == nil {
		e.answered = map[uint64]func(T){}
	}
	e.next++
	e.answered[e.next] = answered
	return e.next
}

func (e *expected[T]) settle(token uint64, answer T) {
	e.mu.Lock()
	answered := e.answered[token]
	delete(e.answered, token)
	e.mu.Unlock()
	if answered != nil {
		answered(answer)
	}
}

// ask posts the event of a question to the loop and waits for the answer.
func ask[T any](ctx context.Context, s *Server, e *expected[T], event func(token uint64) Event) (answer T, err error) {
	result := make(chan T, 1)
	if err := s.post(ctx, event(e.expect(func(answer T) { result <- answer }))); err != nil {
		return answer, err
	}
	select {
	case answer = <-result:
		return answer, nil
	case <-ctx.Done():
		return answer, ctx.Err()
	case <-s.ctx.Done():
		return answer, ErrStopped
	}
}

// openStream returns the id of a frontend's stream. rejected must not block.
func (a *answers) openStream(rejected func(*logv1.AppendRejection)) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams == nil {
		a.streams = map[uint64]func(*logv1.AppendRejection){}
	}
	a.next++
	a.streams[a.next] = rejected
	return a.next
}

func (a *answers) closeStream(id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.streams, id)
}

func (a *answers) openStreams() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.streams)
}

func (a *answers) reject(r StreamRejection) {
	a.mu.Lock()
	rejected := a.streams[r.Stream]
	a.mu.Unlock()
	if rejected != nil {
		rejected(r.Rejection)
	}
}

// transfer moves leadership to a voter and waits for it.
func (s *Server) transfer(ctx context.Context, target uint64) (leader uint64, err error) {
	r, err := ask(ctx, s, &s.answers.transfers, func(token uint64) Event { return Transfer{Token: token, Target: target} })
	if err != nil {
		return 0, err
	}
	return r.Leader, r.Err
}

// peerHandler is what the transport sees of the server.
type peerHandler struct{ *Server }

// Handshake implements peer.Handler.
func (h peerHandler) Handshake() *logv1.PeerHandshake {
	membership := h.published.view().membership
	return &logv1.PeerHandshake{Handshake: h.handshake(), InitialMembershipHash: h.directory.record.ClusterHash,
		DataDirectoryId: h.directory.record.DataDirectoryID, MemberId: h.id, Publication: h.config.Publication.String(),
		MembershipIndex: membership.GetIndex(), Address: addressIn(membership, h.id)}
}

func (s *Server) handshake() *logv1.Handshake {
	return &logv1.Handshake{ClusterId: s.clusterID.Load(), Epoch: epoch, Name: s.config.Name, Region: s.config.Region, Id: s.id}
}

// Check implements peer.Handler.
func (h peerHandler) Check(p *logv1.PeerHandshake) error {
	refuse := func(format string, args ...any) error {
		return status.Error(codes.FailedPrecondition, fmt.Sprintf(format, args...))
	}
	name := p.GetHandshake().GetName()
	switch {
	case p.GetInitialMembershipHash() != h.directory.record.ClusterHash:
		return refuse("member %q was started with other initial members than %q", name, h.config.Name)
	case p.GetPublication() != h.config.Publication.String():
		return refuse("member %q publishes by %s and %q by %s: all members must do alike", name, p.GetPublication(), h.config.Name,
			h.config.Publication)
	case p.GetMemberId() == h.id:
		return refuse("%q has the id of %q", name, h.config.Name)
	}
	if err := h.checkLog(p.GetHandshake()); err != nil {
		return err
	}
	if err := h.checkMember(p); err != nil {
		return err
	}
	same, err := h.directory.meet(p.GetMemberId(), p.GetDataDirectoryId())
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	if !same {
		return status.Errorf(codes.DataLoss, "member %q comes with another data directory than before: it has lost its votes "+
			"and its log; remove it, and add it again", name)
	}
	if region := p.GetHandshake().GetRegion(); region != "" {
		return h.post(h.ctx, Introduced{Member: p.GetMemberId(), Region: region})
	}
	return nil
}

// checkLog refuses a part of another log or epoch.
func (s *Server) checkLog(h *logv1.Handshake) error {
	mine := s.clusterID.Load()
	if h.GetClusterId() != 0 && mine != 0 && h.GetClusterId() != mine {
		return status.Errorf(codes.FailedPrecondition, "this is log %016x, not %016x", mine, h.GetClusterId())
	}
	if h.GetEpoch() != 0 && h.GetEpoch() != epoch {
		return status.Errorf(codes.FailedPrecondition, "the log is in epoch %d, not %d", epoch, h.GetEpoch())
	}
	return nil
}

// Receive implements peer.Handler.
func (h peerHandler) Receive(ctx context.Context, from uint64, frames []*logv1.PeerFrame) {
	events := make([]Event, 0, len(frames))
	for _, f := range frames {
		if r := f.GetAppliedReports(); r != nil {
			h.reports.deliver(r.GetReports())
			continue
		}
		events = append(events, Received{From: from, Frame: f})
	}
	_ = h.post(ctx, events...) // an error means the end of both
}

// Unsent implements peer.Handler.
func (h peerHandler) Unsent(ctx context.Context, to uint64, frames []*logv1.PeerFrame) {
	_ = h.post(ctx, Unsent{To: to, Frames: frames})
}

// Unreachable implements peer.Handler.
func (h peerHandler) Unreachable(ctx context.Context, to uint64) {
	_ = h.post(ctx, Unreachable{Member: to})
}

// Refused implements peer.Handler.
func (h peerHandler) Refused(by uint64, err error) {
	h.logger.Error("refused by another member", "by", memberName(by), "error", err)
	if h.saysRemoved(err) {
		h.removed()
	}
	if status.Code(err) == codes.DataLoss {
		h.fail(fmt.Errorf("%w: %w", ErrLostData, err))
	}
}
