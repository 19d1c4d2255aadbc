package logclient

import (
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// reportingMember is a fakeMember that takes reports.
type reportingMember struct {
	*fakeMember
	// failure, if set, is what Report answers.
	failure  error
	streams  int
	sessions []uint64
	applied  []uint64 // indexes
	digests  []uint64 // indexes
	largest  int      // most reports in one message
	// answers go to the streams.
	answers chan *logv1.ReportResponse
}

func (m *fakeMember) Report(stream logv1.LogService_ReportServer) error {
	m.mu.Lock()
	reporting := m.reporting
	m.mu.Unlock()
	if reporting == nil {
		return status.Error(codes.Unimplemented, "a member of an older version")
	}
	return reporting.serve(stream)
}

func (m *reportingMember) serve(stream logv1.LogService_ReportServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.streams++
	failure := m.failure
	m.mu.Unlock()
	if failure != nil {
		return failure
	}
	if err := stream.Send(&logv1.ReportResponse{Handshake: m.handshake()}); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case answer := <-m.answers:
				_ = stream.Send(answer)
			case <-stream.Context().Done():
				return
			}
		}
	}()
	for {
		m.mu.Lock()
		if s := request.GetSession(); !slices.Contains(m.sessions, s) {
			m.sessions = append(m.sessions, s)
		}
		m.largest = max(m.largest, len(request.GetApplied()))
		for _, report := range request.GetApplied() {
			m.applied = append(m.applied, report.GetIndex())
		}
		if digest := request.GetDigest(); digest != nil {
			m.digests = append(m.digests, digest.GetIndex())
		}
		m.mu.Unlock()
		if request, err = stream.Recv(); err != nil {
			return err
		}
	}
}

func (l *fakeLog) serveReports(region string) *reportingMember {
	m := l.serve(region, 1)
	r := &reportingMember{fakeMember: m, answers: make(chan *logv1.ReportResponse, 1)}
	m.with(func() { m.reporting = r })
	return r
}

// reportRecorder is a ReportHandler that keeps what it is told.
type reportRecorder struct {
	mu       sync.Mutex
	ups      int
	reported []uint64
	judged   []uint64
}

func (r *reportRecorder) ReportUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ups++
}

func (r *reportRecorder) Reported(reports []*logv1.AppliedReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, report := range reports {
		r.reported = append(r.reported, report.GetIndex())
	}
}

func (r *reportRecorder) Judged(verdicts []*logv1.DigestVerdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, verdict := range verdicts {
		r.judged = append(r.judged, verdict.GetIndex())
	}
}

func (r *reportRecorder) upCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ups
}

func applied(index uint64) *logv1.AppliedReport {
	return &logv1.AppliedReport{Session: 3, ProposerSession: 5, Index: index}
}

// Reports go to the stream there is; the latest digest waits for one. What comes for the session is handed on.
func TestReporter(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serveReports("us")
		c := l.open(Config{})
		defer c.Close()
		handler := &reportRecorder{}
		r := c.Reporter(handler)
		defer r.Close()
		r.Send(applied(99)) // no stream yet: dropped
		r.SendDigest(&logv1.DigestReport{Session: 3, Index: 10})
		r.SendDigest(&logv1.DigestReport{Session: 3, Index: 20}) // in place of the one before
		time.Sleep(time.Second)
		r.Listen(3)
		for i := range uint64(3 * reportsMax) { // more than the bound before anything is sent
			r.Send(applied(i + 1))
		}
		us.answers <- &logv1.ReportResponse{Applied: []*logv1.AppliedReport{applied(7)}, Verdicts: []*logv1.DigestVerdict{{Index: 20}}}
		time.Sleep(time.Second)
		us.with(func() {
			if !slices.Contains(us.sessions, 3) || !slices.Equal(us.digests, []uint64{20}) || us.streams != 1 {
				t.Errorf("sessions %v, digests %v, %d streams", us.sessions, us.digests, us.streams)
			}
			if len(us.applied) < reportsMax || us.applied[0] != 1 || us.largest > reportsMax || !slices.IsSorted(us.applied) {
				t.Errorf("%d reports from %d on, at most %d in one message", len(us.applied), us.applied[0], us.largest)
			}
		})
		handler.mu.Lock()
		defer handler.mu.Unlock()
		if handler.ups != 1 || !slices.Equal(handler.reported, []uint64{7}) || !slices.Equal(handler.judged, []uint64{20}) {
			t.Errorf("%+v", handler)
		}
	})
}

// A stream that is lost is opened again, at another member if that is the one in use now, under the session listened for,
// and the handler is told so that it reports again.
func TestReporterOutlivesItsStream(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		us, eu := l.serveReports("us"), l.serveReports("eu")
		c := l.open(Config{})
		defer c.Close()
		c.Appender(&recorder{}) // finds out that a member does not work
		handler := &reportRecorder{}
		r := c.Reporter(handler)
		defer r.Close()
		r.Listen(3)
		time.Sleep(time.Second)
		us.server.Stop()
		time.Sleep(5 * time.Second)
		if n := handler.upCount(); n != 2 {
			t.Errorf("%d streams, want 2", n)
		}
		r.Send(applied(4))
		time.Sleep(time.Second)
		eu.with(func() {
			if !slices.Contains(eu.sessions, 3) || !slices.Equal(eu.applied, []uint64{4}) {
				t.Errorf("sessions %v, reports %v", eu.sessions, eu.applied)
			}
		})
	})
}

// A member that does not know the call, or refuses it, is asked again at a slow pace, and everything else of it is used.
func TestReporterAtAMemberWithoutReports(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us", 1)
		c := l.open(Config{})
		defer c.Close()
		handler := &reportRecorder{}
		r := c.Reporter(handler)
		defer r.Close()
		time.Sleep(10 * time.Second)
		r.Send(applied(1))
		r.SendDigest(&logv1.DigestReport{Index: 10})
		if n := handler.upCount(); n != 0 || current(c) != "us:1" {
			t.Errorf("%d streams, member in use %q", n, current(c))
		}
		// The member is upgraded; it has no room at first.
		reporting := &reportingMember{fakeMember: us, answers: make(chan *logv1.ReportResponse),
			failure: status.Error(codes.ResourceExhausted, "no room")}
		us.with(func() { us.reporting = reporting })
		time.Sleep(20 * time.Second)
		us.with(func() {
			if reporting.streams < 5 || reporting.streams > 60 {
				t.Errorf("asked %d times in 20 s", reporting.streams)
			}
			reporting.failure = nil
		})
		time.Sleep(3 * time.Second)
		us.with(func() {
			if !slices.Equal(reporting.digests, []uint64{10}) || len(reporting.applied) > 0 {
				t.Errorf("digests %v, reports %v", reporting.digests, reporting.applied)
			}
		})
		if n := handler.upCount(); n != 1 {
			t.Errorf("%d streams", n)
		}
	})
}
