package etcd

import (
	"context"
	"errors"

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
	if err := s.requireLeader(stream.Context()); err != nil {
		return err
	}
	// An error here is one of the stream, which the first read or write will return too.
	_ = stream.SetHeader(factsMetadata(s.region.Facts()))
	handler := delivery.Handler{
		Request:       requestWatch,
		Encoder:       &watchEncoder{region: s.region, identity: s.region.Identity()},
		FragmentBytes: s.region.Limits().MaxRequestBytes + serving.RequestOverheadBytes, // as etcd has it
	}
	if wantsLeader(stream.Context()) {
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

// requestWatch carries one request to the hub.
func requestWatch(encoded []byte, watches *watch.Stream) error {
	request := new(pb.WatchRequest)
	if err := proto.Unmarshal(encoded, request); err != nil {
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

// watchEncoder makes the answers of one stream, one at a time.
type watchEncoder struct {
	region *serving.Region
	// identity does not change during a stream: the end of an incarnation ends its streams.
	identity mirror.Identity
	answer   watchAnswer
}

// Encode implements delivery.Encoder.
func (e *watchEncoder) Encode(r *watch.Response) wire.Message {
	e.answer = newWatchAnswer(serving.Facts{Identity: e.identity, Term: e.region.Term(), Revision: r.Revision}, r)
	return &e.answer
}

// watchAnswer is a pb.WatchResponse whose events are encoded already.
type watchAnswer struct {
	clusterID, memberID, term uint64
	revision                  int64
	watchID                   int64
	compactRevision           int64
	cancelReason              string
	events                    [][]byte
	created                   bool
	canceled                  bool
	fragment                  bool
}

func newWatchAnswer(facts serving.Facts, r *watch.Response) watchAnswer {
	return watchAnswer{
		clusterID:       facts.Identity.ClusterID,
		memberID:        facts.Identity.FrontendID,
		term:            facts.Term,
		revision:        facts.Revision,
		watchID:         r.WatchID,
		compactRevision: r.CompactRevision,
		cancelReason:    cancelReason(r),
		events:          r.Events,
		created:         r.Created,
		canceled:        r.Canceled,
		fragment:        r.Fragment,
	}
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

// Field numbers of pb.ResponseHeader.
const (
	headerClusterIDField protowire.Number = 1
	headerMemberIDField  protowire.Number = 2
	headerRevisionField  protowire.Number = 3
	headerTermField      protowire.Number = 4
)

func (a *watchAnswer) headerSize() int {
	return wire.SizeVarint(headerClusterIDField, a.clusterID) +
		wire.SizeVarint(headerMemberIDField, a.memberID) +
		wire.SizeVarint(headerRevisionField, uint64(a.revision)) +
		wire.SizeVarint(headerTermField, a.term)
}

func (a *watchAnswer) appendHeader(b []byte) []byte {
	b = protowire.AppendTag(b, watchHeaderField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(a.headerSize()))
	b = wire.AppendVarint(b, headerClusterIDField, a.clusterID)
	b = wire.AppendVarint(b, headerMemberIDField, a.memberID)
	b = wire.AppendVarint(b, headerRevisionField, uint64(a.revision))
	return wire.AppendVarint(b, headerTermField, a.term)
}

// EncodedSize implements wire.Message.
func (a *watchAnswer) EncodedSize() int {
	size := protowire.SizeTag(watchHeaderField) + protowire.SizeBytes(a.headerSize()) +
		wire.SizeVarint(watchIDField, uint64(a.watchID)) +
		wire.SizeVarint(watchCreatedField, wire.Bool(a.created)) +
		wire.SizeVarint(watchCanceledField, wire.Bool(a.canceled)) +
		wire.SizeVarint(watchCompactRevisionField, uint64(a.compactRevision)) +
		wire.SizeString(watchCancelReasonField, a.cancelReason) +
		wire.SizeVarint(watchFragmentField, wire.Bool(a.fragment))
	for _, event := range a.events {
		size += wire.SizeElement(watchEventsField, event)
	}
	return size
}

// AppendEncoded implements wire.Message.
func (a *watchAnswer) AppendEncoded(b []byte) []byte {
	b = a.appendHeader(b)
	b = wire.AppendVarint(b, watchIDField, uint64(a.watchID))
	b = wire.AppendVarint(b, watchCreatedField, wire.Bool(a.created))
	b = wire.AppendVarint(b, watchCanceledField, wire.Bool(a.canceled))
	b = wire.AppendVarint(b, watchCompactRevisionField, uint64(a.compactRevision))
	b = wire.AppendString(b, watchCancelReasonField, a.cancelReason)
	b = wire.AppendVarint(b, watchFragmentField, wire.Bool(a.fragment))
	for _, event := range a.events {
		b = wire.AppendElement(b, watchEventsField, event)
	}
	return b
}
