package statemachine

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/lease"
)

// script applies batches of one session.
type script struct {
	t              testing.TB
	m              *Machine
	index, session uint64
	seq            uint64
	logTime        uint64
}

func newScript(t testing.TB) *script {
	s := &script{t: t, logTime: 2e9}
	s.m, s.index, s.session = started(t, Options{})
	return s
}

func (s *script) batch(commands ...*commandv1.Command) *Applied {
	s.t.Helper()
	s.index++
	s.seq++
	applied, err := s.m.Apply(s.index, 1, logv1.EntryKind_ENTRY_KIND_BATCH, &logv1.Envelope{
		Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: s.logTime, Session: s.session, Seq: s.seq,
		Payload: encode(s.t, &commandv1.CommandBatch{Commands: commands}),
	}, true)
	if err != nil {
		s.t.Fatal(err)
	}
	verify(s.t, s.m)
	return applied
}

func put(key, value string) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_Put{Put: &commandv1.Put{Key: []byte(key), Value: []byte(value)}}}
}

func grant(id, ttlSeconds int64) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_LeaseGrant{
		LeaseGrant: &commandv1.LeaseGrant{Id: id, TtlSeconds: ttlSeconds},
	}}
}

// TestDecodePut compares the decoder of puts with the general one.
func TestDecodePut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		want := &commandv1.Command{
			RequestId:     rapid.String().Draw(rt, "id"),
			ReportApplied: rapid.Bool().Draw(rt, "report"),
			Operation: &commandv1.Command_Put{Put: &commandv1.Put{
				Key: rapid.SliceOf(rapid.Byte()).Draw(rt, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(rt, "value"),
				Lease: rapid.Int64().Draw(rt, "lease"), IgnoreValue: rapid.Bool().Draw(rt, "ignore value"),
				IgnoreLease: rapid.Bool().Draw(rt, "ignore lease"), Previous: rapid.Bool().Draw(rt, "previous"),
			}},
		}
		commands, err := decodeBatch(encode(t, &commandv1.CommandBatch{Commands: []*commandv1.Command{want}}), nil)
		if err != nil || len(commands) != 1 {
			rt.Fatalf("%d commands, %v", len(commands), err)
		}
		got, p := commands[0], want.GetPut()
		if string(got.requestID) != want.RequestId || got.reportApplied != want.ReportApplied ||
			!bytes.Equal(got.put.key, p.Key) || !bytes.Equal(got.put.value, p.Value) || got.put.lease != p.Lease ||
			got.put.ignoreValue != p.IgnoreValue || got.put.ignoreLease != p.IgnoreLease || got.put.previous != p.Previous {
			rt.Fatalf("got %+v of %v", got, want)
		}
	})
}

// TestEveryOperationIsDecoded: an operation that is added to the proto must be added to apply.
func TestEveryOperationIsDecoded(t *testing.T) {
	operations := (&commandv1.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("operation").Fields()
	for i := range operations.Len() {
		field := operations.Get(i)
		c := (&commandv1.Command{}).ProtoReflect()
		c.Set(field, c.NewField(field))
		s := newScript(t)
		result := s.batch(c.Interface().(*commandv1.Command)).Results[0]
		if _, says := result.Err.(*InvalidError); errors.Is(result.Err, ErrInvalidCommand) && !says { // not even a field
			t.Errorf("%s: %v", field.Name(), result.Err)
		}
	}
}

// TestEveryErrorHasACode: what a command is refused with is the same when it is replayed.
func TestEveryErrorHasACode(t *testing.T) {
	for code := 1; code < len(outcomeErrors); code++ {
		err := fmt.Errorf("detail: %w", outcomeErrors[code])
		if got := encodeError(err); got != errorCode(code) || !errors.Is(got.err(), outcomeErrors[code]) {
			t.Errorf("%v has code %d, which is %v", err, got, got.err())
		}
	}
	if encodeError(nil) != 0 || errorCode(0).err() != nil {
		t.Error("success has a code")
	}
	rapid.Check(t, func(rt *rapid.T) {
		s := newScript(t)
		for range rapid.IntRange(1, 8).Draw(rt, "commands") {
			c := genCommand(rt)
			c.RequestId = fmt.Sprintf("1-%d", s.index)
			result := s.batch(c, c).Results
			if again := result[1]; !again.Replayed || errors.Is(again.Err, errRefused) ||
				(again.Err == nil) != (result[0].Err == nil) || again.Err != nil && !errors.Is(result[0].Err, again.Err) {
				rt.Fatalf("first %v, again %+v", result[0].Err, again)
			}
		}
	})
}

// TestOutcomeIsBounded: an outcome with much in it is remembered without its key-values, and what it counts stays.
func TestOutcomeIsBounded(t *testing.T) {
	s := newScript(t)
	for i := range 100 {
		s.batch(put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 100)))
	}
	all := &commandv1.Range{Key: []byte{0}, RangeEnd: []byte{0}}
	operation := func(o *commandv1.TxnOperation) []*commandv1.TxnOperation { return []*commandv1.TxnOperation{o} }
	read := &commandv1.Command{RequestId: "1-read", Operation: &commandv1.Command_Txn{Txn: &commandv1.Txn{
		Success: operation(&commandv1.TxnOperation{Operation: &commandv1.TxnOperation_Range{Range: all}}),
	}}}
	many := &commandv1.Command{RequestId: "1-many", Operation: &commandv1.Command_Txn{Txn: &commandv1.Txn{}}}
	for range 30 {
		many.GetTxn().Success = append(many.GetTxn().Success, read.GetTxn().Success[0])
	}
	remove := &commandv1.Command{RequestId: "1-remove", Operation: &commandv1.Command_DeleteRange{
		DeleteRange: &commandv1.DeleteRange{Key: []byte{0}, RangeEnd: []byte{0}, Previous: true},
	}}
	for _, c := range []*commandv1.Command{read, many, remove} {
		first, again := s.batch(c).Results[0], s.batch(c).Results[0]
		if first.Truncated || !again.Replayed || !again.Truncated || again.Revision != first.Revision {
			t.Errorf("%s: %+v", c.RequestId, again)
		}
		if d := again.Delete; d != nil && (d.Deleted != 100 || d.Previous != nil) {
			t.Errorf("delete: %+v", d)
		}
		if txn := again.Txn; txn != nil && (!txn.Succeeded || txn.Operations != nil) {
			t.Errorf("txn: %+v", txn)
		}
	}
}

// TestRequestTableShrinks: after its bound was lowered, no entry has to forget it whole, and the horizon follows.
func TestRequestTableShrinks(t *testing.T) {
	s := newScript(t)
	for i := range 40 {
		batch := make([]*commandv1.Command, 100)
		for j := range batch {
			batch[j] = put("k", "v")
			batch[j].RequestId = fmt.Sprintf("1-%d-%d", i, j)
		}
		s.batch(batch...)
	}
	last := s.index
	settings := &commandv1.Command{Operation: &commandv1.Command_ChangeSettings{
		ChangeSettings: &commandv1.ChangeSettings{RequestIdsMax: proto.Int64(10)},
	}}
	s.batch(settings)
	if got := s.m.requests.len(); got != 4000 {
		t.Fatalf("%d ids before the next entry", got)
	}
	for range 4 {
		before := s.m.requests.len()
		s.batch()
		if after := s.m.requests.len(); after < 10 || before-after > maxForgottenPerEntry {
			t.Fatalf("%d ids after %d", after, before)
		}
	}
	if got := s.m.requests.len(); got != 10 || s.m.requests.horizon != last {
		t.Fatalf("%d ids, horizon %d, want 10 and %d", got, s.m.requests.horizon, last)
	}
}

// TestOrphansEndABoundedNumberPerEntry: many orphans that are due end over several entries, the earliest first.
func TestOrphansEndABoundedNumberPerEntry(t *testing.T) {
	s := newScript(t)
	const leases = 2*maxOrphansPerEntry + 10
	var grants []*commandv1.Command
	for id := range int64(leases) {
		grants = append(grants, grant(leases-id, 5))
	}
	s.batch(grants...)
	s.logTime += 20e9 // the session ends, and its leases have their TTL left
	ended := s.batch()
	if ended.Skipped != SkipSessionEnded || len(ended.LeaseChanges) != leases {
		t.Fatalf("skipped %v, %d changes", ended.Skipped, len(ended.LeaseChanges))
	}
	s.logTime += 5e9
	var ids []int64
	for _, want := range []int{maxOrphansPerEntry, maxOrphansPerEntry, 10, 0} {
		applied := s.batch()
		if len(applied.LeaseChanges) != want {
			t.Fatalf("%d ended, want %d", len(applied.LeaseChanges), want)
		}
		for _, c := range applied.LeaseChanges {
			if c.Kind != lease.Expired {
				t.Fatalf("%+v", c)
			}
			ids = append(ids, c.ID)
		}
	}
	for i, id := range ids {
		if id != int64(i+1) {
			t.Fatalf("lease %d ended in place %d", id, i)
		}
	}
}

// TestFrontendsAreBounded: the table forgets the frontend that was gone longest, never one with an open session.
func TestFrontendsAreBounded(t *testing.T) {
	m := New(Options{})
	for id := uint64(1); id <= maxFrontends; id++ {
		m.sessions.remember(id).lastSession = maxFrontends + 1 - id
	}
	e := &entry{applied: &Applied{Index: maxFrontends + 2}}
	if skipped := m.openSession(e, &logv1.OpenSession{FrontendId: 1 << 40, Incarnation: 1}); skipped != SkipNone {
		t.Fatal(skipped)
	}
	if _, ok := m.sessions.frontends[maxFrontends]; ok || len(m.sessions.frontends) != maxFrontends {
		t.Fatalf("%d frontends, the oldest still there: %v", len(m.sessions.frontends), ok)
	}
	for id, f := range m.sessions.frontends {
		if f.open == nil {
			m.sessions.add(&session{SessionInfo: SessionInfo{ID: id, FrontendID: id}})
		}
	}
	if skipped := m.openSession(e, &logv1.OpenSession{FrontendId: 1 << 41, Incarnation: 1}); skipped != SkipTooManySessions {
		t.Fatal(skipped)
	}
}

// TestDeepTransactions: nesting is bounded, whatever the proposer let through.
func TestDeepTransactions(t *testing.T) {
	nest := func(depth int) *commandv1.Command {
		txn := &commandv1.Txn{}
		for range depth - 1 {
			txn = &commandv1.Txn{Success: []*commandv1.TxnOperation{{Operation: &commandv1.TxnOperation_Txn{Txn: txn}}}}
		}
		return &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: txn}}
	}
	s := newScript(t)
	if result := s.batch(nest(maxTxnDepth)).Results[0]; result.Err != nil {
		t.Error(result.Err)
	}
	if result := s.batch(nest(maxTxnDepth + 1)).Results[0]; !errors.Is(result.Err, ErrTooManyOperations) {
		t.Error(result.Err)
	}
	wide := &commandv1.Txn{}
	for i := range maxTxnOperations + 1 {
		wide.Success = append(wide.Success, &commandv1.TxnOperation{Operation: &commandv1.TxnOperation_Put{
			Put: &commandv1.Put{Key: fmt.Append(nil, i)},
		}})
	}
	if result := s.batch(&commandv1.Command{Operation: &commandv1.Command_Txn{Txn: wide}}).Results[0]; !errors.Is(result.Err, ErrTooManyOperations) {
		t.Error(result.Err)
	}
}

// TestOutOfOrder: an index that was left out or comes again stops the machine, and so does a term that goes back.
func TestOutOfOrder(t *testing.T) {
	for _, wrong := range []struct{ index, term uint64 }{{2, 1}, {4, 1}, {3, 0}} {
		m, index, _ := started(t, Options{})
		if index != 2 {
			t.Fatal(index)
		}
		for range 2 {
			if _, err := m.Apply(wrong.index, wrong.term, 0, nil, false); !errors.Is(err, ErrOutOfOrder) {
				t.Errorf("%+v: %v", wrong, err)
			}
		}
		if _, err := m.Apply(3, 1, 0, nil, false); err == nil {
			t.Error("went on after an error")
		}
	}
}
