package statemachine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// ErrInconsistent is returned by a Restorer for what no machine exported in this version.
var ErrInconsistent = errors.New("statemachine: inconsistent export")

// ErrNewer is returned by a Restorer for a state that a newer build made and this one cannot go on from. The state is not
// damaged, and no other copy of it is of more use here.
var ErrNewer = errors.New("statemachine: the state is of a newer build")

// Restorer builds a Machine from what others exported: Lease for each lease and RequestID for each request id, oldest
// first; Version for each version of a key in the order that keyspace.Space.Restore asks for, or Blocks once; then Machine.
// After an error it is of no use. It copies what it is given.
type Restorer struct {
	machine *Machine
	state   exportedState
	// leased are the live versions that name a lease, where Blocks has told them.
	leased []keyspace.Version
	told   bool
}

// NewRestorer begins a machine with the small part of its state (Export.State). Options.Space must be nil. The error
// matches ErrInconsistent or ErrNewer.
func NewRestorer(o Options, state []byte) (*Restorer, error) {
	r := &Restorer{}
	understands := o.ApplyVersion
	if understands == 0 {
		understands = ApplyVersion
	}
	if err := refuseNewer(state, understands); err != nil {
		return nil, err
	}
	if err := strictUnmarshal(state, &r.state); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInconsistent, err)
	}
	s := &r.state
	switch {
	case o.Space != nil:
		return nil, errors.New("statemachine: a restored machine makes its own key space")
	case s.Version != ExportVersion:
		return nil, fmt.Errorf("%w: version %d, known is %d", ErrInconsistent, s.Version, ExportVersion)
	case s.ApplyVersion < 1:
		return nil, fmt.Errorf("%w: apply version %d", ErrInconsistent, s.ApplyVersion)
	case s.Index == 0 || s.Revision < 1 || s.Compacted < 0 || s.Compacted > s.Revision || s.LogTime < 0:
		return nil, fmt.Errorf("%w: index %d, revision %d, compacted %d", ErrInconsistent, s.Index, s.Revision, s.Compacted)
	}
	m := newMachine(Options{
		Space:            keyspace.New(keyspace.Options{CompactRevision: s.Compacted}),
		CompactionBudget: o.CompactionBudget,
		ApplyVersion:     o.ApplyVersion,
	})
	m.index, m.term, m.logTime, m.clusterID = s.Index, s.Term, s.LogTime, s.ClusterID
	m.revision, m.compacted, m.applyVersion, m.settings = s.Revision, s.Compacted, s.ApplyVersion, s.Settings
	m.noSpace, m.requests.horizon = s.NoSpace, s.RequestHorizon
	maps.Copy(m.regions, s.Regions)
	for _, sample := range s.Retention {
		m.retention = append(m.retention, retentionSample{sample.LogTime, sample.Revision})
	}
	ids, err := restoreIDs(s.IDs)
	if err != nil {
		return nil, err
	}
	m.ids = ids
	m.sealSmall()
	r.machine = m
	return r, r.sessions()
}

func (r *Restorer) sessions() error {
	t := &r.machine.sessions
	for _, row := range r.state.Frontends {
		if _, twice := t.frontends[row.ID]; twice || row.ID == 0 {
			return fmt.Errorf("%w: frontend %d", ErrInconsistent, row.ID)
		}
		f := &frontend{incarnation: row.Incarnation, lastSession: row.LastSession}
		f.sum = f.seal(row.ID)
		t.frontends[row.ID] = f
		if row.Session == nil {
			continue
		}
		if row.Session.FrontendID != row.ID || row.Session.ID != row.LastSession || t.open[row.Session.ID] != nil {
			return fmt.Errorf("%w: session %d of frontend %d", ErrInconsistent, row.Session.ID, row.ID)
		}
		t.add(&session{SessionInfo: *row.Session})
	}
	return nil
}

// Index is that of the entry that the machine will be the state after.
func (r *Restorer) Index() uint64 { return r.state.Index }

// Summary returns the state in short.
func (r *Restorer) Summary() Summary {
	s := &r.state
	return Summary{
		Index: s.Index, Term: s.Term, ClusterID: s.ClusterID, LogTime: s.LogTime, ApplyVersion: s.ApplyVersion,
		Revision: s.Revision, CompactRevision: s.Compacted,
	}
}

// CompactRevision is where history begins: below it only the keys that existed then have a version, and only where
// nothing changed them at it.
func (r *Restorer) CompactRevision() int64 { return r.state.Compacted }

// Lease restores one lease. The error matches ErrInconsistent or lease.ErrInconsistent.
func (r *Restorer) Lease(id int64, row []byte) error {
	info, err := decodeLease(id, row)
	if err != nil {
		return err
	}
	if !info.Orphaned && r.machine.sessions.open[info.Owner] == nil {
		return fmt.Errorf("%w: lease %d is of session %d, which is not open", ErrInconsistent, id, info.Owner)
	}
	return r.machine.leases.Restore(info)
}

// RequestID restores one request id. The error matches ErrInconsistent.
func (r *Restorer) RequestID(row []byte) error {
	record, err := decodeRequest(row)
	if err != nil {
		return err
	}
	t := &r.machine.requests
	if t.byID[record.id] != nil || t.len() > 0 && t.queue.at(t.len()-1).index > record.index {
		return fmt.Errorf("%w: request id %q of index %d", ErrInconsistent, record.id, record.index)
	}
	t.keep(record)
	return nil
}

// Latest returns the newest version of key so far, if that is not a tombstone.
func (r *Restorer) Latest(key []byte) (keyspace.Version, bool) { return r.machine.space.Latest(key) }

// Version restores one version of a key. The error is keyspace.Space.Restore's.
func (r *Restorer) Version(encoded []byte, sub int64) error {
	return r.machine.space.Restore(encoded, sub)
}

// Blocks restores all versions of keys, on all processors, while nobody uses the Restorer otherwise. The error is
// keyspace.Space.RestoreBlocks'.
func (r *Restorer) Blocks(blocks []*keyspace.Block) (err error) {
	r.leased, err = r.machine.space.RestoreBlocks(blocks)
	r.told = true
	return err
}

// Machine returns the machine once all was restored. The error matches ErrInconsistent.
func (r *Restorer) Machine() (*Machine, error) {
	m := r.machine
	if m.leases.Len() != r.state.Leases || m.requests.len() != r.state.Requests {
		return nil, fmt.Errorf("%w: %d leases of %d, %d request ids of %d", ErrInconsistent,
			m.leases.Len(), r.state.Leases, m.requests.len(), r.state.Requests)
	}
	if newest := m.space.WriterView(); newest.Revision() > m.revision {
		return nil, fmt.Errorf("%w: a version at %d, above the revision %d", ErrInconsistent, newest.Revision(), m.revision)
	}
	m.space.ResumeEvents(r.state.Digest.Events)
	if digest := m.exportDigest(); digest != r.state.Digest {
		return nil, fmt.Errorf("%w: what was restored sums up to %+v, was %+v", ErrInconsistent, digest, r.state.Digest)
	}
	m.space.Publish(m.index, m.revision)
	if err := r.attach(); err != nil {
		return nil, err
	}
	r.machine = nil
	return m, nil
}

// attach hangs the keys on their leases.
func (r *Restorer) attach() error {
	m := r.machine
	// Where there are no leases, no key may name one: that is found too.
	var err error
	hang := func(v keyspace.Version) bool {
		if v.Lease != 0 && !m.leases.Attach(v.Lease, v.Key) {
			err = fmt.Errorf("%w: key %q is of lease %d, which does not exist", ErrInconsistent, v.Key, v.Lease)
		}
		return err == nil
	}
	if !r.told {
		view := m.space.WriterView()
		return errors.Join(view.Range(nil, nil, 0, hang), err)
	}
	for _, v := range r.leased {
		if !hang(v) {
			break
		}
	}
	return err
}

// strictUnmarshal refuses fields that this build does not know: it would lose them.
// refuseNewer looks at the versions before anything else: a newer build may have written what is no mistake there.
func refuseNewer(state []byte, understands uint32) error {
	var versions struct{ Version, ApplyVersion uint32 }
	if err := json.Unmarshal(state, &versions); err != nil {
		return nil //nolint:nilerr // damaged, which shows where all of it is read
	}
	switch {
	case versions.Version > ExportVersion:
		return fmt.Errorf("%w: its version is %d, highest known is %d", ErrNewer, versions.Version, ExportVersion)
	case versions.ApplyVersion > understands:
		return fmt.Errorf("%w: its apply version is %d, highest known is %d", ErrNewer, versions.ApplyVersion, understands)
	}
	return nil
}

func strictUnmarshal(encoded []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(encoded))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
