package logservice

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/observe/tracing"
)

// service is LogService over a Server.
type service struct {
	logv1.UnimplementedLogServiceServer
	server *Server
	tails  atomic.Int32
}

const (
	// maxTailBytes bounds one answer of a tail, whatever the caller asks for.
	maxTailBytes = 4 << 20
	// defaultTailBytes is for callers that leave the bound to us.
	defaultTailBytes = 1 << 20
	// maxStreamAnswers bounds the answers that wait for a caller that does not read them: more are dropped, and the
	// caller's own timeout is its answer.
	maxStreamAnswers = 4096
	// maxStreamRounds bounds the questions of one stream under way.
	maxStreamRounds = 1024
)

// Append implements LogService.
func (s *service) Append(stream logv1.LogService_AppendServer) error {
	srv := s.server
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := srv.checkCaller(first.GetHandshake()); err != nil {
		return err
	}
	if err := stream.Send(&logv1.AppendResponse{Handshake: srv.handshake()}); err != nil {
		return err
	}
	rejections := newMailbox[*logv1.AppendRejection](maxStreamAnswers)
	id := srv.answers.openStream(func(r *logv1.AppendRejection) {
		srv.metrics.rejected(r.GetReason())
		srv.tellRejection(r)
		rejections.put(r)
	})
	defer func() {
		srv.answers.streams.forget(id)
		_ = srv.post(srv.ctx, StreamClosed{Stream: id})
	}()
	return duplex(stream.Context(),
		func(ctx context.Context) error {
			for request := first; ; {
				srv.tellBatches(ctx, request.GetProposals())
				if err := srv.post(ctx, proposed(id, request.GetProposals())...); err != nil {
					return err
				}
				if request, err = stream.Recv(); err != nil {
					rejections.close()
					return err
				}
			}
		},
		func(ctx context.Context) error {
			for {
				batch, err := rejections.take(ctx)
				if err != nil {
					return err
				}
				if err := stream.Send(&logv1.AppendResponse{Rejections: batch}); err != nil {
					return err
				}
			}
		}, srv)
}

func proposed(stream uint64, proposals []*logv1.Proposal) []Event {
	events := make([]Event, len(proposals))
	for i, p := range proposals {
		p.Traces = tracing.Bounded(p.GetTraces())
		events[i] = Propose{Stream: stream, Proposal: p}
	}
	return events
}

// ReadRound implements LogService.
func (s *service) ReadRound(stream logv1.LogService_ReadRoundServer) error {
	srv := s.server
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := srv.checkCaller(first.GetHandshake()); err != nil {
		return err
	}
	if err := stream.Send(&logv1.ReadRoundResponse{Handshake: srv.handshake()}); err != nil {
		return err
	}
	answers := newMailbox[*logv1.ReadRoundResponse](2 * maxStreamRounds)
	ask := func(ctx context.Context, id uint64) error {
		if answers.expect() > maxStreamRounds {
			answers.settle(&logv1.ReadRoundResponse{Id: id, Failure: failureTooMany})
			return nil
		}
		began := time.Now()
		token := srv.answers.tokens.Add(1)
		srv.answers.rounds.expect(token, func(r RoundResult) {
			srv.metrics.round(r, time.Since(began))
			answers.settle(&logv1.ReadRoundResponse{Id: id, Index: r.Index, Failure: r.Failure})
		})
		return srv.post(ctx, AskRound{Token: token})
	}
	return duplex(stream.Context(),
		func(ctx context.Context) error {
			for request := first; ; {
				if id := request.GetId(); id != 0 {
					if err := ask(ctx, id); err != nil {
						return err
					}
				}
				if request, err = stream.Recv(); err != nil {
					answers.close()
					return err
				}
			}
		},
		func(ctx context.Context) error {
			for {
				batch, err := answers.take(ctx)
				if err != nil {
					return err
				}
				for _, answer := range batch {
					if err := stream.Send(answer); err != nil {
						return err
					}
				}
			}
		}, srv)
}

// duplex runs both directions of a stream. When the caller has said all (receive returns io.EOF), send goes on until it
// has nothing more to say; any other end of one direction ends both.
func duplex(parent context.Context, receive, send func(ctx context.Context) error, srv *Server) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stopped := context.AfterFunc(srv.ctx, cancel)
	defer stopped()
	received := make(chan error, 1)
	sent := make(chan error, 1)
	// receive may be inside Recv, which only the end of the stream ends: nobody waits for it.
	go func() { received <- receive(ctx) }()
	go func() { sent <- send(ctx) }()
	var err error
	select {
	case err = <-sent:
		return callerError(err, srv)
	case err = <-received:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if !errors.Is(err, io.EOF) {
		cancel()
	}
	// A message must not be sent after the stream's handler has returned.
	if sendErr := <-sent; errors.Is(err, io.EOF) {
		err = sendErr
	}
	return callerError(err, srv)
}

// callerError is what a caller is told of the end of its stream.
func callerError(err error, srv *Server) error {
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case srv.ctx.Err() != nil, errors.Is(err, ErrStopped):
		return status.Error(codes.Unavailable, "this member is shutting down")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the stream has ended")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the stream has ended")
	}
	return err
}

// Tail implements LogService.
func (s *service) Tail(request *logv1.TailRequest, stream logv1.LogService_TailServer) error {
	srv := s.server
	if err := srv.checkCaller(request.GetHandshake()); err != nil {
		return err
	}
	next := request.GetFromIndex()
	if next == 0 {
		return status.Error(codes.InvalidArgument, "from_index must be at least 1")
	}
	s.tails.Add(1)
	defer s.tails.Add(-1)
	pin := srv.pins.add(next)
	defer pin.release(0)
	maxBytes := int(request.GetMaxBytes())
	if maxBytes == 0 {
		maxBytes = defaultTailBytes
	}
	maxBytes = min(maxBytes, maxTailBytes)
	heartbeat := time.NewTimer(srv.config.TailHeartbeat)
	defer heartbeat.Stop()
	response := &logv1.TailResponse{Handshake: srv.handshake()}
	checked := next == 1
	var sentMembership *logv1.Membership
	// due is set when something must be said even without entries.
	for due := true; ; {
		view := srv.published.view()
		if !checked && view.index+1 >= next {
			if err := s.checkContinuity(next-1, request.GetPreviousTerm()); err != nil {
				return err
			}
			checked = true
		}
		if checked && view.index >= next {
			entries, err := srv.published.read(next, maxBytes)
			if err != nil {
				return s.server.logReadError(next, err)
			}
			response.Entries = entries
			next += uint64(len(entries))
			pin.move(next)
		}
		if view.membership != sentMembership {
			response.Membership, sentMembership = view.membership, view.membership
			due = true
		}
		if due || len(response.Entries) > 0 {
			response.PublishedIndex, response.FirstIndex = view.index, srv.storage.FirstIndex()
			if err := stream.Send(response); err != nil {
				return err
			}
			srv.metrics.tailed(response)
			response, due = &logv1.TailResponse{}, false
			heartbeat.Reset(srv.config.TailHeartbeat)
			continue
		}
		select {
		case <-view.changed:
		case <-heartbeat.C:
			due = true
		case <-stream.Context().Done():
			return callerError(stream.Context().Err(), srv)
		case <-srv.ctx.Done():
			return callerError(ErrStopped, srv)
		}
	}
}

// checkContinuity compares what a mirror has applied with what is published here, where this member still has it.
func (s *service) checkContinuity(index, term uint64) error {
	if index+1 < s.server.storage.FirstIndex() {
		return s.server.logReadError(index+1, nil)
	}
	mine, err := s.server.published.term(index)
	if err != nil {
		return s.server.logReadError(index, err)
	}
	if mine != term {
		return status.Errorf(codes.FailedPrecondition, "entry %d is of term %d in this log, not of %d: this is another log", index, mine, term)
	}
	return nil
}

// logReadError tells a reader why entries can't be had. Trimmed entries are no failure of this member; others are.
func (s *Server) logReadError(index uint64, err error) error {
	if first := s.storage.FirstIndex(); index < first {
		return status.Errorf(codes.OutOfRange, "entry %d was trimmed, the log begins at %d: bootstrap from a checkpoint", index, first)
	}
	if s.ctx.Err() != nil {
		return callerError(ErrStopped, s)
	}
	s.fail(err)
	return status.Errorf(codes.DataLoss, "entry %d can't be read here", index)
}

// TransferLeadership implements LogService.
func (s *service) TransferLeadership(ctx context.Context, r *logv1.TransferLeadershipRequest) (*logv1.TransferLeadershipResponse, error) {
	leader, err := s.server.transfer(ctx, r.GetTargetId())
	switch {
	case err == nil:
		return &logv1.TransferLeadershipResponse{LeaderId: leader}, nil
	case errors.Is(err, ErrTransfer):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return nil, callerError(err, s.server)
}

// Status implements LogService.
func (s *service) Status(context.Context, *logv1.StatusRequest) (*logv1.StatusResponse, error) {
	answer := s.server.Status()
	answer.TailStreams = uint32(s.tails.Load())
	return answer, nil
}

// Status tells what this member knows of itself and of the others; after the end, what it knew last.
func (s *Server) Status() *logv1.StatusResponse {
	state := s.state()
	view := s.published.view()
	answer := &logv1.StatusResponse{Handshake: s.handshake(), LeaderId: state.Leader, Term: state.Term,
		CommitIndex: state.Commit, PublishedIndex: view.index, FirstIndex: state.First, LastIndex: state.Last,
		LogTimeNanoseconds: state.LogTime, Membership: view.membership, DiskUsedBytes: uint64(s.storage.DiskBytes()),
		Version: s.config.Version, AppendStreams: uint32(s.answers.streams.count()), Publication: s.config.Publication.String()}
	if state.NoSpace {
		answer.Alarms = append(answer.Alarms, "no space for the log: appends are refused")
	}
	if err := s.storage.ReserveError(); err != nil && !state.NoSpace {
		answer.Alarms = append(answer.Alarms, "no space for the next segment of the log: "+err.Error())
	}
	if state.Stalled {
		answer.Alarms = append(answer.Alarms, "the disk does not take writes")
	}
	s.checkpointStatus(answer, &state.Checkpoints)
	if state.Disagreement != "" {
		answer.Alarms = append(answer.Alarms, "mirrors disagree: "+state.Disagreement)
	}
	for _, m := range view.membership.GetMembers() {
		health := &logv1.MemberStatus{Id: m.Id, LastHeardMilliseconds: -1, RoundTripMicroseconds: -1, MatchIndex: state.Matches[m.Id]}
		if m.Id == s.id {
			health.LastHeardMilliseconds, health.RoundTripMicroseconds = 0, 0
		} else {
			h := s.transport.Health(m.Id)
			if h.RoundTrip >= 0 {
				health.RoundTripMicroseconds = h.RoundTrip.Microseconds()
			}
			if !h.LastHeard.IsZero() {
				health.LastHeardMilliseconds = time.Since(h.LastHeard).Milliseconds()
			}
		}
		answer.Members = append(answer.Members, health)
	}
	return answer
}

// checkCaller looks at the handshake of a frontend or an operator.
func (s *Server) checkCaller(h *logv1.Handshake) error {
	if h == nil {
		return status.Error(codes.InvalidArgument, "the first message of a stream must hold a handshake")
	}
	return s.checkLog(h)
}

// mailbox is a bounded queue between the loop, which must not block, and a stream, which may. It drops what comes when
// it is full.
type mailbox[T any] struct {
	mu    sync.Mutex
	items []T
	limit int
	// expected counts the items announced by expect that have not come.
	expected int
	closed   bool
	wake     chan struct{}
}

func newMailbox[T any](limit int) *mailbox[T] {
	return &mailbox[T]{limit: limit, wake: make(chan struct{}, 1)}
}

// expect announces an item, which settle will bring, and returns how many are announced.
func (m *mailbox[T]) expect() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expected++
	return m.expected
}

func (m *mailbox[T]) settle(item T) { m.add(item, 1) }

func (m *mailbox[T]) put(item T) { m.add(item, 0) }

func (m *mailbox[T]) add(item T, expected int) {
	m.mu.Lock()
	m.expected -= expected
	if len(m.items) < m.limit {
		m.items = append(m.items, item)
	}
	m.mu.Unlock()
	m.signal()
}

// close lets take return io.EOF once all that was announced has come and has been taken.
func (m *mailbox[T]) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.signal()
}

func (m *mailbox[T]) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take waits for at least one item.
func (m *mailbox[T]) take(ctx context.Context) ([]T, error) {
	for {
		m.mu.Lock()
		items, ended := m.items, m.closed && m.expected == 0
		m.items = nil
		m.mu.Unlock()
		switch {
		case len(items) > 0:
			return items, nil
		case ended:
			return nil, io.EOF
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
