package logservice

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// The membership changes by one member at a time: a learner is added, a learner is promoted, a member is removed. Two
// changes in one would be joint ones; of two voters that a joint change removes, each may hold the entries that keep the
// others, which do not know of its commit yet, from being elected, and nobody leads any more. So no request can make one.
//
// Any member takes a request. It asks the leader, and asks again, until it has applied the change itself or the leader has
// refused it. To ask twice is to ask once. A member's id is drawn before the first question and never used again, so that to
// promote or to remove it is the same at any time. And it is added only to the configuration that the asking member names,
// the last one that it has applied: whatever that one asked before named an earlier one, in which it was not added.

// changes are the requests that this member was asked, and what a leader remembers of them.
type changes struct {
	pending []*pendingChange
	// nextRequest names requests in frames, afresh in each life.
	nextRequest uint64
	// leaving is a voter that is to be removed: leadership is not moved to it before the tick leavingUntil.
	leaving      uint64
	leavingUntil int
}

type pendingChange struct {
	token, request uint64
	change         *logv1.MembershipChange
	askedAt        int
	deadline       int
	// known is set once the member that it is about was in the configuration.
	known bool
}

const (
	// maxPendingChanges bounds the requests under way at one member.
	maxPendingChanges = 16
	// changeRetryTicks is the time after which the leader is asked again.
	changeRetryTicks = 4
	// maxNameBytes and maxAddressBytes bound what every member keeps of every other one.
	maxNameBytes, maxAddressBytes = 128, 512
)

// changeMembership takes a request.
func (m *Member) changeMembership(token uint64, change *logv1.MembershipChange) {
	c := &m.changes
	if len(c.pending) >= maxPendingChanges {
		m.effects.Changes = append(m.effects.Changes, ChangeResult{Token: token, Refusal: notNow(
			"%d changes of the membership are waiting at this member already", len(c.pending))})
		return
	}
	c.nextRequest++
	c.pending = append(c.pending, &pendingChange{token: token, request: c.nextRequest, change: change,
		askedAt: m.ticks - changeRetryTicks, deadline: m.ticks + m.config.ChangeTicks})
	m.askChanges(false)
}

// askChanges asks the leader for what is pending, if it has not been asked lately or is a new one.
func (m *Member) askChanges(newLeader bool) {
	leader := m.raft.BasicStatus().Lead
	if leader == 0 {
		return
	}
	m.changes.pending = slices.DeleteFunc(m.changes.pending, func(p *pendingChange) bool {
		if !newLeader && m.ticks-p.askedAt < changeRetryTicks {
			return false
		}
		p.askedAt = m.ticks
		if leader != m.config.ID {
			m.send(leader, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Change{
				Change: &logv1.ForwardedChange{Request: p.request, Change: p.change, MembershipIndex: m.record.confIndex}}})
			return false
		}
		refusal := m.decideChange(p.change, m.record.confIndex)
		return refusal != nil && m.refused(p, refusal)
	})
}

// refused answers a request with the leader's refusal. A removal that the leader knows nothing of any more has been made.
func (m *Member) refused(p *pendingChange, refusal *logv1.ChangeRefusal) bool {
	if refusal.GetReason() == logv1.ChangeRefusal_REASON_NO_MEMBER && p.known {
		return false
	}
	m.effects.Changes = append(m.effects.Changes, ChangeResult{Token: p.token, Refusal: refusal})
	return true
}

func (m *Member) tickChanges() {
	c := &m.changes
	c.pending = slices.DeleteFunc(c.pending, func(p *pendingChange) bool {
		if m.ticks < p.deadline {
			return false
		}
		m.effects.Changes = append(m.effects.Changes, ChangeResult{Token: p.token, TimedOut: true})
		return true
	})
	m.askChanges(false)
}

// finishChanges answers the requests whose change this member has applied. It looks at every configuration, so that it does
// not miss a member that comes and goes.
func (m *Member) finishChanges() {
	c := &m.changes
	c.pending = slices.DeleteFunc(c.pending, func(p *pendingChange) bool {
		known := p.known
		p.known = p.known || m.record.member(p.change.GetMember().GetId()) != nil
		result := ChangeResult{Token: p.token, Membership: m.Membership()}
		switch kind := p.change.GetKind(); {
		case m.changeDone(p.change) && (p.known || kind != logv1.MembershipChange_KIND_REMOVE):
		case known && m.record.member(p.change.GetMember().GetId()) == nil:
			result = ChangeResult{Token: p.token, Refusal: notNow("somebody else has removed the member")}
		default:
			return false
		}
		m.effects.Changes = append(m.effects.Changes, result)
		return true
	})
}

// forgetAdditions gives up the additions that this member has not seen: after a snapshot, what came and went before it is
// not known, and to ask again might add a member anew that was removed.
func (m *Member) forgetAdditions() {
	c := &m.changes
	c.pending = slices.DeleteFunc(c.pending, func(p *pendingChange) bool {
		if p.change.GetKind() != logv1.MembershipChange_KIND_ADD || m.changeDone(p.change) {
			return false
		}
		m.effects.Changes = append(m.effects.Changes, ChangeResult{Token: p.token, TimedOut: true})
		return true
	})
}

// changeDone tells whether the configuration that this member has applied is as the change wants it.
func (m *Member) changeDone(change *logv1.MembershipChange) bool {
	member := m.record.member(change.GetMember().GetId())
	switch change.GetKind() {
	case logv1.MembershipChange_KIND_ADD:
		return member != nil
	case logv1.MembershipChange_KIND_PROMOTE:
		return member.GetRole() == logv1.Member_ROLE_VOTER
	case logv1.MembershipChange_KIND_REMOVE:
		return member == nil
	}
	return false
}

// receiveChange takes a request that another member forwards to the leader.
func (m *Member) receiveChange(from uint64, f *logv1.ForwardedChange) {
	if refusal := m.decideChange(f.GetChange(), f.GetMembershipIndex()); refusal != nil {
		refusal.Request = f.GetRequest()
		m.send(from, &logv1.PeerFrame{Frame: &logv1.PeerFrame_ChangeRefusal{ChangeRefusal: refusal}})
	}
}

// receiveRefusal takes the leader's answer to a request of this member.
func (m *Member) receiveRefusal(refusal *logv1.ChangeRefusal) {
	m.changes.pending = slices.DeleteFunc(m.changes.pending, func(p *pendingChange) bool {
		return p.request == refusal.GetRequest() && m.refused(p, refusal)
	})
}

// decideChange is the leader's: it proposes the change, or says why it does not. It does neither where the change has been
// made or is under way, and where this member does not lead or can't tell yet: whoever asked asks again. confIndex is of the
// configuration that whoever asked has applied.
func (m *Member) decideChange(change *logv1.MembershipChange, confIndex uint64) *logv1.ChangeRefusal {
	id := change.GetMember().GetId()
	if change.GetKind() == logv1.MembershipChange_KIND_REMOVE {
		// Also while this member can't decide yet: the policy must not move leadership back to who has just given it up.
		m.changes.leaving, m.changes.leavingUntil = id, m.ticks+m.config.ChangeTicks
	}
	if !m.mayChange() {
		return nil
	}
	if len(m.confChanges) > 0 || len(m.record.conf.VotersOutgoing) > 0 {
		// Whoever asked may have applied, and answered, a change that this leader is still writing the commit of.
		if m.isUnderWay(change) || confIndex > m.record.confIndex {
			return nil
		}
		return notNow("another change of the membership is under way")
	}
	member := m.record.member(id)
	if change.GetKind() != logv1.MembershipChange_KIND_ADD && member == nil {
		return refusal(logv1.ChangeRefusal_REASON_NO_MEMBER, "the log has no member %s", memberName(id))
	}
	if m.changeDone(change) {
		return nil
	}
	if m.noSpace {
		return notNow("the leader has no room on its disk")
	}
	switch change.GetKind() {
	case logv1.MembershipChange_KIND_ADD:
		if confIndex != m.record.confIndex {
			return nil
		}
		return m.decideAdd(change.GetMember())
	case logv1.MembershipChange_KIND_PROMOTE:
		return m.decidePromote(member)
	case logv1.MembershipChange_KIND_REMOVE:
		return m.decideRemove(member)
	}
	return refusal(logv1.ChangeRefusal_REASON_INVALID, "unknown kind of change")
}

// mayChange tells whether this leader knows enough to decide: what was committed before its term, which it does once it has
// applied an entry of the term, and who is there and holds the newest checkpoint, for which it needs to have led for the time
// in which it hears everybody. Raft takes no change before it has applied what was in the log when it was elected.
func (m *Member) mayChange() bool {
	status := m.raft.BasicStatus()
	if status.RaftState != raft.StateLeader || status.LeadTransferee != 0 || !m.leading {
		return false
	}
	wait := m.config.ElectionTicks
	if len(m.record.sealed) > 0 {
		wait += m.config.CheckpointTicks // then members tell a new leader
	}
	term, err := m.log.Term(m.applied)
	return err == nil && term == m.state.term && m.ticks-m.elections.leadingSince >= wait
}

// isUnderWay tells whether a change is the one in the log that is not applied yet.
func (m *Member) isUnderWay(change *logv1.MembershipChange) bool {
	if len(m.confChanges) == 0 {
		return false
	}
	entries, err := m.log.Entries(m.confChanges[0], m.confChanges[0]+1, 1)
	if err != nil || len(entries) == 0 {
		return false
	}
	logged, err := decodeConfChange(entries[0])
	if err != nil || len(logged.AsV2().GetChanges()) != 1 {
		return false
	}
	single := logged.AsV2().GetChanges()[0]
	return single.GetNodeId() == change.GetMember().GetId() && single.GetType() == confChangeType(change.GetKind())
}

func confChangeType(kind logv1.MembershipChange_Kind) raftpb.ConfChangeType {
	switch kind {
	case logv1.MembershipChange_KIND_ADD:
		return raftpb.ConfChangeAddLearnerNode
	case logv1.MembershipChange_KIND_PROMOTE:
		return raftpb.ConfChangeAddNode
	default:
		return raftpb.ConfChangeRemoveNode
	}
}

func (m *Member) decideAdd(member *logv1.Member) *logv1.ChangeRefusal {
	if err := checkNewMember(member); err != nil {
		return refusal(logv1.ChangeRefusal_REASON_INVALID, "%s", err.Error())
	}
	if n := len(m.record.members); n >= m.config.MaxMembers {
		return notNow("the log has %d members, and no more than %d are allowed", n, m.config.MaxMembers)
	}
	for _, other := range m.record.members {
		switch {
		case other.Name == member.GetName():
			return refusal(logv1.ChangeRefusal_REASON_TAKEN, "the log has a member %q already: %s at %s", other.Name,
				memberName(other.Id), other.Address)
		case other.Address == member.GetAddress():
			return refusal(logv1.ChangeRefusal_REASON_TAKEN, "%s is the address of member %q", other.Address, other.Name)
		}
	}
	context, err := proto.Marshal(&logv1.Member{Id: member.GetId(), Name: member.GetName(), Address: member.GetAddress(),
		Region: member.GetRegion()})
	if err != nil {
		return refusal(logv1.ChangeRefusal_REASON_INVALID, "%s", err.Error())
	}
	return m.proposeChange(raftpb.ConfChangeAddLearnerNode, member.GetId(), context)
}

func (m *Member) decidePromote(member *logv1.Member) *logv1.ChangeRefusal {
	if why := m.notPromotable(member.Id); why != "" {
		return notNow("%s can't vote yet: %s", member.Name, why)
	}
	if why := m.lostQuorum(append(slices.Clone(m.voters), member.Id)); why != "" {
		return notNow("%s must not vote now: %s", member.Name, why)
	}
	return m.proposeChange(raftpb.ConfChangeAddNode, member.Id, nil)
}

// notPromotable says why a learner may not vote yet, empty where it may: with a voter that can't follow, the others are
// one failure nearer to a standstill. All conditions are here.
func (m *Member) notPromotable(id uint64) string {
	if !m.heardLately(id) {
		return "the leader does not hear it"
	}
	if match := m.matches()[id]; match+m.config.PromoteLagEntries < m.log.last {
		return fmt.Sprintf("it holds the log up to %d and the leader up to %d, at most %d entries more are allowed", match,
			m.log.last, m.config.PromoteLagEntries)
	}
	if len(m.record.sealed) > 0 && !m.holds(id, m.record.sealed[0].name) {
		return fmt.Sprintf("it has not said that it holds the newest checkpoint, %d", m.record.sealed[0].name.Index)
	}
	return ""
}

// tooFewHolders says why, with these voters, the newest checkpoint would not be as durable as the log, empty where it would.
func (m *Member) tooFewHolders(voters []uint64) string {
	if len(m.record.sealed) == 0 {
		return ""
	}
	name := m.record.sealed[0].name
	var holders []string
	for _, id := range voters {
		if m.holds(id, name) {
			holders = append(holders, m.leaderName(id))
		}
	}
	if needed := len(voters)/2 + 1; len(holders) < needed {
		slices.Sort(holders)
		return fmt.Sprintf("%d of %d voters must hold the newest checkpoint, %d, and %d say so: %s", needed, len(voters), name.Index,
			len(holders), strings.Join(holders, ", "))
	}
	return ""
}

func (m *Member) decideRemove(member *logv1.Member) *logv1.ChangeRefusal {
	if !slices.Contains(m.voters, member.Id) {
		return m.proposeChange(raftpb.ConfChangeRemoveNode, member.Id, nil)
	}
	rest := slices.DeleteFunc(slices.Clone(m.voters), func(id uint64) bool { return id == member.Id })
	if why := m.lostQuorum(rest); why != "" {
		return notNow("%s must stay: without it, %s", member.Name, why)
	}
	if why := m.tooFewHolders(rest); why != "" {
		return notNow("%s must stay: without it, %s", member.Name, why)
	}
	if member.Id != m.config.ID {
		return m.proposeChange(raftpb.ConfChangeRemoveNode, member.Id, nil)
	}
	target := m.successor(func(uint64) bool { return true })
	if target == 0 {
		return notNow("%s leads, and no other voter is up to date enough to take over", member.Name)
	}
	m.config.Logger.Info("handing leadership over before this member is removed", "to", m.leaderName(target))
	m.raft.TransferLeader(target)
	return nil
}

// lostQuorum says why a log with these voters would stand still if the ones that are not heard stay away, empty where
// it would not.
func (m *Member) lostQuorum(voters []uint64) string {
	if len(voters) == 0 {
		return "nobody votes"
	}
	var reached []string
	for _, id := range voters {
		if m.heardLately(id) {
			reached = append(reached, m.leaderName(id))
		}
	}
	if needed := len(voters)/2 + 1; len(reached) < needed {
		slices.Sort(reached)
		return fmt.Sprintf("%d of %d voters must be in reach, and the leader hears %d: %s", needed, len(voters), len(reached),
			strings.Join(reached, ", "))
	}
	return ""
}

func (m *Member) heardLately(id uint64) bool {
	heard, ever := m.elections.heard[id]
	return id == m.config.ID || ever && m.ticks-heard < m.config.ElectionTicks
}

// proposeChange appends the change to the log. What raft drops is asked for again.
func (m *Member) proposeChange(kind raftpb.ConfChangeType, id uint64, context []byte) *logv1.ChangeRefusal {
	change := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &id}}, Context: context}
	if err := m.raft.ProposeConfChange(change); err != nil {
		m.config.Logger.Info("a change of the membership was not proposed", "error", err)
	}
	return nil
}

func notNow(format string, args ...any) *logv1.ChangeRefusal {
	return refusal(logv1.ChangeRefusal_REASON_NOT_NOW, format, args...)
}

func refusal(reason logv1.ChangeRefusal_Reason, format string, args ...any) *logv1.ChangeRefusal {
	return &logv1.ChangeRefusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// checkNewMember says what is wrong with a member that is to be added.
func checkNewMember(member *logv1.Member) error {
	if err := checkMemberName(member.GetName()); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(member.GetAddress()); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	switch {
	case member.GetId() == 0 || member.GetId() == raft.LocalAppendThread || member.GetId() == raft.LocalApplyThread:
		return fmt.Errorf("member id %s is not one", memberName(member.GetId()))
	case len(member.GetAddress()) > maxAddressBytes:
		return fmt.Errorf("address: %d bytes, at most %d", len(member.GetAddress()), maxAddressBytes)
	case len(member.GetRegion()) > maxNameBytes:
		return fmt.Errorf("region: %d bytes, at most %d", len(member.GetRegion()), maxNameBytes)
	}
	return nil
}

// checkMemberName says what is wrong with a name.
func checkMemberName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("name: a member needs one")
	case len(name) > maxNameBytes:
		return fmt.Errorf("name: %d bytes, at most %d", len(name), maxNameBytes)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '=' || r == ',' || r <= ' ' || r == 0x7f }):
		return fmt.Errorf("name %q must not hold =, comma, spaces or control characters", name)
	}
	return nil
}
