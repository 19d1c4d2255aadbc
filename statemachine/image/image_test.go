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
	"github.com/logmirror/logmirror/statemachine/machinetest"
)

var testIdentity = Identity{ClusterID: 9, Epoch: 1, FrontendID: 7}

func testConfig(path string) Config {
	return Config{Path: path, Identity: testIdentity, Interval: time.Hour, NoSync: true}
}

func known() (Identity, bool) { return testIdentity, true }

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
		log := machinetest.NewLog(testIdentity.ClusterID, rapid.Uint64().Draw(rt, "seed"))
		var entries []*logv1.Envelope
		var states []string
		original := statemachine.New(statemachine.Options{})
		config := testConfig(path)
		config.CompactRows = rapid.IntRange(1, 20).Draw(rt, "rows of a compaction")
		for range rapid.IntRange(1, 5).Draw(rt, "lives") {
			im, m := begin(t, config)
			index := m.Index()
			if index > 0 && machinetest.Dump(t, m) != states[index-1] {
				rt.Fatalf("restored at %d:\n%s\nwant\n%s", index, machinetest.Dump(t, m), states[index-1])
			}
			for range rapid.IntRange(0, 40).Draw(rt, "entries") {
				index++
				if int(index) > len(entries) {
					e := log.Next()
					entries = append(entries, e)
					machinetest.Apply(t, original, index, e)
					states = append(states, machinetest.Dump(t, original))
				}
				im.Applied(machinetest.Apply(t, m, index, entries[index-1]))
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

// TestACommitIsOneTransaction: rows and the index that they are the state after become durable together or not at all, so that
// the end of a process between two transactions is never one between those two.
func TestACommitIsOneTransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	log := machinetest.NewLog(testIdentity.ClusterID, 5)
	transactions := func() (id int) {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if err := db.View(func(tx *bbolt.Tx) error {
			id = tx.ID()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := 0
	for life := range 5 {
		im, m := begin(t, testConfig(path))
		for range 20 {
			im.Applied(machinetest.Apply(t, m, m.Index()+1, log.Next()))
		}
		im.Close(true)
		if im.CommittedIndex() != m.Index() {
			t.Fatalf("committed %d of %d", im.CommittedIndex(), m.Index())
		}
		now := transactions()
		if life > 0 && now != before+1 {
			t.Errorf("%d transactions for one commit", now-before)
		}
		before = now
	}
}

// written goes on writing a file for a number of entries and returns the state at each commit.
func written(t testing.TB, path string, log *machinetest.Log, entries int) map[uint64]string {
	im, m := begin(t, testConfig(path))
	states := map[uint64]string{}
	for range entries {
		im.Applied(machinetest.Apply(t, m, m.Index()+1, log.Next()))
		if m.Index()%20 == 0 {
			im.cut()
			states[m.Index()] = machinetest.Dump(t, m)
		}
	}
	im.Close(true)
	states[m.Index()] = machinetest.Dump(t, m)
	return states
}

// TestDamage flips, zeroes, cuts, swaps and loses writes of bytes of the file everywhere. Whatever it is, the image is
// either set aside or gives a state that was committed.
func TestDamage(t *testing.T) {
	directory := t.TempDir()
	file := filepath.Join(directory, "whole")
	log := machinetest.NewLog(testIdentity.ClusterID, 11)
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
		} else if harmless++; machinetest.Dump(t, m) != states[m.Index()] {
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
	states := written(t, path, machinetest.NewLog(testIdentity.ClusterID, 11), 50)
	for _, other := range []Identity{{}, {0, 0, 8}, {9, 2, 7}, {8, 1, 7}, {9, 1, 8}} {
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
	if err != nil || m == nil || machinetest.Dump(t, m) != states[50] {
		t.Fatalf("its own: %v", err)
	}
	im.Close(false)
	if _, _, err := Open(testConfig(filepath.Join(path, "below a file"))); err == nil {
		t.Fatal("opened where there can be no file")
	}
}

// TestAnImageOfANewerBuild: a build that does not understand the apply version of an image leaves it to the one that does.
func TestAnImageOfANewerBuild(t *testing.T) {
	envelope := func(kind logv1.EntryKind, session, seq uint64, payload proto.Message) *logv1.Envelope {
		encoded, err := proto.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		return &logv1.Envelope{Kind: kind, LogTimeNanoseconds: 1, Session: session, Seq: seq, Payload: encoded}
	}
	newer := testConfig(filepath.Join(t.TempDir(), "image"))
	newer.StateMachine.ApplyVersion = statemachine.ApplyVersion + 1
	im, _, err := Open(newer)
	if err != nil {
		t.Fatal(err)
	}
	m := statemachine.New(newer.StateMachine)
	im.Start(m, known)
	raise := &commandv1.Command{Operation: &commandv1.Command_RaiseApplyVersion{
		RaiseApplyVersion: &commandv1.RaiseApplyVersion{ApplyVersion: statemachine.ApplyVersion + 1}}}
	for i, e := range []*logv1.Envelope{
		envelope(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, &logv1.Genesis{ClusterId: testIdentity.ClusterID}),
		envelope(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, 0, &logv1.OpenSession{FrontendId: 7, Incarnation: 1,
			ApplyVersionMin: 1, ApplyVersionMax: m.Understands()}),
		envelope(logv1.EntryKind_ENTRY_KIND_BATCH, 2, 1, &commandv1.CommandBatch{Commands: []*commandv1.Command{raise}}),
	} {
		im.Applied(machinetest.Apply(t, m, uint64(i+1), e))
	}
	im.Close(true)
	if m.AppliesVersion() != statemachine.ApplyVersion+1 {
		t.Fatalf("apply version %d", m.AppliesVersion())
	}
	if _, _, err := Open(testConfig(newer.Path)); !errors.Is(err, statemachine.ErrNewer) {
		t.Fatalf("opened by this build: %v", err)
	}
	im, again, err := Open(newer)
	if err != nil || again == nil || machinetest.Dump(t, again) != machinetest.Dump(t, m) {
		t.Fatalf("opened by the newer build again: %v", err)
	}
	im.Close(false)
}

// TestStalledDisk: Applied waits for a disk that is behind, then gives the image up, and what was committed stays.
func TestStalledDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	config := testConfig(path)
	config.BacklogCommits, config.StallTimeout, config.CommitBytes = 1, 20*time.Millisecond, 1
	im, m := begin(t, config)
	log := machinetest.NewLog(testIdentity.ClusterID, 1)
	hold, err := im.db.Begin(true) // the writer waits for it
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		im.Applied(machinetest.Apply(t, m, m.Index()+1, log.Next()))
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
	log := machinetest.NewLog(testIdentity.ClusterID, 1)
	machinetest.Apply(t, m, 1, log.Next())
	im.Applied(machinetest.Apply(t, m, 2, log.Next()))
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
	written(t, file, machinetest.NewLog(testIdentity.ClusterID, 11), 400)
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
		h, err := decodeHead(tx.Bucket(bucketMeta).Get(keyHead))
		h.Index--
		return errors.Join(err, writeHead(tx, h))
	})
	refused("a head of another entry", true)
}

// TestDamageOfEachPage flips a bit in the head and in the body of every page, and cuts the file before it.
func TestDamageOfEachPage(t *testing.T) {
	directory := t.TempDir()
	file := filepath.Join(directory, "whole")
	states := written(t, file, machinetest.NewLog(testIdentity.ClusterID, 12), 200)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "damaged")
	check := func(what string, page int, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		im, m, err := Open(testConfig(path))
		if err != nil {
			t.Fatal(err)
		}
		if m != nil && machinetest.Dump(t, m) != states[m.Index()] {
			t.Errorf("%s of page %d was not found, and the state is wrong", what, page)
		}
		im.Close(false)
	}
	for page := range len(whole) / os.Getpagesize() {
		at := page * os.Getpagesize()
		for _, offset := range []int{2, 9, pageHeaderBytes + 3, os.Getpagesize() / 2, os.Getpagesize() - 5} {
			damaged := bytes.Clone(whole)
			damaged[at+offset] ^= 4
			check(fmt.Sprintf("a bit at %d", offset), page, damaged)
		}
		check("the loss", page, whole[:at])
	}
}
