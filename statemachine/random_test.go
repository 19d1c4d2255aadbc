package statemachine

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// logEntry is one entry of a random log.
type logEntry struct {
	kind     logv1.EntryKind
	envelope *logv1.Envelope
}

// randomLog is a generator of entries in which everything happens: sessions of a few frontends come and go, batches
// get lost, repeated and late, leases change hands, regions are fenced, ids are retried, time stands still and jumps.
type randomLog struct {
	t       testing.TB
	r       *rand.Rand
	index   uint64
	logTime int64
	opened  []uint64 // indexes of Opens, taken or not
	seqs    map[uint64]uint64
}

func newRandomLog(t testing.TB, seed uint64) *randomLog {
	return &randomLog{t: t, r: rand.New(rand.NewPCG(seed, 1)), logTime: 1e9, seqs: make(map[uint64]uint64)}
}

func (g *randomLog) next() logEntry {
	g.index++
	g.logTime += g.r.Int64N(3) * g.r.Int64N(int64(2500*time.Millisecond))
	if g.index == 1 {
		return g.entry(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, encode(g.t, &logv1.Genesis{ClusterId: 9}))
	}
	switch n := g.r.IntN(40); {
	case n == 0:
		return logEntry{kind: logv1.EntryKind_ENTRY_KIND_UNSPECIFIED}
	case n == 1:
		return g.entry(logv1.EntryKind_ENTRY_KIND_TICK, 0, 0, nil)
	case n < 6 || len(g.opened) == 0:
		g.opened = append(g.opened, g.index)
		return g.entry(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, 0, encode(g.t, &logv1.OpenSession{
			FrontendId: 1 + g.r.Uint64N(4), Incarnation: g.index - g.r.Uint64N(3), Region: g.region(),
			ApplyVersionMax: uint32(g.r.IntN(3)),
		}))
	default:
		return g.batch()
	}
}

func (g *randomLog) entry(kind logv1.EntryKind, session, seq uint64, payload []byte) logEntry {
	return logEntry{kind, &logv1.Envelope{
		Kind: kind, LogTimeNanoseconds: uint64(g.logTime), Session: session, Seq: seq, Payload: payload,
	}}
}

func (g *randomLog) batch() logEntry {
	session := g.opened[max(0, len(g.opened)-1-g.r.IntN(4))]
	g.seqs[session]++
	seq := g.seqs[session]
	if g.r.IntN(10) == 0 {
		seq += uint64(g.r.IntN(3)) - 1
	}
	batch := &commandv1.CommandBatch{}
	for range g.r.IntN(6) {
		batch.Commands = append(batch.Commands, g.command())
	}
	return g.entry(logv1.EntryKind_ENTRY_KIND_BATCH, session, seq, encode(g.t, batch))
}

func (g *randomLog) region() string { return string(rune('a' + g.r.IntN(3))) }
func (g *randomLog) key() []byte    { return fmt.Appendf(nil, "k%d", g.r.IntN(12)) }
func (g *randomLog) lease() int64   { return g.r.Int64N(6) }

func (g *randomLog) put() *commandv1.Put {
	p := &commandv1.Put{Key: g.key(), Previous: g.r.IntN(2) == 0}
	switch g.r.IntN(6) {
	case 0:
		p.IgnoreValue = true
	case 1:
		p.Value, p.IgnoreLease = g.key(), true
	case 2:
		p.Value, p.Lease = g.key(), g.lease()
	default:
		p.Value = make([]byte, g.r.IntN(300))
	}
	return p
}

func (g *randomLog) mutate() *commandv1.Mutate {
	c := &commandv1.Mutate{Key: fmt.Appendf(nil, "m%d", g.r.IntN(6)), Lease: g.lease() * g.r.Int64N(2)}
	switch g.r.IntN(5) {
	case 0:
		c.Change = &commandv1.Mutate_Max{Max: g.r.Int64N(100)}
	case 1:
		c.Change = &commandv1.Mutate_Insert_{Insert: &commandv1.Mutate_Insert{
			Members: [][]byte{g.key(), g.key()}, MembersMax: g.r.Int64N(10),
		}}
	case 2:
		c.Change = &commandv1.Mutate_Remove_{Remove: &commandv1.Mutate_Remove{Members: [][]byte{g.key(), g.key(), g.key()}}}
	case 3:
		c.Change = &commandv1.Mutate_Append_{Append: &commandv1.Mutate_Append{Data: g.key(), BytesMax: g.r.Int64N(2000)}}
	default:
		c.Change = &commandv1.Mutate_Add{Add: g.r.Int64N(10) - 3}
	}
	return c
}

func (g *randomLog) command() *commandv1.Command {
	c := &commandv1.Command{}
	if g.r.IntN(4) == 0 {
		c.RequestId = fmt.Sprintf("%d-%d", max(g.index, 20)-g.r.Uint64N(20), g.r.IntN(5))
	}
	switch g.r.IntN(32) {
	case 0, 1:
		c.Operation = &commandv1.Command_LeaseGrant{LeaseGrant: &commandv1.LeaseGrant{Id: g.lease(), TtlSeconds: g.r.Int64N(12)}}
	case 2:
		c.Operation = &commandv1.Command_LeaseRevoke{LeaseRevoke: &commandv1.LeaseRevoke{Id: g.lease()}}
	case 3:
		c.Operation = &commandv1.Command_LeaseAdopt{LeaseAdopt: &commandv1.LeaseAdopt{Id: g.lease()}}
	case 4:
		c.Operation = &commandv1.Command_LeaseExpire{LeaseExpire: &commandv1.LeaseExpire{
			Id: g.lease(), OwnerIndex: g.index - g.r.Uint64N(min(g.index, 6)),
		}}
	case 5:
		c.Operation = &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: g.r.Int64N(int64(g.index) + 2)}}
	case 6, 7:
		c.Operation = &commandv1.Command_DeleteRange{DeleteRange: &commandv1.DeleteRange{
			Key: g.key(), RangeEnd: [][]byte{nil, {0}, []byte("k3")}[g.r.IntN(3)], Previous: g.r.IntN(2) == 0,
		}}
	case 8:
		if g.r.IntN(4) == 0 {
			c.Operation = &commandv1.Command_SetRegionState{SetRegionState: &commandv1.SetRegionState{
				Region: g.region(), State: commandv1.SetRegionState_State(g.r.IntN(4)),
			}}
		}
	case 9:
		c.Operation = &commandv1.Command_SetAlarm{SetAlarm: &commandv1.SetAlarm{Alarm: 1, Active: g.r.IntN(8) == 0}}
	case 10:
		c.Operation = &commandv1.Command_ChangeSettings{ChangeSettings: g.settings()}
	case 11, 12, 13, 14, 15:
		c.Operation = &commandv1.Command_Txn{Txn: &commandv1.Txn{
			Compares: []*commandv1.Compare{{
				Key: g.key(), Result: commandv1.Compare_RESULT_GREATER,
				Target: &commandv1.Compare_Version{Version: g.r.Int64N(3)},
			}},
			Success: []*commandv1.TxnOperation{
				{Operation: &commandv1.TxnOperation_Range{Range: &commandv1.Range{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 3}}},
				{Operation: &commandv1.TxnOperation_Put{Put: g.put()}},
				{Operation: &commandv1.TxnOperation_Put{Put: g.put()}},
				{Operation: &commandv1.TxnOperation_Mutate{Mutate: g.mutate()}},
			},
			Failure: []*commandv1.TxnOperation{
				{Operation: &commandv1.TxnOperation_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: g.key()}}},
				{Operation: &commandv1.TxnOperation_Put{Put: g.put()}},
			},
		}}
	case 24:
		c.Operation = &commandv1.Command_IdNodeGrant{IdNodeGrant: &commandv1.IdNodeGrant{
			Kind: commandv1.IdKind(g.r.IntN(3)), Until: g.r.Int64N(200),
		}}
	case 25:
		c.Operation = &commandv1.Command_IdNodeExtend{IdNodeExtend: &commandv1.IdNodeExtend{
			Kind: commandv1.IdKind(g.r.IntN(3)), Node: uint32(g.r.IntN(4)), From: g.r.Int64N(200), Until: g.r.Int64N(200),
		}}
	case 26:
		c.Operation = &commandv1.Command_IdSegmentGrant{IdSegmentGrant: &commandv1.IdSegmentGrant{
			Range: g.region(), Size: g.r.Int64N(8), Max: 30 * g.r.Int64N(2),
		}}
	case 27:
		c.Operation = &commandv1.Command_IdSequenceNext{IdSequenceNext: &commandv1.IdSequenceNext{
			Name: g.region(), Count: g.r.Int64N(8),
		}}
	case 28, 29, 30, 31:
		c.Operation = &commandv1.Command_Mutate{Mutate: g.mutate()}
	default:
		c.Operation = &commandv1.Command_Put{Put: g.put()}
	}
	return c
}

func (g *randomLog) settings() *commandv1.ChangeSettings {
	pick := func(values ...int64) *int64 {
		if g.r.IntN(2) == 0 {
			return nil
		}
		return &values[g.r.IntN(len(values))]
	}
	return &commandv1.ChangeSettings{
		SessionTimeMilliseconds:             pick(10_000, 20_000, 5),
		QuotaBytes:                          pick(1<<16, 1<<17, 1<<30),
		AutoCompactionRetentionMilliseconds: pick(0, 5_000, 60_000),
		AutoCompactionRevisions:             pick(0, 5, 100),
		RequestIdsMax:                       pick(1, 5, 100),
		RequestIdAgeMilliseconds:            pick(3_000, 60_000),
	}
}

// TestDeterminism feeds the same random entries to machines that differ in everything that must not matter: whether
// results are wanted, how much physical work is done per entry, the size of slabs, and who reads meanwhile.
func TestDeterminism(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(12) {
		log := newRandomLog(t, seed)
		proposer := New(Options{})
		other := New(Options{Space: keyspace.New(keyspace.Options{SlabBytes: 1 << 12}), CompactionBudget: 1})
		stop := readAll(other)
		for range 1500 {
			e := log.next()
			applied, err := proposer.Apply(log.index, 1, e.kind, e.envelope, true)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			again, err := other.Apply(log.index, 1, e.kind, e.envelope, false)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if applied.Results = nil; formatApplied(applied) != formatApplied(again) {
				t.Fatalf("seed %d: the copies did different things:\n%s\n%s", seed, formatApplied(applied), formatApplied(again))
			}
			if log.index%50 == 0 {
				if a, b := dump(proposer), dump(other); a != b {
					t.Fatalf("seed %d, entry %d: the copies differ:\n%s\n%s", seed, log.index, a, b)
				}
			}
			verify(t, proposer)
			count(seen, applied)
		}
		stop()
	}
	// A generator under which something never happens tests nothing of it.
	for _, what := range []string{
		"skipped seq", "skipped session ended", "skipped incarnation", "skipped region fenced", "session expired",
		"session replaced", "session fenced", "lease granted", "lease revoked", "lease expired", "lease adopted",
		"lease orphaned", "events", "alarm",
	} {
		if seen[what] == 0 {
			t.Errorf("never happened: %s", what)
		}
	}
}

func count(seen map[string]int, a *Applied) {
	seen["skipped "+a.Skipped.String()]++
	for _, s := range a.SessionsEnded {
		seen["session "+s.Reason.String()]++
	}
	for _, c := range a.LeaseChanges {
		seen["lease "+c.Kind.String()]++
	}
	seen["events"] += len(a.Events)
	if a.AlarmsChanged {
		seen["alarm"]++
	}
}

// readAll reads everything there is to read, from another goroutine, until stop is called.
func readAll(m *Machine) (stop func()) {
	done := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			for _, l := range m.Leases() {
				m.Lease(l.ID)
				m.LeaseKeys(l.ID)
			}
			for _, s := range m.Sessions() {
				m.Session(s.ID)
			}
			m.Settings()
			m.Alarms()
			m.Regions()
			m.NextDue()
			m.SizeBytes()
			sn := m.Space().Acquire()
			_, _ = EvaluateRange(sn, &commandv1.Range{Key: []byte{0}, RangeEnd: []byte{0}})
			sn.Release()
		}
	})
	return func() {
		close(done)
		readers.Wait()
	}
}

// FuzzApply gives arbitrary payloads to every kind of entry. Whatever they are, nothing panics, two copies stay equal,
// and what stops one stops the other.
func FuzzApply(f *testing.F) {
	log := newRandomLog(f, 1)
	for range 200 {
		if e := log.next(); e.envelope != nil {
			f.Add(uint8(e.kind), e.envelope.LogTimeNanoseconds, e.envelope.Payload)
		}
	}
	f.Add(uint8(3), uint64(1<<63), []byte{})
	f.Fuzz(func(t *testing.T, kind uint8, stamp uint64, payload []byte) {
		m, index, session := started(t, Options{})
		other, _, _ := started(t, Options{CompactionBudget: 1})
		// Twice, so that the second meets what the first has left; then one that is in order.
		for seq, p := range [][]byte{payload, payload, nil} {
			index++
			k := logv1.EntryKind(kind)
			if p == nil {
				k = logv1.EntryKind_ENTRY_KIND_BATCH
			}
			envelope := &logv1.Envelope{
				Kind: k, LogTimeNanoseconds: stamp, Session: session, Seq: uint64(seq) + 1, Payload: p,
			}
			_, err := m.Apply(index, 1, k, envelope, true)
			_, otherErr := other.Apply(index, 1, k, envelope, false)
			if (err == nil) != (otherErr == nil) {
				t.Fatalf("%v and %v", err, otherErr)
			}
			if err != nil {
				return
			}
			if a, b := dump(m), dump(other); a != b {
				t.Fatalf("the copies differ:\n%s\n%s", a, b)
			}
			verify(t, m)
		}
	})
}
