package statemachine

import (
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

const (
	// retentionSteps is in how many steps a retention is divided: history is kept for at least the retention and at
	// most one step longer, while entries come.
	retentionSteps = 64
	// countSlackDivisor: compaction by count goes a tenth below the bound, so that it runs once per tenth and not once
	// per entry.
	countSlackDivisor = 10
	// leaseBytes is what a lease counts against the quota.
	leaseBytes = 128
)

// retentionSample says that the revision was this one at that log time.
type retentionSample struct {
	logTime, revision int64
}

// retentionSamples remembers which revision was the newest at which time, coarsely, for compaction by age.
type retentionSamples []retentionSample

// settingsChanged forgets the samples when compaction by age is off.
func (s *retentionSamples) settingsChanged(settings Settings) {
	if settings.AutoCompactionRetention == 0 {
		*s = nil
	}
}

// add takes a sample if the last one is a step old.
func (s *retentionSamples) add(logTime, revision int64, retention time.Duration) {
	step := max(int64(retention)/retentionSteps, 1)
	if n := len(*s); n > 0 && logTime-(*s)[n-1].logTime < step {
		return
	}
	*s = append(*s, retentionSample{logTime, revision})
}

// expired removes the samples that are at least retention old and returns the newest of their revisions.
func (s *retentionSamples) expired(logTime int64, retention time.Duration) (revision int64) {
	n := 0
	for n < len(*s) && logTime-(*s)[n].logTime >= int64(retention) {
		revision = (*s)[n].revision
		n++
	}
	*s = append((*s)[:0], (*s)[n:]...)
	return revision
}

// compactAutomatically compacts by age and by count, after an entry has been applied.
func (m *Machine) compactAutomatically() {
	target := int64(0)
	if retention := m.settings.AutoCompactionRetention; retention > 0 {
		m.retention.add(m.logTime, m.revision, retention)
		if first := m.retention[0]; m.logTime-first.logTime >= int64(retention) {
			target = m.retention.expired(m.logTime, retention)
		}
	}
	if bound := m.settings.AutoCompactionRevisions; bound > 0 && m.revision-m.compacted > bound {
		target = max(target, m.revision-(bound-bound/countSlackDivisor))
	}
	if target > m.compacted {
		m.compact(target)
	}
}

// compact makes revision, which has been reached and is above the last one, the lowest that can be read.
func (m *Machine) compact(revision int64) {
	m.compacted = revision
	m.space.Compact(revision)
}

// Maintain goes on with the physical removal of what was compacted, for the goroutine that calls Apply when no entry is
// waiting. It reports whether there is more to do.
func (m *Machine) Maintain() (more bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.space.CompactSome(m.compactionBudget)
}

// size is the logical size that the quota bounds.
func (m *Machine) size() int64 {
	return m.space.LogicalBytes() + int64(m.leases.Len())*leaseBytes
}

// charge refuses what does not fit into the quota, and raises the alarm.
func (m *Machine) charge(e *entry, cost int64) error {
	if cost == 0 || m.size()+cost <= m.settings.QuotaBytes {
		return nil
	}
	m.noSpace = true
	e.applied.AlarmsChanged = true
	return ErrNoSpace
}

// putCost estimates what a put adds to the size, before it is encoded.
func putCost(p *putCommand) int64 {
	return int64(len(p.key)+len(p.value)) + keyspace.VersionOverheadBytes
}

// txnCost is the cost of the dearer of a transaction's two lists, as etcd counts it; zero if neither puts anything. Of a
// mutation it counts all but the value, which the state decides.
func txnCost(t *commandv1.Txn) int64 {
	return max(operationsCost(t.GetSuccess()), operationsCost(t.GetFailure()))
}

func operationsCost(operations []*commandv1.TxnOperation) (cost int64) {
	for _, o := range operations {
		switch o := o.GetOperation().(type) {
		case *commandv1.TxnOperation_Put:
			put := putOf(o.Put)
			cost += putCost(&put)
		case *commandv1.TxnOperation_Mutate:
			cost += putCost(&putCommand{key: o.Mutate.GetKey()})
		case *commandv1.TxnOperation_Txn:
			cost += txnCost(o.Txn)
		}
	}
	return cost
}
