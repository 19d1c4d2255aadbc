package logservice

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// newestSealed is the index of the newest sealed checkpoint, zero for none.
func (m *Member) newestSealed() uint64 {
	if len(m.record.sealed) == 0 {
		return 0
	}
	return m.record.sealed[0].name.Index
}

// logBytesAbove is about how many bytes the log has above an index.
func (m *Member) logBytesAbove(index uint64) (total int64) {
	for _, e := range m.log.storage.Extents() {
		switch {
		case e.Last < e.First || e.Last <= index:
		case e.First > index:
			total += e.Bytes
		default:
			total += int64(float64(e.Bytes) * float64(e.Last-index) / float64(e.Last-e.First+1))
		}
	}
	return total
}

// trimLimit is the highest index at or below which nothing is needed for safety: everything up to there is in a sealed
// checkpoint that this member holds itself, and the record that says so, and that the log is applied up to there, is
// durable.
func (m *Member) trimLimit() uint64 {
	for i := range m.record.sealed {
		if s := &m.record.sealed[i]; s.sealedIndex <= m.groups.recorded && m.checkpoints.held[s.name] {
			return s.name.Index
		}
	}
	return 0
}

// trim says how far the log may be trimmed: below a sealed checkpoint, down to the size and age of the tail that is kept.
// Somebody who still reads what is older holds that up, for so many bytes more and no further; a dead follower holds
// nothing up.
func (m *Member) trim() {
	limit := m.trimLimit()
	if limit == 0 || m.snapshots.installing != nil {
		return
	}
	extents := m.log.storage.Extents()
	total := int64(0)
	for _, e := range extents {
		total += e.Bytes
	}
	if total <= m.config.TailBytes+m.config.MaxPinBytes {
		limit = min(limit, m.needed()-1)
	}
	aged := m.agedUpTo(extents, limit)
	target := uint64(0)
	for _, e := range extents[:max(0, len(extents)-1)] {
		if e.Last >= e.First {
			if e.Last > limit || total-e.Bytes < m.config.TailBytes && e.Last > aged {
				break
			}
			target = e.Last
		}
		total -= e.Bytes
	}
	if target > m.checkpoints.trimmed {
		m.checkpoints.trimmed = target
		m.effects.Trim = target
		m.config.Logger.Info("trimming the log", "up_to", target, "sealed", m.newestSealed())
	}
}

// needed is the first index that somebody reads who is known to be alive: tails, bootstraps, and followers of a leader.
func (m *Member) needed() uint64 {
	needed := m.log.last + 1
	if m.checkpoints.pinned != 0 {
		needed = min(needed, m.checkpoints.pinned)
	}
	if m.state.role != raft.StateLeader {
		return needed
	}
	m.raft.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == m.config.ID || m.ticks-m.elections.heard[id] >= m.config.ElectionTicks {
			return
		}
		sent := m.snapshots.sent[id]
		switch {
		case p.State == tracker.StateSnapshot && sent != nil:
			needed = min(needed, max(p.Match, sent.checkpoint)+1)
		case p.State == tracker.StateSnapshot:
			needed = min(needed, max(p.Match, p.PendingSnapshot)+1)
		default:
			needed = min(needed, p.Match+1)
		}
	})
	return needed
}

// agedUpTo is the end of the newest extent at or below limit that is older than what the tail keeps, zero for none.
func (m *Member) agedUpTo(extents []Extent, limit uint64) uint64 {
	if m.config.TailAge == 0 {
		return 0
	}
	for _, e := range slices.Backward(extents) {
		if e.Last < e.First || e.Last > limit {
			continue
		}
		entries, err := m.log.Entries(e.Last, e.Last+1, 1)
		if err != nil || entries[0].GetType() != raftpb.EntryNormal {
			continue
		}
		if h, ok := parseEnvelope(entries[0].GetData()); ok && h.stamp+uint64(m.config.TailAge) < m.record.stamp {
			return e.Last
		}
	}
	return 0
}
