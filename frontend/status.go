package frontend

import (
	"context"
	"sync"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/etcd"
	"github.com/logmirror/logmirror/logclient"
)

// statusTimeout bounds how long an answer about the log waits for its members.
const statusTimeout = time.Second

// reachableAge is the age of the state past which the log counts as out of reach: several background read rounds have
// failed by then.
const reachableAge = 5 * time.Second

// lostAge is the age of the state past which streams that asked for a leader are ended. It is the longer one, because many
// streams that come again cost more than new ones that are refused.
const lostAge = 2 * reachableAge

// lostLookInterval is how often the age is looked at for them.
const lostLookInterval = time.Second

// logLoss tells streams of the loss of the log.
type logLoss struct {
	mu   sync.Mutex
	lost chan struct{}
	gone bool
}

func newLogLoss() *logLoss { return &logLoss{lost: make(chan struct{})} }

// Lost returns a channel that is closed while the log is lost, or when it will be next.
func (l *logLoss) Lost() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *logLoss) set(gone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case gone && !l.gone:
		close(l.lost)
	case !gone && l.gone:
		l.lost = make(chan struct{})
	}
	l.gone = gone
}

// lookForLoss brings logLoss up to date.
func (s *life) lookForLoss() {
	age, known := s.mirror.Age()
	s.loss.set(known && age > lostAge)
}

// logReachable tells whether the log answered lately.
func (s *life) logReachable() bool {
	age, known := s.mirror.Age()
	return known && age <= reachableAge
}

// askLog asks the members of the log how they are.
func (s *life) askLog(ctx context.Context) []logclient.MemberStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return s.mirror.LogStatus(ctx)
}

// etcdLogStatus is what etcd's Status tells of the log.
func (s *life) etcdLogStatus(ctx context.Context) etcd.LogStatus {
	var status etcd.LogStatus
	if newest := newestAnswer(s.askLog(ctx)); newest != nil {
		status.Leader, status.Term, status.CommitIndex = newest.GetLeaderId(), newest.GetTerm(), newest.GetCommitIndex()
	}
	return status
}

// newestAnswer returns the answer of the member that knows most: the highest term, then a leader, then the highest index.
func newestAnswer(members []logclient.MemberStatus) (newest *logv1.StatusResponse) {
	for _, member := range members {
		answer := member.Status
		if answer == nil {
			continue
		}
		if newest == nil || knowsMore(answer, newest) {
			newest = answer
		}
	}
	return newest
}

func knowsMore(a, b *logv1.StatusResponse) bool {
	switch {
	case a.GetTerm() != b.GetTerm():
		return a.GetTerm() > b.GetTerm()
	case (a.GetLeaderId() != 0) != (b.GetLeaderId() != 0):
		return a.GetLeaderId() != 0
	default:
		return a.GetCommitIndex() > b.GetCommitIndex()
	}
}

// logStatus is what the native Status tells of the log.
func (s *life) logStatus(ctx context.Context) *kvv1.LogStatus {
	members := s.askLog(ctx)
	status := &kvv1.LogStatus{}
	newest := newestAnswer(members)
	if newest != nil {
		status.Term, status.CommitIndex = newest.GetTerm(), newest.GetCommitIndex()
		status.PublishedIndex, status.FirstIndex = newest.GetPublishedIndex(), newest.GetFirstIndex()
	}
	for _, member := range members {
		told := &kvv1.LogMemberStatus{
			Address:               member.Address,
			Reachable:             member.Status != nil,
			RoundTripMicroseconds: -1,
			LastIndex:             member.Status.GetLastIndex(),
			PublishedIndex:        member.Status.GetPublishedIndex(),
			Term:                  member.Status.GetTerm(),
			Alarms:                member.Status.GetAlarms(),
		}
		if member.RoundTrip >= 0 {
			told.RoundTripMicroseconds = member.RoundTrip.Microseconds()
		}
		if info := member.Info; info != nil {
			told.Id, told.Name, told.Region, told.Role = info.GetId(), info.GetName(), info.GetRegion(), roleName(info.GetRole())
			told.Leader = newest != nil && info.GetId() == newest.GetLeaderId()
		}
		if told.Leader {
			status.Leader = told.Name
		}
		if member.InUse {
			status.Tailing = told.Name
		}
		status.Members = append(status.Members, told)
	}
	return status
}

func roleName(role logv1.Member_Role) string {
	switch role {
	case logv1.Member_ROLE_VOTER:
		return "voter"
	case logv1.Member_ROLE_LEARNER:
		return "learner"
	default:
		return "unknown"
	}
}
