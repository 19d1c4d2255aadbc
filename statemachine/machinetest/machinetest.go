// Package machinetest makes logs and compares states, for the tests of those that keep or copy a state machine's state.
package machinetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// Log makes entries in which everything that an image keeps happens.
type Log struct {
	clusterID      uint64
	r              *rand.Rand
	index, session uint64
	seq            uint64
	logTime        int64
}

// NewLog returns the beginning of a log: the same one for the same arguments.
func NewLog(clusterID, seed uint64) *Log {
	return &Log{clusterID: clusterID, r: rand.New(rand.NewPCG(seed, 5)), logTime: 1e9}
}

// Next makes the next entry's envelope.
func (g *Log) Next() *logv1.Envelope {
	g.index++
	g.logTime += g.r.Int64N(4e9)
	envelope := &logv1.Envelope{LogTimeNanoseconds: uint64(g.logTime)}
	var payload proto.Message
	switch {
	case g.index == 1:
		envelope.Kind, payload = logv1.EntryKind_ENTRY_KIND_GENESIS, &logv1.Genesis{ClusterId: g.clusterID}
	case g.index == 2 || g.r.IntN(20) == 0:
		envelope.Kind = logv1.EntryKind_ENTRY_KIND_OPEN_SESSION
		payload = &logv1.OpenSession{FrontendId: 1 + g.r.Uint64N(3), Incarnation: g.index, Region: "r", ClientUrls: []string{"u"}}
		g.session, g.seq = g.index, 0
	default:
		envelope.Kind = logv1.EntryKind_ENTRY_KIND_BATCH
		g.seq++
		envelope.Session, envelope.Seq = g.session, g.seq
		batch := &commandv1.CommandBatch{}
		for range 1 + g.r.IntN(6) {
			batch.Commands = append(batch.Commands, g.command())
		}
		payload = batch
	}
	envelope.Payload, _ = proto.Marshal(payload)
	return envelope
}

func (g *Log) key() []byte { return fmt.Appendf(nil, "key-%d", g.r.IntN(25)) }

func (g *Log) put() *commandv1.Put {
	p := &commandv1.Put{Key: g.key(), Value: make([]byte, g.r.IntN(400)), Previous: true}
	if g.r.IntN(3) == 0 {
		p.Lease = g.r.Int64N(4)
	}
	return p
}

func (g *Log) command() *commandv1.Command {
	c := &commandv1.Command{}
	if g.r.IntN(3) == 0 {
		c.RequestId = fmt.Sprintf("%d-%d", g.index-1, g.r.IntN(9))
	}
	switch g.r.IntN(19) {
	case 0, 1:
		c.Operation = &commandv1.Command_LeaseGrant{LeaseGrant: &commandv1.LeaseGrant{Id: 1 + g.r.Int64N(4), TtlSeconds: 1 + g.r.Int64N(20)}}
	case 2:
		c.Operation = &commandv1.Command_LeaseRevoke{LeaseRevoke: &commandv1.LeaseRevoke{Id: 1 + g.r.Int64N(4)}}
	case 3:
		c.Operation = &commandv1.Command_LeaseAdopt{LeaseAdopt: &commandv1.LeaseAdopt{Id: 1 + g.r.Int64N(4)}}
	case 4:
		c.Operation = &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: g.r.Int64N(int64(2*g.index) + 2)}}
	case 5, 6:
		c.Operation = &commandv1.Command_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: g.key(), RangeEnd: []byte("key-5")}}
	case 7:
		ids := 1 + g.r.Int64N(20)
		c.Operation = &commandv1.Command_ChangeSettings{ChangeSettings: &commandv1.ChangeSettings{RequestIdsMax: &ids}}
	case 11:
		c.Operation = &commandv1.Command_SetRegionState{SetRegionState: &commandv1.SetRegionState{
			Region: fmt.Sprintf("région <%d>", g.r.IntN(3)), State: commandv1.SetRegionState_State(1 + g.r.IntN(2)),
		}}
	case 12:
		name := fmt.Sprintf("ids-%d", g.r.IntN(3))
		switch g.r.IntN(3) {
		case 0:
			c.Operation = &commandv1.Command_IdNodeGrant{IdNodeGrant: &commandv1.IdNodeGrant{
				Kind: commandv1.IdKind_ID_KIND_SNOWFLAKE, Until: 1 + g.r.Int64N(1000),
			}}
		case 1:
			c.Operation = &commandv1.Command_IdSegmentGrant{IdSegmentGrant: &commandv1.IdSegmentGrant{Range: name, Size: 10}}
		default:
			c.Operation = &commandv1.Command_IdSequenceNext{IdSequenceNext: &commandv1.IdSequenceNext{Name: name, Count: 3}}
		}
	case 8, 9, 10:
		c.Operation = &commandv1.Command_Txn{Txn: &commandv1.Txn{Success: []*commandv1.TxnOperation{
			{Operation: &commandv1.TxnOperation_Put{Put: g.put()}},
			{Operation: &commandv1.TxnOperation_Range{Range: &commandv1.Range{Key: []byte("key"), RangeEnd: []byte("l"), Limit: 2}}},
			{Operation: &commandv1.TxnOperation_Put{Put: g.put()}},
		}}}
	default:
		c.Operation = &commandv1.Command_Put{Put: g.put()}
	}
	return c
}

// Dump is the whole state: the export is canonical and complete, and beside it stands the key space.
func Dump(t testing.TB, m *statemachine.Machine) string {
	var b strings.Builder
	var ids []int64
	for _, l := range m.Leases() {
		ids = append(ids, l.ID)
		fmt.Fprintf(&b, "lease %d keys %q\n", l.ID, m.LeaseKeys(l.ID))
	}
	x := m.Export(0, ids)
	state, err := x.State()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "%s\n", state)
	_ = x.Leases(func(id int64, row []byte) error { fmt.Fprintf(&b, "%d %x\n", id, row); return nil })
	_ = x.Requests(func(row []byte) error { fmt.Fprintf(&b, "%s\n", row); return nil })
	sn := m.Space().Acquire()
	defer sn.Release()
	fmt.Fprintf(&b, "%d %d %d size %d\n", sn.Index(), sn.Revision(), sn.CompactRevision(), m.SizeBytes())
	visit := func(v keyspace.Version) bool {
		fmt.Fprintf(&b, "%q %d %d %d %d %d %v %x\n", v.Key, v.ModRevision, v.Sub, v.CreateRevision, v.Version, v.Lease, v.Tombstone, v.Value)
		return true
	}
	_ = sn.Range(nil, nil, sn.CompactRevision(), visit)
	_ = sn.History(sn.CompactRevision(), 0, visit)
	return b.String()
}

// Apply applies an entry to a machine. The envelope is not kept.
func Apply(t testing.TB, m *statemachine.Machine, index uint64, e *logv1.Envelope) *statemachine.Applied {
	a, err := m.Apply(index, 1, e.Kind, proto.Clone(e).(*logv1.Envelope), false)
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
	return a
}

// Puts is a log that puts keys of 256-byte values, each several times, 32 in a batch, and compacts
// at the end.
func Puts(clusterID uint64, keys, times int) []*logv1.Envelope {
	encode := func(m proto.Message) []byte {
		payload, err := proto.Marshal(m)
		if err != nil {
			panic(err) // not reached: all strings are UTF-8
		}
		return payload
	}
	entries := []*logv1.Envelope{
		{Kind: logv1.EntryKind_ENTRY_KIND_GENESIS, Payload: encode(&logv1.Genesis{ClusterId: clusterID})},
		{Kind: logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, Payload: encode(&logv1.OpenSession{FrontendId: 1, Incarnation: 1})},
	}
	const perBatch = 32
	value := make([]byte, 256)
	for n := 0; n < keys*times; n += perBatch {
		batch := &commandv1.CommandBatch{}
		for i := n; i < n+perBatch; i++ {
			batch.Commands = append(batch.Commands, &commandv1.Command{Operation: &commandv1.Command_Put{
				Put: &commandv1.Put{Key: fmt.Appendf(nil, "key-%012d", i%keys), Value: value},
			}})
		}
		entries = append(entries, &logv1.Envelope{
			Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 2, Seq: uint64(len(entries) - 1), Payload: encode(batch),
		})
	}
	compact := &commandv1.CommandBatch{Commands: []*commandv1.Command{{Operation: &commandv1.Command_Compact{
		Compact: &commandv1.Compact{Revision: int64(keys*times) + 1},
	}}}}
	return append(entries, &logv1.Envelope{
		Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 2, Seq: uint64(len(entries) - 1), Payload: encode(compact),
	})
}

// LimitFileSize runs the test that calls it once more, alone in a process of its own, and returns a function there by which files
// of the process can grow to so many bytes only, as on a disk that takes no more; zero is no limit. Where the test was called
// first, LimitFileSize reports what came of that and returns nil: the limit holds for a whole process, and the testing framework
// writes files too.
func LimitFileSize(t *testing.T) func(bytes uint64) {
	t.Helper()
	const variable = "LOGMIRROR_TEST_IN_OWN_PROCESS"
	if os.Getenv(variable) != t.Name() {
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
		command.Env = append(os.Environ(), variable+"="+t.Name())
		if output, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, output)
		}
		return nil
	}
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := func(bytes uint64) {
		t.Helper()
		if bytes == 0 {
			bytes = before.Cur
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { limit(0) })
	return limit
}
