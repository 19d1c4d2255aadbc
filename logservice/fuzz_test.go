package logservice

import (
	"bytes"
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// FuzzRecord decodes arbitrary membership records. What is taken encodes to a record that means the same.
func FuzzRecord(f *testing.F) {
	name := CheckpointName{Index: 4, SizeBytes: 9, FormatVersion: 1}
	point := logPoint{index: 4, term: 2, digest: 8, stamp: 16}
	whole := &record{conf: &raftpb.ConfState{Voters: []uint64{1, 2}}, applied: 7, clusterID: 3, stamp: 5,
		members: []*logv1.Member{{Id: 1, Name: "a", Address: "a:1"}},
		sealed:  []sealedCheckpoint{{name: name, point: point, sealedIndex: 6}},
		request: &checkpointRequest{point: point, builders: []uint64{1, 2}, formatVersion: 1}}
	f.Add(whole.encode())
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, errBadRecord) {
				t.Fatal(err)
			}
			return
		}
		first := r.encode()
		again, err := decodeRecord(first)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, again.encode()) {
			t.Errorf("%x, then %x", first, again.encode())
		}
	})
}

// FuzzEnvelope holds the reader of envelopes that copies nothing against the generated one: what both take, both read
// alike.
func FuzzEnvelope(f *testing.F) {
	f.Add(encodeEnvelope(envelopeHeader{kind: logv1.EntryKind_ENTRY_KIND_BATCH, stamp: 7, session: 3, seq: 2, payload: []byte("p")}))
	f.Add([]byte{0x08})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := parseEnvelope(b)
		generated := &logv1.Envelope{}
		if err := proto.Unmarshal(b, generated); !ok || err != nil {
			return
		}
		if h.kind != generated.GetKind() || h.stamp != generated.GetLogTimeNanoseconds() || h.session != generated.GetSession() ||
			h.seq != generated.GetSeq() || !bytes.Equal(h.payload, generated.GetPayload()) {
			t.Errorf("%+v, generated code reads %v", h, generated)
		}
	})
}

// FuzzDirectoryRecord decodes arbitrary files of a member's data directory; with resum their checksum is right.
func FuzzDirectoryRecord(f *testing.F) {
	f.Add([]byte(`{"format":1}`), true)
	f.Add([]byte("logmirror-member crc32c=00000000\n{}"), false)
	f.Fuzz(func(t *testing.T, content []byte, resum bool) {
		if resum {
			content = append([]byte(checksumLine(content)+"\n"), content...)
		}
		d := &directory{path: "data"}
		if err := d.decode(content); err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if d.record.Format != directoryFormat || d.record.DataDirectoryID == 0 {
			t.Errorf("took %+v", d.record)
		}
	})
}
