package logclient

import (
	"errors"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/durable"
)

// FuzzDecodeEntry takes arbitrary entries from a member: what is no entry is ErrMalformedEntry, and what is has its envelope.
func FuzzDecodeEntry(f *testing.F) {
	envelope, err := proto.Marshal(&logv1.Envelope{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 3, Seq: 1, Payload: []byte("p")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(int32(logv1.EntryKind_ENTRY_KIND_BATCH), envelope)
	f.Add(int32(0), envelope)
	f.Add(int32(99), []byte{0xff})
	f.Fuzz(func(t *testing.T, kind int32, envelope []byte) {
		entry, err := decode(&logv1.Entry{Index: 4, Term: 2, Kind: logv1.EntryKind(kind), Envelope: envelope})
		if err != nil && !errors.Is(err, ErrMalformedEntry) {
			t.Fatal(err)
		}
		own := kind == int32(logv1.EntryKind_ENTRY_KIND_UNSPECIFIED) || kind == int32(logv1.EntryKind_ENTRY_KIND_MEMBERSHIP)
		if entry.Index != 4 || err == nil && (entry.Envelope == nil) != own {
			t.Errorf("%+v", entry)
		}
	})
}

// FuzzMembersFile reads arbitrary records as the persisted members: they are of the log that is wanted, or none.
func FuzzMembersFile(f *testing.F) {
	whole, err := proto.Marshal(&logv1.TailResponse{Handshake: &logv1.Handshake{ClusterId: 5, Epoch: 1},
		Membership: &logv1.Membership{Members: []*logv1.Member{{Id: 1, Address: "a:1"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte{0x0a})
	f.Fuzz(func(t *testing.T, record []byte) {
		path := filepath.Join(t.TempDir(), "members")
		if err := durable.Write(path, record); err != nil {
			t.Fatal(err)
		}
		members, err := readMembers(path, 5, 1)
		saved := &logv1.TailResponse{}
		if proto.Unmarshal(record, saved) == nil && saved.GetHandshake().GetClusterId() != 5 && (len(members) > 0 || err != nil) {
			t.Errorf("members of another log: %v, %v", members, err)
		}
	})
}
