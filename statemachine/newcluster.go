package statemachine

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// NewCluster is what a cluster that begins with the state of another one needs to have of its own.
type NewCluster struct {
	// ID is random and not zero.
	ID uint64
	// Now is the present time in nanoseconds since 1970. Log time goes on from there, or from the state's if that is later.
	Now int64
	// RevisionBump is how far the revision and the log index are raised: beyond what the old cluster reached after this
	// state, so that neither means two things to who knew both clusters.
	RevisionBump int64
	// IDBump is how far sequences and ranges of ids are raised: beyond what the old cluster gave out after this state.
	IDBump int64
}

// Bounds of a NewCluster.
const (
	MaxRevisionBump = 1 << 60
	MaxIDBump       = 1 << 60
	// idTimeMargin is how far beyond the present the old cluster may have made ids with times in them: how far they run
	// ahead of a clock, and what that clock may be fast by.
	idTimeMargin = 30 * time.Second
)

// ErrNewCluster is returned by BeginCluster for what no cluster can begin with.
var ErrNewCluster = errors.New("statemachine: no cluster can begin so")

// BeginCluster makes the state that of a new cluster, for the goroutine that would call Apply. All keys, leases, settings
// and regions stay, and so do the request ids, which name indexes below the new one. The newest revision is raised and
// compacted; sessions and frontends are gone; each lease is an orphan with its whole TTL left; what was given out of ids is
// out of reach. It returns the ranges that had numbers left and have none any more, by name. After an error, which matches
// ErrNewCluster, nothing has changed.
func (m *Machine) BeginCluster(c NewCluster) (usedUp []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.failed != nil:
		return nil, m.failed
	case c.ID == 0 || c.ID == m.clusterID:
		return nil, fmt.Errorf("%w: its id %016x must be another than the old one's, and not 0", ErrNewCluster, c.ID)
	case c.RevisionBump < 1 || c.RevisionBump > MaxRevisionBump || m.revision > math.MaxInt64/2 || m.index > math.MaxInt64/2:
		return nil, fmt.Errorf("%w: revision_bump %d, limits 1 and %d, of revision %d and index %d", ErrNewCluster, c.RevisionBump,
			int64(MaxRevisionBump), m.revision, m.index)
	case c.IDBump < 0 || c.IDBump > MaxIDBump:
		return nil, fmt.Errorf("%w: id_bump %d, limits 0 and %d", ErrNewCluster, c.IDBump, int64(MaxIDBump))
	case c.Now > maxLogTime:
		return nil, fmt.Errorf("%w: now %d, limit %d", ErrNewCluster, c.Now, int64(maxLogTime))
	}
	m.clusterID = c.ID
	m.logTime = max(m.logTime, c.Now)
	for _, id := range m.sessions.ids() {
		m.leases.Orphan(id, m.logTime, m.sessions.open[id].SessionTime)
	}
	m.leases.RestartOrphans(m.logTime)
	m.sessions = newSessionTable()
	usedUp = m.ids.raise(m.logTime, c.IDBump)

	m.index += uint64(c.RevisionBump)
	m.revision += c.RevisionBump
	m.retention = nil
	m.space.Publish(m.index, m.revision)
	m.compact(m.revision)
	return usedUp, nil
}

// raise puts out of reach what may have been given out after the state that the tables are of: by log time now, and bump
// numbers of each sequence and range. It returns the ranges that this uses up.
func (t *idTables) raise(now, bump int64) (usedUp []string) {
	for _, kind := range []IDKind{IDSnowflake, IDRaindrop} {
		layout := kind.Layout()
		until := min((max(now, IDEpoch)-IDEpoch+int64(idTimeMargin))/int64(layout.Unit)+1, layout.MaxTime())
		nodes := make([]idNode, layout.Nodes()) // those that were never granted may have been since
		copy(nodes, t.nodes[kind])
		for number := range nodes {
			nodes[number] = idNode{until: max(nodes[number].until, until)}
		}
		t.nodes[kind] = nodes
	}
	for name, last := range t.sequences {
		t.sequences[name] = min(last, math.MaxInt64-bump) + bump
	}
	for name, r := range t.ranges {
		if r.next > r.max {
			continue
		}
		if bump > r.max-r.next {
			r.next = r.max + 1
			usedUp = append(usedUp, name)
		} else {
			r.next += bump
		}
		t.ranges[name] = r
	}
	t.sum = t.seal()
	slices.Sort(usedUp)
	return usedUp
}
