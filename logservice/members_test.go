package logservice

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// circle is a few members whose frames arrive at once and whose disks write at once, but for those that are down or deaf:
// what members say to each other without the time it takes.
type circle struct {
	t       *testing.T
	now     time.Time
	change  func(*MemberConfig)
	ids     []uint64
	names   map[string]uint64
	members map[uint64]*Member
	storage map[uint64]*memoryStorage
	down    map[uint64]bool
	// lose says which frames are lost; nil for none.
	lose func(from, to uint64, f *logv1.PeerFrame) bool
	// stepped looks at a member after each of its steps.
	stepped func(id uint64)
	// performs does what a member wants done about checkpoints.
	performs func(id uint64, effects *Effects)
	removed  []uint64
	results  []ChangeResult
	queue    []circleFrame
	seq      uint64
}

type circleFrame struct {
	from, to uint64
	frame    *logv1.PeerFrame
}

func newCircle(t *testing.T, change func(*MemberConfig), names ...string) *circle {
	c := &circle{t: t, now: time.Unix(1000, 0), change: change, names: map[string]uint64{}, members: map[uint64]*Member{},
		storage: map[uint64]*memoryStorage{}, down: map[uint64]bool{}}
	var initial []InitialMember
	for _, name := range names {
		initial = append(initial, InitialMember{Name: name, Address: name + ":1", Region: name})
	}
	record, id, err := FirstRecord(initial)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		c.start(name, id(name), Group{Membership: record})
	}
	return c
}

// start begins a member on an empty disk, or on what it left on its own with an empty group.
func (c *circle) start(name string, id uint64, first Group) *Member {
	c.t.Helper()
	if c.storage[id] == nil {
		c.ids = append(c.ids, id)
		c.names[name] = id
		c.storage[id] = &memoryStorage{}
		if err := c.storage[id].write(first); err != nil {
			c.t.Fatal(err)
		}
	}
	config := MemberConfig{ID: id, Region: name, Storage: c.storage[id], Nonce: id + uint64(len(c.results)), ClusterID: 99}
	if c.change != nil {
		c.change(&config)
	}
	m, err := NewMember(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.members[id], c.down[id] = m, false
	return m
}

// join begins a member with what another one tells it.
func (c *circle) join(name, from string) *Member {
	c.t.Helper()
	answer := c.member(from).joining()
	if answer == nil {
		c.t.Fatalf("%s can't tell %s what to begin with", from, name)
	}
	answer.Handshake = &logv1.Handshake{ClusterId: 99}
	for _, m := range answer.Membership.Members {
		if m.Name == name {
			b, err := newBeginning(answer, m.Id)
			if err != nil {
				c.t.Fatal(err)
			}
			return c.start(name, m.Id, Group{HardState: HardState{Term: b.term}, Membership: b.record.encode()})
		}
	}
	c.t.Fatalf("%s does not know %s", from, name)
	return nil
}

func (c *circle) member(name string) *Member { return c.members[c.names[name]] }

// step steps a member and lets all that comes of it happen.
func (c *circle) step(id uint64, events ...Event) {
	c.happen(id, events...)
	for len(c.queue) > 0 {
		f := c.queue[0]
		c.queue = c.queue[1:]
		if c.members[f.to] != nil && !c.down[f.from] && (c.lose == nil || !c.lose(f.from, f.to, f.frame)) {
			c.happen(f.to, Received{From: f.from, Frame: f.frame})
		}
	}
}

func (c *circle) happen(id uint64, events ...Event) {
	for len(events) > 0 && !c.down[id] {
		effects := c.members[id].Step(c.now, events...)
		if effects.Failure != nil {
			c.t.Fatalf("%s: %v", c.name(id), effects.Failure)
		}
		if c.stepped != nil {
			c.stepped(id)
		}
		for _, f := range effects.Frames {
			c.queue = append(c.queue, circleFrame{id, f.To, f.Frame})
		}
		if c.performs != nil {
			c.performs(id, &effects)
		}
		c.results = append(c.results, effects.Changes...)
		if effects.Removed {
			c.removed = append(c.removed, id)
		}
		events = nil
		if effects.Append != nil {
			events = []Event{StorageDone{c.storage[id].write(*effects.Append)}}
		}
	}
}

func (c *circle) name(id uint64) string {
	for name, other := range c.names {
		if id == other {
			return name
		}
	}
	return memberName(id)
}

func (c *circle) tick(ticks int) {
	for range ticks {
		c.now = c.now.Add(50 * time.Millisecond)
		for _, id := range c.ids {
			c.step(id, Tick{})
		}
	}
}

// until ticks until a condition holds.
func (c *circle) until(what string, condition func() bool) {
	c.t.Helper()
	for range 400 {
		if condition() {
			return
		}
		c.tick(1)
	}
	c.t.Fatalf("%s does not come about", what)
}

// leader is the name of the leader that a majority of those who are up follow.
func (c *circle) leader() string {
	counts := map[uint64]int{}
	up := 0
	for _, id := range c.ids {
		if !c.down[id] && !slices.Contains(c.removed, id) {
			up++
			counts[c.members[id].State().Leader]++
		}
	}
	for id, n := range counts {
		if id != 0 && 2*n > up && !c.down[id] && c.members[id].State().IsLeader {
			return c.name(id)
		}
	}
	return ""
}

// lead has a member lead that knows the others well.
func (c *circle) lead(name string) {
	c.t.Helper()
	c.until("a leader", func() bool { return c.leader() != "" })
	c.until(name+" leads", func() bool {
		c.step(c.names[name], Transfer{Token: 1, Target: c.names[name]})
		return c.leader() == name
	})
	c.tick(20)
}

func (c *circle) write(name string, entries int) {
	for range entries {
		c.seq++
		c.step(c.names[name], batch(7, c.seq, 10))
	}
}

// ask has a member ask for a change and returns the answer.
func (c *circle) ask(name string, kind logv1.MembershipChange_Kind, member *logv1.Member) ChangeResult {
	c.t.Helper()
	token := uint64(len(c.results) + 1000)
	before := len(c.results)
	c.step(c.names[name], ChangeMembership{Token: token, Change: &logv1.MembershipChange{Kind: kind, Member: member}})
	c.until("an answer to the change", func() bool { return len(c.results) > before })
	if got := c.results[before]; got.Token != token || len(c.results) != before+1 {
		c.t.Fatalf("answers %+v to token %d", c.results[before:], token)
	}
	return c.results[before]
}

func (c *circle) add(asked, name string) ChangeResult {
	c.t.Helper()
	return c.ask(asked, logv1.MembershipChange_KIND_ADD, &logv1.Member{Id: newMemberID(), Name: name, Address: name + ":1", Region: name})
}

func (c *circle) promote(asked, name string) ChangeResult {
	c.t.Helper()
	return c.ask(asked, logv1.MembershipChange_KIND_PROMOTE, &logv1.Member{Id: c.names[name]})
}

func (c *circle) remove(asked, name string) ChangeResult {
	c.t.Helper()
	return c.ask(asked, logv1.MembershipChange_KIND_REMOVE, &logv1.Member{Id: c.names[name]})
}

func (c *circle) made(what string, r ChangeResult) {
	c.t.Helper()
	if r.Membership == nil {
		c.t.Fatalf("%s: %+v", what, r)
	}
}

// refused wants a refusal for a reason, in words that hold all of these.
func (c *circle) refused(what string, r ChangeResult, reason logv1.ChangeRefusal_Reason, words ...string) {
	c.t.Helper()
	if r.Refusal.GetReason() != reason {
		c.t.Errorf("%s: %+v", what, r)
	}
	for _, word := range words {
		if !strings.Contains(r.Refusal.GetMessage(), word) {
			c.t.Errorf("%s: refused with %q, which lacks %q", what, r.Refusal.GetMessage(), word)
		}
	}
}

// roles is how a member sees the membership.
func (c *circle) roles(name string) string {
	var roles []string
	for _, m := range c.member(name).Membership().Members {
		role := "voter"
		if m.Role == logv1.Member_ROLE_LEARNER {
			role = "learner"
		}
		roles = append(roles, m.Name+" "+role)
	}
	slices.Sort(roles)
	return strings.Join(roles, ", ")
}

const (
	notNowReason  = logv1.ChangeRefusal_REASON_NOT_NOW
	takenReason   = logv1.ChangeRefusal_REASON_TAKEN
	invalidReason = logv1.ChangeRefusal_REASON_INVALID
	unknownReason = logv1.ChangeRefusal_REASON_NO_MEMBER
)

// A member is replaced: added, fed, promoted, and the old one removed, whoever is asked.
func TestReplaceMember(t *testing.T) {
	for _, asked := range []string{"a", "b"} {
		t.Run("asked "+asked, func(t *testing.T) {
			c := newCircle(t, nil, "a", "b", "c")
			c.lead("a")
			c.write("a", 300)
			c.made("add", c.add(asked, "d"))
			c.refused("name", c.add(asked, "d"), takenReason, `"d"`)
			if got := c.roles("b"); got != "a voter, b voter, c voter, d learner" {
				t.Fatal(got)
			}
			c.names["d"] = memberOf(c.member("a"), "d").Id
			c.refused("promoted before it started", c.promote(asked, "d"), notNowReason, "d can't vote")
			d := c.join("d", asked)
			c.until("d has caught up", func() bool { return d.State().Published == c.member("a").State().Published })
			c.made("promote", c.promote(asked, "d"))
			c.made("promote again", c.promote(asked, "d"))
			c.made("remove", c.remove(asked, "c"))
			if got := c.roles("d"); got != "a voter, b voter, d voter" {
				t.Fatal(got)
			}
			c.write("d", 10)
			c.down[c.names["b"]] = true
			before := c.member("a").State().Published
			c.write("a", 10)
			if got := c.member("d").State().Published; got < before+10 {
				t.Errorf("d has published %d; a and d are a majority and %d was published before 10 more", got, before)
			}
			c.refused("unknown", c.remove("a", "c"), unknownReason)
		})
	}
}

func memberOf(m *Member, name string) *logv1.Member {
	for _, member := range m.Membership().Members {
		if member.Name == name {
			return member
		}
	}
	return nil
}

// A change that would leave too few voters in reach is refused with the numbers, and so is a second one at a time.
func TestChangesThatAreRefused(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	for _, bad := range []*logv1.Member{
		{Id: newMemberID(), Address: "d:1"},
		{Id: newMemberID(), Name: "d", Address: "d"},
		{Id: newMemberID(), Name: "a=b", Address: "d:1"},
		{Id: newMemberID(), Name: strings.Repeat("x", 200), Address: "d:1"},
		{Name: "d", Address: "d:1"},
	} {
		c.refused(bad.String(), c.ask("b", logv1.MembershipChange_KIND_ADD, bad), invalidReason)
	}
	c.refused("no such kind", c.ask("b", 9, &logv1.Member{Id: c.names["b"]}), invalidReason)
	c.refused("address", c.ask("b", logv1.MembershipChange_KIND_ADD, &logv1.Member{Id: newMemberID(), Name: "d", Address: "a:1"}),
		takenReason, `"a"`)

	c.made("add", c.add("b", "d"))
	d := c.join("d", "b")
	c.until("d has caught up", func() bool { return d.State().Published == c.member("a").State().Published })
	c.down[c.names["c"]] = true
	c.tick(20)
	c.refused("remove one of two that are up", c.remove("a", "b"), notNowReason, "b must stay", "2 of 2 voters", "hears 1: a")
	c.made("remove the one that is down", c.remove("a", "c"))
	c.made("promote", c.promote("a", "d"))
	c.down[c.names["b"]] = true
	c.tick(20)
	c.refused("a second one of three down", c.remove("a", "d"), notNowReason, "hears 1: a")
	c.made("remove b", c.remove("d", "b"))
	c.refused("remove d, which a needs not", c.remove("d", "x"), unknownReason)
	c.made("remove the other one", c.remove("a", "d"))
	c.refused("the last one", c.remove("a", "a"), notNowReason, "nobody votes")
}

// While a change is in the log and not committed, another one is refused, and the same one waits for it.
func TestOneChangeAtATime(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	c.lose = func(from, to uint64, f *logv1.PeerFrame) bool { return f.GetRaftMessage() != nil && to != c.names["a"] }
	member := &logv1.Member{Id: newMemberID(), Name: "d", Address: "d:1"}
	change := ChangeMembership{Token: 1, Change: &logv1.MembershipChange{Kind: logv1.MembershipChange_KIND_ADD, Member: member}}
	c.step(c.names["a"], change)
	c.step(c.names["b"], change)
	if len(c.results) != 0 {
		t.Fatalf("%+v", c.results)
	}
	c.refused("another one", c.add("b", "e"), notNowReason, "under way")
	// Who has applied, and answered, a change that the leader has yet to apply asks again: the next change is no second one.
	remove := &logv1.MembershipChange{Kind: logv1.MembershipChange_KIND_REMOVE, Member: &logv1.Member{Id: c.names["c"]}}
	leader := c.member("a")
	if refusal := leader.decideChange(remove, leader.record.confIndex+1); refusal != nil {
		t.Errorf("a change after a later one than the leader has applied: %v", refusal)
	}
	c.lose = nil
	c.until("both are answered", func() bool { return len(c.results) == 3 })
	for _, r := range c.results[1:] {
		c.made("add", r)
	}
	c.down[c.names["a"]], c.down[c.names["b"]] = true, true
	for range maxPendingChanges {
		c.step(c.names["c"], ChangeMembership{Token: 2, Change: &logv1.MembershipChange{Kind: logv1.MembershipChange_KIND_ADD,
			Member: &logv1.Member{Id: newMemberID(), Name: "f", Address: "f:1"}}})
	}
	if len(c.results) != 3 {
		t.Fatalf("%+v", c.results[3:])
	}
	c.refused("one too many", c.add("c", "g"), notNowReason, "16 changes")
}

// The leader is asked to remove itself: it hands leadership over, the next leader removes it, and a policy that wants the
// leader where it was does not move it back.
func TestRemoveLeader(t *testing.T) {
	for _, asked := range []string{"a", "b", "c"} {
		c := newCircle(t, func(m *MemberConfig) { m.LeaderPolicy = LeaderPolicy{Region: "a"} }, "a", "b", "c")
		c.lead("a")
		r := c.remove(asked, "a")
		if asked != "a" {
			c.made("remove, asked "+asked, r)
		}
		c.until("another leader", func() bool { return c.leader() == "b" || c.leader() == "c" })
		if got := c.roles(c.leader()); got != "b voter, c voter" {
			t.Errorf("asked %s: %s", asked, got)
		}
		if asked == "a" && r.Membership == nil && !r.TimedOut {
			t.Errorf("the removed one was told %+v", r)
		}
		c.write("b", 10)
		c.tick(100)
		if c.leader() == "" || c.leader() == "a" {
			t.Errorf("asked %s: leader %q", asked, c.leader())
		}
	}
}

// Without a leader that answers, the answer is that the outcome is not known.
func TestChangeTimesOut(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	c.down[c.names["a"]], c.down[c.names["b"]] = true, true
	if r := c.add("c", "d"); !r.TimedOut || r.Refusal != nil || r.Membership != nil {
		t.Errorf("%+v", r)
	}
}

// A request that was forwarded to a leader that dies is made by the next one, once.
func TestChangeSurvivesLeader(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	died := false
	c.lose = func(from, to uint64, f *logv1.PeerFrame) bool {
		if f.GetChange() != nil && !died {
			died = true
			c.down[c.names["a"]] = true
		}
		return false
	}
	c.made("add", c.add("b", "d"))
	if !died {
		t.Error("the leader was not asked")
	}
	c.down[c.names["a"]] = false
	c.until("a knows", func() bool { return c.roles("a") == "a voter, b voter, c voter, d learner" })
}

// A member that joins begins with the configuration of the one it asks, and does not apply again the changes that it finds
// in the log: among them are promotions and removals that would undo later ones.
func TestJoinedMemberSkipsOlderChanges(t *testing.T) {
	c := newCircle(t, func(m *MemberConfig) { m.RecordInterval, m.MaxMessageBytes = 5, 100 }, "a", "b", "c")
	c.lead("a")
	for _, name := range []string{"d", "e"} {
		c.made("add", c.add("a", name))
		m := c.join(name, "a")
		c.until("it has caught up", func() bool { return m.State().Published == c.member("a").State().Published })
		c.made("promote", c.promote("a", name))
	}
	c.made("remove", c.remove("a", "d"))
	c.made("add", c.add("a", "f"))
	f := c.join("f", "b")
	before := c.roles("f")
	if before != "a voter, b voter, c voter, e voter, f learner" {
		t.Fatal(before)
	}
	if f.publishable() != 0 || f.State().Published != 0 {
		t.Errorf("it publishes %d of an empty log", f.State().Published)
	}
	c.stepped = func(id uint64) {
		if got := c.roles("f"); id == c.names["f"] && got != before {
			t.Fatalf("%s, then, having applied up to %d, %s", before, f.applied, got)
		}
	}
	c.write("a", 3)
	c.until("it has caught up", func() bool { return f.State().Published == c.member("a").State().Published })
	// The same after restarts, early and late.
	for range 3 {
		c.write("a", 7)
		f = c.start("f", c.names["f"], Group{})
		c.tick(5)
		if got := c.roles("f"); got != before || !proto.Equal(f.Membership(), c.member("a").Membership()) {
			t.Errorf("after a restart: %s", got)
		}
	}
	c.stepped = nil
	// A restart before anything has come.
	c.made("remove", c.remove("a", "f"))
	c.made("add", c.add("a", "g"))
	c.join("g", "a")
	c.down[c.names["g"]] = true
	g := c.start("g", c.names["g"], Group{})
	c.until("it has caught up", func() bool { return g.State().Published == c.member("a").State().Published })
	if got := c.roles("g"); got != "a voter, b voter, c voter, e voter, g learner" {
		t.Error(got)
	}
}

// A member that joins takes nothing from a leader that was deposed before the configuration it begins with was made.
func TestJoinedMemberBeginsInTheTerm(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	old := c.member("a").State().Term
	c.lead("b")
	c.made("add", c.add("b", "d"))
	d := c.join("d", "b")
	if got := d.State().Term; got <= old || got != c.member("b").State().Term {
		t.Errorf("term %d; b is in %d and a led in %d", got, c.member("b").State().Term, old)
	}
}

// Learners take proposals and answer read rounds.
func TestLearnerServes(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	c.made("add", c.add("a", "d"))
	d := c.join("d", "a")
	c.until("d knows the leader", func() bool { return d.State().Leader != 0 })
	before := c.member("a").State().Published
	c.write("d", 5)
	if got := c.member("a").State().Published; got != before+5 {
		t.Errorf("published %d, then %d", before, got)
	}
	effects := d.Step(c.now, AskRound{Token: 5})
	answers := effects.Rounds
	for _, f := range effects.Frames {
		if q := f.Frame.GetQuestion(); q != nil {
			frame := &logv1.PeerFrame{Frame: &logv1.PeerFrame_Answer{Answer: c.members[f.To].answerTo(q.Id)}}
			answered := d.Step(c.now, Received{From: f.To, Frame: frame})
			answers = append(answers, answered.Rounds...)
		}
	}
	if fmt.Sprint(answers) != fmt.Sprint([]RoundResult{{Token: 5, Index: before + 5}}) {
		t.Errorf("round %+v, published %d", answers, before+5)
	}
	// And it never campaigns.
	for _, name := range []string{"a", "b", "c"} {
		c.down[c.names[name]] = true
	}
	term := d.State().Term
	c.tick(100)
	if d.State().Term != term || d.raft.BasicStatus().RaftState.String() != "StateFollower" {
		t.Errorf("the learner became %v in term %d", d.raft.BasicStatus().RaftState, d.State().Term)
	}
}

// A learner that does not hold the newest checkpoint may not vote, and a voter whose removal would leave too few holders
// stays.
func TestChangesMindTheNewestCheckpoint(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	name := CheckpointName{Index: 5}
	sealed := func(who string, held bool) {
		m := c.member(who)
		m.record.sealed = []sealedCheckpoint{{name: name}}
		if held {
			c.step(c.names[who], HeldCheckpoints{[]CheckpointName{name}})
		}
	}
	c.lead("a")
	c.write("a", 10)
	sealed("a", true)
	sealed("b", true)
	sealed("c", false)
	c.made("add", c.add("a", "d"))
	d := c.join("d", "a")
	sealed("d", false)
	c.until("d has caught up", func() bool { return d.State().Published == c.member("a").State().Published })
	c.tick(60)
	c.refused("promote", c.promote("b", "d"), notNowReason, "d can't vote yet", "newest checkpoint, 5")
	c.refused("remove", c.remove("c", "b"), notNowReason, "b must stay", "2 of 2 voters must hold the newest checkpoint, 5, and 1 say so: a")
	c.made("remove the one without it", c.remove("b", "c"))
	sealed("d", true)
	c.tick(60)
	c.made("promote", c.promote("b", "d"))
	// The next leader is told before it decides.
	c.made("remove the leader", c.remove("b", "a"))
	if got := c.roles("d"); got != "b voter, d voter" {
		t.Error(got)
	}
}

// A copy of the question that arrives late does not add a member again that was removed.
func TestLateCopyAddsNobody(t *testing.T) {
	c := newCircle(t, nil, "a", "b", "c")
	c.lead("a")
	var asked *logv1.PeerFrame
	c.lose = func(_, _ uint64, f *logv1.PeerFrame) bool {
		if f.GetChange() != nil {
			asked = f
		}
		return false
	}
	c.made("add", c.add("b", "d"))
	c.join("d", "a")
	first := asked
	c.made("remove", c.remove("b", "d"))
	c.step(c.names["a"], Received{From: c.names["b"], Frame: first})
	c.tick(20)
	if got := c.roles("a"); first.GetChange().GetChange().GetKind() != logv1.MembershipChange_KIND_ADD || got != "a voter, b voter, c voter" {
		t.Errorf("after the late copy of %v: %s", first, got)
	}
}
