package etcd

import (
	"context"
	"reflect"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// If gRPC should come to keep the metadata of a call in another way, this tells; the metadata is found then, too, as a copy.
func TestTheMetadataOfACallIsNotCopied(t *testing.T) {
	md := metadata.Pairs(TokenKey, "first", TokenKey, "last")
	ctx := context.WithValue(metadata.NewIncomingContext(t.Context(), md), t, 1)
	if reflect.ValueOf(sent(ctx)).Pointer() != reflect.ValueOf(md).Pointer() {
		t.Error("it is a copy")
	}
	if got := asked(sent(ctx), TokenKey); got != "last" {
		t.Errorf("asked for %q", got)
	}
	if got := asked(sent(t.Context()), TokenKey); got != "" {
		t.Errorf("a call without metadata asked for %q", got)
	}
}

func TestAnswersOfTheSameFactsAreToldAlike(t *testing.T) {
	s := &services{}
	identity := mirror.Identity{ClusterID: 0xabc, Epoch: 2, FrontendID: 7, Incarnation: 3, Name: "f", Region: "us east"}
	facts := serving.Facts{Identity: identity, Term: 4, LogIndex: 50, Revision: 6, Age: 4_000_001}
	first := s.metadataOf(facts)
	want := metadata.Pairs(AnswerKey, "incarnation=3 age-microseconds=5000 region=us east", TokenKey, "0000000000000abc-2-50")
	if !reflect.DeepEqual(first, want) {
		t.Errorf("told %v, want %v", first, want)
	}
	facts.Age = 5 * time.Millisecond
	facts.Revision++ // which the header tells
	if reflect.ValueOf(s.metadataOf(facts)).Pointer() != reflect.ValueOf(first).Pointer() {
		t.Error("the same facts are told anew")
	}
	for name, change := range map[string]func(*serving.Facts){
		"age":         func(f *serving.Facts) { f.Age++ },
		"no age":      func(f *serving.Facts) { f.Age = -1 },
		"log index":   func(f *serving.Facts) { f.LogIndex++ },
		"incarnation": func(f *serving.Facts) { f.Identity.Incarnation++ },
		"cluster":     func(f *serving.Facts) { f.Identity.ClusterID++ },
		"region":      func(f *serving.Facts) { f.Identity.Region = "" },
	} {
		changed := facts
		change(&changed)
		if got, want := s.metadataOf(changed), newTold(tellable(changed)).metadata; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: told %v after other facts, want %v", name, got, want)
		}
		if got := s.metadataOf(facts); !reflect.DeepEqual(got, first) {
			t.Errorf("%s: told %v afterwards, want %v", name, got, first)
		}
	}
}

// An age is a bound: it may be told as more, never as less.
func TestAgesAreRoundedUp(t *testing.T) {
	for age, want := range map[time.Duration]time.Duration{
		-1: -1, 0: 0, 1: ageUnit, ageUnit: ageUnit, ageUnit + 1: 2 * ageUnit, time.Hour - 1: time.Hour,
	} {
		if got := tellable(serving.Facts{Age: age}).Age; got != want {
			t.Errorf("%v is told as %v, want %v", age, got, want)
		}
	}
}

// A range of one key is read on a way of its own: it has to answer as any other range does.
func TestAGetAnswersAsARangeDoes(t *testing.T) {
	m := newStillMirror(t)
	for _, value := range []string{"a", "b"} {
		m.apply(t, logv1.EntryKind_ENTRY_KIND_BATCH, &commandv1.CommandBatch{Commands: []*commandv1.Command{
			{Operation: &commandv1.Command_Put{Put: &commandv1.Put{Key: []byte("key"), Value: []byte(value)}}},
		}})
	}
	newest := serving.New(m, statemachine.Limits{}).Facts().Revision
	m.apply(t, logv1.EntryKind_ENTRY_KIND_BATCH, &commandv1.CommandBatch{Commands: []*commandv1.Command{
		{Operation: &commandv1.Command_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: []byte("range/00000001")}}},
		{Operation: &commandv1.Command_Compact{Compact: &commandv1.Compact{Revision: newest - 1}}},
	}})
	server := &kvServer{services: &services{region: serving.New(m, statemachine.Limits{})}}
	ctx := grpc.NewContextWithServerTransportStream(t.Context(), &headerStream{})
	for _, key := range []string{"key", "range/00000001", "absent"} {
		for _, revision := range []int64{-1, 0, 1, newest - 2, newest - 1, newest, newest + 1, newest + 2} {
			for _, keysOnly := range []bool{false, true} {
				request := &pb.RangeRequest{
					Key: []byte(key), Revision: revision, KeysOnly: keysOnly, Serializable: true, Limit: 1, SortOrder: pb.RangeRequest_DESCEND,
				}
				snapshot := m.machine.Space().Acquire()
				command := rangeCommand(request)
				command.KeysOnly = false
				result, wantErr := statemachine.EvaluateRange(snapshot, command)
				snapshot.Release()
				answer, err := server.rangeAnswer(ctx, request)
				if wantErr != nil {
					if err == nil || err.Error() != failure(wantErr).Error() {
						t.Errorf("%+v: %v, want %v", request, err, wantErr)
					}
					continue
				}
				if err != nil {
					t.Errorf("%+v: %v", request, err)
					continue
				}
				want := newRangeAnswer(answer.(*rangeAnswer).header, result, keysOnly)
				if got := answer.(*rangeAnswer).AppendEncoded(nil); string(got) != string(want.AppendEncoded(nil)) {
					t.Errorf("%+v: answered %x, want %x", request, got, want.AppendEncoded(nil))
				}
			}
		}
	}
}
