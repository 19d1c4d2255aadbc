package logservice

import (
	"crypto/sha256"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

func TestRestoreWritesAllOrNothing(t *testing.T) {
	content := []byte("a checkpoint")
	failed := errors.New("failed")
	var calls, failAt int
	fsys := disk.OS()
	r := Restoration{FS: fsys, Dir: filepath.Join(t.TempDir(), "data"), ClusterID: 9, Term: 4, LogTime: 1e9,
		InitialCluster: []InitialMember{{Name: "a", Address: "a:1"}, {Name: "b", Address: "b:1"}, {Name: "c", Address: "c:1"}},
		Checkpoint:     CheckpointName{Index: 1000, SHA256: sha256.Sum256(content), SizeBytes: int64(len(content)), FormatVersion: 1},
		Write: func(w io.Writer) error {
			if calls++; calls == failAt {
				return failed
			}
			_, err := w.Write(content)
			return err
		}}
	left := func() string {
		names, err := fsys.ReadDir(r.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(names, " ")
	}
	failAt = 3
	if err := Restore(r); !errors.Is(err, failed) || left() != "" {
		t.Fatalf("%v, left is %q", err, left())
	}
	// What is there and empty is used; what holds anything is not.
	if err := fsys.MkdirAll(filepath.Join(r.Dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := Restore(r); err != nil || left() != "a b c" {
		t.Fatalf("%v, there is %q", err, left())
	}
	if err := Restore(r); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Error(err)
	}
	for _, name := range []string{"..", ".", "x/y", "", "x=y"} {
		wrong := r
		wrong.Dir, wrong.InitialCluster = t.TempDir(), []InitialMember{{Name: name, Address: "a:1"}}
		if Restore(wrong) == nil {
			t.Errorf("a member %q was restored", name)
		}
	}
	// A crash between two names leaves the marker: nothing starts, and nothing is restored over it.
	marker := filepath.Join(r.Dir, restoreMarker)
	if err := disk.WriteFile(fsys, marker, []byte("a\nb\nc\n")); err != nil {
		t.Fatal(err)
	}
	if err := Restore(r); !errors.Is(err, ErrRestoreUnfinished) {
		t.Errorf("over one that did not finish: %v", err)
	}
	started := &Server{config: Config{FS: fsys, Name: "b", DataDir: filepath.Join(r.Dir, "b"), InitialCluster: r.InitialCluster}}
	if err := started.open(); !errors.Is(err, ErrRestoreUnfinished) {
		t.Errorf("a member of one that did not finish starts: %v", err)
	}
	if err := fsys.Remove(marker); err != nil {
		t.Fatal(err)
	}
	config := Config{Name: "b", DataDir: filepath.Join(r.Dir, "b"), InitialCluster: r.InitialCluster}
	config, err := config.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{config: config, logger: config.Logger, events: make(chan []Event, 1)}
	defer func() {
		if err := s.closeFiles(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	defer s.metrics.close()
	record := s.member.record
	if s.member.ClusterID() != 9 || s.storage.FirstIndex() != 1001 || s.storage.LastIndex() != 1000 || record.applied != 1000 ||
		record.stamp != 1e9 || len(record.sealed) != 1 || record.sealed[0].name != r.Checkpoint || !s.store.Holds(r.Checkpoint) {
		t.Errorf("member of %x, log from %d, record %+v, store %v", s.member.ClusterID(), s.storage.FirstIndex(), record, s.store.List())
	}
}
