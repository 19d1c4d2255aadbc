package frontend

import (
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/delivery"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/watch"
)

type watchServer struct {
	kvv1.UnimplementedWatchServiceServer
	region *serving.Region
	hub    *watch.Hub
	sender *delivery.Sender
}

// Watch reads requests one at a time; responses are written by the sender.
func (s *watchServer) Watch(stream kvv1.WatchService_WatchServer) error {
	if err := s.region.CheckReady(); err != nil {
		return failure(err)
	}
	err := s.sender.Serve(stream, s.hub, delivery.Handler{
		Request:       requestWatch,
		Encoder:       watchEncoder{s.region},
		FragmentBytes: s.region.Limits().MaxRequestBytes,
	})
	if errors.Is(err, watch.ErrClosed) {
		return status.Error(codes.Unavailable, "this frontend is stopping; watch again from the last revision seen + 1")
	}
	return failure(err)
}

// requestWatch carries one request to the hub.
func requestWatch(encoded []byte, watches *watch.Stream) error {
	request := new(kvv1.WatchRequest)
	if err := proto.Unmarshal(encoded, request); err != nil {
		return status.Errorf(codes.Internal, "watch request cannot be decoded: %v", err)
	}
	switch r := request.GetRequest().(type) {
	case *kvv1.WatchRequest_Create_:
		return createWatch(r.Create, watches)
	case *kvv1.WatchRequest_Cancel_:
		watches.Cancel(r.Cancel.GetWatchId())
	case *kvv1.WatchRequest_Progress_:
		watches.RequestProgress()
	default:
		return invalid("request", "must be one of create, cancel and progress")
	}
	return nil
}

func createWatch(r *kvv1.WatchRequest_Create, watches *watch.Stream) error {
	if err := checkKey("create.key", r.GetKey()); err != nil {
		return watches.Refuse(err)
	}
	_, err := watches.Watch(watch.Request{
		ID:            r.GetWatchId(),
		Key:           r.GetKey(),
		End:           r.GetRangeEnd(),
		StartRevision: r.GetStartRevision(),
		PreviousKV:    r.GetReturnPrevious(),
		NoPut:         r.GetNoPuts(),
		NoDelete:      r.GetNoDeletes(),
		Progress:      r.GetProgress(),
		Fragment:      r.GetFragments(),
	})
	if errors.Is(err, watch.ErrClosed) || errors.Is(err, watch.ErrOverloaded) {
		return err
	}
	return nil // the stream tells the client
}

// watchEncoder encodes each response as a kvv1.WatchResponse.
type watchEncoder struct{ region *serving.Region }

// AppendEncoded implements delivery.Encoder.
func (e watchEncoder) AppendEncoded(b []byte, r *watch.Response) []byte {
	facts := e.region.Facts()
	facts.Revision = r.Revision
	return appendWatchAnswer(b, encodedHeader(facts), r)
}

const (
	watchHeaderField          protowire.Number = 1
	watchIDField              protowire.Number = 2
	watchCreatedField         protowire.Number = 3
	watchCanceledField        protowire.Number = 4
	watchCancelReasonField    protowire.Number = 5
	watchCompactRevisionField protowire.Number = 6
	watchFragmentField        protowire.Number = 7
	watchProgressField        protowire.Number = 8
	watchEventsField          protowire.Number = 9
)

func appendWatchAnswer(b, header []byte, r *watch.Response) []byte {
	b = wire.AppendElement(b, watchHeaderField, header)
	b = wire.AppendVarint(b, watchIDField, uint64(r.WatchID))
	b = wire.AppendVarint(b, watchCreatedField, wire.Bool(r.Created))
	b = wire.AppendVarint(b, watchCanceledField, wire.Bool(r.Canceled))
	b = wire.AppendString(b, watchCancelReasonField, r.Reason)
	b = wire.AppendVarint(b, watchCompactRevisionField, uint64(r.CompactRevision))
	b = wire.AppendVarint(b, watchFragmentField, wire.Bool(r.Fragment))
	b = wire.AppendVarint(b, watchProgressField, wire.Bool(r.Progress))
	for _, event := range r.Events {
		b = wire.AppendElement(b, watchEventsField, event)
	}
	return b
}
