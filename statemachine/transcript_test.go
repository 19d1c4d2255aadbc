package statemachine

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// transcript applies entries to two machines: one whose results are wanted and one whose are not. They must stay equal.
type transcript struct {
	proposer, other *Machine
	index           uint64
	logTime         time.Duration
	session         uint64
}

func newTranscript() *transcript {
	return &transcript{proposer: New(Options{}), other: New(Options{})}
}

// apply applies one entry to both machines.
func (tr *transcript) apply(t testing.TB, kind logv1.EntryKind, envelope *logv1.Envelope) (*Applied, error) {
	t.Helper()
	tr.index++
	if envelope != nil {
		envelope.Kind, envelope.LogTimeNanoseconds = kind, uint64(tr.logTime)
	}
	applied, err := tr.proposer.Apply(tr.index, 1, kind, envelope, true)
	_, otherErr := tr.other.Apply(tr.index, 1, kind, envelope, false)
	if (err == nil) != (otherErr == nil) {
		t.Fatalf("entry %d: %v where results are wanted, %v where they are not", tr.index, err, otherErr)
	}
	if err != nil {
		return nil, err
	}
	if a, b := dump(tr.proposer), dump(tr.other); a != b {
		t.Fatalf("entry %d: the copies differ:\n%s\n%s", tr.index, a, b)
	}
	verify(t, tr.proposer)
	return applied, nil
}

func formatApplied(a *Applied) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: revision %d", a.Index, a.Revision)
	if a.CompactRevision > 0 {
		fmt.Fprintf(&b, " compacted %d", a.CompactRevision)
	}
	if a.Skipped != SkipNone {
		fmt.Fprintf(&b, " skipped: %s", a.Skipped)
	}
	if a.ExpectedSeq != 0 {
		fmt.Fprintf(&b, ", expected seq %d", a.ExpectedSeq)
	}
	b.WriteByte('\n')
	for _, s := range a.SessionsEnded {
		fmt.Fprintf(&b, "  session %d ended: %s", s.ID, s.Reason)
		if s.ReplacedBy != 0 {
			fmt.Fprintf(&b, " by %d", s.ReplacedBy)
		}
		b.WriteByte('\n')
	}
	for _, s := range a.SessionsOpened {
		fmt.Fprintf(&b, "  session %d opened: frontend %d.%d %q in %q, S=%v\n",
			s.ID, s.FrontendID, s.Incarnation, s.Name, s.Region, s.SessionTime)
	}
	for _, c := range a.LeaseChanges {
		fmt.Fprintf(&b, "  lease %d %s: ttl=%v owner=%d@%d", c.ID, c.Kind, c.TTL, c.Owner, c.OwnerIndex)
		if c.PreviousOwner != 0 || c.PreviousOwnerSessionTime != 0 {
			fmt.Fprintf(&b, " previous=%d S=%v", c.PreviousOwner, c.PreviousOwnerSessionTime)
		}
		b.WriteByte('\n')
	}
	for _, r := range a.Results {
		fmt.Fprintf(&b, "  result %s\n", formatResult(r))
	}
	for _, e := range a.Events {
		kind := "delete"
		if e.Put {
			kind = "put"
		}
		fmt.Fprintf(&b, "  event %s %s sub=%d", kind, formatVersion(e.KV), e.KV.Sub)
		if e.HasPrevious {
			fmt.Fprintf(&b, " previous {%s}", formatVersion(e.Previous))
		}
		b.WriteByte('\n')
	}
	for _, changed := range []struct {
		what string
		yes  bool
	}{
		{"settings", a.SettingsChanged}, {"regions", a.RegionsChanged}, {"alarms", a.AlarmsChanged},
		{"to be reported", a.ReportApplied},
	} {
		if changed.yes {
			fmt.Fprintf(&b, "  %s\n", changed.what)
		}
	}
	return b.String()
}

// TestTranscripts runs testdata: entries and what they do. Rewrite them with `go test -rewrite`, and read the diff.
//
//	genesis [cluster=N]                    open frontend=N incarnation=N [region=R] [name=N] [versions=(low,high)]
//	tick                                   raft [kind=N]
//	batch [session=N] [seq=N]              one command a line, as text proto; session and seq default to the next
//	raw kind=N [session=N] [seq=N]         payload in hex
//	range [at=REVISION]                    a Range as text proto, read from the published snapshot
//	read-txn                               a Txn as text proto, evaluated without an entry
//	validate [bytes=N] [operations=N]      a Command as text proto
//	sessions leases keys ids regions alarms settings due
//
// Every entry takes time=DURATION: the log time that it is stamped with; by default that of the entry before.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		tr := newTranscript()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return tr.run(t, d)
		})
	})
}

func (tr *transcript) run(t *testing.T, d *datadriven.TestData) string {
	if d.HasArg("time") {
		var stamp string
		d.ScanArgs(t, "time", &stamp)
		parsed, err := time.ParseDuration(stamp)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		tr.logTime = parsed
	}
	number := func(name string, otherwise uint64) uint64 {
		if d.HasArg(name) {
			d.ScanArgs(t, name, &otherwise)
		}
		return otherwise
	}
	text := func(name string) (s string) {
		if d.HasArg(name) {
			d.ScanArgs(t, name, &s)
		}
		return s
	}
	decode := func(into proto.Message) {
		if err := prototext.Unmarshal([]byte(d.Input), into); err != nil {
			d.Fatalf(t, "%v", err)
		}
	}
	var kind logv1.EntryKind
	var envelope *logv1.Envelope
	m := tr.proposer
	switch d.Cmd {
	case "genesis":
		kind = logv1.EntryKind_ENTRY_KIND_GENESIS
		envelope = &logv1.Envelope{Payload: encode(t, &logv1.Genesis{ClusterId: number("cluster", 7)})}
	case "open":
		kind = logv1.EntryKind_ENTRY_KIND_OPEN_SESSION
		open := &logv1.OpenSession{
			FrontendId: number("frontend", 0), Incarnation: number("incarnation", 0),
			Region: text("region"), FrontendName: text("name"),
		}
		if d.HasArg("versions") {
			var low, high uint64
			d.ScanArgs(t, "versions", &low, &high)
			open.ApplyVersionMin, open.ApplyVersionMax = uint32(low), uint32(high)
		}
		envelope = &logv1.Envelope{Payload: encode(t, open)}
	case "tick":
		kind = logv1.EntryKind_ENTRY_KIND_TICK
		envelope = &logv1.Envelope{}
	case "raft":
		kind = logv1.EntryKind(number("kind", 0))
	case "batch":
		kind = logv1.EntryKind_ENTRY_KIND_BATCH
		session := number("session", tr.session)
		next := uint64(1)
		if s, ok := m.Session(session); ok {
			next = s.LastSeq + 1
		}
		batch := new(commandv1.CommandBatch)
		for line := range strings.Lines(d.Input) {
			c := new(commandv1.Command)
			if err := prototext.Unmarshal([]byte(line), c); err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
			batch.Commands = append(batch.Commands, c)
		}
		envelope = &logv1.Envelope{Session: session, Seq: number("seq", next), Payload: encode(t, batch)}
	case "raw":
		payload, err := hex.DecodeString(strings.Join(strings.Fields(d.Input), ""))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		kind = logv1.EntryKind(number("kind", 0))
		envelope = &logv1.Envelope{Session: number("session", 0), Seq: number("seq", 0), Payload: payload}
	case "range":
		request := new(commandv1.Range)
		decode(request)
		if err := ValidateRange(request); err != nil {
			return fmt.Sprintf("invalid: %v\n", err)
		}
		sn := m.Space().Acquire()
		defer sn.Release()
		result, err := EvaluateRange(sn, request)
		if err != nil {
			return fmt.Sprintf("error: %v\n", err)
		}
		return formatRange(&result) + "\n"
	case "read-txn":
		request := new(commandv1.Txn)
		decode(request)
		if err := ValidateTxn(request, Limits{}); err != nil {
			return fmt.Sprintf("invalid: %v\n", err)
		}
		sn := m.Space().Acquire()
		defer sn.Release()
		result, revision, err := EvaluateReadOnlyTxn(sn, request)
		if err != nil {
			return fmt.Sprintf("error: %v\n", err)
		}
		return fmt.Sprintf("%s @%d\n", formatTxn(result), revision)
	case "validate":
		request := new(commandv1.Command)
		decode(request)
		limits := Limits{MaxRequestBytes: int(number("bytes", 0)), MaxTxnOperations: int(number("operations", 0))}
		if err := ValidateCommand(request, limits); err != nil {
			return err.Error() + "\n"
		}
		return "ok\n"
	default:
		return tr.show(t, d)
	}
	applied, err := tr.apply(t, kind, envelope)
	if err != nil {
		return fmt.Sprintf("stopped: %v\n", err)
	}
	if len(applied.SessionsOpened) > 0 {
		tr.session = applied.SessionsOpened[0].ID
	}
	return formatApplied(applied)
}

// show prints a part of the state, through the read side.
func (tr *transcript) show(t *testing.T, d *datadriven.TestData) string {
	m := tr.proposer
	var b strings.Builder
	switch d.Cmd {
	case "sessions":
		for _, s := range m.Sessions() {
			fmt.Fprintf(&b, "%d: frontend %d.%d in %q, seq %d, last entry %v, S=%v, leases %d\n", s.ID, s.FrontendID,
				s.Incarnation, s.Region, s.LastSeq, time.Duration(s.LastEntryAt), s.SessionTime, s.Leases)
		}
	case "leases":
		for _, l := range m.Leases() {
			fmt.Fprintf(&b, "%d: ttl=%ds owner=%d@%d S=%v", l.ID, l.TTLSeconds, l.Owner, l.OwnerIndex, l.PreviousOwnerSessionTime)
			if l.Orphaned {
				fmt.Fprintf(&b, " orphan since %v", time.Duration(l.OrphanStamp))
			}
			fmt.Fprintf(&b, " keys %q\n", m.LeaseKeys(l.ID))
		}
	case "keys":
		sn := m.Space().Acquire()
		defer sn.Release()
		all, err := EvaluateRange(sn, &commandv1.Range{Key: []byte{0}, RangeEnd: []byte{0}})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all.KVs {
			fmt.Fprintln(&b, formatVersion(v))
		}
	case "regions":
		regions := m.Regions()
		for _, region := range slices.Sorted(maps.Keys(regions)) {
			fmt.Fprintf(&b, "%s: %s\n", region, regions[region])
		}
	case "alarms":
		for _, alarm := range m.Alarms() {
			fmt.Fprintln(&b, alarm)
		}
	case "settings":
		fmt.Fprintf(&b, "%+v\n", m.Settings())
	case "ids":
		b.WriteString(formatIDs(m))
	case "size":
		fmt.Fprintf(&b, "%d\n", m.SizeBytes())
	case "due":
		if due, ok := m.NextDue(); ok {
			fmt.Fprintf(&b, "%v\n", time.Duration(due))
		}
	default:
		d.Fatalf(t, "unknown directive")
	}
	if b.Len() == 0 {
		return "none\n"
	}
	return b.String()
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
