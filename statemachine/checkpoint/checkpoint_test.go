package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/image"
	"github.com/logmirror/logmirror/statemachine/keyspace"
	"github.com/logmirror/logmirror/statemachine/machinetest"
)

const testCluster, testEpoch = 9, 1

// mirrored is a machine with an image, as a mirror has it.
type mirrored struct {
	*statemachine.Machine
	options statemachine.Options
	path    string
	image   *image.Image
}

var testIdentity = image.Identity{ClusterID: testCluster, Epoch: testEpoch, FrontendID: 7}

func (m *mirrored) config() image.Config {
	return image.Config{Path: m.path, Identity: testIdentity, StateMachine: m.options, Interval: time.Hour, NoSync: true}
}

func (m *mirrored) open(t testing.TB) {
	t.Helper()
	im, machine, err := image.Open(m.config())
	if err != nil {
		t.Fatal(err)
	}
	if machine == nil {
		machine = statemachine.New(m.options)
	}
	im.Start(machine, func() (image.Identity, bool) { return testIdentity, true })
	m.Machine, m.image = machine, im
}

func (m *mirrored) apply(t testing.TB, index uint64, e *logv1.Envelope) {
	m.image.Applied(machinetest.Apply(t, m.Machine, index, e))
}

// rebuild puts an image made from a checkpoint in the place of the present one.
func (m *mirrored) rebuild(t testing.TB, content []byte) {
	t.Helper()
	m.image.Close(false)
	r, err := NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	b, err := image.NewBuilder(m.config(), r.Header().CompactRevision)
	if err != nil {
		t.Fatal(err)
	}
	machine, _, err := r.Restore(m.options, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Finish(machine.ExportAll()); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	if m.Index() != machine.Index() {
		t.Fatalf("the image that was built gives index %d, it was of %d", m.Index(), machine.Index())
	}
}

func write(t testing.TB, m *statemachine.Machine) []byte {
	t.Helper()
	var b bytes.Buffer
	s := Pin(m, testEpoch)
	defer s.Release()
	if _, err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(content []byte) (*statemachine.Machine, Counts, error) {
	return readFrom(bytes.NewReader(content), statemachine.Options{})
}

func readFrom(from io.Reader, o statemachine.Options) (*statemachine.Machine, Counts, error) {
	r, err := NewReader(from)
	if err != nil {
		return nil, Counts{}, err
	}
	return r.Restore(o, nil)
}

// TestCanonical: mirrors that replayed everything, that restarted from images, that were built from checkpoints, and that
// remove what was compacted at different paces, write the same bytes at every index, and restore the same state.
func TestCanonical(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 1))
		log := machinetest.NewLog(testCluster, seed)
		replayed := statemachine.New(statemachine.Options{})
		lazy := statemachine.New(statemachine.Options{CompactionBudget: 1})
		restarted := &mirrored{options: statemachine.Options{CompactionBudget: 3}, path: filepath.Join(t.TempDir(), "image")}
		restarted.open(t)
		rebuilt := &mirrored{path: filepath.Join(t.TempDir(), "image")}
		rebuilt.open(t)
		for index := uint64(1); index <= 400; index++ {
			e := log.Next()
			machinetest.Apply(t, replayed, index, e)
			machinetest.Apply(t, lazy, index, e)
			restarted.apply(t, index, e)
			rebuilt.apply(t, index, e)
			for r.IntN(20) == 0 && replayed.Maintain() {
				continue
			}
			if r.IntN(30) == 0 {
				restarted.image.Close(true)
				restarted.open(t)
			}
			if r.IntN(12) != 0 {
				continue
			}
			want := write(t, replayed)
			for name, other := range map[string]*statemachine.Machine{
				"lazy": lazy, "restarted": restarted.Machine, "rebuilt": rebuilt.Machine,
			} {
				if got := write(t, other); !bytes.Equal(got, want) {
					t.Fatalf("seed %d, index %d: the %s mirror's bytes differ", seed, index, name)
				}
			}
			machine, counts, err := read(want)
			if err != nil {
				t.Fatalf("seed %d, index %d: %v", seed, index, err)
			}
			if machinetest.Dump(t, machine) != machinetest.Dump(t, replayed) {
				t.Fatalf("seed %d, index %d: restored another state", seed, index)
			}
			if counts.Leases != uint64(replayed.LeaseCount()) {
				t.Fatalf("counts %+v", counts)
			}
			if rebuilt.image.Abandoned() || restarted.image.Abandoned() {
				t.Fatalf("seed %d, index %d: an image was given up", seed, index)
			}
			if r.IntN(3) == 0 {
				rebuilt.rebuild(t, want)
			} else {
				rebuilt.image.Close(true)
				rebuilt.open(t)
			}
		}
		restarted.image.Close(false)
		rebuilt.image.Close(false)
	}
}

// TestGolden holds the bytes to those of the builds before: other bytes for the same state would need another format
// version. Set
// UPDATE_GOLDEN after a change of the format version.
func TestGolden(t *testing.T) {
	content := write(t, applied(t, 3, 250))
	golden := filepath.Join("testdata", fmt.Sprintf("v%d.checkpoint", FormatVersion))
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, want) {
		t.Fatalf("the bytes of a known state have changed: %x, were %x", sha256.Sum256(content), sha256.Sum256(want))
	}
	if _, _, err := read(want); err != nil {
		t.Fatal(err)
	}
}

// applied is a machine after some entries of a random log.
func applied(t testing.TB, seed uint64, entries int) *statemachine.Machine {
	log, m := machinetest.NewLog(testCluster, seed), statemachine.New(statemachine.Options{})
	for i := range entries {
		machinetest.Apply(t, m, uint64(i+1), log.Next())
	}
	return m
}

// TestPinned: what is applied, compacted and removed after Pin does not show.
func TestPinned(t *testing.T) {
	log, m := machinetest.NewLog(testCluster, 4), statemachine.New(statemachine.Options{})
	for index := uint64(1); index <= 300; index++ {
		machinetest.Apply(t, m, index, log.Next())
	}
	want := write(t, m)
	s := Pin(m, testEpoch)
	go func() {
		for index := uint64(301); index <= 900; index++ {
			machinetest.Apply(t, m, index, log.Next())
			m.Maintain()
		}
	}()
	var got bytes.Buffer
	if _, err := s.Write(&got); err != nil {
		t.Fatal(err)
	}
	s.Release()
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatal("entries after the pin show")
	}
}

// Blocks that are all whole, but not those that the end tells of, are refused.
func TestRecordsAreCounted(t *testing.T) {
	for _, wrong := range []Counts{{Leases: 1}, {RequestIDs: 1}, {Base: 1}, {History: 1}} {
		s := Pin(applied(t, 6, 200), testEpoch)
		var content bytes.Buffer
		err := s.write(&encoder{w: &content, counts: wrong})
		s.Release()
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(&content)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Restore(statemachine.Options{}, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v more than there are: %v", wrong, err)
		}
	}
}

func TestRottenMemory(t *testing.T) {
	m := applied(t, 5, 200)
	sn := m.Space().Acquire()
	var rotten keyspace.Version
	if err := sn.Range(nil, nil, 0, func(v keyspace.Version) bool { rotten = v; return len(v.Value) == 0 }); err != nil {
		t.Fatal(err)
	}
	sn.Release()
	rotten.Value[0] ^= 4
	s := Pin(m, testEpoch)
	defer s.Release()
	if _, err := s.Write(io.Discard); !errors.Is(err, ErrRotten) {
		t.Fatalf("a flipped bit gives %v", err)
	}
}

// TestDamage flips bits and cuts: at every byte of the beginning and at the last, and at every seventh between.
func TestDamage(t *testing.T) {
	whole := write(t, applied(t, 6, 20))
	refused := func(what string, at int, content []byte) {
		t.Helper()
		_, _, err := read(content)
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
			t.Fatalf("%s at %d of %d: %v", what, at, len(whole), err)
		}
	}
	for at := range whole {
		if at > 200 && at < len(whole)-100 && at%7 != 0 {
			continue
		}
		refused("cut", at, whole[:at])
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1 << (at % 8)
		refused("bit flipped", at, damaged)
	}
	refused("a byte more", len(whole), append(bytes.Clone(whole), 0))
	refused("twice", len(whole), append(bytes.Clone(whole), whole...))
}

// failing fails after some bytes.
type failing struct{ left int }

var errDisk = errors.New("disk")

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func TestErrorsOfTheStreamAreItsOwn(t *testing.T) {
	m := applied(t, 7, 200)
	size := len(write(t, m))
	s := Pin(m, testEpoch)
	defer s.Release()
	for left := 0; left < size; left += 1009 {
		if _, err := s.Write(&failing{left}); !errors.Is(err, errDisk) {
			t.Fatalf("after %d bytes: %v", left, err)
		}
	}
	_, _, err := readFrom(io.MultiReader(bytes.NewReader(write(t, m)[:1000]), brokenReader{}), statemachine.Options{})
	if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("a stream that fails is taken for damage: %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errDisk }

// FuzzRead (best with -fuzzminimizetime 5x: the inputs are large): whatever bytes come, with checksums that are right, an error or a state that can be written again.
func FuzzRead(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(write(f, applied(f, seed, 30)))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, c := range [][]byte{content, resealed(content)} {
			m, _, err := read(c)
			if err != nil {
				continue
			}
			again := write(t, m)
			if _, _, err := read(again); err != nil {
				t.Fatalf("what was read cannot be read again: %v", err)
			}
		}
	})
}

// TestPinVisitsNoKey counts what a pin takes of memory: the same for one key and for many.
func TestPinVisitsNoKey(t *testing.T) {
	cost := func(keys int) (allocations, bytes uint64) {
		m := large(t, keys)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const pins = 100
		for range pins {
			Pin(m, testEpoch).Release()
		}
		runtime.ReadMemStats(&after)
		return (after.Mallocs - before.Mallocs) / pins, (after.TotalAlloc - before.TotalAlloc) / pins
	}
	allocations, bytes := cost(32)
	if a, b := cost(20_000); a > allocations+4 || b > bytes+1024 {
		t.Errorf("%d allocations of %d bytes with 20,000 keys, %d of %d with 32", a, b, allocations, bytes)
	}
}

// TestPinnedBytes: what is written of a pinned state, at once, in the midst of later entries and after them, are the bytes
// that a copy of all tables at that moment gives.
func TestPinnedBytes(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 2))
		log, m, index := machinetest.NewLog(testCluster, seed), statemachine.New(statemachine.Options{CompactionBudget: 5}), uint64(0)
		next := func(entries int) {
			for range entries {
				index++
				machinetest.Apply(t, m, index, log.Next())
			}
		}
		next(30)
		type pinned struct {
			source *Source
			want   []byte
		}
		var pins []pinned
		compare := func(p pinned, between func()) {
			var b bytes.Buffer
			if _, err := p.source.Write(writerFunc(func(block []byte) (int, error) { between(); return b.Write(block) })); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.Bytes(), p.want) {
				t.Fatalf("seed %d: the checkpoint of index %d, written at %d, is not what it was", seed, p.source.header.Index, index)
			}
		}
		for range 40 {
			next(1 + r.IntN(4))
			p := pinned{source: Pin(m, testEpoch)}
			naive := &Source{header: p.source.header, export: m.ExportAll(), snapshot: p.source.snapshot}
			var b bytes.Buffer
			if _, err := naive.Write(&b); err != nil {
				t.Fatal(err)
			}
			p.want = b.Bytes()
			compare(p, func() {})
			pins = append(pins, p)
			for len(pins) > 1+r.IntN(4) {
				at := r.IntN(len(pins))
				compare(pins[at], func() { next(r.IntN(3)) })
				pins[at].source.Release()
				pins = append(pins[:at], pins[at+1:]...)
			}
		}
		for _, p := range pins {
			compare(p, func() {})
			p.source.Release()
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// BenchmarkPin measures what holds up the apply path, by the number of keys; statemachine's has the tables.
func BenchmarkPin(b *testing.B) {
	for _, keys := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			m := large(b, keys)
			b.ReportAllocs()
			for b.Loop() {
				Pin(m, testEpoch).Release()
			}
		})
	}
}

// BenchmarkWrite and BenchmarkRestore are of 200,000 keys of 256 bytes.
func BenchmarkWrite(b *testing.B) {
	m := large(b, 200_000)
	size := len(write(b, m))
	b.SetBytes(int64(size))
	for b.Loop() {
		s := Pin(m, testEpoch)
		if _, err := s.Write(io.Discard); err != nil {
			b.Fatal(err)
		}
		s.Release()
	}
}

func BenchmarkRestore(b *testing.B) {
	content := write(b, large(b, 200_000))
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, _, err := read(content); err != nil {
			b.Fatal(err)
		}
	}
}

func large(b testing.TB, keys int) *statemachine.Machine {
	m := statemachine.New(statemachine.Options{})
	for i, e := range machinetest.Puts(testCluster, keys, 1) {
		if _, err := m.Apply(uint64(i+1), 1, e.Kind, e, false); err != nil {
			b.Fatal(err)
		}
	}
	return m
}
