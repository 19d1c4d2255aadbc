package frontend

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/watch"
)

// sameBytes fails unless a wire message encodes to exactly what the generated marshaller makes of want.
func sameBytes(t *testing.T, got wire.Message, want proto.Message) {
	t.Helper()
	generated, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	encoded := got.AppendEncoded(nil)
	if len(encoded) != got.EncodedSize() {
		t.Errorf("announced %d bytes, appended %d", got.EncodedSize(), len(encoded))
	}
	if !bytes.Equal(encoded, generated) {
		t.Errorf("encoded\n%x\nwant\n%x", encoded, generated)
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

func TestAnswersAreByteForByteThoseOfTheGeneratedCode(t *testing.T) {
	facts := serving.Facts{
		Identity: mirror.Identity{ClusterID: 1 << 63, Epoch: 2, Name: "us-1", Region: "us", Incarnation: 3},
		LogIndex: 4, Revision: 5, Age: 6 * time.Microsecond,
	}
	h := encodedHeader(facts)
	kv := &kvv1.KeyValue{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 300), ModRevision: 1 << 40, Version: 1}

	sameBytes(t, &getAnswer{header: h}, &kvv1.GetResponse{Header: header(facts)})
	sameBytes(t, &getAnswer{header: h, keyValue: encode(t, kv)}, &kvv1.GetResponse{Header: header(facts), KeyValue: kv})

	sameBytes(t, &listAnswer{header: h}, &kvv1.ListResponse{Header: header(facts)})
	sameBytes(t,
		&listAnswer{header: h, keyValues: [][]byte{encode(t, kv), {}}, nextPageToken: "next", revision: 9},
		&kvv1.ListResponse{
			Header: header(facts), KeyValues: []*kvv1.KeyValue{kv, {}}, NextPageToken: "next", Revision: 9,
		})

	event := &kvv1.Event{Type: kvv1.Event_EVENT_TYPE_DELETE, Kv: kv, PrevKv: kv}
	for _, r := range []watch.Response{
		{WatchID: 1, Created: true},
		{WatchID: -1, Progress: true},
		{WatchID: 2, Canceled: true, Reason: "why", CompactRevision: 7},
		{WatchID: 3, Fragment: true, Events: [][]byte{encode(t, event)}},
	} {
		want := &kvv1.WatchResponse{
			Header: header(facts), WatchId: r.WatchID, Created: r.Created, Canceled: r.Canceled, CancelReason: r.Reason,
			CompactRevision: r.CompactRevision, Fragment: r.Fragment, Progress: r.Progress,
		}
		if r.Events != nil {
			want.Events = []*kvv1.Event{event}
		}
		if got := appendWatchAnswer(nil, h, &r); !bytes.Equal(got, encode(t, want)) {
			t.Errorf("encoded\n%x\nwant\n%x", got, encode(t, want))
		}
	}
}

func TestPageTokens(t *testing.T) {
	for _, token := range []pageToken{{1, []byte("k")}, {1 << 62, []byte{0, 255}}, {300, bytes.Repeat([]byte("k"), 1000)}} {
		got, err := parsePageToken(token.String())
		if err != nil || got.revision != token.revision || !bytes.Equal(got.next, token.next) {
			t.Errorf("%v came back as %v, %v", token, got, err)
		}
	}
	for _, text := range []string{
		"", "!", "AQ", pageToken{1, nil}.String(), pageToken{-1, []byte("k")}.String(), pageToken{0, []byte("k")}.String(),
		"Ag" + pageToken{1, []byte("k")}.String()[2:],
	} {
		if got, err := parsePageToken(text); err == nil {
			t.Errorf("%q was taken for %v", text, got)
		}
	}
}

// FuzzParsePageToken takes no token that would name another place than it was made for.
func FuzzParsePageToken(f *testing.F) {
	f.Add(pageToken{revision: 7, next: []byte("key")}.String())
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := parsePageToken(text)
		if err != nil {
			return
		}
		again, err := parsePageToken(token.String())
		if err != nil || again.revision != token.revision || string(again.next) != string(token.next) {
			t.Errorf("%q is %+v, then %+v, %v", text, token, again, err)
		}
	})
}
