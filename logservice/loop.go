package logservice

import (
	"context"
	"errors"
	"fmt"
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
	// What the disk knows to be committed is applied before anybody is heard (SAFETY.md).
	effects := s.member.Step(s.config.Now())
	events := s.perform(&effects, make([]Event, 0, maxBatch))
	for {
		select {
		case <-s.ctx.Done():
			return
		case q := <-s.queries:
			q(s.member)
			continue
		case now := <-ticker.C:
			events = s.measure(append(events, Pinned{s.pins.lowest(now)}, Tick{}))
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
		s.groups <- groupWrite{effects.Append, effects.AppendTraces} // has room: one group at a time
	}
	s.published.advance(effects)
	s.trace(effects.Traced)
	if len(effects.Slow) > 0 {
		s.tellSlow(effects.Slow)
	}
	for _, r := range effects.Rejections {
		s.answers.streams.call(r.Stream, r.Rejection)
	}
	for _, r := range effects.Rounds {
		s.answers.rounds.settle(r.Token, r)
	}
	s.reports.judged(effects.Verdicts)
	for _, r := range effects.Transfers {
		s.answers.transfers.settle(r.Token, r)
	}
	for _, r := range effects.Changes {
		s.answers.changes.settle(r.Token, r)
	}
	if effects.Removed {
		s.removed()
	}
	s.performCheckpoints(effects)
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

// groupWrite is a group on its way to the disk, with the traces that it is part of.
type groupWrite struct {
	group  *Group
	traces [][]*logv1.TraceContext
}

// write is the one goroutine that writes to the log.
func (s *Server) write() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case write := <-s.groups:
			group, began := write.group, time.Now()
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
			s.traceSync(write, began, err)
			s.written <- err // has room: one group at a time
		case install := <-s.installs:
			err := s.install(install)
			if err != nil && !errors.Is(err, ErrNoSpace) {
				s.fail(fmt.Errorf("logservice: install a snapshot: %w", err))
				return
			}
			s.written <- err // has room: one group at a time
		case index := <-s.trims:
			if err := s.storage.Trim(index); err != nil {
				s.fail(fmt.Errorf("logservice: trim the log: %w", err))
				return
			}
		}
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
