package frontend

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/watch"
)

type watchServer struct {
	kvv1.UnimplementedWatchServiceServer
	region *serving.Region
	hub    *watch.Hub
}

// Watch has two halves: requests are read here, one at a time; responses are written by one goroutine, which is over
// when Watch returns.
func (s *watchServer) Watch(stream kvv1.WatchService_WatchServer) error {
	if err := s.region.CheckReady(); err != nil {
		return failure(err)
	}
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
	cause := context.Cause(ctx)
	if errors.Is(cause, watch.ErrClosed) {
		return status.Error(codes.Unavailable, "this frontend is stopping; watch again from the last revision seen + 1")
	}
	return failure(cause)
}

// readWatch carries requests to the hub until the stream ends. It returns nil when the client has no more requests; its
// watches go on.
func readWatch(ctx context.Context, stream kvv1.WatchService_WatchServer, watches *watch.Stream) error {
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
		switch r := request.GetRequest().(type) {
		case *kvv1.WatchRequest_Create_:
			if err := createWatch(r.Create, watches); err != nil {
				return err
			}
		case *kvv1.WatchRequest_Cancel_:
			watches.Cancel(r.Cancel.GetWatchId())
		case *kvv1.WatchRequest_Progress_:
			watches.RequestProgress()
		default:
			return invalid("request", "must be one of create, cancel and progress")
		}
	}
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

// writeWatch sends what the hub has for the stream, until either ends.
func (s *watchServer) writeWatch(
	ctx context.Context, stream kvv1.WatchService_WatchServer, watches *watch.Stream,
) error {
	var batch []watch.Response
	for {
		var err error
		if batch, err = watches.NextAll(ctx, batch[:0]); err != nil {
			return err
		}
		facts := s.region.Facts()
		for i := range batch {
			facts.Revision = batch[i].Revision
			answer := &watchAnswer{header: encodedHeader(facts), Response: batch[i]}
			if err := stream.SendMsg(answer); err != nil {
				return err
			}
			batch[i] = watch.Response{}
		}
	}
}

// watchAnswer is a kvv1.WatchResponse whose events are encoded already.
type watchAnswer struct {
	header []byte
	watch.Response
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

// EncodedSize implements wire.Message.
func (a *watchAnswer) EncodedSize() int {
	size := wire.SizeElement(watchHeaderField, a.header) +
		wire.SizeVarint(watchIDField, uint64(a.WatchID)) +
		wire.SizeVarint(watchCreatedField, wire.Bool(a.Created)) +
		wire.SizeVarint(watchCanceledField, wire.Bool(a.Canceled)) +
		wire.SizeString(watchCancelReasonField, a.Reason) +
		wire.SizeVarint(watchCompactRevisionField, uint64(a.CompactRevision)) +
		wire.SizeVarint(watchFragmentField, wire.Bool(a.Fragment)) +
		wire.SizeVarint(watchProgressField, wire.Bool(a.Progress))
	for _, event := range a.Events {
		size += wire.SizeElement(watchEventsField, event)
	}
	return size
}

// AppendEncoded implements wire.Message.
func (a *watchAnswer) AppendEncoded(b []byte) []byte {
	b = wire.AppendElement(b, watchHeaderField, a.header)
	b = wire.AppendVarint(b, watchIDField, uint64(a.WatchID))
	b = wire.AppendVarint(b, watchCreatedField, wire.Bool(a.Created))
	b = wire.AppendVarint(b, watchCanceledField, wire.Bool(a.Canceled))
	b = wire.AppendString(b, watchCancelReasonField, a.Reason)
	b = wire.AppendVarint(b, watchCompactRevisionField, uint64(a.CompactRevision))
	b = wire.AppendVarint(b, watchFragmentField, wire.Bool(a.Fragment))
	b = wire.AppendVarint(b, watchProgressField, wire.Bool(a.Progress))
	for _, event := range a.Events {
		b = wire.AppendElement(b, watchEventsField, event)
	}
	return b
}
