package statemachine

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// ExportVersion is the version of the encodings that Export makes and Restore reads. Another one is not read.
const ExportVersion = 1

// ErrCorruptTable is returned by Export.Leases where memory no longer holds what was pinned.
var ErrCorruptTable = errors.New("statemachine: the table of leases is corrupt in memory")

// Summary is a state in short.
type Summary struct {
	// Index and Term are those of the last entry applied.
	Index, Term uint64
	ClusterID   uint64
	// LogTime is the log time after that entry, in nanoseconds.
	LogTime                   int64
	ApplyVersion              uint32
	Revision, CompactRevision int64
}

// Export is the state of a Machine beside its key space after one entry: the whole of what is small, and of leases and
// request ids what changed. It is taken in one step and encoded later: what it tells never changes.
type Export struct {
	Summary

	state  exportedState
	leases []exportedLease
	// pinned is what Pin has instead of leases; they are read from the machine.
	pinned   *lease.Pin
	machine  *Machine
	requests requestQueue
	// RequestCount is how many request ids are remembered: those of Requests are the newest, and all below the count
	// that Requests does not hold were exported before.
	RequestCount int
}

// exportedState is the small part of the state, as it is encoded. A frontend's session, if it is open, stands in its row.
type exportedState struct {
	Version        int
	Index, Term    uint64
	LogTime        int64
	ClusterID      uint64
	Revision       int64
	Compacted      int64
	ApplyVersion   uint32
	Settings       Settings
	Frontends      []exportedFrontend // by id
	Regions        map[string]RegionState
	NoSpace        bool
	Retention      []exportedSample
	RequestHorizon uint64
	IDs            exportedIDs
	// Leases and Requests are how many there are of the rows that stand apart.
	Leases, Requests int
	Digest           exportedDigest
}

// exportedDigest sums up what stands apart: a restored state must come to the same.
type exportedDigest struct {
	Live             [2]uint64
	Events           uint64
	Leases, Requests uint64
}

type exportedFrontend struct {
	ID          uint64
	Incarnation uint64
	LastSession uint64
	Session     *SessionInfo `json:",omitempty"`
}

type exportedSample struct{ LogTime, Revision int64 }

type exportedLease struct {
	id     int64
	info   lease.Info
	exists bool
}

// exportedRequest is one request id, as it is encoded. What is not UTF-8 by contract goes as bytes.
type exportedRequest struct {
	ID              []byte
	Hash            []byte
	Index           uint64
	LogTime         int64
	Code            errorCode
	Truncated       bool          `json:",omitempty"`
	Revision        int64         `json:",omitempty"`
	LeaseID         int64         `json:",omitempty"`
	LeaseTTLSeconds int64         `json:",omitempty"`
	Granted         *IDResult     `json:",omitempty"`
	Txn             *TxnResult    `json:",omitempty"`
	Put             *PutResult    `json:",omitempty"`
	Delete          *DeleteResult `json:",omitempty"`
	Mutate          *MutateResult `json:",omitempty"`
}

// Export takes the state beside the key space: of the leases those named, of the request ids those decided above the
// index requestsAbove. It costs in proportion to these and to the number of frontends. The goroutine that applies calls
// it between two entries, with each lease that Applied.LeaseChanges named since the export before.
func (m *Machine) Export(requestsAbove uint64, leases []int64) *Export {
	m.mu.RLock()
	defer m.mu.RUnlock()
	x := m.export(requestsAbove)
	for _, id := range leases {
		info, exists := m.leases.Info(id)
		x.leases = append(x.leases, exportedLease{id, info, exists})
	}
	return x
}

// ExportAll is Export of all leases, by id, and of all request ids. It copies the leases, which keeps the next entry waiting
// for 0.2 to 0.5 µs each: Pin is for a machine that goes on. Any goroutine may call it.
func (m *Machine) ExportAll() *Export {
	m.mu.RLock()
	defer m.mu.RUnlock()
	x := m.export(0)
	all := m.leases.All()
	x.leases = make([]exportedLease, len(all))
	for i, info := range all {
		x.leases[i] = exportedLease{info.ID, info, true}
	}
	return x
}

// Pin is ExportAll together with the key space after the same entry. Both must be released: until then the machine keeps
// what they tell of all that changes. It costs the same however many leases and keys there are. Any goroutine may call it.
func (m *Machine) Pin() (*Export, *keyspace.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.export(0)
	x.machine, x.pinned = m, m.leases.Pin()
	return x, m.space.Acquire()
}

// Release lets go of what Pin has pinned, once nobody calls Leases; nothing else of the export ends. What Export and
// ExportAll returned needs no release.
func (x *Export) Release() {
	if x.pinned == nil {
		return
	}
	x.machine.mu.Lock()
	defer x.machine.mu.Unlock()
	x.pinned.Release()
}

// exportState takes the small part of the state, without the frontends.
func (m *Machine) exportState() exportedState {
	x := exportedState{
		Version: ExportVersion, Index: m.index, Term: m.term, LogTime: m.logTime, ClusterID: m.clusterID,
		Revision: m.revision, Compacted: m.compacted, ApplyVersion: m.applyVersion, Settings: m.settings,
		Regions: maps.Clone(m.regions), NoSpace: m.noSpace, RequestHorizon: m.requests.horizon,
		IDs: m.ids.export(), Leases: m.leases.Len(), Requests: m.requests.len(),
		Digest: m.exportDigest(),
	}
	for _, s := range m.retention {
		x.Retention = append(x.Retention, exportedSample{s.logTime, s.revision})
	}
	return x
}

// export takes all but the leases.
func (m *Machine) export(requestsAbove uint64) *Export {
	x := &Export{
		Summary: Summary{
			Index: m.index, Term: m.term, ClusterID: m.clusterID, ApplyVersion: m.applyVersion, LogTime: m.logTime,
			Revision: m.revision, CompactRevision: m.compacted,
		},
		RequestCount: m.requests.len(),
		state:        m.exportState(),
	}
	x.state.Frontends = make([]exportedFrontend, 0, len(m.sessions.frontends))
	sessions := make([]SessionInfo, 0, len(m.sessions.open)) // in one piece: an entry may be waiting
	for id, f := range m.sessions.frontends {
		row := exportedFrontend{ID: id, Incarnation: f.incarnation, LastSession: f.lastSession}
		if f.open != nil {
			sessions = append(sessions, f.open.SessionInfo)
			row.Session = &sessions[len(sessions)-1]
		}
		x.state.Frontends = append(x.state.Frontends, row)
	}
	x.requests = m.requests.queue.snapshot(m.requests.queue.above(requestsAbove))
	return x
}

// State returns the encoding of the small part: the same state gives the same bytes. Any goroutine may call it, one at
// a time.
func (x *Export) State() ([]byte, error) {
	slices.SortFunc(x.state.Frontends, func(a, b exportedFrontend) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return json.Marshal(&x.state)
}

// Leases visits the leases that were asked for: the row of each, nil where the lease is no more. The rows of a Pin are read
// some hundred at a time; an entry waits for no more than these.
func (x *Export) Leases(visit func(id int64, row []byte) error) error {
	if x.pinned != nil {
		return x.pinnedLeases(visit)
	}
	for _, l := range x.leases {
		var row []byte
		if l.exists {
			row = encodeLease(&l.info)
		}
		if err := visit(l.id, row); err != nil {
			return err
		}
	}
	return nil
}

func (x *Export) pinnedLeases(visit func(id int64, row []byte) error) error {
	rows := make([]lease.Info, 0, lease.PinPageIDs)
	left := x.pinned.Len()
	for next, more := int64(math.MinInt64), true; more; {
		x.machine.mu.RLock()
		rows, next, more = x.pinned.Page(next, rows[:0])
		x.machine.mu.RUnlock()
		for i := range rows {
			if err := visit(rows[i].ID, encodeLease(&rows[i])); err != nil {
				return err
			}
		}
		left -= len(rows)
	}
	if left != 0 {
		return fmt.Errorf("%w: %d of %d leases are not there", ErrCorruptTable, left, x.pinned.Len())
	}
	return nil
}

// Requests visits the newer request ids, oldest first.
func (x *Export) Requests(visit func(row []byte) error) error {
	for n := range x.requests.count {
		row, err := encodeRequest(x.requests.at(n))
		if err != nil {
			return err
		}
		if err := visit(row); err != nil {
			return err
		}
	}
	return nil
}

// Term returns the term of the last entry that was applied.
func (m *Machine) Term() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.term
}

func encodeLease(info *lease.Info) []byte {
	row := make([]byte, 0, 40)
	row = binary.AppendUvarint(row, uint64(info.TTLSeconds))
	row = binary.AppendUvarint(row, info.Owner)
	row = binary.AppendUvarint(row, info.OwnerIndex)
	row = binary.AppendVarint(row, int64(info.PreviousOwnerSessionTime))
	return binary.AppendVarint(row, info.OrphanStamp)
}

func decodeLease(id int64, row []byte) (lease.Info, error) {
	whole := true
	unsigned := func() uint64 {
		v, n := binary.Uvarint(row)
		if n <= 0 {
			whole = false
			return 0
		}
		row = row[n:]
		return v
	}
	signed := func() int64 {
		v, n := binary.Varint(row)
		if n <= 0 {
			whole = false
			return 0
		}
		row = row[n:]
		return v
	}
	info := lease.Info{ID: id, TTLSeconds: int64(unsigned()), Owner: unsigned(), OwnerIndex: unsigned()}
	info.PreviousOwnerSessionTime, info.OrphanStamp = time.Duration(signed()), signed()
	info.Orphaned = info.Owner == 0
	if !whole || len(row) > 0 {
		return lease.Info{}, fmt.Errorf("%w: lease %d does not decode", ErrInconsistent, id)
	}
	return info, nil
}

func encodeRequest(r *requestRecord) ([]byte, error) {
	o := &r.outcome
	return json.Marshal(&exportedRequest{
		ID: []byte(r.id), Hash: r.hash[:], Index: r.index, LogTime: r.logTime,
		Code: o.code, Truncated: o.truncated, Revision: o.revision,
		LeaseID: o.leaseID, LeaseTTLSeconds: o.leaseTTLSeconds, Granted: o.id, Txn: o.txn, Put: o.put, Delete: o.delete,
		Mutate: o.mutate,
	})
}

func decodeRequest(row []byte) (*requestRecord, error) {
	var x exportedRequest
	if err := strictUnmarshal(row, &x); err != nil {
		return nil, fmt.Errorf("%w: request id: %w", ErrInconsistent, err)
	}
	r := &requestRecord{id: string(x.ID), index: x.Index, logTime: x.LogTime, outcome: outcome{
		code: x.Code, truncated: x.Truncated, revision: x.Revision,
		leaseID: x.LeaseID, leaseTTLSeconds: x.LeaseTTLSeconds, id: x.Granted, txn: x.Txn, put: x.Put, delete: x.Delete,
		mutate: x.Mutate,
	}}
	if len(x.Hash) != len(r.hash) || int(x.Code) >= len(outcomeErrors) {
		return nil, fmt.Errorf("%w: request id %q", ErrInconsistent, x.ID)
	}
	copy(r.hash[:], x.Hash)
	return r, nil
}
