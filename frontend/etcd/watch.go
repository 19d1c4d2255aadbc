package etcd

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/watch"
)

type watchServer struct {
	pb.UnimplementedWatchServer
	*services
}

// Watch has two halves: requests are read here, one at a time; responses are written by one goroutine, which is over
// when Watch returns.
func (s *watchServer) Watch(stream pb.Watch_WatchServer) error {
	if err := s.region.CheckReady(); err != nil {
		return failure(err)
	}
	if err := s.requireLeader(stream.Context()); err != nil {
		return err
	}
	facts := s.region.Facts()
	// An error here is one of the stream, which the first read or write will return too.
	_ = stream.SetHeader(factsMetadata(facts))

	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	watches := s.hub.NewStream(watch.StreamOptions{FragmentBytes: s.region.Limits().MaxRequestBytes})
	defer watches.Close()

	written := make(chan struct{})
	go func() {
		defer close(written)
		cancel(s.writeWatch(ctx, stream, watches))
	}()
	// A read blocks until the stream ends, which it only does when Watch returns: so reading has a goroutine of its own,
	// which the return of Watch ends.
	go func() {
		if err := readWatch(ctx, stream, watches); err != nil {
			cancel(err)
		}
	}()

	<-ctx.Done()
	watches.Close()
	<-written
	return watchEnd(stream.Context(), context.Cause(ctx))
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

// readWatch carries requests to the hub until the stream ends. It returns nil when the client has no more requests; its
// watches go on.
func readWatch(ctx context.Context, stream pb.Watch_WatchServer, watches *watch.Stream) error {
	for {
		// A client that does not read its answers is left to the transport's flow control.
		if err := watches.Admit(ctx); err != nil {
			return err
		}
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
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
	}
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

// writeWatch sends what the hub has for the stream, until either ends.
func (s *watchServer) writeWatch(ctx context.Context, stream pb.Watch_WatchServer, watches *watch.Stream) error {
	var batch []watch.Response
	// The facts that do not change during a stream: an incarnation ends its streams.
	facts := serving.Facts{Identity: s.region.Identity()}
	for {
		var err error
		if batch, err = watches.NextAll(ctx, batch[:0]); err != nil {
			return err
		}
		for i := range batch {
			facts.Term, facts.Revision = s.region.Term(), batch[i].Revision
			if err := stream.SendMsg(newWatchAnswer(facts, &batch[i])); err != nil {
				return err
			}
			batch[i] = watch.Response{}
		}
	}
}

// watchAnswer is a pb.WatchResponse whose events are encoded already.
type watchAnswer struct {
	header          []byte
	watchID         int64
	created         bool
	canceled        bool
	compactRevision int64
	cancelReason    string
	fragment        bool
	events          [][]byte
}

func newWatchAnswer(facts serving.Facts, r *watch.Response) *watchAnswer {
	// A message of integers cannot fail to marshal.
	encoded, _ := proto.Marshal(header(facts))
	return &watchAnswer{
		header:          encoded,
		watchID:         r.WatchID,
		created:         r.Created,
		canceled:        r.Canceled,
		compactRevision: r.CompactRevision,
		cancelReason:    cancelReason(r),
		fragment:        r.Fragment,
		events:          r.Events,
	}
}

// cancelReason says it in etcd's words where etcd has them: clients compare the text.
func cancelReason(r *watch.Response) string {
	switch {
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

// EncodedSize implements wire.Message.
func (a *watchAnswer) EncodedSize() int {
	size := wire.SizeElement(watchHeaderField, a.header) +
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
	b = wire.AppendElement(b, watchHeaderField, a.header)
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
