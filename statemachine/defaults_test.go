package statemachine

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// TestDefaultsBoundMemory: without anybody setting anything there is a quota, and an hour of log time after a key was
// overwritten a thousand times one version of it is left.
func TestDefaultsBoundMemory(t *testing.T) {
	m := New(Options{})
	log := &randomLog{t: t}
	apply := func(kind logv1.EntryKind, session, seq uint64, payload proto.Message) {
		log.index++
		e := log.entry(kind, session, seq, encode(t, payload))
		if _, err := m.Apply(log.index, 1, e.kind, e.envelope, false); err != nil {
			t.Fatal(err)
		}
	}
	log.logTime = int64(time.Second)
	apply(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, &logv1.Genesis{ClusterId: 9})
	apply(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, 0, &logv1.OpenSession{FrontendId: 1, Incarnation: 1, ApplyVersionMax: 1})
	for seq := range uint64(1000) {
		apply(logv1.EntryKind_ENTRY_KIND_BATCH, 2, seq+1, &commandv1.CommandBatch{Commands: []*commandv1.Command{
			{Operation: &commandv1.Command_Put{Put: &commandv1.Put{Key: []byte("k"), Value: []byte("v")}}},
		}})
	}
	if n := m.space.Stats().Versions; n != 1000 {
		t.Fatalf("%d versions before anything is old", n)
	}
	for range 2 * 60 * 60 / 5 {
		log.logTime += int64(5 * time.Second)
		apply(logv1.EntryKind_ENTRY_KIND_TICK, 0, 0, &logv1.Genesis{})
	}
	for m.Maintain() {
	}
	if s := m.space.Stats(); s.Versions != 1 || s.Keys != 1 {
		t.Errorf("%d versions of %d keys are left", s.Versions, s.Keys)
	}
	if quota := m.Settings().QuotaBytes; quota != 2<<30 {
		t.Errorf("a quota of %d bytes", quota)
	}
}
