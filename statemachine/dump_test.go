package statemachine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// dump writes the whole state in a canonical form: two machines with equal dumps are equal in all that apply reads.
func dump(m *Machine) string {
	var b strings.Builder
	fmt.Fprintf(&b, "index %d term %d time %d cluster %d revision %d compacted %d version %d nospace %v size %d\n",
		m.index, m.term, m.logTime, m.clusterID, m.revision, m.compacted, m.applyVersion, m.noSpace, m.size())
	fmt.Fprintf(&b, "settings %+v\nretention %v\n", m.settings, m.retention)
	for _, region := range slices.Sorted(maps.Keys(m.regions)) {
		fmt.Fprintf(&b, "region %q %s\n", region, m.regions[region])
	}
	for _, id := range slices.Sorted(maps.Keys(m.sessions.frontends)) {
		f := m.sessions.frontends[id]
		fmt.Fprintf(&b, "frontend %d incarnation %d last %d", id, f.incarnation, f.lastSession)
		if f.open != nil {
			fmt.Fprintf(&b, " open %+v", f.open.SessionInfo)
		}
		b.WriteByte('\n')
	}
	for _, info := range m.leases.All() {
		fmt.Fprintf(&b, "lease %+v keys %q\n", info, m.leases.Keys(info.ID))
	}
	b.WriteString(formatIDs(m))
	fmt.Fprintf(&b, "horizon %d\n", m.requests.horizon)
	for n := range m.requests.len() {
		r := m.requests.queue.at(n)
		fmt.Fprintf(&b, "request %q hash %x index %d time %d: %s\n", r.id, r.hash, r.index, r.logTime, formatResult(r.replay()))
	}
	sn := m.space.Acquire()
	defer sn.Release()
	fmt.Fprintf(&b, "space index %d revision %d compacted %d\n", sn.Index(), sn.Revision(), sn.CompactRevision())
	_ = sn.Range(nil, nil, 0, func(v keyspace.Version) bool {
		fmt.Fprintf(&b, "key %s\n", formatVersion(v))
		return true
	})
	_ = sn.History(sn.CompactRevision(), sn.Revision(), func(v keyspace.Version) bool {
		fmt.Fprintf(&b, "version %s sub %d tombstone %v\n", formatVersion(v), v.Sub, v.Tombstone)
		return true
	})
	return b.String()
}

func formatVersion(v keyspace.Version) string {
	if v.Tombstone {
		return fmt.Sprintf("%q deleted@%d", v.Key, v.ModRevision)
	}
	s := fmt.Sprintf("%q=%q mod=%d create=%d version=%d", v.Key, v.Value, v.ModRevision, v.CreateRevision, v.Version)
	if v.Lease != 0 {
		s += fmt.Sprintf(" lease=%d", v.Lease)
	}
	return s
}

func formatVersions(vs []keyspace.Version) string {
	parts := make([]string, len(vs))
	for i, v := range vs {
		parts[i] = "{" + formatVersion(v) + "}"
	}
	return "[" + strings.Join(parts, " ") + "]"
}

func formatRange(r *RangeResult) string {
	return fmt.Sprintf("range count=%d more=%v %s", r.Count, r.More, formatVersions(r.KVs))
}

func formatOperation(o OperationResult) string {
	switch {
	case o.Range != nil:
		return formatRange(o.Range)
	case o.Put != nil:
		return formatPut(o.Put)
	case o.Delete != nil:
		return formatDelete(o.Delete)
	case o.Txn != nil:
		return formatTxn(o.Txn)
	case o.Mutate != nil:
		return formatMutate(o.Mutate)
	default:
		return "nothing"
	}
}

func formatPut(p *PutResult) string {
	if p.Previous == nil {
		return "put"
	}
	return "put previous {" + formatVersion(*p.Previous) + "}"
}

func formatMutate(r *MutateResult) string {
	s := fmt.Sprintf("mutate changed=%v", r.Changed)
	for _, n := range []struct {
		what  string
		value int64
	}{{"integer", r.Integer}, {"members", r.Members}, {"members changed", r.MembersChanged}} {
		if n.value != 0 {
			s += fmt.Sprintf(" %s=%d", n.what, n.value)
		}
	}
	if r.Current != nil {
		s += " {" + formatVersion(*r.Current) + "}"
	}
	return s
}

func formatDelete(d *DeleteResult) string {
	s := fmt.Sprintf("deleted %d", d.Deleted)
	if len(d.Previous) > 0 {
		s += " previous " + formatVersions(d.Previous)
	}
	return s
}

func formatTxn(t *TxnResult) string {
	parts := make([]string, len(t.Operations))
	for i, o := range t.Operations {
		parts[i] = formatOperation(o)
	}
	return fmt.Sprintf("txn succeeded=%v (%s)", t.Succeeded, strings.Join(parts, "; "))
}

func formatResult(r Result) string {
	var parts []string
	if r.Err != nil {
		parts = append(parts, "error: "+r.Err.Error())
	}
	switch {
	case r.Put != nil:
		parts = append(parts, formatPut(r.Put))
	case r.Delete != nil:
		parts = append(parts, formatDelete(r.Delete))
	case r.Txn != nil:
		parts = append(parts, formatTxn(r.Txn))
	case r.Mutate != nil:
		parts = append(parts, formatMutate(r.Mutate))
	case r.ID != nil:
		parts = append(parts, fmt.Sprintf("id %+v", *r.ID))
	case r.Err == nil && r.LeaseID != 0:
		parts = append(parts, fmt.Sprintf("lease %d ttl=%d", r.LeaseID, r.LeaseTTLSeconds))
	case r.Err == nil:
		parts = append(parts, "ok")
	}
	if r.Replayed {
		parts = append(parts, fmt.Sprintf("replayed of index %d", r.Index))
	}
	if r.Truncated {
		parts = append(parts, "truncated")
	}
	return fmt.Sprintf("%s @%d", strings.Join(parts, ", "), r.Revision)
}

func formatIDs(m *Machine) string {
	var b strings.Builder
	for _, kind := range []IDKind{IDSnowflake, IDRaindrop} {
		for _, node := range m.IDNodes(kind) {
			fmt.Fprintf(&b, "%s node %d until %d holder %d\n", kind, node.Number, node.Until, node.Holder)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.ids.ranges)) {
		fmt.Fprintf(&b, "range %q next %d max %d\n", name, m.ids.ranges[name].next, m.ids.ranges[name].max)
	}
	for _, name := range slices.Sorted(maps.Keys(m.ids.sequences)) {
		fmt.Fprintf(&b, "sequence %q last %d\n", name, m.ids.sequences[name])
	}
	return b.String()
}

// verify checks what must hold after every entry, whatever the test is about.
func verify(t testing.TB, m *Machine) {
	t.Helper()
	open := 0
	for id, f := range m.sessions.frontends {
		if f.open == nil {
			continue
		}
		open++
		if s := f.open; s.FrontendID != id || m.sessions.open[s.ID] != s || s.ended || !slices.Contains(m.sessions.heap, s) {
			t.Fatalf("session %d of frontend %d is not where it should be", s.ID, id)
		}
		if f.open.dueBound > f.open.dueAt() {
			t.Fatalf("session %d would end late", f.open.ID)
		}
	}
	if open != len(m.sessions.open) || open != len(m.sessions.heap) || len(m.sessions.frontends) > maxFrontends {
		t.Fatalf("sessions: %d of frontends, %d open, %d in the heap", open, len(m.sessions.open), len(m.sessions.heap))
	}
	attached := make(map[int64][]string)
	sn := m.space.Acquire()
	defer sn.Release()
	if sn.Index() != m.index || sn.Revision() != m.revision || sn.CompactRevision() != m.compacted {
		t.Fatalf("published (%d, %d, %d), have (%d, %d, %d)",
			sn.Index(), sn.Revision(), sn.CompactRevision(), m.index, m.revision, m.compacted)
	}
	if err := sn.Range(nil, nil, 0, func(v keyspace.Version) bool {
		if v.Lease != 0 {
			attached[v.Lease] = append(attached[v.Lease], string(v.Key))
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for _, info := range m.leases.All() {
		var keys []string
		for _, key := range m.leases.Keys(info.ID) {
			keys = append(keys, string(key))
		}
		if !slices.Equal(keys, attached[info.ID]) || info.Keys != len(keys) {
			t.Fatalf("lease %d has keys %q, attached are %q", info.ID, keys, attached[info.ID])
		}
		delete(attached, info.ID)
		if _, ok := m.sessions.open[info.Owner]; ok == info.Orphaned {
			t.Fatalf("lease %d: owner %d, orphaned %v, its session open %v", info.ID, info.Owner, info.Orphaned, ok)
		}
	}
	if len(attached) > 0 {
		t.Fatalf("keys attached to leases that do not exist: %v", attached)
	}
	queue := &m.requests.queue
	if queue.count != len(m.requests.byID) {
		t.Fatalf("%d request ids in the queue, %d in the index", queue.count, len(m.requests.byID))
	}
	last := m.requests.horizon
	for n := range queue.count {
		r := queue.at(n)
		if r.index < last || m.requests.byID[r.id] != r {
			t.Fatalf("request id %q of index %d after %d", r.id, r.index, last)
		}
		last = r.index
	}
}
