package statemachine

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// exporter keeps the exported rows of a machine up to date, as an image does.
type exporter struct {
	t        testing.TB
	state    []byte
	leases   map[int64][]byte
	requests [][]byte
	at       uint64
	changed  map[int64]bool
}

func newExporter(t testing.TB) *exporter {
	return &exporter{t: t, leases: make(map[int64][]byte), changed: make(map[int64]bool)}
}

func (x *exporter) applied(a *Applied) {
	for _, c := range a.LeaseChanges {
		x.changed[c.ID] = true
	}
}

func (x *exporter) export(m *Machine) {
	var ids []int64
	for id := range x.changed {
		ids = append(ids, id)
	}
	clear(x.changed)
	e := m.Export(x.at, ids)
	x.at = e.Index
	state, err := e.State()
	if err != nil {
		x.t.Fatal(err)
	}
	x.state = state
	_ = e.Leases(func(id int64, row []byte) error {
		if row == nil {
			delete(x.leases, id)
		} else {
			x.leases[id] = row
		}
		return nil
	})
	if err := e.Requests(func(row []byte) error { x.requests = append(x.requests, row); return nil }); err != nil {
		x.t.Fatal(err)
	}
	x.requests = x.requests[len(x.requests)-e.RequestCount:]
}

// restore builds a second machine from the rows and from what the first one's key space shows.
func (x *exporter) restore(from *Machine) *Machine {
	x.t.Helper()
	r, err := NewRestorer(Options{}, x.state)
	if err != nil {
		x.t.Fatal(err)
	}
	must := func(err error) {
		if err != nil {
			x.t.Helper()
			x.t.Fatal(err)
		}
	}
	for id, row := range x.leases {
		must(r.Lease(id, row))
	}
	for _, row := range x.requests {
		must(r.RequestID(row))
	}
	sn := from.Space().Acquire()
	defer sn.Release()
	if compacted := r.CompactRevision(); compacted > 0 {
		must(sn.Range(nil, nil, compacted, func(v keyspace.Version) bool {
			if v.ModRevision < compacted {
				must(r.Version(v.Encoded, v.Sub))
			}
			return true
		}))
	}
	must(sn.History(r.CompactRevision(), 0, func(v keyspace.Version) bool {
		must(r.Version(v.Encoded, v.Sub))
		return true
	}))
	m, err := r.Machine()
	must(err)
	return m
}

// TestRestoredMachineGoesOnEqually applies a random log to one machine and to a chain of others, each restored from
// what its predecessor exported, and compares everything that apply reads.
func TestRestoredMachineGoesOnEqually(t *testing.T) {
	for seed := range uint64(12) {
		log := newRandomLog(t, seed)
		original, restored := New(Options{}), New(Options{})
		x := newExporter(t)
		for range 1200 {
			e := log.next()
			a, err := original.Apply(log.index, 1, e.kind, e.envelope, true)
			if err != nil {
				t.Fatal(err)
			}
			b, err := restored.Apply(log.index, 1, e.kind, e.envelope, true)
			if err != nil {
				t.Fatal(err)
			}
			if formatApplied(a) != formatApplied(b) {
				t.Fatalf("seed %d, entry %d: after a restore it did other things:\n%s\n%s", seed, log.index, formatApplied(a), formatApplied(b))
			}
			x.applied(b)
			if log.r.IntN(7) == 0 {
				x.export(restored)
				if log.r.IntN(4) == 0 {
					restored = x.restore(restored)
					if a, b := dump(original), dump(restored); a != b {
						t.Fatalf("seed %d, entry %d: the restored machine differs:\n%s\n%s", seed, log.index, a, b)
					}
					verify(t, restored)
				}
			}
		}
	}
}

// TestExportIsCanonical: two machines of the same log, of which one was restored, export the same bytes.
func TestExportIsCanonical(t *testing.T) {
	log := newRandomLog(t, 99)
	a, x := New(Options{}), newExporter(t)
	for range 500 {
		e := log.next()
		applied, err := a.Apply(log.index, 1, e.kind, e.envelope, false)
		if err != nil {
			t.Fatal(err)
		}
		x.applied(applied)
	}
	x.export(a)
	all := func(m *Machine) string {
		var ids []int64
		for _, l := range m.Leases() {
			ids = append(ids, l.ID)
		}
		e := m.Export(0, ids)
		state, err := e.State()
		if err != nil {
			t.Fatal(err)
		}
		s := string(state)
		_ = e.Leases(func(id int64, row []byte) error { s += fmt.Sprintf("%d %x\n", id, row); return nil })
		_ = e.Requests(func(row []byte) error { s += string(row); return nil })
		return s
	}
	if first, second := all(a), all(x.restore(a)); first != second {
		t.Fatalf("exports differ:\n%s\n%s", first, second)
	}
}

func TestRestorerRefuses(t *testing.T) {
	log := newRandomLog(t, 3)
	m, x := New(Options{}), newExporter(t)
	for len(m.Leases()) < 2 || m.requests.len() == 0 {
		e := log.next()
		applied, err := m.Apply(log.index, 1, e.kind, e.envelope, false)
		if err != nil {
			t.Fatal(err)
		}
		x.applied(applied)
	}
	x.export(m)
	for name, state := range map[string]string{
		"nothing": "", "no object": "7", "another version": `{"Version":0}`, "unknown field": `{"Version":1,"Odd":1}`,
	} {
		if _, err := NewRestorer(Options{}, []byte(state)); !errors.Is(err, ErrInconsistent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, state := range map[string]string{
		"a later version": `{"Version":2,"Odd":1}`, "a later apply version": `{"Version":1,"ApplyVersion":2,"Odd":1}`,
	} {
		if _, err := NewRestorer(Options{}, []byte(state)); !errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := NewRestorer(Options{}, x.state)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Machine(); !errors.Is(err, ErrInconsistent) {
		t.Errorf("without its leases: %v", err)
	}
	if err := r.Lease(1, []byte{0x80}); !errors.Is(err, ErrInconsistent) {
		t.Errorf("lease cut short: %v", err)
	}
	if err := r.Lease(1, encodeLease(&m.Leases()[0])[:3]); !errors.Is(err, ErrInconsistent) {
		t.Errorf("lease cut short: %v", err)
	}
	if err := r.RequestID([]byte(`{"ID":"YQ==","Hash":"YQ=="}`)); !errors.Is(err, ErrInconsistent) {
		t.Errorf("request id with half a hash: %v", err)
	}
}

// TestEveryFieldIsExported fails for a field that was added to the state and not to its export: a machine restored
// without it would differ from the others.
func TestEveryFieldIsExported(t *testing.T) {
	known := map[reflect.Type][]string{
		reflect.TypeFor[Machine](): {
			"space", "compactionBudget", "understands", "mu", "failed", "index", "term", "logTime", "clusterID", "revision", "compacted",
			"applyVersion", "settings", "sessions", "leases", "requests", "regions", "noSpace", "ids", "retention",
			"settingsSum", "regionsSum", "commands", "keys", "doomed",
		},
		reflect.TypeFor[session]():         {"SessionInfo", "dueBound", "ended", "sum"},
		reflect.TypeFor[frontend]():        {"incarnation", "lastSession", "open", "sum"},
		reflect.TypeFor[sessionTable]():    {"open", "frontends", "heap"},
		reflect.TypeFor[requestTable]():    {"byID", "queue", "horizon", "digest"},
		reflect.TypeFor[requestQueue]():    {"chunks", "first", "count"},
		reflect.TypeFor[requestRecord]():   {"id", "hash", "index", "logTime", "outcome", "sum"},
		reflect.TypeFor[retentionSample](): {"logTime", "revision"},
		reflect.TypeFor[outcome](): {
			"code", "truncated", "revision", "leaseID", "leaseTTLSeconds", "id", "txn", "put", "delete", "mutate",
		},
		reflect.TypeFor[idTables](): {"nodes", "ranges", "sequences", "sum"},
		reflect.TypeFor[idNode]():   {"holder", "until"},
		reflect.TypeFor[idRange]():  {"next", "max"},
		reflect.TypeFor[lease.Info](): {
			"ID", "TTLSeconds", "Owner", "OwnerIndex", "PreviousOwnerSessionTime", "Orphaned", "OrphanStamp", "Keys",
		},
	}
	for structure, fields := range known {
		for i := range structure.NumField() {
			if name := structure.Field(i).Name; !slices.Contains(fields, name) {
				t.Errorf("%s.%s is not known to the export: export and restore it, raise ExportVersion, list it here", structure, name)
			}
		}
	}
}
