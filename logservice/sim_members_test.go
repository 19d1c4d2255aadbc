package logservice

import (
	"fmt"
	"slices"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// This file is how a schedule changes the members as operators do (profile "membership"), one at a time: learners are added,
// and begin with what another member tells them, are promoted, and any member is removed, the leader too.

// simMembers is what operators have asked for.
type simMembers struct {
	asked map[uint64]simChange
	added int
	// outcomes of what was asked lately, by token; what is read is removed.
	outcomes map[uint64]ChangeResult
}

type simChange struct {
	kind logv1.MembershipChange_Kind
	id   uint64
}

// changeMember asks a node for a change.
func (s *simulation) changeMember(n *simNode, kind logv1.MembershipChange_Kind, member *logv1.Member) (token uint64) {
	m := &s.members
	if m.asked == nil {
		m.asked, m.outcomes = map[uint64]simChange{}, map[uint64]ChangeResult{}
	}
	s.nextWork++
	token = s.nextWork
	m.asked[token] = simChange{kind, member.GetId()}
	n.step(ChangeMembership{Token: token, Change: &logv1.MembershipChange{Kind: kind, Member: member}})
	return token
}

// membersAnswered takes what a step says of changes.
func (s *simulation) membersAnswered(n *simNode, effects *Effects) {
	for _, r := range effects.Changes {
		change := s.members.asked[r.Token]
		delete(s.members.asked, r.Token)
		s.members.outcomes[r.Token] = r
		switch {
		case r.TimedOut:
			s.counts.add("change of unknown outcome")
		case r.Refusal != nil:
			s.counts.add("change refused")
		default:
			s.counts.add("change made")
			var found *logv1.Member
			for _, m := range r.Membership.Members {
				if m.Id == change.id {
					found = m
				}
			}
			removed := change.kind == logv1.MembershipChange_KIND_REMOVE
			if promoted := change.kind == logv1.MembershipChange_KIND_PROMOTE; removed != (found == nil) ||
				promoted && found.Role != logv1.Member_ROLE_VOTER {
				s.errorf("node %d says that %v of %d was made: %v", n.index, change.kind, change.id, r.Membership)
			}
		}
	}
	if effects.Removed {
		s.counts.add("removed member that noticed")
		if s.profile.members {
			s.leave(n)
		} // In other profiles ids come back, with the disk they went with: the process goes on.
	}
	if len(n.membersJoint()) > 0 && s.profile.members {
		s.errorf("node %d has a joint configuration", n.index)
	}
}

// leave ends a removed member's process for good. Of two voters, the removed one may be the only one who knows, and the other
// one needs it to be elected: a log that it leaves at once may be lost (docs/operations.md). That is not looked for here: it
// stays until the other one knows.
func (s *simulation) leave(n *simNode) {
	conf := n.member.record.conf
	if len(conf.Voters) == 1 {
		if rest := s.node(conf.Voters[0]); rest.member == nil || rest.member.record.confIndex < n.member.record.confIndex {
			n.later(simTick, func() { s.leave(n) })
			return
		}
	}
	n.crash()
}

// stranded tells whether the only voter that is left does not know that it is the only one, and the other one, which knows,
// can't help: it holds entries that the other has lost in a crash, before its own sync, and so gives it no vote
// (docs/operations.md).
func (s *simulation) stranded() bool {
	if s.leader() != nil {
		return false
	}
	for _, gone := range s.nodes {
		if gone.member == nil || len(gone.member.record.conf.Voters) != 1 {
			continue
		}
		rest := s.node(gone.member.record.conf.Voters[0])
		if rest.member == nil || rest == gone {
			continue
		}
		voters := rest.member.record.conf.Voters
		if len(voters) == 2 && slices.Contains(voters, gone.id) && gone.member.log.last > rest.member.log.last {
			return true
		}
	}
	return false
}

func (n *simNode) membersJoint() []uint64 {
	if n.member == nil {
		return nil
	}
	return n.member.record.conf.VotersOutgoing
}

// addMember asks for a new learner and starts it once somebody knows it.
func addMember(s *simulation) {
	if leader := s.leader(); leader == nil || len(leader.member.record.members) >= 7 {
		return
	}
	s.add(s.any())
}

// comeAndGo asks somebody who does not hear the leader for a new member, and has it removed before that one knows of it and
// stops asking.
func comeAndGo(s *simulation) {
	asked, leader := s.any(), s.leader()
	if leader == nil || asked == leader || len(leader.member.record.members) >= 7 {
		return
	}
	s.counts.add("member that comes and goes")
	s.cut[leader.index][asked.index] = true
	id, _ := s.add(asked)
	s.later(s.between(40*time.Millisecond, 120*time.Millisecond), func() {
		s.changeMember(leader, logv1.MembershipChange_KIND_REMOVE, &logv1.Member{Id: id})
	})
}

func (s *simulation) add(asked *simNode) (id, token uint64) {
	s.members.added++
	id = s.random.Uint64()>>1 | 1
	name := fmt.Sprintf("n%d", s.members.added)
	token = s.changeMember(asked, logv1.MembershipChange_KIND_ADD, &logv1.Member{Id: id, Name: name, Address: name + ":1"})
	s.join(id, simSettle)
	return id, token
}

// join starts a member with what another one tells it, as soon as one does, if it does so for a while.
func (s *simulation) join(id uint64, within time.Duration) {
	n := s.any()
	if n.member != nil && n.paused <= s.now && s.failure == "" {
		if answer := n.member.joining(); answer != nil && addressIn(answer.Membership, id) != "" {
			answer.Handshake = &logv1.Handshake{ClusterId: n.member.ClusterID()}
			s.begin(id, answer)
			return
		}
	}
	if within > 0 {
		const again = 20 * time.Millisecond
		s.after(again, func() { s.join(id, within-again) })
	}
}

// begin adds a machine to the world.
func (s *simulation) begin(id uint64, answer *logv1.GetMembershipResponse) {
	b, err := newBeginning(answer, id)
	if err != nil {
		s.errorf("join: %v", err)
		return
	}
	n := &simNode{s: s, index: len(s.nodes), id: id, storage: &memoryStorage{}, held: map[CheckpointName]bool{}, rate: 1, clockAt: s.now,
		clockNow: simStart.Add(time.Duration(s.random.Int64N(int64(time.Hour))))}
	if err := n.storage.write(Group{HardState: HardState{Term: b.term}, Membership: b.record.encode()}); err != nil {
		s.errorf("join: %v", err)
		return
	}
	for i := range s.nodes {
		s.cut[i] = append(s.cut[i], false)
		s.arrival[i] = append(s.arrival[i], 0)
		s.delay[i] = append(s.delay[i], s.between(time.Millisecond, 20*time.Millisecond))
	}
	s.nodes = append(s.nodes, n)
	delays := make([]time.Duration, len(s.nodes))
	for i := range delays {
		delays[i] = s.between(time.Millisecond, 20*time.Millisecond)
	}
	s.cut = append(s.cut, make([]bool, len(s.nodes)))
	s.arrival = append(s.arrival, make([]time.Duration, len(s.nodes)))
	s.delay = append(s.delay, delays)
	s.counts.add("member joined")
	n.start()
	n.tickLater()
}

// present draws a member as some leader sees it; nil where nobody leads.
func (s *simulation) present(role logv1.Member_Role) *logv1.Member {
	leader := s.leader()
	if leader == nil {
		return nil
	}
	var found []*logv1.Member
	for _, m := range leader.member.record.members {
		if m.Role == role {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[s.random.IntN(len(found))]
}

func promoteMember(s *simulation) {
	if m := s.present(logv1.Member_ROLE_LEARNER); m != nil {
		s.changeMember(s.any(), logv1.MembershipChange_KIND_PROMOTE, &logv1.Member{Id: m.Id})
	}
}

func removeMember(s *simulation) {
	role := logv1.Member_ROLE_VOTER
	if s.one(4) {
		role = logv1.Member_ROLE_LEARNER
	}
	m := s.present(role)
	switch {
	case m == nil:
		return
	case s.one(3) && role == logv1.Member_ROLE_VOTER:
		s.counts.add("removal of the leader asked")
		m = &logv1.Member{Id: s.leader().id}
	}
	s.changeMember(s.any(), logv1.MembershipChange_KIND_REMOVE, m)
}

// replaceLeader replaces the leader at the end of a schedule, when all is healed: that must work.
func (s *simulation) replaceLeader() {
	until := func(what string, condition func() bool) {
		for end := s.now + simSettle; s.failure == "" && !condition(); {
			if s.run(20 * time.Millisecond); s.now >= end {
				s.errorf("with all healed: %s does not come about", what)
			}
		}
	}
	// made asks a node that is up until the answer is that the change was made.
	made := func(what string, ask func(asked *simNode) (token uint64)) {
		var token uint64
		var asked *simNode
		until(what, func() bool {
			r, answered := s.members.outcomes[token]
			waiting := asked != nil && !answered && asked.member != nil // an earlier request may have removed it
			switch next, leader := s.any(), s.leader(); {
			case answered && (r.Membership != nil || r.Refusal.GetReason() == logv1.ChangeRefusal_REASON_NO_MEMBER):
				return true // the one that was asked first may have been the one that was removed
			case !waiting && leader != nil && next.member != nil && slices.Contains(leader.member.voters, next.id):
				asked = next
				token = ask(asked)
			}
			return false
		})
	}
	if s.failure != "" {
		return
	}
	var id uint64
	made("the addition", func(asked *simNode) (token uint64) {
		id, token = s.add(asked)
		return token
	})
	made("the promotion", func(asked *simNode) uint64 {
		return s.changeMember(asked, logv1.MembershipChange_KIND_PROMOTE, &logv1.Member{Id: id})
	})
	if s.failure != "" || s.leader() == nil {
		return
	}
	old := s.leader()
	made("the removal of the leader", func(asked *simNode) uint64 {
		if asked == old {
			asked = s.node(id)
		}
		return s.changeMember(asked, logv1.MembershipChange_KIND_REMOVE, &logv1.Member{Id: old.id})
	})
	goal := s.checker.highest() + 10
	until("that the log goes on", func() bool { return s.leader() != nil && s.leader() != old && s.settled(goal) })
}
