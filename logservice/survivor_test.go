package logservice

import (
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice/segment"
)

func testEnvelope(t *testing.T, kind logv1.EntryKind, payload proto.Message) []byte {
	t.Helper()
	e := &logv1.Envelope{Kind: kind}
	var err error
	if payload != nil {
		if e.Payload, err = proto.Marshal(payload); err != nil {
			t.Fatal(err)
		}
	}
	data, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A survivor shows the log to its last entry, beyond what it knew to be committed and without what a later leader replaced;
// it knows the log's name and the sealed checkpoints that its record does not name yet; and reading changes nothing.
func TestSurvivorShowsAllOfTheLog(t *testing.T) {
	fsys := disk.NewMemory(1)
	cluster, err := newInitialCluster([]InitialMember{{Name: "a", Address: "a:1"}, {Name: "b", Address: "b:1"}, {Name: "c", Address: "c:1"}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDirectory(fsys, "/a", "a", func() (*beginning, error) {
		return &beginning{clusterHash: cluster.hash, memberID: cluster.id("a"), record: cluster.record()}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	options := segment.Options{SegmentBytes: 4096, Identity: d.identity(), ManualReserve: true}
	log, err := segment.Open(fsys, "/a/log", options)
	if err != nil {
		t.Fatal(err)
	}
	content := []byte("a checkpoint")
	name := CheckpointName{Index: 2, SHA256: sha256.Sum256(content), SizeBytes: int64(len(content)), FormatVersion: 1}
	batch := testEnvelope(t, logv1.EntryKind_ENTRY_KIND_BATCH, nil)
	groups := []Group{
		d.beginning(),
		{HardState: HardState{Term: 1, Commit: 2}, Entries: []Entry{
			{Index: 1, Term: 1, Data: testEnvelope(t, logv1.EntryKind_ENTRY_KIND_GENESIS, &logv1.Genesis{ClusterId: 7})},
			{Index: 2, Term: 1, Data: testEnvelope(t, logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST, &logv1.CheckpointRequest{})},
		}},
		{Entries: []Entry{
			{Index: 3, Term: 1, Data: testEnvelope(t, logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED, &logv1.CheckpointSealed{Checkpoint: wireName(name)})},
			{Index: 4, Term: 1, Data: batch}, {Index: 5, Term: 1, Data: batch}, {Index: 6, Term: 1, Data: batch}}},
		{HardState: HardState{Term: 3, Commit: 2}, Entries: []Entry{{Index: 5, Term: 3, Data: batch}}},
	}
	for _, g := range groups {
		if err := log.Append(g); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenSurvivor(fsys, "/a"); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("the directory of a member that runs: %v", err)
	}
	if err := errors.Join(log.Close(), d.close()); err != nil {
		t.Fatal(err)
	}
	store := Restoration{FS: fsys, Checkpoint: name, Write: func(w io.Writer) error { _, err := w.Write(content); return err }}
	if err := store.writeCheckpoint("/a/checkpoints"); err != nil {
		t.Fatal(err)
	}
	before := fsys.Files("/a/log")

	s, err := OpenSurvivor(fsys, "/a")
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "a" || s.ClusterID != 7 || s.FirstIndex != 1 || s.LastIndex != 5 || s.LastTerm != 3 || s.Commit != 2 || len(s.Members) != 3 {
		t.Errorf("it says %+v", s)
	}
	var got []uint64
	for e, err := range s.Entries(3) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.GetIndex()*10+e.GetTerm())
	}
	if !slices.Equal(got, []uint64{31, 41, 53}) {
		t.Errorf("entries and terms %v", got)
	}
	reader, err := s.Checkpoint()
	if err != nil || reader == nil || reader.Name() != name {
		t.Fatalf("checkpoint %v, %v", reader, err)
	}
	if err := s.log.Append(groups[1]); !errors.Is(err, segment.ErrReadOnly) {
		t.Errorf("an append to what is open for reading: %v", err)
	}
	if err := errors.Join(reader.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if after := fsys.Files("/a/log"); !slices.Equal(before, after) {
		t.Errorf("there were %v, and now %v", before, after)
	}

	// Trimmed above the only checkpoint, the log has no beginning any more.
	if log, err = segment.Open(fsys, "/a/log", options); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.Reset(9, 3, 1), log.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenSurvivor(fsys, "/a"); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Checkpoint(); err == nil || !strings.Contains(err.Error(), "the log begins at 10") {
		t.Errorf("a log without a beginning: %v", err)
	}
}

func TestComparePoints(t *testing.T) {
	for _, c := range []struct {
		termA, indexA, termB, indexB uint64
		want                         int
	}{{2, 5, 2, 5, 0}, {2, 4, 2, 5, -1}, {3, 4, 2, 500, 1}, {2, 500, 3, 4, -1}} {
		if got := ComparePoints(c.termA, c.indexA, c.termB, c.indexB); got != c.want {
			t.Errorf("term %d to %d beside term %d to %d: %d, want %d", c.termA, c.indexA, c.termB, c.indexB, got, c.want)
		}
	}
}

func TestOpenSurvivorRefusesWhatIsNone(t *testing.T) {
	fsys := disk.NewMemory(1)
	if err := fsys.MkdirAll("/empty"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSurvivor(fsys, "/empty"); err == nil || !strings.Contains(err.Error(), "/empty is no data directory of a log member") {
		t.Error(err)
	}
}
