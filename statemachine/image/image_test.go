package image

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

var testIdentity = Identity{ClusterID: 9, Epoch: 1, FrontendID: 7}

// randomLog makes entries in which everything that an image keeps happens.
type randomLog struct {
	r              *rand.Rand
	index, session uint64
	seq            uint64
	logTime        int64
}

func newRandomLog(seed uint64) *randomLog {
	return &randomLog{r: rand.New(rand.NewPCG(seed, 5)), logTime: 1e9}
}

func (g *randomLog) next() *logv1.Envelope {
	g.index++
	g.logTime += g.r.Int64N(4e9)
	envelope := &logv1.Envelope{LogTimeNanoseconds: uint64(g.logTime)}
	var payload proto.Message
	switch {
	case g.index == 1:
		envelope.Kind, payload = logv1.EntryKind_ENTRY_KIND_GENESIS, &logv1.Genesis{ClusterId: testIdentity.ClusterID}
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

func (g *randomLog) key() []byte { return fmt.Appendf(nil, "key-%d", g.r.IntN(25)) }

func (g *randomLog) put() *commandv1.Put {
	p := &commandv1.Put{Key: g.key(), Value: make([]byte, g.r.IntN(400)), Previous: true}
	if g.r.IntN(3) == 0 {
		p.Lease = g.r.Int64N(4)
	}
	return p
}

func (g *randomLog) command() *commandv1.Command {
	c := &commandv1.Command{}
	if g.r.IntN(3) == 0 {
		c.RequestId = fmt.Sprintf("%d-%d", g.index-1, g.r.IntN(9))
	}
	switch g.r.IntN(16) {
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

// dump is the whole state: the export is canonical and complete, and beside it stands the key space.
func dump(t testing.TB, m *statemachine.Machine) string {
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

func testConfig(path string) Config {
	return Config{Path: path, Identity: testIdentity, Interval: time.Hour, NoSync: true}
}

func known() (Identity, bool) { return testIdentity, true }

func apply(t testing.TB, m *statemachine.Machine, index uint64, e *logv1.Envelope) *statemachine.Applied {
	a, err := m.Apply(index, 1, e.Kind, proto.Clone(e).(*logv1.Envelope), false)
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
	return a
}

// begin opens the image and goes on from what it holds.
func begin(t testing.TB, c Config) (*Image, *statemachine.Machine) {
	t.Helper()
	im, m, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if m == nil {
		m = statemachine.New(statemachine.Options{})
	}
	im.Start(m, known)
	return im, m
}

// TestCrashAnywhere applies a random log with commits at random places, ends the process at random places, with and
// without a last commit, goes on from the image, and compares the whole state with that of a machine that saw every entry.
func TestCrashAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	rapid.Check(t, func(rt *rapid.T) {
		_ = os.Remove(path)
		log := newRandomLog(rapid.Uint64().Draw(rt, "seed"))
		var entries []*logv1.Envelope
		var states []string
		original := statemachine.New(statemachine.Options{})
		config := testConfig(path)
		config.CompactRows = rapid.IntRange(1, 20).Draw(rt, "rows of a compaction")
		for range rapid.IntRange(1, 5).Draw(rt, "lives") {
			im, m := begin(t, config)
			index := m.Index()
			if index > 0 && dump(t, m) != states[index-1] {
				rt.Fatalf("restored at %d:\n%s\nwant\n%s", index, dump(t, m), states[index-1])
			}
			for range rapid.IntRange(0, 40).Draw(rt, "entries") {
				index++
				if int(index) > len(entries) {
					e := log.next()
					entries = append(entries, e)
					apply(t, original, index, e)
					states = append(states, dump(t, original))
				}
				im.Applied(apply(t, m, index, entries[index-1]))
				if rapid.IntRange(0, 9).Draw(rt, "cut") == 0 {
					im.cut()
				}
			}
			flush := rapid.Bool().Draw(rt, "flush")
			committed := im.CommittedIndex()
			im.Close(flush)
			if im.CommittedIndex() < committed || flush && index > 0 && im.CommittedIndex() != index || flush && im.Abandoned() {
				rt.Fatalf("committed %d of %d, abandoned %v", im.CommittedIndex(), index, im.Abandoned())
			}
		}
		if _, err := os.Stat(path + ".bad"); err == nil {
			rt.Fatal("an image was set aside")
		}
	})
}

// written goes on writing a file for a number of entries and returns the state at each commit.
func written(t testing.TB, path string, log *randomLog, entries int) map[uint64]string {
	im, m := begin(t, testConfig(path))
	states := map[uint64]string{}
	for range entries {
		im.Applied(apply(t, m, m.Index()+1, log.next()))
		if m.Index()%20 == 0 {
			im.cut()
			states[m.Index()] = dump(t, m)
		}
	}
	im.Close(true)
	states[m.Index()] = dump(t, m)
	return states
}

// TestDamage flips, zeroes, cuts, swaps and loses writes of bytes of the file everywhere. Whatever it is, the image is
// either set aside or gives a state that was committed.
func TestDamage(t *testing.T) {
	directory := t.TempDir()
	file := filepath.Join(directory, "whole")
	log := newRandomLog(11)
	states := written(t, file, log, 300)
	older, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(states, written(t, file, log, 100))
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(directory, "damaged")
	found, harmless := 0, 0
	for range 600 {
		damaged := bytes.Clone(whole)
		at := r.IntN(len(damaged))
		switch r.IntN(6) {
		case 5: // a write of the last hundred entries that never reached the disk
			page := r.IntN(len(older)/os.Getpagesize()) * os.Getpagesize()
			copy(damaged[page:page+os.Getpagesize()], older[page:])
		case 0:
			damaged[at] = byte(r.Uint32())
		case 1:
			clear(damaged[at:min(len(damaged), at+r.IntN(5000))])
		case 2:
			damaged = damaged[:at]
		case 3: // a page in the place of another
			pages := len(damaged) / os.Getpagesize()
			to, from := r.IntN(pages)*os.Getpagesize(), r.IntN(pages)*os.Getpagesize()
			copy(damaged[to:to+os.Getpagesize()], whole[from:])
		default:
			damaged[at] ^= 1 << r.IntN(8)
		}
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		im, m, err := Open(testConfig(path))
		if err != nil {
			t.Fatal(err)
		}
		if m == nil {
			found++
		} else if harmless++; dump(t, m) != states[m.Index()] {
			t.Fatalf("damage near %d was not found, and the state is wrong", at)
		}
		im.Close(false)
	}
	t.Logf("%d found, %d harmless", found, harmless)
	if found < 80 {
		t.Errorf("only %d found", found)
	}
}

func TestForeignAndMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	states := written(t, path, newRandomLog(11), 50)
	for _, other := range []Identity{{}, {9, 2, 7}, {8, 1, 7}, {9, 1, 8}} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		config := testConfig(path)
		config.Identity = other
		var logged bytes.Buffer
		config.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		im, m, err := Open(config)
		if err != nil || m != nil || !strings.Contains(logged.String(), ErrForeign.Error()) {
			t.Fatalf("%+v: %v, %v, %s", other, m, err, &logged)
		}
		im.Close(false)
		if aside, err := os.ReadFile(path + ".bad"); err != nil || !bytes.Equal(aside, content) {
			t.Fatalf("not set aside as it was: %v", err)
		}
		if err := os.Rename(path+".bad", path); err != nil {
			t.Fatal(err)
		}
	}
	im, m, err := Open(testConfig(path))
	if err != nil || m == nil || dump(t, m) != states[50] {
		t.Fatalf("its own: %v", err)
	}
	im.Close(false)
	if _, _, err := Open(testConfig(filepath.Join(path, "below a file"))); err == nil {
		t.Fatal("opened where there can be no file")
	}
}

// TestStalledDisk: Applied waits for a disk that is behind, then gives the image up, and what was committed stays.
func TestStalledDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	config := testConfig(path)
	config.BacklogCommits, config.StallTimeout, config.CommitBytes = 1, 20*time.Millisecond, 1
	im, m := begin(t, config)
	log := newRandomLog(1)
	hold, err := im.db.Begin(true) // the writer waits for it
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		im.Applied(apply(t, m, m.Index()+1, log.next()))
	}
	if !im.Abandoned() {
		t.Fatal("not given up")
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	im.Close(true)
	im, m, err = Open(testConfig(path))
	if err != nil || (m != nil && m.Index() > 2) {
		t.Fatalf("after that: %v", err)
	}
	im.Close(false)
}

func TestEntriesOutOfOrder(t *testing.T) {
	im, m := begin(t, testConfig(filepath.Join(t.TempDir(), "image")))
	defer im.Close(true)
	log := newRandomLog(1)
	apply(t, m, 1, log.next())
	im.Applied(apply(t, m, 2, log.next()))
	if !im.Abandoned() {
		t.Fatal("an entry was missed and nobody noticed")
	}
}

func TestGuard(t *testing.T) {
	if err := guard(func() error { panic("torn") }); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

// TestRowsAddUp takes away or alters rows in ways that leave the file whole and each row's checksum right.
func TestRowsAddUp(t *testing.T) {
	directory := t.TempDir()
	file := filepath.Join(directory, "whole")
	written(t, file, newRandomLog(11), 400)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "altered")
	alter := func(change func(tx *bbolt.Tx) error) {
		t.Helper()
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(change); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, want bool) {
		t.Helper()
		im, m, err := Open(testConfig(path))
		if err != nil {
			t.Fatal(err)
		}
		if im.Close(false); want != (m == nil) {
			t.Errorf("%s: refused %v", what, m == nil)
		}
	}
	alter(func(*bbolt.Tx) error { return nil })
	refused("nothing", false)
	for _, bucket := range [][]byte{bucketVersions, bucketLeases, bucketRequests} {
		for _, last := range []bool{false, true} {
			row := func(tx *bbolt.Tx) (key, value []byte) {
				cursor := tx.Bucket(bucket).Cursor()
				if last {
					key, value = cursor.Last()
				} else {
					key, value = cursor.First()
				}
				if key == nil {
					t.Fatalf("no %s to alter", bucket)
				}
				return bytes.Clone(key), bytes.Clone(value)
			}
			alter(func(tx *bbolt.Tx) error {
				key, _ := row(tx)
				return tx.Bucket(bucket).Delete(key)
			})
			refused(fmt.Sprintf("a row of %s taken away, last %v", bucket, last), true)
			alter(func(tx *bbolt.Tx) error {
				key, value := row(tx)
				content := value[:len(value)-checksumBytes]
				content[len(content)-1] ^= 1
				return tx.Bucket(bucket).Put(key, seal(key, content))
			})
			refused(fmt.Sprintf("a row of %s altered, last %v", bucket, last), true)
		}
	}
	alter(func(tx *bbolt.Tx) error {
		h, err := readHead(tx)
		h.Index--
		return errors.Join(err, writeHead(tx, h))
	})
	refused("a head of another entry", true)
}
