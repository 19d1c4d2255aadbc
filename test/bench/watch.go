package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	watchedKey   = "watched"
	watchWriters = 8
	drainTimeout = 20 * time.Second
)

func driveWatch(ctx context.Context, s *system, clients []*clientv3.Client, load watchLoad, duration time.Duration) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams, err := openWatchStreams(ctx, clients, load)
	if err != nil {
		return sample{}, err
	}
	if load.kind == lastDelivery {
		return driveLastDelivery(ctx, s, clients, streams, duration)
	}
	return driveFanOut(ctx, cancel, s, clients, streams, duration)
}

// driveFanOut has writers put one key in a closed loop and counts every event at every watcher. An operation is one event
// delivered; its latency is that from before the put to its arrival. The measurement ends when every watcher has the
// last event, so a server cannot gain by falling behind.
func driveFanOut(
	ctx context.Context, cancel func(), s *system, clients []*clientv3.Client, streams []*watchStream, duration time.Duration,
) (sample, error) {
	m, err := startMeter(s)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	latencies := make([][]time.Duration, len(streams))
	failures := make([]failure, len(streams)+watchWriters)
	var readers, writers sync.WaitGroup
	for i, stream := range streams {
		readers.Go(func() { latencies[i], failures[i] = stream.receiveAll(began) })
	}
	acknowledged := make([]int, watchWriters)
	for i := range watchWriters {
		writers.Go(func() {
			put := func(ctx context.Context) error {
				_, err := clients[i].Put(ctx, watchedKey, stamped(began, false))
				return err
			}
			done, failed := closedLoop(ctx, put, began.Add(duration))
			acknowledged[i], failures[len(streams)+i] = len(done), failed
		})
	}
	writers.Wait()
	undrained := time.AfterFunc(drainTimeout, cancel)
	defer undrained.Stop()
	if _, err := clients[0].Put(ctx, watchedKey, stamped(began, true)); err != nil {
		return sample{}, err
	}
	readers.Wait()
	puts := 1
	for _, n := range acknowledged {
		puts += n
	}
	for i, stream := range streams {
		if got, want := len(latencies[i]), puts*stream.watchers; got < want && failures[i].first == nil {
			failures[i] = failure{count: 1, first: fmt.Errorf("a stream had %d events of %d", got, want)}
		}
	}
	return m.stop(latencies, failures)
}

// driveLastDelivery puts the key again whenever all watchers have had the put before.
func driveLastDelivery(
	ctx context.Context, s *system, clients []*clientv3.Client, streams []*watchStream, duration time.Duration,
) (sample, error) {
	m, err := startMeter(s)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	delivered := make(chan error, len(streams)) // what each stream says of each put
	var readers sync.WaitGroup
	defer readers.Wait()
	for _, stream := range streams {
		readers.Go(func() {
			for last := false; !last; {
				var err error
				last, err = stream.receiveOnce()
				delivered <- err
				if err != nil {
					return
				}
			}
		})
	}
	var latencies []time.Duration
	for last := false; !last; {
		last = time.Since(began) >= duration
		start := time.Now()
		_, failed := clients[len(latencies)%len(clients)].Put(ctx, watchedKey, stamped(began, last))
		for range streams {
			select {
			case err := <-delivered:
				failed = errors.Join(failed, err)
			case <-ctx.Done():
				return sample{}, ctx.Err()
			}
		}
		if failed != nil {
			return sample{}, failed
		}
		latencies = append(latencies, time.Since(start))
	}
	return m.stop([][]time.Duration{latencies}, nil)
}

// stamped is a value that carries when it was written, in nanoseconds since began, and whether it is the last.
func stamped(began time.Time, last bool) string {
	b := make([]byte, valueBytes)
	binary.BigEndian.PutUint64(b, uint64(time.Since(began)))
	if last {
		b[8] = 1
	}
	return string(b)
}

// watchStream is a stream whose answers stay encoded: decoding them into messages would take more of the processor than
// sending them, and the load shares it with the servers.
type watchStream struct {
	stream   grpc.ClientStream
	watchers int
}

// openWatchStreams returns when all watches are in force. They end with ctx.
func openWatchStreams(ctx context.Context, clients []*clientv3.Client, load watchLoad) ([]*watchStream, error) {
	const opening = 16 // at once
	streams := make([]*watchStream, load.streams)
	failed := make([]error, opening)
	var running sync.WaitGroup
	for worker := range opening {
		running.Go(func() {
			for i := worker; i < len(streams) && failed[worker] == nil; i += opening {
				streams[i], failed[worker] = openWatchStream(ctx, clients[i%len(clients)], load.watchers/load.streams)
			}
		})
	}
	running.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, fmt.Errorf("open a watch stream: %w", err)
	}
	return streams, nil
}

func openWatchStream(ctx context.Context, client *clientv3.Client, watchers int) (*watchStream, error) {
	description := &grpc.StreamDesc{StreamName: "Watch", ServerStreams: true, ClientStreams: true}
	stream, err := client.ActiveConnection().NewStream(ctx, description, "/etcdserverpb.Watch/Watch", grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		return nil, err
	}
	opened := &watchStream{stream: stream}
	for range watchers {
		if err := opened.watch(watchedKey); err != nil {
			return nil, err
		}
	}
	return opened, nil
}

// watch adds a watch to a stream that nobody else reads from, and returns when it is in force.
func (w *watchStream) watch(key string) error {
	create := &pb.WatchCreateRequest{Key: []byte(key)}
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	if err := w.stream.SendMsg(request); err != nil {
		return err
	}
	for { // what is not the answer are events of other watches
		var encoded []byte
		if err := w.stream.RecvMsg(&encoded); err != nil {
			return err
		}
		response := new(pb.WatchResponse)
		if err := proto.Unmarshal(encoded, response); err != nil {
			return err
		}
		if response.Canceled {
			return fmt.Errorf("a watch was answered with %v", response)
		}
		if response.Created {
			w.watchers++
			return nil
		}
	}
}

// discard throws events away, and returns with the first one after ctx has ended.
func (w *watchStream) discard(ctx context.Context) error {
	for {
		var encoded []byte
		if err := w.stream.RecvMsg(&encoded); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// receive returns the times in the values of the next message's events, and how many are marked as the last.
func (w *watchStream) receive(stamps []time.Duration) (_ []time.Duration, last int, err error) {
	var encoded []byte
	if err := w.stream.RecvMsg(&encoded); err != nil {
		return nil, 0, err
	}
	err = eachField(encoded, 11, func(event []byte) error { // WatchResponse.events
		return eachField(event, 2, func(kv []byte) error { // Event.kv
			return eachField(kv, 5, func(value []byte) error { // KeyValue.value
				if len(value) != valueBytes {
					return fmt.Errorf("an event of %d bytes", len(value))
				}
				stamps = append(stamps, time.Duration(binary.BigEndian.Uint64(value)))
				last += int(value[8])
				return nil
			})
		})
	})
	return stamps, last, err
}

// eachField visits the values of one field of an encoded message.
func eachField(message []byte, number protowire.Number, visit func([]byte) error) error {
	for len(message) > 0 {
		n, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return protowire.ParseError(length)
		}
		message = message[length:]
		if n == number && kind == protowire.BytesType {
			value, length := protowire.ConsumeBytes(message)
			if length < 0 {
				return protowire.ParseError(length)
			}
			if err := visit(value); err != nil {
				return err
			}
			message = message[length:]
			continue
		}
		if length = protowire.ConsumeFieldValue(n, kind, message); length < 0 {
			return protowire.ParseError(length)
		}
		message = message[length:]
	}
	return nil
}

// receiveAll returns the latency of every event, until each watch has had the last one.
func (w *watchStream) receiveAll(began time.Time) (latencies []time.Duration, failed failure) {
	for finished := 0; finished < w.watchers; {
		first := len(latencies)
		received, last, err := w.receive(latencies)
		if err != nil {
			return latencies, failure{count: 1, first: err}
		}
		latencies = received
		now := time.Since(began)
		for i := first; i < len(latencies); i++ {
			latencies[i] = now - latencies[i]
		}
		finished += last
	}
	return latencies, failure{}
}

// receiveOnce returns when each watch has had one more event.
func (w *watchStream) receiveOnce() (last bool, err error) {
	for missing := w.watchers; missing > 0; {
		stamps, ended, err := w.receive(nil)
		if err != nil {
			return false, err
		}
		missing -= len(stamps)
		last = last || ended > 0
	}
	return last, nil
}

// rawCodec encodes messages and leaves answers as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	encoded, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(encoded)}, err
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
