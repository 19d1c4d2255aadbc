package statemachine

import (
	"testing"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

func compareWith(key string, change func(*commandv1.Compare)) *commandv1.Compare {
	c := &commandv1.Compare{Result: commandv1.Compare_RESULT_EQUAL, Key: []byte(key), Target: &commandv1.Compare_ModRevision{ModRevision: 7}}
	if change != nil {
		change(c)
	}
	return c
}

func putOperation(change func(*commandv1.Put)) *commandv1.TxnOperation {
	p := &commandv1.Put{Key: []byte("key"), Value: []byte("value")}
	if change != nil {
		change(p)
	}
	return &commandv1.TxnOperation{Operation: &commandv1.TxnOperation_Put{Put: p}}
}

func swap(compare *commandv1.Compare, operations ...*commandv1.TxnOperation) *commandv1.Txn {
	return &commandv1.Txn{Compares: []*commandv1.Compare{compare}, Success: operations}
}

// What decodeSwap takes is what the general decoder would make of it, and it takes what it is for.
func TestDecodeSwap(t *testing.T) {
	plain := swap(compareWith("key", nil), putOperation(nil))
	for name, txn := range map[string]*commandv1.Txn{
		"mod revision": plain,
		"create revision": swap(compareWith("key", func(c *commandv1.Compare) { c.Target = &commandv1.Compare_CreateRevision{} }),
			putOperation(func(p *commandv1.Put) { p.Lease, p.Previous = 5, true })),
		"version": swap(compareWith("", func(c *commandv1.Compare) {
			c.Target, c.Result = &commandv1.Compare_Version{Version: -1}, commandv1.Compare_RESULT_LESS
		}), putOperation(func(p *commandv1.Put) { p.Value, p.IgnoreValue, p.IgnoreLease = nil, true, true })),
		"no target": swap(compareWith("key", func(c *commandv1.Compare) { c.Target = nil }), putOperation(nil)),
	} {
		if got := decodeSwap(encode(t, txn)); got == nil || !proto.Equal(got, txn) {
			t.Errorf("%s: %v became %v", name, txn, got)
		}
	}
	failing := proto.CloneOf(plain)
	failing.Failure = plain.Success
	encoded := encode(t, plain)
	for name, b := range map[string][]byte{
		"nothing":      nil,
		"a value":      encode(t, swap(compareWith("key", func(c *commandv1.Compare) { c.Target = &commandv1.Compare_Value{Value: []byte("v")} }), putOperation(nil))),
		"a lease":      encode(t, swap(compareWith("key", func(c *commandv1.Compare) { c.Target = &commandv1.Compare_Lease{} }), putOperation(nil))),
		"a range":      encode(t, swap(compareWith("key", func(c *commandv1.Compare) { c.RangeEnd = []byte("l") }), putOperation(nil))),
		"two puts":     encode(t, swap(compareWith("key", nil), putOperation(nil), putOperation(nil))),
		"no put":       encode(t, swap(compareWith("key", nil))),
		"a delete":     encode(t, swap(compareWith("key", nil), &commandv1.TxnOperation{Operation: &commandv1.TxnOperation_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: []byte("k")}}})),
		"a failure":    encode(t, failing),
		"twice":        append(encoded[:len(encoded):len(encoded)], encoded...),
		"cut":          encoded[:len(encoded)-1],
		"of later use": append(encoded[:len(encoded):len(encoded)], 0x7a, 0),
	} {
		if got := decodeSwap(b); got != nil {
			t.Errorf("%s: taken as %v", name, got)
		}
	}
}

func FuzzDecodeSwap(f *testing.F) {
	f.Add(encode(f, swap(compareWith("key", nil), putOperation(nil))))
	f.Add(encode(f, swap(compareWith("key", func(c *commandv1.Compare) { c.Target = &commandv1.Compare_Version{} }), putOperation(nil))))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := decodeSwap(b)
		if got == nil {
			return
		}
		want := &commandv1.Txn{}
		if err := proto.Unmarshal(b, want); err != nil || !understood(want) || !proto.Equal(got, want) {
			t.Fatalf("%v, want %v, %v", got, want, err)
		}
	})
}

func swapBatch(t testing.TB, n int) []byte {
	batch := &commandv1.CommandBatch{}
	for range n {
		batch.Commands = append(batch.Commands, &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: swap(
			compareWith("key", func(c *commandv1.Compare) {
				c.Target, c.Result = &commandv1.Compare_Version{}, commandv1.Compare_RESULT_NOT_EQUAL
			}), putOperation(func(p *commandv1.Put) { p.Value = make([]byte, 256) }))}})
	}
	return encode(t, batch)
}

// applySwaps returns a function that applies a batch of transactions that all succeed.
func applySwaps(t testing.TB, n int, wanted bool) (apply func()) {
	m, index, session := started(t, Options{})
	m.settings.AutoCompactionRevisions = 1000
	envelope := &logv1.Envelope{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: 2e9, Session: session,
		Seq: 1, Payload: putBatch(t, 1, func(int) string { return "key" }, 16)}
	apply = func() {
		index++
		if _, err := m.Apply(index, 1, envelope.Kind, envelope, wanted); err != nil {
			t.Fatal(err)
		}
		envelope.Seq++
	}
	apply()
	envelope.Payload = swapBatch(t, n)
	return apply
}

// TestApplySwapAllocations holds the path of a compare-and-swap to the decoded transaction, the view and the path of its comparisons, and its result.
func TestApplySwapAllocations(t *testing.T) {
	const swaps = 64
	apply := applySwaps(t, swaps, false)
	if allocations := testing.AllocsPerRun(2000, apply) / swaps; allocations > 4.5 {
		t.Errorf("%.2f allocations a transaction", allocations)
	}
}

// BenchmarkApplySwap applies compare-and-swaps of one key; the figures are per transaction.
func BenchmarkApplySwap(b *testing.B) {
	const size = 28
	apply := applySwaps(b, size, false)
	b.ReportAllocs()
	for i := 0; b.Loop(); i += size {
		apply()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/swap")
}
