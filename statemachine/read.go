package statemachine

import (
	"math"

	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// Space returns the key space. Anyone may read it; only the Machine writes it.
func (m *Machine) Space() *keyspace.Space { return m.space }

// Index returns the last entry that was applied.
func (m *Machine) Index() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.index
}

// LogTime returns the log time after the last entry, in nanoseconds.
func (m *Machine) LogTime() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.logTime
}

// ClusterID returns the id that Genesis gave the log; zero before it.
func (m *Machine) ClusterID() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.clusterID
}

// Settings returns the replicated settings.
func (m *Machine) Settings() Settings {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.settings
}

// AppliesVersion returns the apply version in force.
func (m *Machine) AppliesVersion() uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.applyVersion
}

// Understands returns the highest apply version that this machine goes on at; the lowest is 1.
func (m *Machine) Understands() uint32 { return m.understands }

// SizeBytes returns the logical size that the quota bounds.
func (m *Machine) SizeBytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.space.Stats().LogicalBytes + int64(m.leases.Len())*leaseBytes
}

// leasesPerPage bounds how many leases are copied while entries wait: some hundred microseconds.
const leasesPerPage = 1024

// Leases returns all leases, by id, as LeasesFrom does.
func (m *Machine) Leases() []lease.Info { return m.LeasesFrom(math.MinInt64, math.MaxInt) }

// LeasesFrom returns the leases whose ids are at or above first, by id, and at most limit of them. They are read a page at a
// time, so that apply never waits for all of them: one that comes or goes meanwhile may be among them or not.
func (m *Machine) LeasesFrom(first int64, limit int) []lease.Info {
	found := make([]lease.Info, 0, min(limit, m.LeaseCount()))
	for {
		page := m.leasePage(first, min(limit-len(found), leasesPerPage))
		found = append(found, page...)
		if len(page) < leasesPerPage || len(found) == limit || page[len(page)-1].ID == math.MaxInt64 {
			return found
		}
		first = page[len(page)-1].ID + 1
	}
}

func (m *Machine) leasePage(first int64, limit int) []lease.Info {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.leases.Page(first, limit)
}

// LeaseCount returns the number of leases.
func (m *Machine) LeaseCount() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.leases.Len()
}

// Pins returns how many exports of Pin were not released yet: each makes changes of leases dearer.
func (m *Machine) Pins() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.leases.Pins()
}

// Lease returns one lease.
func (m *Machine) Lease(id int64) (lease.Info, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.leases.Info(id)
}

// LeaseKeys returns copies of the keys of a lease, in order; nil if there is no such lease.
func (m *Machine) LeaseKeys(id int64) [][]byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.leases.Keys(id)
}

// SessionCount returns the number of open sessions.
func (m *Machine) SessionCount() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.sessions.open)
}

// Sessions returns the open sessions, by id.
func (m *Machine) Sessions() []SessionInfo {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ids := m.sessions.ids()
	infos := make([]SessionInfo, len(ids))
	for i, id := range ids {
		infos[i] = m.sessions.open[id].SessionInfo
		infos[i].Leases = m.leases.OwnedBy(id)
	}
	return infos
}

// Session returns one open session.
func (m *Machine) Session(id uint64) (SessionInfo, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s, ok := m.sessions.open[id]
	if !ok {
		return SessionInfo{}, false
	}
	info := s.SessionInfo
	info.Leases = m.leases.OwnedBy(id)
	return info, true
}

// Alarms returns the alarms that are raised.
func (m *Machine) Alarms() []Alarm {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.noSpace {
		return []Alarm{AlarmNoSpace}
	}
	return nil
}

// Regions returns the regions that are not open. The map is the caller's.
func (m *Machine) Regions() map[string]RegionState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	regions := make(map[string]RegionState, len(m.regions))
	for region, state := range m.regions {
		regions[region] = state
	}
	return regions
}

// Region returns the state of one region.
func (m *Machine) Region(region string) RegionState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.regions[region]
}

// NextDue returns the log time, in nanoseconds, from which the next entry has something to do that no command asks for:
// a session or an orphan to end. It reports false where nothing waits. When that time has come and no entry does,
// someone has to propose an empty one.
func (m *Machine) NextDue() (logTime int64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	logTime, ok = m.sessions.earliestDue()
	if _, endsAt, orphan := m.leases.NextOrphan(); orphan && (!ok || endsAt < logTime) {
		logTime, ok = endsAt, true
	}
	return logTime, ok
}
