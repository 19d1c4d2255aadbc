package statemachine

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// started returns a machine with one open session, and the index and session to go on with.
func started(t testing.TB, o Options) (m *Machine, index, session uint64) {
	t.Helper()
	m = New(o)
	step := func(kind logv1.EntryKind, payload proto.Message) {
		index++
		envelope := &logv1.Envelope{Kind: kind, LogTimeNanoseconds: 1e9, Payload: encode(t, payload)}
		if _, err := m.Apply(index, 1, kind, envelope, false); err != nil {
			t.Fatal(err)
		}
	}
	step(logv1.EntryKind_ENTRY_KIND_GENESIS, &logv1.Genesis{ClusterId: 1})
	step(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, &logv1.OpenSession{FrontendId: 1, Incarnation: 1, Region: "us"})
	return m, index, index
}

func putBatch(t testing.TB, n int, key func(i int) string, valueBytes int) []byte {
	batch := &commandv1.CommandBatch{}
	for i := range n {
		batch.Commands = append(batch.Commands, &commandv1.Command{Operation: &commandv1.Command_Put{
			Put: &commandv1.Put{Key: []byte(key(i)), Value: make([]byte, valueBytes)},
		}})
	}
	return encode(t, batch)
}

// BenchmarkApplyPut applies batches of plain puts, history compacted as it grows; the figures are per put.
func BenchmarkApplyPut(b *testing.B) {
	for _, wanted := range []bool{false, true} {
		for _, size := range []int{1, 28} {
			b.Run(fmt.Sprintf("batch=%d/wanted=%v", size, wanted), func(b *testing.B) {
				m, index, session := started(b, Options{})
				m.settings.AutoCompactionRevisions = 50_000
				payloads := make([][]byte, 512)
				for p := range payloads {
					payloads[p] = putBatch(b, size, func(i int) string { return fmt.Sprintf("key/%06d", p*size+i) }, 256)
				}
				envelope := &logv1.Envelope{
					Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: 2e9, Session: session,
				}
				b.ReportAllocs()
				seq := uint64(0)
				for i := 0; b.Loop(); i += size {
					index, seq = index+1, seq+1
					envelope.Seq, envelope.Payload = seq, payloads[seq%uint64(len(payloads))]
					if _, err := m.Apply(index, 1, envelope.Kind, envelope, wanted); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/put")
			})
		}
	}
}

// TestApplyPutAllocations holds the path of a plain put to what it hands out: the Applied and its events.
func TestApplyPutAllocations(t *testing.T) {
	const puts = 64
	m, index, session := started(t, Options{})
	m.settings.AutoCompactionRevisions = 1000
	payload := putBatch(t, puts, func(i int) string { return fmt.Sprintf("key/%d", i) }, 16)
	envelope := &logv1.Envelope{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: 2e9, Session: session, Payload: payload}
	allocations := testing.AllocsPerRun(2000, func() {
		index++
		envelope.Seq++
		if _, err := m.Apply(index, 1, envelope.Kind, envelope, false); err != nil {
			t.Fatal(err)
		}
	})
	// Beside the two, the key space publishes a state and sometimes grows.
	if allocations > 6 {
		t.Errorf("%v allocations for a batch of %d puts", allocations, puts)
	}
}
