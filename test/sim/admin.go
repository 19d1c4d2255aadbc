package sim

import (
	"fmt"
	"slices"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/statemachine"
)

// admin is the operator: it replaces members, one at a time, fences and opens regions, compacts, and restarts everything in
// turn. It asks again until what it wants has come about.
type admin struct {
	s *Simulation
	// doomed are members to be replaced, the first one now; fresh is the id of the new one, zero before it is asked for.
	doomed []*member
	fresh  uint64
	made   int
	tokens uint64
	fenced string
	openAt time.Duration
}

func (a *admin) replace(m *member) {
	if !slices.Contains(a.doomed, m) {
		a.doomed = append(a.doomed, m)
	}
}

func (a *admin) idle() bool {
	return len(a.doomed) == 0 && a.fenced == "" && (!a.s.quiet || a.closed() == "" && a.upgrade())
}

// closed is a region that the log has as fenced or drained, empty for none.
func (a *admin) closed() string {
	for i := range a.s.frontends {
		if region := regionName(i); a.s.truth.machine.Region(region) != statemachine.RegionOpen {
			return region
		}
	}
	return ""
}

// useUpNodes has the log grant all node numbers of raindrops but one for each frontend, for times that nobody comes to: from
// then on a number goes from one session to the next.
func (a *admin) useUpNodes() {
	const kind = statemachine.IDRaindrop
	used := max(len(a.s.truth.machine.IDNodes(kind)), len(a.s.frontends))
	until := int64(epochOfRun.Add(100*24*time.Hour).Sub(time.Unix(0, statemachine.IDEpoch)) / kind.Layout().Unit)
	for range kind.Layout().Nodes() - used {
		a.command(&commandv1.Command{Operation: &commandv1.Command_IdNodeGrant{
			IdNodeGrant: &commandv1.IdNodeGrant{Kind: commandv1.IdKind_ID_KIND_RAINDROP, Until: until}}})
	}
}

// act goes on with what is under way.
func (a *admin) act() {
	if a.fenced != "" && (a.s.now >= a.openAt || a.s.quiet) {
		a.region(a.fenced, commandv1.SetRegionState_STATE_OPEN)
		if a.s.truth.machine.Region(a.fenced) == statemachine.RegionOpen {
			a.fenced = ""
		}
	} else if region := a.closed(); a.s.quiet && region != "" {
		// The fence was still on its way when the region was opened.
		a.region(region, commandv1.SetRegionState_STATE_OPEN)
	}
	if len(a.doomed) > 0 {
		a.goOnReplacing()
	}
}

// goOnReplacing takes the next step: add, start, promote, remove.
func (a *admin) goOnReplacing() {
	s, old := a.s, a.doomed[0]
	leader := s.leader()
	if leader == nil {
		return
	}
	role := func(id uint64) (logv1.Member_Role, bool) {
		for _, m := range leader.core.Membership().GetMembers() {
			if m.GetId() == id {
				return m.GetRole(), true
			}
		}
		return 0, false
	}
	if a.fresh == 0 {
		a.fresh = s.random.Uint64()>>1 | 1
		a.made++
	}
	name := fmt.Sprintf("n%d", a.made)
	freshRole, added := role(a.fresh)
	_, oldThere := role(old.id)
	switch {
	case !added:
		a.change(logv1.MembershipChange_KIND_ADD, &logv1.Member{Id: a.fresh, Name: name, Address: name + ":1"})
	case s.memberByID(a.fresh) == nil:
		answer := leader.core.Joining()
		if answer == nil {
			return
		}
		first, err := logservice.FirstGroup(answer, a.fresh)
		if err != nil {
			s.fail("join: %v", err)
			return
		}
		s.counts.add("member joined")
		s.tell("%s joins in place of %s", name, old.name)
		s.newMember(a.fresh, name, old.region, first)
	case freshRole == logv1.Member_ROLE_LEARNER:
		a.change(logv1.MembershipChange_KIND_PROMOTE, &logv1.Member{Id: a.fresh})
	case oldThere:
		a.change(logv1.MembershipChange_KIND_REMOVE, &logv1.Member{Id: old.id})
	default:
		s.counts.add("member replaced")
		s.tell("%s has replaced %s", name, old.name)
		if old.retired = true; old.up {
			old.end(old.disk.Kill)
		}
		a.doomed, a.fresh = a.doomed[1:], 0
	}
}

// change asks any member that is up.
func (a *admin) change(kind logv1.MembershipChange_Kind, m *logv1.Member) {
	s := a.s
	asked := s.members[s.random.IntN(len(s.members))]
	if !asked.running() || asked.id == a.fresh {
		return
	}
	a.tokens++
	asked.step(logservice.ChangeMembership{Token: a.tokens, Change: &logv1.MembershipChange{Kind: kind, Member: m}})
}

// region sets a region's state through any frontend.
func (a *admin) region(region string, state commandv1.SetRegionState_State) {
	a.command(&commandv1.Command{Operation: &commandv1.Command_SetRegionState{SetRegionState: &commandv1.SetRegionState{Region: region, State: state}}})
}

func (a *admin) command(c *commandv1.Command) {
	f := a.s.frontends[a.s.random.IntN(len(a.s.frontends))]
	if f.running() && f.mirror.Ready() {
		f.propose(c, false, func(statemachine.Result, error) {})
		f.pump()
	}
}
