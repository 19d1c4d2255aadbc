package statemachine

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// ExportVersion is the version of the encodings that Export makes and Restore reads. Another one is not read.
const ExportVersion = 1

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
// request ids what changed. It is taken in one step and encoded later: what it holds is never modified.
type Export struct {
	Summary

	state    exportedState
	leases   []exportedLease
	requests []*requestRecord
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

// ExportAll is Export of all leases, by id, and of all request ids. Any goroutine may call it.
func (m *Machine) ExportAll() *Export {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.exportAll()
}

// Pin is ExportAll together with the key space after the same entry, which must be released. Any goroutine may call it; it
// keeps the next entry waiting meanwhile.
func (m *Machine) Pin() (*Export, *keyspace.Snapshot) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.exportAll(), m.space.Acquire()
}

func (m *Machine) exportAll() *Export {
	x := m.export(0)
	all := m.leases.All()
	x.leases = make([]exportedLease, len(all))
	for i, info := range all {
		x.leases[i] = exportedLease{info.ID, info, true}
	}
	return x
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
	for id, f := range m.sessions.frontends {
		row := exportedFrontend{ID: id, Incarnation: f.incarnation, LastSession: f.lastSession}
		if f.open != nil {
			row.Session = new(f.open.SessionInfo)
		}
		x.state.Frontends = append(x.state.Frontends, row)
	}
	queue := m.requests.queue[m.requests.first:]
	newer := len(queue)
	for newer > 0 && queue[newer-1].index > requestsAbove {
		newer--
	}
	x.requests = slices.Clone(queue[newer:])
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

// Leases visits the leases that were asked for: the row of each, nil where the lease is no more.
func (x *Export) Leases(visit func(id int64, row []byte) error) error {
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

// Requests visits the newer request ids, oldest first.
func (x *Export) Requests(visit func(row []byte) error) error {
	for _, r := range x.requests {
		row, err := encodeRequest(r)
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
