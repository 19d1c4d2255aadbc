package mirror

import (
	"context"
	"slices"
	"sync"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

const (
	// reportRepeats and reportRepeatAfter say how often and when a report is made again: no one confirms it.
	reportRepeats     = 10
	reportRepeatAfter = time.Second
	// syncsMax bounds the entries whose reports are gathered; syncKeptFor is longer than anyone waits for one.
	syncsMax    = 16_384
	syncKeptFor = 2 * time.Minute
)

// SyncOutcome says which mirrors were seen to have applied a command.
type SyncOutcome struct {
	// Missing are the frontends asked for that have not reported; empty: all have.
	Missing []statemachine.SessionInfo
	// Ended are those among Missing whose session ended before they did: they will not report any more.
	Ended []statemachine.SessionInfo
}

// syncs is both sides of reporting that entries were applied: it reports what others wait for, and gathers the reports on
// the entries of this mirror. The state of a wait is the set of sessions that were open at its index.
type syncs struct {
	mirror   *Mirror
	reporter *logclient.Reporter
	timer    *time.Timer

	mu sync.Mutex
	// session is this frontend's own, zero before the first.
	session uint64
	// reported is the highest index that each open session has reported.
	reported map[uint64]uint64
	// gathered are the entries that reports are gathered for, by index.
	gathered []*syncEntry
	// told is what each proposer's session was told last.
	told map[uint64]*toldReport
}

// syncEntry is one entry of this mirror that others are to report.
type syncEntry struct {
	index uint64
	began time.Duration
	// waiting are the sessions that have not reported, ended those among them that have ended.
	waiting, ended []statemachine.SessionInfo
	// changed is closed and replaced whenever waiting or ended changes.
	changed chan struct{}
}

type toldReport struct {
	index uint64
	left  int
}

func newSyncs(m *Mirror) *syncs {
	return &syncs{mirror: m, reported: map[uint64]uint64{}, told: map[uint64]*toldReport{}}
}

func (s *syncs) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(time.Hour, s.repeat)
	s.timer.Stop()
	// The handler's first call waits for the lock.
	s.reporter = s.mirror.client.Reporter(reportHandler{s, s.mirror.digests})
}

func (s *syncs) stop() {
	s.mu.Lock()
	s.timer.Stop()
	s.mu.Unlock()
	s.reporter.Close()
}

// applied takes an entry that was just applied. For a batch of this frontend's own it returns what gathers the reports,
// nil where none are asked for. The apply goroutine calls it before anybody learns of the entry.
func (s *syncs) applied(applied *statemachine.Applied, own bool) *syncEntry {
	if !applied.ReportApplied && len(applied.SessionsOpened) == 0 && len(applied.SessionsEnded) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ended := range applied.SessionsEnded {
		s.ended(ended.ID)
	}
	for _, opened := range applied.SessionsOpened {
		if opened.FrontendID == s.mirror.client.FrontendID() {
			s.session = opened.ID
			s.reporter.Listen(opened.ID)
		}
	}
	switch {
	case !applied.ReportApplied:
		return nil
	case own:
		return s.gather(applied.Index)
	case s.session != 0:
		s.tell(applied.Session, applied.Index)
	}
	return nil
}

// gather begins to wait for every session that is open now but this frontend's own.
func (s *syncs) gather(index uint64) *syncEntry {
	now := s.mirror.config.Clock()
	e := &syncEntry{index: index, began: now, changed: make(chan struct{})}
	for _, session := range s.mirror.machine.Sessions() {
		if session.ID != s.session && s.reported[session.ID] < index {
			e.waiting = append(e.waiting, session)
		}
	}
	s.gathered = slices.DeleteFunc(s.gathered, func(old *syncEntry) bool {
		return len(old.waiting) == len(old.ended) || now-old.began > syncKeptFor
	})
	if len(s.gathered) >= syncsMax {
		s.gathered = s.gathered[1:]
	}
	s.gathered = append(s.gathered, e)
	return e
}

func (s *syncs) ended(session uint64) {
	delete(s.reported, session)
	delete(s.told, session)
	for _, e := range s.gathered {
		for _, w := range e.waiting {
			if w.ID == session {
				e.ended = append(slices.Clone(e.ended), w)
				e.notify()
			}
		}
	}
}

func (e *syncEntry) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// tell reports to a proposer's session, now and a few times more.
func (s *syncs) tell(proposer, index uint64) {
	if len(s.told) == 0 {
		s.timer.Reset(reportRepeatAfter)
	}
	s.told[proposer] = &toldReport{index: index, left: reportRepeats}
	s.reporter.Send(&logv1.AppliedReport{Session: s.session, ProposerSession: proposer, Index: index})
}

func (s *syncs) repeat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for proposer, told := range s.told {
		if told.left--; told.left < 0 {
			delete(s.told, proposer)
		}
	}
	s.tellAgain()
	if len(s.told) > 0 && s.mirror.ctx.Err() == nil {
		s.timer.Reset(reportRepeatAfter)
	}
}

func (s *syncs) tellAgain() {
	reports := make([]*logv1.AppliedReport, 0, len(s.told))
	for proposer, told := range s.told {
		reports = append(reports, &logv1.AppliedReport{Session: s.session, ProposerSession: proposer, Index: told.index})
	}
	s.reporter.Send(reports...)
}

// ReportUp implements logclient.ReportHandler.
func (s *syncs) ReportUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellAgain()
}

// reportHandler is who hears what comes on the reporter's stream.
type reportHandler struct {
	*syncs
	*digests
}

// reportDigest reports what this mirror's state sums up to, if it has a session to report it under.
func (s *syncs) reportDigest(report *logv1.DigestReport) {
	s.mu.Lock()
	report.Session = s.session
	s.mu.Unlock()
	if report.Session != 0 {
		s.reporter.SendDigest(report)
	}
}

// Reported implements logclient.ReportHandler.
func (s *syncs) Reported(reports []*logv1.AppliedReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range reports {
		if r.GetProposerSession() != s.session || r.GetIndex() <= s.reported[r.GetSession()] {
			continue
		}
		// A session that this mirror does not know yet reports again.
		if _, open := s.mirror.machine.Session(r.GetSession()); !open {
			continue
		}
		s.reported[r.GetSession()] = r.GetIndex()
		for _, e := range s.gathered {
			if e.index > r.GetIndex() {
				break
			}
			at := slices.IndexFunc(e.waiting, func(w statemachine.SessionInfo) bool { return w.ID == r.GetSession() })
			if at >= 0 {
				e.waiting = slices.Concat(e.waiting[:at], e.waiting[at+1:])
				e.notify()
			}
		}
	}
}

// wait returns when every session of the regions (nil: of all) has reported or ended, or when ctx ends.
func (s *syncs) wait(ctx context.Context, e *syncEntry, regions []string) SyncOutcome {
	asked := func(sessions []statemachine.SessionInfo) []statemachine.SessionInfo {
		return slices.DeleteFunc(slices.Clone(sessions), func(w statemachine.SessionInfo) bool {
			return regions != nil && !slices.Contains(regions, w.Region)
		})
	}
	for {
		s.mu.Lock()
		outcome := SyncOutcome{Missing: asked(e.waiting), Ended: asked(e.ended)}
		changed := e.changed
		s.mu.Unlock()
		if len(outcome.Missing) == len(outcome.Ended) {
			return outcome
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return outcome
		case <-s.mirror.ctx.Done():
			return outcome
		}
	}
}

// ProposeSynced is Propose, and then waits until every mirror of the regions (nil: of all) with an open session at the
// command's index has reported that it has applied the command, at most until timeout after the call, or the end of ctx.
// The outcome means something only without an error and for a command that apply did not refuse.
func (m *Mirror) ProposeSynced(
	ctx context.Context, command *commandv1.Command, o ProposeOptions, regions []string, timeout time.Duration,
) (statemachine.Result, SyncOutcome, error) {
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	command.ReportApplied = true
	outcome, err := m.proposeAndWait(ctx, command, o)
	if err != nil || outcome.result.Err != nil || outcome.sync == nil {
		return outcome.result, SyncOutcome{}, err
	}
	return outcome.result, m.syncs.wait(waiting, outcome.sync, regions), nil
}
