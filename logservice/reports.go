package logservice

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

const (
	// maxReports bounds the reports in one message.
	maxReports = 4096
	// maxReportStreams bounds the frontends that may listen for reports at one member.
	maxReportStreams = 4096
)

// reports knows which stream the frontend of a session listens on. What comes for a session that listens at another
// member is passed on to all of them, which know no more than this one.
type reports struct {
	mu       sync.Mutex
	sessions map[uint64]*mailbox[*logv1.ReportResponse]
	streams  int
}

func (r *reports) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.streams >= maxReportStreams {
		return false
	}
	r.streams++
	return true
}

// listen gives what comes for a session to a stream from now on; before is what the stream listened for so far.
func (r *reports) listen(before, session uint64, stream *mailbox[*logv1.ReportResponse]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions == nil {
		r.sessions = map[uint64]*mailbox[*logv1.ReportResponse]{}
	}
	if r.sessions[before] == stream {
		delete(r.sessions, before)
	}
	if session != 0 {
		r.sessions[session] = stream
	}
}

func (r *reports) leave(session uint64, stream *mailbox[*logv1.ReportResponse]) {
	r.listen(session, 0, stream)
	r.mu.Lock()
	r.streams--
	r.mu.Unlock()
}

// deliver hands reports to the streams of this member that wait for them and returns the others.
func (r *reports) deliver(applied []*logv1.AppliedReport) (elsewhere []*logv1.AppliedReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, report := range applied {
		if stream := r.sessions[report.GetProposerSession()]; stream != nil {
			stream.put(&logv1.ReportResponse{Applied: []*logv1.AppliedReport{report}})
		} else {
			elsewhere = append(elsewhere, report)
		}
	}
	return elsewhere
}

// judged hands verdicts to the streams of this member that they are for.
func (r *reports) judged(verdicts []*logv1.DigestVerdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, verdict := range verdicts {
		if stream := r.sessions[verdict.GetSession()]; stream != nil {
			stream.put(&logv1.ReportResponse{Verdicts: []*logv1.DigestVerdict{verdict}})
		}
	}
}

// Report implements LogService.
func (s *service) Report(stream logv1.LogService_ReportServer) error {
	srv := s.server
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := srv.checkCaller(first.GetHandshake()); err != nil {
		return err
	}
	if !srv.reports.enter() {
		return status.Errorf(codes.ResourceExhausted, "more than %d streams of reports at this member", maxReportStreams)
	}
	incoming := newMailbox[*logv1.ReportResponse](maxReports)
	session := uint64(0)
	// The receiving side may outlive the stream's handler by a moment: it must not register what nobody serves any more.
	var mu sync.Mutex
	ended := false
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		srv.reports.leave(session, incoming)
	}()
	listen := func(next uint64) {
		mu.Lock()
		defer mu.Unlock()
		if next != 0 && next != session && !ended {
			srv.reports.listen(session, next, incoming)
			session = next
		}
	}
	listen(first.GetSession())
	if err := stream.Send(&logv1.ReportResponse{Handshake: srv.handshake()}); err != nil {
		return err
	}
	return duplex(stream.Context(),
		func(ctx context.Context) error {
			for request := first; ; {
				if len(request.GetApplied()) > maxReports {
					return status.Errorf(codes.InvalidArgument, "applied holds %d reports, limit %d", len(request.GetApplied()), maxReports)
				}
				listen(request.GetSession())
				if digest := request.GetDigest(); digest != nil {
					if len(digest.GetDigest()) > maxDigestBytes {
						return status.Errorf(codes.InvalidArgument, "digest is %d bytes, limit %d", len(digest.GetDigest()), maxDigestBytes)
					}
					if err := srv.post(ctx, DigestReported{digest}); err != nil {
						return err
					}
				}
				srv.passOn(srv.reports.deliver(request.GetApplied()))
				if request, err = stream.Recv(); err != nil {
					incoming.close()
					return err
				}
			}
		},
		func(ctx context.Context) error {
			for {
				batch, err := incoming.take(ctx)
				if err != nil {
					return err
				}
				answer := &logv1.ReportResponse{}
				for _, item := range batch {
					answer.Applied = append(answer.Applied, item.GetApplied()...)
					answer.Verdicts = append(answer.Verdicts, item.GetVerdicts()...)
				}
				if err := stream.Send(answer); err != nil {
					return err
				}
			}
		}, srv)
}

// passOn sends reports to all other members. They may be lost; who reports, repeats.
func (s *Server) passOn(applied []*logv1.AppliedReport) {
	if len(applied) == 0 {
		return
	}
	frame := &logv1.PeerFrame{Frame: &logv1.PeerFrame_AppliedReports{AppliedReports: &logv1.AppliedReports{Reports: applied}}}
	for _, m := range s.published.view().membership.GetMembers() {
		if m.GetId() != s.id {
			s.transport.Send(m.GetId(), []*logv1.PeerFrame{frame})
		}
	}
}
