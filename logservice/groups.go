package logservice

import (
	"errors"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// groups gathers what raft wants durable into groups of one sync: while one is being written, the next one fills.
type groups struct {
	// queue holds raft's append messages that are in no group yet; queued counts all that ever were.
	queue  []*raftpb.Message
	queued uint64
	// written counts the messages whose group is durable.
	written uint64

	// writing is the group that storage has; nil for none. messages are those it was made of.
	writing  *Group
	install  *InstallSnapshot
	messages []*raftpb.Message
	since    int
	// retryAt is the tick at which a group that found no space is handed out again; zero for none.
	retryAt int
	// record is written with the next group; recordApplied is the index that it stands for, recordWriting that of the one
	// in the group being written, recorded that of the last one that is durable.
	record                                 []byte
	recordApplied, recordWriting, recorded uint64
	// pressing is set when something in queue has to be on the disk soon; lazyAt is the tick at which the rest, which is
	// commit indexes alone, is written too.
	pressing bool
	lazyAt   int
	// term and vote are the last that raft wanted written.
	term, vote uint64
	// commit is the commit index of the last hard state that is durable.
	commit uint64
	// requests are this candidate's requests for votes; they wait for its own vote.
	requests []*raftpb.Message
}

// lazyTicks is how long a commit index waits for a group to travel with: a sync of its own would double the syncs of a
// log with little load. Until then a restart begins at an earlier commit index, and catches up.
const lazyTicks = 2

// enqueue puts an append message of raft where the next groups are made from.
func (m *Member) enqueue(message *raftpb.Message) {
	g := &m.groups
	if len(g.queue) == 0 {
		g.lazyAt = m.ticks + lazyTicks
	}
	g.pressing = g.pressing || len(message.GetEntries()) > 0 || message.Snapshot != nil
	for _, response := range message.GetResponses() {
		// Raft's note to itself that entries are stable: the message with those entries carries one too.
		g.pressing = g.pressing || response.GetType() != raftpb.MsgStorageAppendResp
	}
	if message.Term != nil {
		g.pressing = g.pressing || message.GetTerm() != g.term || message.GetVote() != g.vote
		g.term, g.vote = message.GetTerm(), message.GetVote()
	}
	g.queue = append(g.queue, message)
	g.queued++
}

// groupDue tells whether what is queued is to be written now: nothing waits for a commit index to be durable but the
// application of a configuration change.
func (m *Member) groupDue() bool {
	g := &m.groups
	return g.record != nil || g.pressing || len(g.queue) > 0 && (len(m.applies) > 0 || m.ticks >= g.lazyAt)
}

// startGroup hands out the next group if none is being written.
func (m *Member) startGroup() {
	g := &m.groups
	if g.writing != nil || !m.groupDue() {
		return
	}
	group := &Group{}
	n, bytes, last := 0, 0, uint64(0)
	for ; n < len(g.queue); n++ {
		message := g.queue[n]
		entries := message.GetEntries()
		// A snapshot has a group of its own.
		if n > 0 && (message.Snapshot != nil || g.queue[0].Snapshot != nil) {
			break
		}
		if len(entries) > 0 {
			// A message that cuts what is before it in this group begins the next one, so that what the responses
			// say was durable really was.
			if last != 0 && entries[0].GetIndex() <= last {
				break
			}
			if bytes > 0 && bytes+entriesBytes(entries) > m.config.MaxGroupBytes {
				break
			}
			last = entries[len(entries)-1].GetIndex()
			bytes += entriesBytes(entries)
			group.Entries = append(group.Entries, storageEntries(entries)...)
		}
		if message.Term != nil {
			group.HardState = HardState{Term: message.GetTerm(), Vote: message.GetVote(), Commit: message.GetCommit()}
		}
	}
	switch {
	case n > 0 && g.queue[0].Snapshot != nil:
		g.install = m.install(group)
	case n == len(g.queue):
		group.Membership, g.record = g.record, nil
		g.recordWriting = g.recordApplied
	}
	g.writing, g.since = group, m.ticks
	g.messages = g.queue[:n:n]
	g.queue = g.queue[n:]
	g.pressing = len(g.queue) > 0
	if g.install != nil {
		m.effects.Install = g.install
		return
	}
	m.effects.Append, m.effects.AppendTraces = group, m.tracesOf(group)
}

func entriesBytes(entries []*raftpb.Entry) (n int) {
	for _, e := range entries {
		n += entryBytes(e)
	}
	return n
}

// storageDone takes the answer to the group in flight: what raft said only once it was durable may be said now.
func (m *Member) storageDone(err error) {
	g := &m.groups
	if g.writing == nil {
		return
	}
	if errors.Is(err, ErrNoSpace) {
		m.noSpace = true
		g.retryAt = m.ticks + m.config.NoSpaceRetryTicks
		return
	}
	m.noSpace = false
	group, messages := g.writing, g.messages
	g.writing, g.messages = nil, nil
	g.written += uint64(len(messages))
	if group.HardState != (HardState{}) {
		g.commit = group.HardState.Commit
		m.sendRequests(group.HardState)
	}
	if g.install != nil {
		g.install = nil
		m.installed()
	}
	if group.Membership != nil {
		g.recorded = g.recordWriting
	}
	if n := len(group.Entries); n > 0 {
		m.log.setStable(min(group.Entries[n-1].Index, m.uncutIndex()))
	}
	var acks []*raftpb.Message
	for _, message := range messages {
		for _, response := range message.GetResponses() {
			if response.GetType() == raftpb.MsgAppResp {
				acks = appendAck(acks, response)
			}
			if response.GetTo() != m.config.ID {
				m.sendRaft(response)
			} else if err := m.raft.Step(response); err != nil {
				m.config.Logger.Debug("raft refused its own response", "type", response.GetType(), "error", err)
			}
		}
	}
	for _, ack := range acks {
		m.acknowledge(ack, ack.GetTo())
	}
}

// holdRequest keeps a request for a vote until this member's own vote is durable. Raft does not wait for that: with the
// votes of the others alone a candidate would lead a term that its disk knows nothing of, and lead it again, with another
// log, after a crash.
func (m *Member) holdRequest(request *raftpb.Message) {
	g := &m.groups
	g.requests = slices.DeleteFunc(g.requests, func(r *raftpb.Message) bool { return r.GetTerm() < request.GetTerm() })
	g.requests = append(g.requests, request)
}

// sendRequests sends the requests for votes that a durable vote allows, and drops those of terms that are over.
func (m *Member) sendRequests(hard HardState) {
	m.groups.requests = slices.DeleteFunc(m.groups.requests, func(r *raftpb.Message) bool {
		if r.GetTerm() == hard.Term && hard.Vote == m.config.ID {
			m.sendRaft(r)
		}
		return r.GetTerm() <= hard.Term
	})
}

// uncutIndex is the index beneath what is still queued: those entries are in memory only, and may replace some that
// have just become durable.
func (m *Member) uncutIndex() uint64 {
	index := m.log.last
	for _, message := range m.groups.queue {
		if entries := message.GetEntries(); len(entries) > 0 {
			index = min(index, entries[0].GetIndex()-1)
		}
	}
	return index
}

// appendAck keeps the last of successive accepted responses to one leader in one term: it covers those before.
func appendAck(acks []*raftpb.Message, response *raftpb.Message) []*raftpb.Message {
	if response.GetReject() {
		return acks
	}
	if n := len(acks); n > 0 && acks[n-1].GetTerm() == response.GetTerm() && acks[n-1].GetTo() == response.GetTo() {
		if acks[n-1].GetIndex() <= response.GetIndex() {
			acks[n-1] = response
		}
		return acks
	}
	return append(acks, response)
}

// pendingApply is a message of raft with committed entries, to be applied when the append messages before it are
// durable, if it holds a configuration change: the commit index must not be lost once a change is applied.
type pendingApply struct {
	message *raftpb.Message
	after   uint64
}

// applyCommitted applies what raft has committed, in order. It reports whether it did anything.
func (m *Member) applyCommitted() (progress bool) {
	for len(m.applies) > 0 {
		next := m.applies[0]
		entries := next.message.GetEntries()
		for _, e := range entries {
			if isConfChange(e) && m.groups.written < next.after {
				return progress
			}
		}
		m.applies = m.applies[1:]
		for _, e := range entries {
			m.applyEntry(e)
		}
		for _, response := range next.message.GetResponses() {
			if err := m.raft.Step(response); err != nil {
				m.config.Logger.Debug("raft refused its own response", "type", response.GetType(), "error", err)
			}
		}
		progress = true
	}
	if len(m.applies) == 0 {
		m.applies = nil
	}
	return progress
}

func (m *Member) applyEntry(e *raftpb.Entry) {
	if isConfChange(e) {
		m.applyConfChange(e)
	} else if h, ok := parseEnvelope(e.GetData()); ok {
		if m.state.role == raft.StateLeader && e.GetTerm() == m.state.term && isProposal(h.kind) {
			m.uncommitted.applied()
		}
		m.applyEnvelope(e, h)
	}
	m.applied = max(m.applied, e.GetIndex())
	if m.applied >= m.record.applied+m.config.RecordInterval {
		m.saveRecord()
	}
}

// decodeConfChange reads the change that an entry holds.
func decodeConfChange(e *raftpb.Entry) (change raftpb.ConfChangeI, err error) {
	if e.GetType() == raftpb.EntryConfChange {
		c := &raftpb.ConfChange{}
		err, change = proto.Unmarshal(e.GetData(), c), c
	} else {
		c := &raftpb.ConfChangeV2{}
		err, change = proto.Unmarshal(e.GetData(), c), c
	}
	return change, err
}

// applyConfChange applies a committed configuration change, unless this member began with a later configuration. A change
// that can't be decoded came from a leader that is not of this log's making: it is fatal, because skipping it would split
// the configurations.
func (m *Member) applyConfChange(e *raftpb.Entry) {
	if e.GetIndex() <= m.record.confIndex {
		return
	}
	change, err := decodeConfChange(e)
	if err != nil {
		m.log.failure = errors.Join(errors.New("logservice: configuration change can't be read"), err)
		return
	}
	if len(m.confChanges) > 0 && m.confChanges[0] == e.GetIndex() {
		m.confChanges = m.confChanges[1:]
	}
	member := m.record.member(m.config.ID) != nil
	m.changing = true
	conf := m.raft.ApplyConfChange(change)
	m.changing = false
	m.record.adopt(conf, e.GetIndex(), change.AsV2().GetContext())
	m.applied = max(m.applied, e.GetIndex())
	m.configurationChanged()
	m.finishChanges()
	m.effects.Removed = m.effects.Removed || member && m.record.member(m.config.ID) == nil
	m.saveRecord()
}

// saveRecord writes the record with the next group.
func (m *Member) saveRecord() {
	m.record.applied = m.applied
	m.groups.record, m.groups.recordApplied = m.record.encode(), m.applied
}

func isConfChange(e *raftpb.Entry) bool { return e.GetType() != raftpb.EntryNormal }

// noteConfChanges keeps the indexes of the configuration changes in the log that are not applied yet, ascending.
func (m *Member) noteConfChanges(entries []*raftpb.Entry) {
	if len(entries) == 0 {
		return
	}
	for n := len(m.confChanges); n > 0 && m.confChanges[n-1] >= entries[0].GetIndex(); n-- {
		m.confChanges = m.confChanges[:n-1]
	}
	for _, e := range entries {
		if isConfChange(e) && e.GetIndex() > m.record.confIndex {
			m.confChanges = append(m.confChanges, e.GetIndex())
		}
	}
}

var _ raft.Storage = (*entryLog)(nil)
