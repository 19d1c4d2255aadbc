package image

import (
	"fmt"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// putLog is a log that puts keys of 256-byte values, each several times, 32 in a batch.
func putLog(b *testing.B, keys, times int) []*logv1.Envelope {
	encode := func(m proto.Message) []byte {
		payload, err := proto.Marshal(m)
		if err != nil {
			b.Fatal(err)
		}
		return payload
	}
	entries := []*logv1.Envelope{
		{Kind: logv1.EntryKind_ENTRY_KIND_GENESIS, Payload: encode(&logv1.Genesis{ClusterId: testIdentity.ClusterID})},
		{Kind: logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, Payload: encode(&logv1.OpenSession{FrontendId: 1, Incarnation: 1})},
	}
	const perBatch = 32
	value := make([]byte, 256)
	for n := 0; n < keys*times; n += perBatch {
		batch := &commandv1.CommandBatch{}
		for i := n; i < n+perBatch; i++ {
			batch.Commands = append(batch.Commands, &commandv1.Command{Operation: &commandv1.Command_Put{
				Put: &commandv1.Put{Key: fmt.Appendf(nil, "key-%012d", i%keys), Value: value},
			}})
		}
		entries = append(entries, &logv1.Envelope{
			Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 2, Seq: uint64(len(entries) - 1), Payload: encode(batch),
		})
	}
	compact := &commandv1.CommandBatch{Commands: []*commandv1.Command{{Operation: &commandv1.Command_Compact{
		Compact: &commandv1.Compact{Revision: int64(keys*times) + 1},
	}}}}
	return append(entries, &logv1.Envelope{
		Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 2, Seq: uint64(len(entries) - 1), Payload: encode(compact),
	})
}

// BenchmarkRestart compares a restart of 200,000 keys, each put four times and then compacted: from the image, and by
// applying the log, whose transfer and decoding come on top in a real restart.
func BenchmarkRestart(b *testing.B) {
	const keys, times = 200_000, 4
	entries := putLog(b, keys, times)
	path := filepath.Join(b.TempDir(), "image")
	config := testConfig(path)
	config.StallTimeout = 1 << 40
	applyAll := func(m *statemachine.Machine, applied func(*statemachine.Applied)) {
		for i, e := range entries {
			a, err := m.Apply(uint64(i+1), 1, e.Kind, e, false)
			if err != nil {
				b.Fatal(err)
			}
			if applied != nil {
				applied(a)
			}
		}
	}
	im, m := begin(b, config)
	applyAll(m, im.Applied)
	im.Close(true)
	// The rest of the compaction, which a process that lives on does in the background.
	im, _, err := Open(config)
	for err == nil && !im.head.compactionDone() {
		err = im.commit(nil)
	}
	if err != nil {
		b.Fatal(err)
	}
	im.Close(false)
	b.Run("image", func(b *testing.B) {
		for b.Loop() {
			im, m, err := Open(config)
			if err != nil || m == nil || m.Space().Stats().Keys != keys {
				b.Fatalf("%v, %v", m, err)
			}
			im.Close(false)
		}
	})
	b.Run("log", func(b *testing.B) {
		for b.Loop() {
			applyAll(statemachine.New(statemachine.Options{}), nil)
		}
	})
}
