package logservice

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

const (
	// maxDigestBytes bounds one digest, maxDigestRounds the indexes whose digests are compared, maxDigestReports the
	// mirrors that are compared at one index.
	maxDigestBytes   = 64
	maxDigestRounds  = 64
	maxDigestReports = 4096
)

// DigestReported is a digest that a mirror reported to this member.
type DigestReported struct{ Report *logv1.DigestReport }

func (DigestReported) event() {}

// digests compares, at the leader, what mirrors say of their state at the same index. A new leader begins anew: mirrors
// report again and again.
type digests struct {
	// waitTicks is how long reports of one index are gathered before they are judged.
	waitTicks int
	rounds    []*digestRound // by index
	// alarm says, for people, who disagrees; alarmUntil is when that is forgotten.
	alarm      string
	alarmUntil int
}

// digestRound gathers the reports of one index and one pair of versions.
type digestRound struct {
	index                       uint64
	applyVersion, digestVersion uint32
	since                       int
	// digests are by session. judged are those who have been told a verdict.
	digests map[uint64]string
	judged  map[uint64]bool
	closed  bool
}

// digestReported takes a report of a mirror that is connected here to where it is compared.
func (m *Member) digestReported(r *logv1.DigestReport) {
	if r.GetSession() == 0 || r.GetIndex() == 0 || len(r.GetDigest()) == 0 || len(r.GetDigest()) > maxDigestBytes {
		return
	}
	switch status := m.raft.BasicStatus(); {
	case status.RaftState == raft.StateLeader:
		m.digests.add(r, m.ticks)
		m.judgeDigests()
	case status.Lead != 0:
		m.send(status.Lead, &logv1.PeerFrame{Frame: &logv1.PeerFrame_DigestReport{DigestReport: r}})
	}
}

// receiveDigest takes a report that another member passes on to the leader.
func (m *Member) receiveDigest(r *logv1.DigestReport) {
	if m.raft.BasicStatus().RaftState == raft.StateLeader {
		m.digestReported(r)
	}
}

// judgeDigests tells verdicts to the mirrors, by way of all members.
func (m *Member) judgeDigests() {
	for _, verdict := range m.digests.judge(m.ticks) {
		m.config.Logger.Error("a mirror's state differs from that of others", "session", verdict.GetSession(),
			"index", verdict.GetIndex(), "verdict", verdict.GetVerdict().String(), "reports", verdict.GetReports(),
			"agreeing", verdict.GetAgreeing())
		m.effects.Verdicts = append(m.effects.Verdicts, verdict)
		for _, id := range m.others {
			m.send(id, &logv1.PeerFrame{Frame: &logv1.PeerFrame_DigestVerdict{DigestVerdict: verdict}})
		}
	}
}

func (d *digests) reset() { d.rounds, d.alarm = nil, "" }

func (d *digests) add(r *logv1.DigestReport, tick int) {
	at, found := slices.BinarySearchFunc(d.rounds, r, func(round *digestRound, r *logv1.DigestReport) int {
		for _, order := range [...][2]uint64{
			{round.index, r.GetIndex()},
			{uint64(round.applyVersion), uint64(r.GetApplyVersion())},
			{uint64(round.digestVersion), uint64(r.GetDigestVersion())},
		} {
			if order[0] < order[1] {
				return -1
			}
			if order[0] > order[1] {
				return 1
			}
		}
		return 0
	})
	if !found {
		if len(d.rounds) >= maxDigestRounds {
			if at == 0 {
				return // older than all that is compared
			}
			d.rounds = slices.Delete(d.rounds, 0, 1)
			at--
		}
		d.rounds = slices.Insert(d.rounds, at, &digestRound{index: r.GetIndex(), applyVersion: r.GetApplyVersion(),
			digestVersion: r.GetDigestVersion(), since: tick, digests: map[uint64]string{}, judged: map[uint64]bool{}})
	}
	round := d.rounds[at]
	if _, again := round.digests[r.GetSession()]; again || len(round.digests) < maxDigestReports {
		round.digests[r.GetSession()] = string(r.GetDigest())
		round.closed = false
	}
}

// judge returns the verdicts that are due: on those whose digest is not the one that most mirrors have, at every index
// whose reports have been gathered for long enough. Who reports later is judged at once.
func (d *digests) judge(tick int) (verdicts []*logv1.DigestVerdict) {
	if d.alarm != "" && tick >= d.alarmUntil {
		d.alarm = ""
	}
	for _, round := range d.rounds {
		if round.closed || tick-round.since < d.waitTicks {
			continue
		}
		round.closed = true
		due := round.judge()
		if len(due) > 0 {
			d.alarm = fmt.Sprintf("%d of %d mirrors have another state than the others at index %d", len(due), len(round.digests), round.index)
			d.alarmUntil = tick + 30*d.waitTicks
		}
		verdicts = append(verdicts, due...)
	}
	return verdicts
}

func (r *digestRound) judge() (verdicts []*logv1.DigestVerdict) {
	agreeing := map[string]int{}
	most, shared := 0, false
	for _, digest := range r.digests {
		agreeing[digest]++
	}
	if len(agreeing) < 2 {
		return nil
	}
	for _, n := range agreeing {
		if n == most {
			shared = true
		}
		if n > most {
			most, shared = n, false
		}
	}
	sessions := make([]uint64, 0, len(r.digests))
	for session := range r.digests {
		sessions = append(sessions, session)
	}
	slices.Sort(sessions)
	for _, session := range sessions {
		n := agreeing[r.digests[session]]
		verdict := logv1.DigestVerdict_VERDICT_MINORITY
		if n == most {
			if !shared {
				continue
			}
			verdict = logv1.DigestVerdict_VERDICT_TIE
		}
		if !r.judged[session] {
			r.judged[session] = true
			verdicts = append(verdicts, &logv1.DigestVerdict{Session: session, Index: r.index, Verdict: verdict,
				Reports: uint32(len(r.digests)), Agreeing: uint32(n)})
		}
	}
	return verdicts
}
