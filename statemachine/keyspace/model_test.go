package keyspace

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// modelVersion is a version as the model has it: everything said outright.
type modelVersion struct {
	key, value                        string
	create, main, sub, version, lease int64
	tombstone                         bool
}

func (m modelVersion) String() string {
	if m.tombstone {
		return fmt.Sprintf("%s deleted %d/%d", m.key, m.main, m.sub)
	}
	return fmt.Sprintf("%s=%s %d..%d/%d v%d l%d", m.key, m.value, m.create, m.main, m.sub, m.version, m.lease)
}

// encoded is the wire form by the generated code, the independent encoder.
func (m modelVersion) encoded() []byte {
	kv := &kvv1.KeyValue{Key: []byte(m.key), ModRevision: m.main}
	if !m.tombstone {
		kv.CreateRevision, kv.Version, kv.Lease, kv.Value = m.create, m.version, m.lease, []byte(m.value)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(kv)
	if err != nil {
		panic(err)
	}
	return b
}

// model is every version ever written, in order. A state of it is how many of them there were.
type model []modelVersion

// live returns the keys that exist at revision after the first n versions, in order.
func (m model) live(n int, revision int64, start, end string, unbounded bool) []modelVersion {
	newest := map[string]modelVersion{}
	for _, v := range m[:n] {
		if v.main <= revision && v.key >= start && (unbounded || v.key < end) {
			newest[v.key] = v
		}
	}
	var live []modelVersion
	for _, v := range newest {
		if !v.tombstone {
			live = append(live, v)
		}
	}
	slices.SortFunc(live, func(a, b modelVersion) int { return strings.Compare(a.key, b.key) })
	return live
}

func (m model) latest(key string) (modelVersion, bool) {
	for i := len(m) - 1; i >= 0; i-- {
		if m[i].key == key {
			return m[i], !m[i].tombstone
		}
	}
	return modelVersion{}, false
}

func (m model) logicalBytes(n int, compacted int64) (sum int64) {
	for _, v := range m.live(n, compacted, "", "", true) {
		sum += int64(len(v.encoded())) + VersionOverheadBytes
	}
	for _, v := range m[:n] {
		if v.main > compacted {
			sum += int64(len(v.encoded())) + VersionOverheadBytes
		}
	}
	return sum
}

// heldSnapshot is a snapshot beside the model's state when it was acquired.
type heldSnapshot struct {
	sn                  *Snapshot
	count               int
	index               uint64
	revision, compacted int64
}

type machine struct {
	s                    *Space
	m                    model
	index                uint64
	revision             int64 // newest written
	published, compacted int64
	publishedCount       int
	held                 []heldSnapshot
	verifier             *Verifier
}

func key(t *rapid.T) string {
	n := rapid.IntRange(0, 300).Draw(t, "key")
	switch n % 3 {
	case 0:
		return fmt.Sprintf("/registry/pods/namespace-%d/pod-%d", n%7, n)
	case 1:
		return fmt.Sprintf("k%d", n)
	}
	return strings.Repeat("\x00", n%5) + fmt.Sprintf("z%d\xff", n)
}

func (x *machine) txn(t *rapid.T) {
	main := x.revision + 1
	operations := rapid.IntRange(1, 40).Draw(t, "operations")
	var wrote bool
	for sub := range int64(operations) {
		k := key(t)
		before, existed := x.m.latest(k)
		var stored, previous Version
		var had bool
		want := modelVersion{key: k, main: main, sub: sub}
		if rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
			stored, previous, had = x.s.Delete([]byte(k), main, sub)
			if had != existed {
				t.Fatalf("delete %q: existed %v, want %v", k, had, existed)
			}
			if !had {
				continue
			}
			want.tombstone = true
		} else {
			want.value = strings.Repeat("v", rapid.SampledFrom([]int{0, 1, 30, 200, 900, 5000}).Draw(t, "value"))
			want.lease = rapid.SampledFrom([]int64{0, 1, -1, 1 << 40}).Draw(t, "lease")
			want.create, want.version = main, 1
			if existed {
				want.create, want.version = before.create, before.version+1
			}
			stored, previous, had = x.s.Put([]byte(k), []byte(want.value), want.lease, main, sub)
		}
		wrote = true
		mustEqual(t, "stored", stored, want)
		if had != existed {
			t.Fatalf("write %q: existed %v, want %v", k, had, existed)
		}
		if had {
			mustEqual(t, "previous", previous, before)
		}
		x.m = append(x.m, want)
	}
	if wrote {
		x.revision = main
	}
}

func (x *machine) publish(t *rapid.T) {
	x.index += uint64(rapid.IntRange(0, 3).Draw(t, "entries"))
	x.s.Publish(x.index, x.revision)
	x.published, x.publishedCount = x.revision, len(x.m)
}

func (x *machine) compact(t *rapid.T) {
	if x.compacted == x.revision {
		return
	}
	x.compacted = rapid.Int64Range(x.compacted+1, x.revision).Draw(t, "revision")
	x.s.Compact(x.compacted)
	if x.compacted > x.published {
		x.publish(t)
	}
}

func (x *machine) compactSome(t *rapid.T) { x.s.CompactSome(rapid.IntRange(1, 200).Draw(t, "budget")) }

func (x *machine) acquire(t *rapid.T) {
	if len(x.held) == 4 {
		x.release(t)
	}
	x.held = append(x.held, heldSnapshot{x.s.Acquire(), x.publishedCount, x.index, x.published, x.compacted})
}

func (x *machine) release(t *rapid.T) {
	if len(x.held) == 0 {
		return
	}
	i := rapid.IntRange(0, len(x.held)-1).Draw(t, "snapshot")
	x.held[i].sn.Release()
	x.held = slices.Delete(x.held, i, i+1)
}

func (x *machine) read(t *rapid.T) {
	view := x.s.WriterView()
	h := heldSnapshot{&view, len(x.m), x.index, x.revision, x.compacted}
	if i := rapid.IntRange(-1, len(x.held)-1).Draw(t, "snapshot"); i >= 0 {
		h = x.held[i]
	}
	if h.sn.Index() != h.index || h.sn.Revision() != h.revision || h.sn.CompactRevision() != h.compacted {
		t.Fatalf("snapshot (%d, %d, %d), want (%d, %d, %d)", h.sn.Index(), h.sn.Revision(), h.sn.CompactRevision(),
			h.index, h.revision, h.compacted)
	}
	x.readAt(t, h, rapid.Int64Range(max(h.compacted-1, 0), h.revision+1).Draw(t, "revision"))
	x.readHistory(t, h)
	x.readSince(t, h)
}

// readSince reads what was written after an older snapshot, or all history, with what each version superseded.
func (x *machine) readSince(t *rapid.T, h heldSnapshot) {
	older, from, compacted := (*Snapshot)(nil), 0, h.compacted
	if i := rapid.IntRange(-1, len(x.held)-1).Draw(t, "older snapshot"); i >= 0 && x.held[i].count <= h.count {
		older, from, compacted = x.held[i].sn, x.held[i].count, x.held[i].compacted
	} else {
		for from < h.count && x.m[from].main < compacted {
			from++
		}
	}
	var got []Version
	var superseded []Place
	h.sn.HistorySince(older, func(v Version, s Place) bool {
		got, superseded = append(got, v), append(superseded, s)
		return true
	})
	mustEqualAll(t, "history since", got, x.m[from:h.count])
	for i, v := range x.m[from:h.count] {
		want := Place{}
		for _, before := range x.m[:from+i] {
			if before.key == v.key {
				want = Place{before.main, before.sub}
				if before.tombstone || v.main == compacted && before.main < compacted {
					want = Place{}
				}
			}
		}
		if superseded[i] != want {
			t.Fatalf("%v superseded %v, want %v", v, superseded[i], want)
		}
	}
}

func (x *machine) readAt(t *rapid.T, h heldSnapshot, revision int64) {
	start, end := key(t), key(t)
	unbounded := rapid.Bool().Draw(t, "unbounded")
	endBytes := []byte(end)
	if unbounded {
		endBytes = nil
	}
	var got, descending []Version
	err := h.sn.Range([]byte(start), endBytes, revision, func(v Version) bool { got = append(got, v); return true })
	switch {
	case revision > h.revision:
		if !errors.Is(err, ErrFuture) {
			t.Fatalf("future revision: %v", err)
		}
		return
	case revision > 0 && revision < h.compacted:
		if !errors.Is(err, ErrCompacted) {
			t.Fatalf("compacted revision: %v", err)
		}
		return
	case err != nil:
		t.Fatal(err)
	case revision == 0:
		revision = h.revision
	}
	want := x.m.live(h.count, revision, start, end, unbounded)
	mustEqualAll(t, "range", got, want)
	_ = h.sn.RangeDescending([]byte(start), endBytes, revision, func(v Version) bool {
		descending = append(descending, v)
		return true
	})
	slices.Reverse(descending)
	mustEqualAll(t, "descending range", descending, want)
	if n, err := h.sn.Count([]byte(start), endBytes, revision); err != nil || int(n) != len(want) {
		t.Fatalf("count %d (%v), want %d", n, err, len(want))
	}
	v, found, err := h.sn.Get([]byte(start), revision)
	want = x.m.live(h.count, revision, start, start+"\x00", false)
	if exists := len(want) > 0; err != nil || found != exists {
		t.Fatalf("get %q: %v (%v), want %v", start, found, err, exists)
	} else if found {
		mustEqual(t, "get", v, want[0])
	}
}

func (x *machine) readHistory(t *rapid.T, h heldSnapshot) {
	from := rapid.Int64Range(1, h.revision+2).Draw(t, "from")
	to := rapid.Int64Range(0, h.revision+2).Draw(t, "to")
	var got []Version
	err := h.sn.History(from, to, func(v Version) bool { got = append(got, v); return true })
	if from < h.compacted {
		if !errors.Is(err, ErrCompacted) {
			t.Fatalf("compacted history: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var want []modelVersion
	for _, v := range x.m[:h.count] {
		if v.main >= from && (to <= 0 || v.main <= to) {
			want = append(want, v)
		}
	}
	mustEqualAll(t, "history", got, want)
}

func (x *machine) verify(t *rapid.T) {
	if _, err := x.verifier.Verify(rapid.IntRange(1, 1<<20).Draw(t, "budget")); err != nil {
		t.Fatal(err)
	}
}

// restore copies the writer's state to a new Space, by what a reader sees, one by one and in blocks, and goes on with one
// of the copies.
func (x *machine) restore(t *rapid.T) {
	view := x.s.WriterView()
	options := Options{SlabBytes: 2 << 10, CompactRevision: x.compacted}
	copied := New(options)
	var all []Version
	store := func(v Version) bool {
		if err := copied.Restore(v.Encoded, v.Sub); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
		return true
	}
	if x.compacted > 0 {
		if err := view.Range(nil, nil, x.compacted, func(v Version) bool { return v.ModRevision == x.compacted || store(v) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := view.History(x.compacted, 0, store); err != nil {
		t.Fatal(err)
	}
	inBlocks := New(options)
	leased, err := inBlocks.RestoreBlocks(blocksOf(t, all, func() int { return rapid.IntRange(0, 20).Draw(t, "versions of a block") }))
	if err != nil {
		t.Fatal(err)
	}
	var wantLeased []modelVersion
	for _, v := range x.m.live(len(x.m), x.revision, "", "", true) {
		if v.lease != 0 {
			wantLeased = append(wantLeased, v)
		}
	}
	mustEqualAll(t, "leased", leased, wantLeased)
	if inBlocks.Digest().Live != copied.Digest().Live || inBlocks.LogicalBytes() != copied.LogicalBytes() {
		t.Fatalf("in blocks %x and %d bytes, one by one %x and %d", inBlocks.Digest().Live, inBlocks.LogicalBytes(),
			copied.Digest().Live, copied.LogicalBytes())
	}
	if rapid.Bool().Draw(t, "in blocks") {
		copied = inBlocks
	}
	for len(x.held) > 0 {
		x.release(t)
	}
	x.s, x.verifier = copied, copied.NewVerifier()
	x.publish(t)
}

// blocksOf puts versions into blocks of the sizes that size gives, in the order of revisions.
func blocksOf(t interface{ Fatal(...any) }, versions []Version, size func() int) (blocks []*Block) {
	versions = slices.Clone(versions)
	slices.SortFunc(versions, func(a, b Version) int {
		return cmp.Or(cmp.Compare(a.ModRevision, b.ModRevision), cmp.Compare(a.Sub, b.Sub))
	})
	for len(versions) > 0 {
		n, block := min(size(), len(versions)), new(Block)
		for _, v := range versions[:n] {
			encoded := bytes.Clone(v.Encoded)
			if err := block.Add(v.ModRevision, v.Sub, encoded); err != nil {
				t.Fatal(err)
			}
			defer clear(encoded) // it is the caller's again
		}
		block.Seal()
		blocks, versions = append(blocks, block), versions[n:]
	}
	return blocks
}

// check holds after every step.
func (x *machine) check(t *rapid.T) {
	if err := x.s.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	if got, want := x.s.LogicalBytes(), x.m.logicalBytes(len(x.m), x.compacted); got != want {
		t.Fatalf("logical bytes %d, want %d", got, want)
	}
	stats := x.s.Stats()
	if want := len(x.m.live(x.publishedCount, x.published, "", "", true)); stats.Keys != want {
		t.Fatalf("%d published keys, want %d", stats.Keys, want)
	}
	// Versions written but not published do not count; those that a compaction freed no longer do.
	if want := x.m.logicalBytes(x.publishedCount, x.compacted); stats.LogicalBytes != want {
		t.Fatalf("published logical bytes %d, want %d", stats.LogicalBytes, want)
	}
}

func mustEqual(t *rapid.T, what string, got Version, want modelVersion) {
	t.Helper()
	if text(got) != want.String() || got.Tombstone != want.tombstone {
		t.Fatalf("%s: %s, want %s", what, text(got), want)
	}
	if !got.Intact() || !bytes.Equal(got.Encoded, want.encoded()) {
		t.Fatalf("%s: %s is encoded as %x (%v), want %x", what, want, got.Encoded, got.Intact(), want.encoded())
	}
}

func mustEqualAll(t *rapid.T, what string, got []Version, want []modelVersion) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d versions, want %d", what, len(got), len(want))
	}
	for i := range got {
		mustEqual(t, what, got[i], want[i])
	}
}

func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(Options{SlabBytes: 4 << 10})
		x := &machine{s: s, verifier: s.NewVerifier()}
		t.Repeat(map[string]func(*rapid.T){
			"txn": x.txn, "txn2": x.txn, "txn3": x.txn, "publish": x.publish, "publish2": x.publish, "compact": x.compact,
			"compactSome": x.compactSome, "compactSome2": x.compactSome, "acquire": x.acquire, "release": x.release,
			"read": x.read, "read2": x.read, "verify": x.verify, "restore": x.restore, "": x.check,
		})
		for len(x.held) > 0 {
			x.release(t)
		}
		x.s.Publish(x.index, x.revision)
		drain(t, x.s)
		x.publishedCount, x.published = len(x.m), x.revision
		x.check(t)
	})
}

// drain does all the work that compactions have left; there must be no reader.
func drain(t interface{ Fatal(...any) }, s *Space) {
	for s.CompactSome(100) {
	}
	if s.compactionPending() {
		t.Fatal("work is left without a reader")
	}
}
