package etcd

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/logmirror/logmirror/frontend/delivery"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/watch"
)

type watchServer struct {
	pb.UnimplementedWatchServer
	*services
}

// Watch reads requests one at a time; responses are written by the sender.
func (s *watchServer) Watch(stream pb.Watch_WatchServer) error {
	if err := s.region.CheckReady(); err != nil {
		return failure(err)
	}
	if err := s.requireLeader(sent(stream.Context())); err != nil {
		return err
	}
	// An error here is one of the stream, which the first read or write will return too.
	_ = stream.SetHeader(s.metadataOf(s.region.Facts()))
	handler := delivery.Handler{
		Request:       requestWatch,
		Encoder:       newWatchEncoder(s.region),
		FragmentBytes: s.region.Limits().MaxRequestBytes + serving.RequestOverheadBytes, // as etcd has it
	}
	if wantsLeader(sent(stream.Context())) {
		handler.Lost, handler.LostError = s.logLost(), rpctypes.ErrGRPCNoLeader
	}
	err := s.sender.Serve(stream, s.hub, handler)
	return watchEnd(stream.Context(), err)
}

// watchEnd turns the reason for which a stream ended into its status.
func watchEnd(ctx context.Context, cause error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(cause, context.Canceled):
		return rpctypes.ErrGRPCWatchCanceled
	case errors.Is(cause, watch.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(cause, watch.ErrOverloaded):
		return rpctypes.ErrGRPCRequestTooManyRequests
	default:
		return cause
	}
}

// watchCreation is a request to be decoded into again and again: clients open watches by the ten thousand.
type watchCreation struct {
	request pb.WatchRequest
	union   pb.WatchRequest_CreateRequest
	create  pb.WatchCreateRequest
}

var watchCreations = sync.Pool{New: func() any { return new(watchCreation) }}

// createRequestField is the field of pb.WatchRequest that asks for a watch.
const createRequestField protowire.Number = 1

// requestWatch carries one request to the hub.
func requestWatch(encoded []byte, watches *watch.Stream) error {
	var request *pb.WatchRequest
	if field, _, _ := protowire.ConsumeTag(encoded); field == createRequestField {
		creation := watchCreations.Get().(*watchCreation)
		defer watchCreations.Put(creation)
		creation.request.Reset()
		creation.create.Reset()
		creation.union.CreateRequest, creation.request.RequestUnion = &creation.create, &creation.union
		request = &creation.request
	} else {
		request = new(pb.WatchRequest)
	}
	if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(encoded, request); err != nil {
		return status.Errorf(codes.Internal, "watch request cannot be decoded: %v", err)
	}
	switch r := request.GetRequestUnion().(type) {
	case *pb.WatchRequest_CreateRequest:
		_, err := watches.Watch(watchRequest(r.CreateRequest))
		if errors.Is(err, watch.ErrClosed) || errors.Is(err, watch.ErrOverloaded) {
			return err
		}
	case *pb.WatchRequest_CancelRequest:
		watches.Cancel(r.CancelRequest.GetWatchId())
	case *pb.WatchRequest_ProgressRequest:
		watches.RequestProgress()
	}
	return nil // the stream tells the client
}

func watchRequest(r *pb.WatchCreateRequest) watch.Request {
	request := watch.Request{
		ID:            r.GetWatchId(),
		Key:           r.GetKey(),
		End:           r.GetRangeEnd(),
		StartRevision: r.GetStartRevision(),
		PreviousKV:    r.GetPrevKv(),
		Progress:      r.GetProgressNotify(),
		Fragment:      r.GetFragment(),
	}
	for _, filter := range r.GetFilters() {
		switch filter {
		case pb.WatchCreateRequest_NOPUT:
			request.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			request.NoDelete = true
		}
	}
	return request
}

// watchEncoder encodes each response as a pb.WatchResponse. What a stream is told at one time has one header.
type watchEncoder struct {
	// identity does not change during a stream: the end of an incarnation ends its streams.
	identity mirror.Identity
	term     func() uint64

	// header is the encoded field for a term and a revision.
	header         []byte
	headerTerm     uint64
	headerRevision int64
}

func newWatchEncoder(region *serving.Region) *watchEncoder {
	return &watchEncoder{identity: region.Identity(), term: region.Term}
}

// cancelReason says it in etcd's words where etcd has them: clients compare the text.
func cancelReason(r *watch.Response) string {
	switch {
	case r.Err == nil:
		return r.Reason
	case errors.Is(r.Err, watch.ErrCompacted):
		if !r.Created {
			return "" // etcd says it by the compact revision alone
		}
		return rpctypes.ErrCompacted.Error()
	case errors.Is(r.Err, watch.ErrDuplicateID):
		return "mvcc: duplicate watch ID provided on the WatchStream"
	case errors.Is(r.Err, watch.ErrEmptyRange):
		return "mvcc: watcher range is empty"
	default:
		return r.Reason
	}
}

// Field numbers of pb.WatchResponse.
const (
	watchHeaderField          protowire.Number = 1
	watchIDField              protowire.Number = 2
	watchCreatedField         protowire.Number = 3
	watchCanceledField        protowire.Number = 4
	watchCompactRevisionField protowire.Number = 5
	watchCancelReasonField    protowire.Number = 6
	watchFragmentField        protowire.Number = 7
	watchEventsField          protowire.Number = 11
)

// AppendEncoded implements delivery.Encoder.
func (e *watchEncoder) AppendEncoded(b []byte, r *watch.Response) []byte {
	b = append(b, e.headerAt(r.Revision)...)
	b = wire.AppendVarint(b, watchIDField, uint64(r.WatchID))
	b = wire.AppendVarint(b, watchCreatedField, wire.Bool(r.Created))
	b = wire.AppendVarint(b, watchCanceledField, wire.Bool(r.Canceled))
	b = wire.AppendVarint(b, watchCompactRevisionField, uint64(r.CompactRevision))
	b = wire.AppendString(b, watchCancelReasonField, cancelReason(r))
	b = wire.AppendVarint(b, watchFragmentField, wire.Bool(r.Fragment))
	for _, event := range r.Events {
		b = wire.AppendElement(b, watchEventsField, event)
	}
	return b
}

// headerAt returns the encoded header field of a response.
func (e *watchEncoder) headerAt(revision int64) []byte {
	term := e.term()
	if e.header == nil || term != e.headerTerm || revision != e.headerRevision {
		e.headerTerm, e.headerRevision = term, revision
		var header [headerBytesMax]byte
		e.header = wire.AppendElement(e.header[:0], watchHeaderField, appendHeader(header[:0], &e.identity, revision, term))
	}
	return e.header
}
