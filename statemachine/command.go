package statemachine

import (
	"fmt"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// Result is the outcome of one command.
type Result struct {
	// Err says why the command was refused; nil for success. It matches one of this package's errors.
	Err error
	// Index is the entry at which the outcome was decided and Revision the revision after the command. Of a replayed
	// outcome both are those of the first time.
	Index    uint64
	Revision int64
	// Exactly one of these is set for a successful Txn, Put, DeleteRange or Mutate.
	Txn    *TxnResult
	Put    *PutResult
	Delete *DeleteResult
	Mutate *MutateResult
	// LeaseID and LeaseTTLSeconds are set for the lease commands. The TTL is what was granted.
	LeaseID         int64
	LeaseTTLSeconds int64
	// ID is set for a successful command about ids.
	ID *IDResult
	// Replayed: the request id was known; this is the first outcome again.
	Replayed bool
	// Truncated: a replayed outcome whose key-values were too large to be remembered. Whether it succeeded, counts
	// and revision are as they were; Previous, Current, KVs and, of a transaction, Operations are missing.
	Truncated bool
}

// PutResult is the outcome of a Put.
type PutResult struct {
	// Previous is the version that was replaced, where it was asked for and there was one.
	Previous *keyspace.Version
}

// DeleteResult is the outcome of a DeleteRange.
type DeleteResult struct {
	Deleted int64
	// Previous are the versions that were deleted, in order of their keys, where they were asked for.
	Previous []keyspace.Version
}

// OperationResult is the outcome of one operation of a transaction: exactly one field is set.
type OperationResult struct {
	Range  *RangeResult
	Put    *PutResult
	Delete *DeleteResult
	Txn    *TxnResult
	Mutate *MutateResult `json:",omitempty"`
}

// TxnResult is the outcome of a transaction.
type TxnResult struct {
	// Succeeded: every comparison held.
	Succeeded bool
	// Operations has one for each operation of the list that was applied.
	Operations []OperationResult
}

// write is the revision that one command writes under. It becomes the machine's with the first change.
type write struct {
	main, sub int64
}

// applyCommand applies one command of a batch. left is how many commands of the batch are not applied yet, this one
// included. An error means that apply cannot go on.
func (m *Machine) applyCommand(e *entry, c *command, left int) (Result, error) {
	if c.reportApplied {
		e.applied.ReportApplied = true
	}
	if e.session.ended {
		// Only a fence in the same batch ends the session of a batch that was taken.
		return Result{Err: ErrRegionFenced, Index: e.applied.Index, Revision: m.revision}, nil
	}
	if c.operation == fieldCommandPut && cap(e.applied.Events) == 0 {
		e.applied.Events = make([]Event, 0, left)
	}
	if len(c.requestID) == 0 {
		return m.executeCommand(e, c, e.wanted)
	}
	return m.applyOnce(e, c)
}

// executeCommand does what a command says. wanted asks for the parts of the result that cost something.
func (m *Machine) executeCommand(e *entry, c *command, wanted bool) (Result, error) {
	w := write{main: m.revision + 1}
	var result Result
	var err, fatal error
	switch c.operation {
	case fieldCommandPut:
		result.Put, err = m.executePut(e, &w, &c.put, wanted)
	case fieldCommandDeleteRange:
		result.Delete, err = m.executeDelete(e, &w, c.message.(*commandv1.DeleteRange), wanted)
	case fieldCommandTxn:
		result.Txn, err = m.executeTxn(e, &w, c.message.(*commandv1.Txn), wanted)
	case fieldCommandMutate:
		result.Mutate, err = m.executeMutate(e, &w, c.message.(*commandv1.Mutate), wanted)
	case fieldCommandCompact:
		err = m.executeCompact(c.message.(*commandv1.Compact))
	case fieldCommandLeaseGrant:
		grant := c.message.(*commandv1.LeaseGrant)
		result.LeaseID = grant.Id
		result.LeaseTTLSeconds, err = m.executeGrant(e, grant)
	case fieldCommandLeaseRevoke:
		result.LeaseID = c.message.(*commandv1.LeaseRevoke).Id
		err = m.executeRevoke(e, &w, result.LeaseID)
	case fieldCommandLeaseAdopt:
		result.LeaseID = c.message.(*commandv1.LeaseAdopt).Id
		result.LeaseTTLSeconds, err = m.executeAdopt(e, result.LeaseID)
	case fieldCommandLeaseExpire:
		expire := c.message.(*commandv1.LeaseExpire)
		result.LeaseID = expire.Id
		err = m.executeExpire(e, &w, expire)
	case fieldCommandSettings:
		err = m.executeSettings(e, c.message.(*commandv1.ChangeSettings))
	case fieldCommandRegionState:
		err = m.executeRegionState(e, c.message.(*commandv1.SetRegionState))
	case fieldCommandApplyVersion:
		err, fatal = m.executeRaiseApplyVersion(c.message.(*commandv1.RaiseApplyVersion))
	case fieldCommandAlarm:
		err = m.executeAlarm(e, c.message.(*commandv1.SetAlarm))
	case fieldCommandIDNodeGrant:
		result.ID, err = m.executeIDNodeGrant(e, c.message.(*commandv1.IdNodeGrant))
	case fieldCommandIDNodeExtend:
		result.ID, err = m.executeIDNodeExtend(e, c.message.(*commandv1.IdNodeExtend))
	case fieldCommandIDSegment:
		result.ID, err = m.executeIDSegmentGrant(c.message.(*commandv1.IdSegmentGrant))
	case fieldCommandIDSequence:
		result.ID, err = m.executeIDSequenceNext(c.message.(*commandv1.IdSequenceNext))
	default:
		err = ErrInvalidCommand
	}
	if fatal != nil {
		return Result{}, fatal
	}
	if w.sub > 0 {
		m.revision = w.main
	}
	result.Err, result.Index, result.Revision = err, e.applied.Index, m.revision
	return result, nil
}

func (m *Machine) executePut(e *entry, w *write, p *putCommand, wanted bool) (*PutResult, error) {
	if err := validatePut(p); err != nil {
		return nil, err
	}
	if m.noSpace {
		return nil, ErrNoSpace
	}
	if err := m.checkPut(p); err != nil {
		return nil, err
	}
	if err := m.charge(e, putCost(p)); err != nil {
		return nil, err
	}
	return m.put(e, w, p, wanted), nil
}

// checkPut checks what a put needs of the state.
func (m *Machine) checkPut(p *putCommand) error {
	if p.lease != 0 && !m.leases.Exists(p.lease) {
		return ErrLeaseNotFound
	}
	if p.ignoreValue || p.ignoreLease {
		if _, ok := m.space.Latest(p.key); !ok {
			return ErrKeyNotFound
		}
	}
	return nil
}

// put writes one key. What it needs has been checked.
func (m *Machine) put(e *entry, w *write, p *putCommand, wanted bool) *PutResult {
	value, leaseID := p.value, p.lease
	if p.ignoreValue || p.ignoreLease {
		present, _ := m.space.Latest(p.key)
		if p.ignoreValue {
			value = present.Value
		}
		if p.ignoreLease {
			leaseID = present.Lease
		}
	}
	stored, previous, existed := m.space.Put(p.key, value, leaseID, w.main, w.sub)
	w.sub++
	e.applied.Events = append(e.applied.Events, Event{Put: true, KV: stored, Previous: previous, HasPrevious: existed})
	if previous.Lease != leaseID {
		if previous.Lease != 0 {
			m.leases.Detach(previous.Lease, p.key)
		}
		if leaseID != 0 {
			m.leases.Attach(leaseID, p.key)
		}
	}
	if !wanted {
		return nil
	}
	result := new(PutResult)
	if p.previous && existed {
		result.Previous = new(previous) // a copy, so that only who asks pays for it
	}
	return result
}

func (m *Machine) executeDelete(e *entry, w *write, d *commandv1.DeleteRange, wanted bool) (*DeleteResult, error) {
	if len(d.Key) == 0 {
		return nil, &InvalidError{Field: "delete_range.key", Err: ErrEmptyKey}
	}
	return m.deleteRange(e, w, d, wanted), nil
}

// deleteRange deletes the keys of a range that exist now, writes of the same command included.
func (m *Machine) deleteRange(e *entry, w *write, d *commandv1.DeleteRange, wanted bool) *DeleteResult {
	doomed := m.doomed[:0]
	if len(d.RangeEnd) == 0 {
		if v, ok := m.space.Latest(d.Key); ok {
			doomed = append(doomed, v)
		}
	} else {
		view := m.space.WriterView()
		// The newest revision is never compacted and never in the future.
		_ = view.Range(d.Key, rangeEnd(d.RangeEnd), 0, func(v keyspace.Version) bool {
			doomed = append(doomed, v)
			return true
		})
	}
	for i := range doomed {
		m.delete(e, w, doomed[i].Key)
	}
	var result *DeleteResult
	if wanted {
		result = &DeleteResult{Deleted: int64(len(doomed))}
		if d.Previous && len(doomed) > 0 {
			result.Previous = append([]keyspace.Version(nil), doomed...)
		}
	}
	if clear(doomed); cap(doomed) <= maxScratch {
		m.doomed = doomed[:0]
	}
	return result
}

// delete deletes one key, which may be gone already.
func (m *Machine) delete(e *entry, w *write, key []byte) {
	tombstone, previous, existed := m.space.Delete(key, w.main, w.sub)
	if !existed {
		return
	}
	w.sub++
	if previous.Lease != 0 {
		m.leases.Detach(previous.Lease, key)
	}
	e.applied.Events = append(e.applied.Events, Event{KV: tombstone, Previous: previous, HasPrevious: true})
}

func (m *Machine) executeCompact(c *commandv1.Compact) error {
	switch {
	case c.Revision <= m.compacted:
		return ErrCompacted
	case c.Revision > m.revision:
		return ErrFutureRevision
	}
	m.compact(c.Revision)
	return nil
}

func (m *Machine) executeGrant(e *entry, g *commandv1.LeaseGrant) (ttlSeconds int64, err error) {
	if err := validateGrant(g); err != nil {
		return 0, err
	}
	if m.noSpace {
		return 0, ErrNoSpace
	}
	if m.leases.Exists(g.Id) {
		return 0, ErrLeaseExists
	}
	if err := m.charge(e, leaseBytes); err != nil {
		return 0, err
	}
	ttlSeconds = max(g.TtlSeconds, m.settings.LeaseMinimumTTLSeconds)
	change, _ := m.leases.Grant(g.Id, ttlSeconds, e.session.ID, e.applied.Index)
	e.applied.LeaseChanges = append(e.applied.LeaseChanges, change)
	return ttlSeconds, nil
}

func (m *Machine) executeRevoke(e *entry, w *write, id int64) error {
	if !m.leases.Exists(id) {
		return ErrLeaseNotFound
	}
	m.endLease(e, w, id, lease.Revoked)
	return nil
}

// executeAdopt makes the session of the batch the owner. A session that owns the lease already stays its owner by the
// entry that made it so: a renewal there needs no adoption, and an Expire under way must stay valid.
func (m *Machine) executeAdopt(e *entry, id int64) (ttlSeconds int64, err error) {
	info, ok := m.leases.Info(id)
	if !ok {
		return 0, ErrLeaseNotFound
	}
	ownerSessionTime := info.PreviousOwnerSessionTime
	if owner, ok := m.sessions.open[info.Owner]; ok {
		ownerSessionTime = owner.SessionTime
	}
	if change, ok := m.leases.Adopt(id, e.session.ID, e.applied.Index, ownerSessionTime); ok {
		e.applied.LeaseChanges = append(e.applied.LeaseChanges, change)
	}
	return info.TTLSeconds, nil
}

func (m *Machine) executeExpire(e *entry, w *write, x *commandv1.LeaseExpire) error {
	info, ok := m.leases.Info(x.Id)
	if !ok {
		return ErrLeaseNotFound
	}
	if info.Owner != e.session.ID || info.OwnerIndex != x.OwnerIndex {
		return ErrNotLeaseOwner
	}
	m.endLease(e, w, x.Id, lease.Expired)
	return nil
}

// endLease deletes the keys of a lease, in order, and the lease.
func (m *Machine) endLease(e *entry, w *write, id int64, kind lease.ChangeKind) {
	for _, key := range m.leases.Keys(id) {
		m.delete(e, w, key)
	}
	if change, ok := m.leases.Remove(id, kind); ok {
		e.applied.LeaseChanges = append(e.applied.LeaseChanges, change)
	}
}

// endDueOrphans ends the orphans whose time is over, a bounded number.
func (m *Machine) endDueOrphans(e *entry) {
	for range maxOrphansPerEntry {
		id, endsAt, ok := m.leases.NextOrphan()
		if !ok || endsAt > m.logTime {
			return
		}
		w := write{main: m.revision + 1}
		m.endLease(e, &w, id, lease.Expired)
		if w.sub > 0 {
			m.revision = w.main
		}
	}
}

func (m *Machine) executeSettings(e *entry, c *commandv1.ChangeSettings) error {
	if err := validateSettings(c); err != nil {
		return err
	}
	m.settings.apply(c)
	m.retention.settingsChanged(m.settings)
	m.sealSmall()
	e.applied.SettingsChanged = true
	return nil
}

// executeRaiseApplyVersion raises the apply version by one, unless a process with an open session would be left
// behind. Where it is raised to what this build does not understand, this build has to stop.
func (m *Machine) executeRaiseApplyVersion(r *commandv1.RaiseApplyVersion) (refused, fatal error) {
	if r.ApplyVersion <= m.applyVersion {
		return nil, nil // it is in force already
	}
	if r.ApplyVersion != m.applyVersion+1 {
		return ErrApplyVersion, nil
	}
	for _, id := range m.sessions.ids() {
		if m.sessions.open[id].ApplyVersionMax < r.ApplyVersion {
			return ErrApplyVersion, nil
		}
	}
	if r.ApplyVersion > m.understands {
		return nil, fmt.Errorf("%w: apply version %d, highest known %d", ErrUnknown, r.ApplyVersion, m.understands)
	}
	m.applyVersion = r.ApplyVersion
	return nil, nil
}
