package logservice

import (
	"bytes"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// simChecks says what is looked for.
type simChecks int

const (
	// checkOutcomes is what users see: published entries agree and stay, log time, rejections, read rounds, progress.
	checkOutcomes simChecks = iota
	// checkAll looks into the members and disks as well: that the facts hold on which SAFETY.md builds.
	checkAll
)

// simChecker remembers what has been published and asked, and compares each step with it.
//
// Outcomes:
//   - no two members publish different entries at an index; a restarted one begins with what is published
//   - published never goes back, and what a member tells its tails has no gaps
//   - nothing published is ever replaced in a log that holds it, except before the member is in the term of its publication
//   - log time never goes back and advances by a bounded step
//   - a rejected proposal is not in the log
//   - a member that was removed does not come back (where ids are drawn anew for each member)
//   - a read round is answered with an index at or above all that was published anywhere before its question, when that
//     index has been published where it was asked; once all is healed it is answered
//
// Facts within:
//   - what is published early is on the disks of a majority of each half of the configuration, and is no configuration
//     change
//   - a read round that is answered heard a majority of each half of the configuration it was asked under
//   - a term has one leader, in one life, whose disk knows of the term; it holds all that was published in earlier terms
//   - the commit of a configuration change is durable where the change is applied
//   - a vote leaves when it is on the disk, and so does a request for votes: it stands for the candidate's own
//   - what a member says is durable is on its disk, as its log has it
type simChecker struct {
	s      *simulation
	checks simChecks
	// agreed[i] is the entry that was first published at index i+1.
	agreed []simEntry
	// rejected and settled are proposals by (session, seq), told to have been rejected or found in the log.
	rejected, settled map[[2]uint64]bool
	asked             map[uint64]simQuestion
	answered          int
	quietSince        time.Duration
	// leaders are the members that came to lead, by term.
	leaders    map[uint64]uint64
	rounds     []simRound
	newestConf uint64
	// present are the members of the newest configuration, gone those that were removed.
	present []uint64
	gone    map[uint64]bool
	// sealed are the checkpoints that were published as sealed; lastBefore is the end of the log before a step.
	sealed     map[CheckpointName]bool
	lastBefore uint64
}

type simEntry struct {
	term, stamp uint64
	kind        raftpb.EntryType
	data        []byte
	// publishedIn is the term of the member that published it first.
	publishedIn uint64
}

// simQuestion is a question for a read round and what was published before it was asked.
type simQuestion struct {
	at        time.Duration
	published uint64
}

// simRound is a round in flight before a step.
type simRound struct {
	*round
	tokens []uint64
}

const simRoundTimeoutTicks = 100

func newSimChecker(s *simulation, checks simChecks) simChecker {
	return simChecker{s: s, checks: checks, asked: map[uint64]simQuestion{}, rejected: map[[2]uint64]bool{},
		settled: map[[2]uint64]bool{}, leaders: map[uint64]uint64{}, gone: map[uint64]bool{},
		sealed: map[CheckpointName]bool{}}
}

func (c *simChecker) highest() uint64 { return uint64(len(c.agreed)) }

func (c *simChecker) asks(token uint64) { c.asked[token] = simQuestion{c.s.now, c.highest()} }

// started looks at a member that begins a life: what it takes for published must be so.
func (c *simChecker) started(n *simNode) {
	n.published = n.member.log.storage.FirstIndex() - 1
	n.kept, n.leaderOf, n.confIndex = 0, 0, n.member.record.confIndex
	c.covered(n, "starting")
	c.publishes(n, nil, n.member.log.published)
}

// before remembers what a step may take away.
func (c *simChecker) before(n *simNode) {
	c.lastBefore = n.member.log.last
	c.rounds = c.rounds[:0]
	for _, r := range n.member.rounds.flying {
		c.rounds = append(c.rounds, simRound{r, r.tokens})
	}
}

// after compares what a step did.
func (c *simChecker) after(n *simNode, effects *Effects) {
	s := c.s
	switch {
	case effects.Failure != nil:
		s.errorf("node %d failed: %v", n.index, effects.Failure)
		return
	case effects.Published < n.published:
		s.errorf("node %d: published went from %d to %d", n.index, n.published, effects.Published)
		return
	}
	c.publishes(n, effects.Entries, effects.Published)
	if n.published > 0 && n.published >= n.member.log.storage.FirstIndex() && !n.member.log.restoring {
		if term, err := n.member.log.Term(n.published); err != nil || term != c.agreed[n.published-1].term {
			s.errorf("node %d: published entry %d of term %d was replaced by one of term %d (%v)", n.index, n.published,
				c.agreed[n.published-1].term, term, err)
		}
	}
	c.holds(n)
	for _, r := range effects.Rounds {
		c.answers(n, r)
	}
	for _, r := range effects.Rejections {
		c.rejects(n, r.Rejection)
	}
	c.configuration(n)
	c.leadership(n)
	c.seals(n)
	c.durable(n, effects.Durable)
	for _, f := range effects.Frames {
		c.sends(n, f.Frame.GetRaftMessage())
	}
}

// sends checks that a vote that leaves, or that a request for votes stands for, is on the disk.
func (c *simChecker) sends(n *simNode, raftMessage []byte) {
	const typeOffset = 1 // after the tag of the first field
	if len(raftMessage) <= typeOffset || raftMessage[typeOffset] != byte(raftpb.MsgVoteResp) && raftMessage[typeOffset] != byte(raftpb.MsgVote) {
		return
	}
	m := &raftpb.Message{}
	if err := proto.Unmarshal(raftMessage, m); err != nil || m.GetReject() {
		return
	}
	whose := m.GetFrom()
	if m.GetType() == raftpb.MsgVoteResp {
		whose = m.GetTo()
		c.s.counts.add("vote")
	}
	if hard := n.storage.HardState(); c.checks == checkAll && (hard.Term < m.GetTerm() || hard.Term == m.GetTerm() && hard.Vote != whose) {
		c.s.errorf("node %d votes in term %d (%v), its disk has a vote for another or none, in term %d", n.index, m.GetTerm(), m.GetType(),
			hard.Term)
	}
}

// publishes checks the entries that a member has published, up to an index. entries are what it tells its tails of them;
// the first ones may be missing.
func (c *simChecker) publishes(n *simNode, entries []*raftpb.Entry, upTo uint64) {
	first := upTo + 1 - uint64(len(entries))
	if len(entries) > 0 && (first != entries[0].GetIndex() || first <= n.published) {
		c.s.errorf("node %d tells of %d entries from %d on, up to %d, after %d", n.index, len(entries), entries[0].GetIndex(),
			upTo, n.published)
		return
	}
	if begin := n.storage.FirstIndex() - 1; n.published < begin && upTo >= begin {
		// A snapshot: what is below the checkpoint is in the checkpoint.
		if begin > c.highest() {
			c.s.errorf("node %d: its log begins after %d, nobody has published that", n.index, begin)
			return
		}
		n.published = begin
	}
	for n.published < upTo && c.s.failure == "" {
		if next := n.published + 1; next >= first {
			c.entry(n, entries[next-first], next)
			continue
		}
		stored, err := n.member.log.Entries(n.published+1, min(first, upTo+1), 1<<20)
		if err != nil {
			c.s.errorf("node %d can't read published entry %d: %v", n.index, n.published+1, err)
			return
		}
		for _, e := range stored {
			c.entry(n, e, n.published+1)
		}
	}
}

func (c *simChecker) entry(n *simNode, e *raftpb.Entry, index uint64) {
	s := c.s
	n.published = index
	if e.GetIndex() != index {
		s.errorf("node %d publishes entry %d at %d", n.index, e.GetIndex(), index)
		return
	}
	if early := index > max(n.member.applied, n.member.raft.BasicStatus().GetCommit()); early {
		s.counts.add("early publication")
		if c.checks == checkAll {
			c.onDisks(n, e)
			if isConfChange(e) {
				s.errorf("node %d publishes the configuration change at %d before it knows that it is committed", n.index, index)
			}
		}
	}
	if index <= c.highest() {
		if known := &c.agreed[index-1]; known.term != e.GetTerm() || known.kind != e.GetType() || !bytes.Equal(known.data, e.GetData()) {
			s.errorf("node %d publishes at %d: term %d %v %x; was: term %d %v %x", n.index, index, e.GetTerm(), e.GetType(), e.GetData(),
				known.term, known.kind, known.data)
		}
		return
	}
	if index != c.highest()+1 {
		s.errorf("node %d publishes %d, nobody %d", n.index, index, c.highest()+1)
		return
	}
	c.first(n, e)
}

// first takes the entry that is published at the next index by the first of all members.
func (c *simChecker) first(n *simNode, e *raftpb.Entry) {
	entry := simEntry{term: e.GetTerm(), kind: e.GetType(), data: e.GetData(), publishedIn: n.member.state.term}
	before := uint64(0)
	if len(c.agreed) > 0 {
		before = c.agreed[len(c.agreed)-1].stamp
	}
	entry.stamp = before
	if h, ok := parseEnvelope(e.GetData()); ok && !isConfChange(e) {
		entry.stamp = h.stamp
		if genesis := h.kind == logv1.EntryKind_ENTRY_KIND_GENESIS; genesis != (before == 0) {
			c.s.errorf("entry %d of kind %v after stamp %d", e.GetIndex(), h.kind, before)
		}
		if before != 0 && (h.stamp < before || h.stamp-before > uint64(MaxLogTimeAdvance)) {
			c.s.errorf("log time goes from %d to %d at %d", before, h.stamp, e.GetIndex())
		}
		c.noted(e.GetIndex(), h)
		if key := [2]uint64{h.session, h.seq}; h.seq != 0 {
			if c.settled[key] = true; c.rejected[key] {
				c.s.errorf("proposal %d of session %d was rejected and is entry %d", h.seq, h.session, e.GetIndex())
			}
		}
	}
	c.agreed = append(c.agreed, entry)
}

func (c *simChecker) rejects(n *simNode, r *logv1.AppendRejection) {
	c.s.counts.add("rejection")
	key := [2]uint64{r.GetSession(), r.GetSeq()}
	if c.rejected[key] = true; c.settled[key] {
		c.s.errorf("node %d rejects proposal %d of session %d, which is in the log", n.index, r.GetSeq(), r.GetSession())
	}
}

// onDisks checks that an entry is on the disks of a majority of each half of the configuration of the member that
// publishes it by its own count.
func (c *simChecker) onDisks(n *simNode, e *raftpb.Entry) {
	holders := map[uint64]bool{}
	for _, o := range c.s.nodes {
		if o.storage.FirstIndex() > e.GetIndex() {
			holders[o.id] = true // in its checkpoint
		} else if o.storage.LastIndex() >= e.GetIndex() {
			if term, err := o.storage.Term(e.GetIndex()); err == nil {
				holders[o.id] = term == e.GetTerm()
			}
		}
	}
	if n.member.record.quorums().VoteResult(holders) != quorum.VoteWon {
		c.s.errorf("node %d publishes entry %d of term %d, which is not on the disks of a majority of %v", n.index, e.GetIndex(),
			e.GetTerm(), n.member.record.quorums())
	}
}

// answers checks the answer to a question.
func (c *simChecker) answers(n *simNode, r RoundResult) {
	s, question := c.s, c.asked[r.Token]
	delete(c.asked, r.Token)
	if r.Failure != "" {
		s.counts.add("round failed")
		const enough = (simRoundTimeoutTicks - 10) * simTick
		if s.quiet && s.now-max(question.at, c.quietSince) > enough && c.isMember(n) {
			s.errorf("node %d: round %d failed long after all was healed: %s", n.index, r.Token, r.Failure)
		}
		return
	}
	c.answered++
	switch {
	case r.Index < question.published:
		s.errorf("node %d: round %d answered with %d, %d was published before", n.index, r.Token, r.Index, question.published)
	case r.Index > n.published:
		s.errorf("node %d: round %d answered with %d before it was published here (%d)", n.index, r.Token, r.Index, n.published)
	}
	for _, before := range c.rounds {
		if slices.Contains(before.tokens, r.Token) {
			c.countRound(before)
		}
	}
}

// answeredByMajorities checks that a round of either kind heard a majority of each half of the configuration it was asked
// under.
func (c *simChecker) answeredByMajorities(r simRound) {
	for _, half := range r.quorums {
		heard := 0
		for id := range half {
			if r.answers[id] != nil {
				heard++
			}
		}
		if len(half) > 0 && heard <= len(half)/2 {
			c.s.errorf("a round was answered that heard %d of %d voters of one half", heard, len(half))
		}
	}
}

// countRound notes what kind of round came to an answer.
func (c *simChecker) countRound(r simRound) {
	counts := c.s.counts
	if r.answers == nil {
		return
	}
	if c.checks == checkAll {
		c.answeredByMajorities(r)
	}
	barrier, haveBarrier := r.barrier()
	nearest, haveNearest := r.nearestMajority()
	switch {
	case haveBarrier && (!haveNearest || barrier < nearest):
		counts.add("round by the barrier")
	case haveNearest:
		counts.add("round by the nearest majority")
	}
	if len(r.quorums[1]) > 0 {
		counts.add("round in a joint configuration")
	}
	if r.attempt > 1 {
		counts.add("round asked again")
	}
	if r.confIndex < c.newestConf {
		counts.add("round of a member behind by configurations")
	}
}

func (c *simChecker) isMember(n *simNode) bool {
	leader := c.s.leader()
	return leader != nil && slices.Contains(leader.member.record.all(), n.id)
}

// configuration looks at a change that a member has applied in a step.
func (c *simChecker) configuration(n *simNode) {
	m := n.member
	if m.record.confIndex == n.confIndex {
		return
	}
	n.confIndex = m.record.confIndex
	c.s.counts.add("configuration applied")
	if c.newestConf < n.confIndex {
		c.newestConf = n.confIndex
		c.comesAndGoes(n)
		if len(m.record.conf.VotersOutgoing) > 0 {
			c.s.counts.add("joint configuration")
		}
		if len(m.record.conf.Learners) > 0 {
			c.s.counts.add("configuration with learners")
		}
	}
	if commit := n.storage.HardState().Commit; c.checks == checkAll && commit < n.confIndex {
		c.s.errorf("node %d has applied the configuration of %d, its disk says that %d is committed", n.index, n.confIndex, commit)
	}
}

// comesAndGoes looks at who is in a configuration that no member has applied before.
func (c *simChecker) comesAndGoes(n *simNode) {
	now := n.member.record.all()
	for _, id := range c.present {
		if !slices.Contains(now, id) {
			c.gone[id] = true
		}
	}
	for _, id := range now {
		if c.s.profile.members && c.gone[id] {
			c.s.errorf("node %d: member %x, which was removed, is back at %d", n.index, id, n.confIndex)
		}
	}
	c.present = now
}

// leadership looks at a member that has come to lead.
func (c *simChecker) leadership(n *simNode) {
	m := n.member
	if m.state.term == n.leaderOf || m.state.role != raft.StateLeader {
		return
	}
	n.leaderOf = m.state.term
	c.s.counts.add("election")
	if c.checks != checkAll {
		return
	}
	if other, ok := c.leaders[n.leaderOf]; ok {
		c.s.errorf("node %d leads in term %d, which had a leader before: %x", n.index, n.leaderOf, other)
		return
	}
	if hard := n.storage.HardState(); hard.Term < n.leaderOf {
		c.s.errorf("node %d leads in term %d, its disk knows of %d", n.index, n.leaderOf, hard.Term)
		return
	}
	c.leaders[n.leaderOf] = n.id
	for i := range c.agreed {
		index := uint64(i + 1)
		if c.agreed[i].publishedIn >= n.leaderOf || index < m.log.storage.FirstIndex() {
			continue
		}
		if term, err := m.log.Term(index); err != nil || term != c.agreed[i].term {
			c.s.errorf("node %d leads in term %d without entry %d of term %d, published in %d (%v)", n.index, n.leaderOf, index,
				c.agreed[i].term, c.agreed[i].publishedIn, err)
			return
		}
	}
}

// durable checks that the log, as it is now, is on the disk as far as a member says.
func (c *simChecker) durable(n *simNode, index uint64) {
	if c.checks != checkAll || index < n.storage.FirstIndex() || n.member.log.restoring {
		return
	}
	mine, err := n.member.log.Term(index)
	if index > n.storage.LastIndex() || err != nil {
		c.s.errorf("node %d says that entry %d is durable, its disk ends at %d (%v)", n.index, index, n.storage.LastIndex(), err)
	} else if disk, err := n.storage.Term(index); err != nil || disk != mine {
		c.s.errorf("node %d says that entry %d of term %d is durable, its disk has one of term %d (%v)", n.index, index, mine, disk, err)
	}
}

// holds checks that a log that held a published entry goes on holding it.
func (c *simChecker) holds(n *simNode) {
	l := n.member.log
	if n.member.snapshots.installing != nil {
		return // the log stands for the snapshot, entry by entry again once it is installed
	}
	same := func(index uint64) bool {
		if index < l.storage.FirstIndex() {
			return true
		}
		term, err := l.Term(index)
		return err == nil && term == c.agreed[index-1].term
	}
	for n.kept > 0 && !same(n.kept) {
		// One that was published in a later term than the member's may go: a leader between the entry's term and that one may
		// lack it, and the member has not acked it in the later term.
		if e := &c.agreed[n.kept-1]; n.member.state.term >= e.publishedIn || n.published >= n.kept {
			c.s.errorf("node %d: in term %d, entry %d of term %d, published in term %d, was replaced in its log", n.index,
				n.member.state.term, n.kept, e.term, e.publishedIn)
			return
		}
		c.s.counts.add("orphan replaced before the later term was heard of")
		n.kept--
	}
	for n.kept < min(l.last, c.highest()) && same(n.kept+1) {
		n.kept++
	}
}

// overwrites counts what a group replaces on a disk. It may be something published: the group was made when a deposed leader's
// log was the member's own, and those that mend it are queued behind it; the member has not acked any of it since.
func (c *simChecker) overwrites(n *simNode, g Group) {
	for _, e := range g.Entries {
		if e.Index < n.storage.FirstIndex() || e.Index > n.storage.LastIndex() {
			continue
		}
		if old, err := n.storage.Term(e.Index); err == nil && old != e.Term {
			c.s.counts.add("replaced entry")
		}
	}
}
