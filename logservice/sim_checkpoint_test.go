package logservice

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/quorum"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice/segment"
)

// This file is the simulation's stores of checkpoints, builders, and copying between members, and the checks of them:
//   - a checkpoint is sealed with the truth, and when majorities have it on their disks
//   - a log begins at the start, or at or below a sealed checkpoint that its member holds
//   - a log that was begun anew after a snapshot holds the published entries above its checkpoint, and lost none
//
// A builder's session is that of its node: session n+1 is node n's.

// simStaged is what a node has staged; a crash takes it away.
type simStaged struct {
	index   uint64
	entries []Entry
}

// simCheckpoint is the truth about a checkpoint, or one of many lies.
func simCheckpoint(index uint64, lie int) CheckpointName {
	return CheckpointName{Index: index, SHA256: sha256.Sum256(fmt.Appendf(nil, "%d %d", index, lie)), SizeBytes: 100,
		FormatVersion: checkpointFormat}
}

// checkpointConfig makes checkpoints and trimming happen many times in a schedule.
func (n *simNode) checkpointConfig(c *MemberConfig) {
	if n.s.profile.checkpoints {
		c.CheckpointLogBytes, c.TailBytes, c.MaxPinBytes = 700, 500, 500
		c.CheckpointTicks, c.CheckpointTimeoutTicks, c.CheckpointRestTicks = 2, 25, 5
		c.SessionSilence = time.Second
	}
}

func (n *simNode) heldList() (names []CheckpointName) {
	for name := range n.held {
		names = append(names, name)
	}
	return sortedNames(names)
}

// hold makes a checkpoint durable and says so.
func (n *simNode) hold(name CheckpointName) {
	n.held[name] = true
	n.step(HeldCheckpoints{n.heldList()})
}

// performCheckpoints does what a member wants done about checkpoints and snapshots.
func (n *simNode) performCheckpoints(effects *Effects) {
	s := n.s
	for _, r := range effects.Offers {
		s.offered(n, r)
	}
	for _, name := range effects.Remove {
		delete(n.held, name)
		s.checker.covered(n, "removing a checkpoint")
	}
	if fetch := effects.Fetch; fetch != nil {
		n.later(s.between(0, 60*time.Millisecond), func() {
			err := errors.New("simulated: nobody in reach holds it")
			if s.source(n, fetch.Holders, func(o *simNode) bool { return o.held[fetch.Name] }) != nil {
				s.counts.add("checkpoint fetched")
				n.hold(fetch.Name)
				err = nil
			}
			n.step(FetchedCheckpoint{Name: fetch.Name, Err: err})
		})
	}
	if effects.Trim != 0 {
		n.later(s.between(0, 5*time.Millisecond), func() {
			before := n.storage.FirstIndex()
			if err := n.storage.trim(effects.Trim); err != nil {
				s.errorf("node %d: %v", n.index, err)
			}
			if n.storage.FirstIndex() > before {
				s.counts.add("trim")
			}
			s.checker.covered(n, "trimming")
		})
	}
	if effects.Stage != nil {
		n.stage(effects.Stage)
		if !s.quiet && s.one(2) {
			// A crash in some step of a snapshot.
			n.later(s.between(0, 150*time.Millisecond), func() {
				if s.quiet {
					return
				}
				if n.member.snapshots.underWay() != nil {
					s.counts.add("crash in a snapshot")
				}
				n.crashFor(s.between(0, 200*time.Millisecond))
			})
		}
	}
	if effects.Unstage != 0 && n.staged != nil && n.staged.index == effects.Unstage {
		n.staged = nil
	}
	s.counts["snapshot sent"] += effects.SnapshotsSent
	s.counts["snapshot installed"] += effects.SnapshotsInstalled
}

// later does something for this life of the process.
func (n *simNode) later(d time.Duration, do func()) {
	life := n.life
	n.s.after(d, func() {
		if n.life == life && n.member != nil && n.s.failure == "" {
			do()
		}
	})
}

// source is the first of some members that is in reach and has what is wanted; nil for none, and sometimes.
func (s *simulation) source(n *simNode, ids []uint64, has func(*simNode) bool) *simNode {
	if !s.quiet && s.one(10) {
		s.counts.add("fetch that failed")
		return nil
	}
	for _, id := range ids {
		if o := s.node(id); o != nil && o != n && o.member != nil && o.paused <= s.now && has(o) &&
			!s.cut[o.index][n.index] && !s.cut[n.index][o.index] {
			return o
		}
	}
	return nil
}

// stage copies what a snapshot needs from members that have it. The checkpoint comes first.
func (n *simNode) stage(stage *StageSnapshot) {
	s := n.s
	fail := func(what string) {
		s.counts.add("staging that failed")
		n.step(SnapshotStaged{Index: stage.Index, Err: errors.New("simulated: " + what)})
	}
	n.later(s.between(0, 60*time.Millisecond), func() {
		if !n.held[stage.Checkpoint] && s.source(n, stage.Sources, func(o *simNode) bool { return o.held[stage.Checkpoint] }) == nil {
			fail("nobody in reach holds the checkpoint")
			return
		}
		n.hold(stage.Checkpoint)
		n.later(s.between(0, 60*time.Millisecond), func() {
			source := s.source(n, stage.Sources, func(o *simNode) bool {
				return o.storage.FirstIndex() <= stage.Checkpoint.Index+1 && o.published >= stage.Index && o.storage.LastIndex() >= stage.Index
			})
			if source == nil {
				fail("nobody in reach has the entries")
				return
			}
			staged := &simStaged{index: stage.Index}
			for next := stage.Checkpoint.Index + 1; next <= stage.Index; next++ {
				entry, err := source.storage.Entries(next, next+1, 1)
				if err != nil {
					s.errorf("node %d: %v", source.index, err)
					return
				}
				staged.entries = append(staged.entries, entry...)
			}
			result := SnapshotStaged{Index: stage.Index, Stamp: stage.CheckpointStamp}
			fold := stagingFold{result: &result, digest: stage.CheckpointDigest, term: stage.CheckpointTerm}
			for _, e := range staged.entries {
				fold.note(e)
			}
			if fold.digest != stage.Digest || fold.term != stage.Term {
				s.errorf("node %d: entries up to %d of node %d have another digest than the snapshot says", n.index, stage.Index, source.index)
				return
			}
			n.staged = staged
			n.step(result)
		})
	})
}

// install does an Install as write does an Append: after a while, or at a crash, all of it or nothing.
func (n *simNode) install(install *InstallSnapshot) {
	s := n.s
	staged := n.staged
	if staged == nil || staged.index != install.Index {
		s.errorf("node %d installs a snapshot at %d that is not staged", n.index, install.Index)
		return
	}
	if !s.quiet && n.noSpace && s.one(3) {
		n.noSpace = false
		n.later(s.between(0, 3*time.Millisecond), func() {
			s.counts.add("no space for a snapshot")
			n.step(StorageDone{fmt.Errorf("simulated: %w", ErrNoSpace)})
		})
		return
	}
	n.installing = func() {
		n.installing, n.staged = nil, nil
		s.checker.replaces(n, install)
		entries := slices.DeleteFunc(slices.Clone(staged.entries), func(e Entry) bool { return e.Index <= install.Base })
		entries = append(entries, install.Group.Entries...)
		base := segment.Base{Index: install.Base, Term: install.BaseTerm, Digest: install.BaseDigest}
		if err := n.storage.install(base, entries, install.Group.HardState, install.Group.Membership); err != nil {
			s.errorf("node %d: %v", n.index, err)
		}
		s.checker.holdsPublished(n)
		s.checker.covered(n, "installing a snapshot")
	}
	n.later(s.between(0, 40*time.Millisecond), func() {
		if n.installing != nil {
			n.installing()
			n.step(StorageDone{})
		}
	})
}

// build lets the builders of a request do their part: in time, late, never, or wrongly.
func (s *simulation) build(index uint64, request *logv1.CheckpointRequest) {
	liar := -1
	if len(request.BuilderSessions) > 1 && !s.quiet && s.one(4) {
		liar = s.random.IntN(len(request.BuilderSessions))
	}
	for i, session := range request.BuilderSessions {
		if session == 0 || session > uint64(len(s.nodes)) {
			s.errorf("session %d, which is none, is asked for a checkpoint", session)
			return
		}
		name := simCheckpoint(index, 0)
		if i == liar {
			s.counts.add("wrong checkpoint")
			name = simCheckpoint(index, int(session))
		}
		if !s.quiet && s.one(10) {
			s.counts.add("builder that is gone")
			continue
		}
		at := s.nodes[session-1]
		if s.one(4) {
			at = s.any() // two builders at one member, or one far away
		}
		s.after(s.between(0, 80*time.Millisecond), func() { s.offer(at, session, name, 5) })
	}
}

// offer brings a checkpoint to a member, or tries again.
func (s *simulation) offer(n *simNode, session uint64, name CheckpointName, attempts int) {
	if attempts == 0 || s.failure != "" {
		return
	}
	again := func() { s.offer(n, session, name, attempts-1) }
	if n.member == nil || n.paused > s.now {
		s.after(100*time.Millisecond, again)
		return
	}
	s.nextOffer++
	life := n.life
	s.offers[s.nextOffer] = func(r OfferResult) {
		switch {
		case r.Err != nil || n.life != life:
			s.after(100*time.Millisecond, again)
		case !r.Held:
			s.counts.add("upload")
			n.later(s.between(0, 60*time.Millisecond), func() { n.hold(name) })
		}
	}
	n.step(OfferCheckpoint{Token: s.nextOffer, Session: session, Name: name})
}

func (s *simulation) offered(n *simNode, r OfferResult) {
	answered := s.offers[r.Token]
	delete(s.offers, r.Token)
	if answered == nil {
		s.errorf("node %d answers offer %d, which is none or was answered", n.index, r.Token)
		return
	}
	answered(r)
}

// keepAway cuts a member off for longer than the others keep their log for it.
func keepAway(s *simulation) {
	n := s.leaderOrAny()
	s.counts.add("kept away")
	s.isolate([]*simNode{n})
	s.later(s.between(300*time.Millisecond, 900*time.Millisecond), func() { healLinks(s) })
}

// askForCheckpoint is an operator's request.
func askForCheckpoint(s *simulation) {
	s.nextOffer++
	s.any().step(AskCheckpoint{Token: s.nextOffer})
}

// noted looks at a checkpoint's entry that is published for the first time.
func (c *simChecker) noted(index uint64, h envelopeHeader) {
	switch h.kind {
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST:
		request := &logv1.CheckpointRequest{}
		if err := proto.Unmarshal(h.payload, request); err != nil {
			c.s.errorf("entry %d: %v", index, err)
			return
		}
		c.s.counts.add("checkpoint request")
		c.s.build(index, request)
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED:
		name, ok := sealedName(h)
		if !ok || name != simCheckpoint(name.Index, 0) {
			c.s.errorf("entry %d seals %v, which is not the truth", index, name)
			return
		}
		c.s.counts.add("checkpoint sealed")
		c.sealed[name] = true
	}
}

func sealedName(h envelopeHeader) (name CheckpointName, ok bool) {
	sealed := &logv1.CheckpointSealed{}
	if proto.Unmarshal(h.payload, sealed) != nil {
		return name, false
	}
	name, err := checkpointName(sealed.GetCheckpoint())
	return name, err == nil
}

// seals checks, when a leader has just appended a seal, that majorities have what it names on their disks.
func (c *simChecker) seals(n *simNode) {
	m := n.member
	if c.checks != checkAll || !n.leads() {
		return
	}
	for _, e := range m.log.memory(c.lastBefore+1, m.log.last+1) {
		h, ok := parseEnvelope(e.GetData())
		if !ok || h.kind != logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED || e.GetTerm() != m.state.term {
			continue
		}
		name, _ := sealedName(h)
		holders := map[uint64]bool{}
		for _, o := range c.s.nodes {
			if o.held[name] {
				holders[o.id] = true
			}
		}
		if m.quorums.VoteResult(holders) != quorum.VoteWon {
			c.s.errorf("node %d seals %v, which majorities of %v do not hold", n.index, name, m.quorums)
		}
	}
}

// covered checks that what a log does not have any more is in a sealed checkpoint that its member holds.
func (c *simChecker) covered(n *simNode, what string) {
	base := n.storage.FirstIndex() - 1
	if c.checks != checkAll || base == 0 {
		return
	}
	for name := range n.held {
		if name.Index >= base && c.sealed[name] {
			return
		}
	}
	c.s.errorf("node %d, %s: its log begins after %d, and it holds no sealed checkpoint from there on", n.index, what, base)
}

// replaces checks, before a log is begun anew, that no published entry on the disk is lost.
func (c *simChecker) replaces(n *simNode, install *InstallSnapshot) {
	for index := max(install.Index+1, n.storage.FirstIndex()); index <= min(n.storage.LastIndex(), c.highest()); index++ {
		kept := len(install.Group.Entries) > 0 && install.Group.Entries[len(install.Group.Entries)-1].Index >= index
		if term, err := n.storage.Term(index); err == nil && term == c.agreed[index-1].term && !kept {
			c.s.errorf("node %d: published entry %d of term %d is lost to a snapshot at %d", n.index, index, term, install.Index)
			return
		}
	}
}

// holdsPublished compares all of a log that was begun anew with what was published.
func (c *simChecker) holdsPublished(n *simNode) {
	digest := uint64(0)
	for i := range c.agreed {
		known, index := &c.agreed[i], uint64(i+1)
		digest = segment.NextDigest(digest, index, known.term, known.data)
		if index == n.storage.FirstIndex()-1 && digest != n.storage.base.Digest {
			c.s.errorf("node %d: its log begins after %d with another digest than the log's", n.index, index)
			return
		}
		if index < n.storage.FirstIndex() || index > n.storage.HardState().Commit {
			continue
		}
		e, err := n.storage.Entries(index, index+1, 1)
		if err != nil || e[0].Term != known.term || !bytes.Equal(e[0].Data, known.data) {
			c.s.errorf("node %d: entry %d after a snapshot is not the published one (%v)", n.index, index, err)
			return
		}
	}
	if n.storage.HardState().Commit > c.highest() {
		c.s.errorf("node %d: a snapshot commits %d, %d are published", n.index, n.storage.HardState().Commit, c.highest())
	}
}
