package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	watchedKey   = "watched"
	watchWriters = 8
	drainTimeout = 20 * time.Second
)

// driveWatch has writers put one key in a closed loop and counts every event at every watcher. An operation is one event
// delivered; its latency is that from before the put to its arrival. The measurement ends when every watcher has the
// last event, so a server cannot gain by falling behind.
func driveWatch(ctx context.Context, s *system, clients []*clientv3.Client, watchers int, duration time.Duration) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams := make([]*watchStream, len(clients))
	for i, client := range clients {
		stream, err := openWatchStream(ctx, client, watchers/len(clients))
		if err != nil {
			return sample{}, fmt.Errorf("open a watch stream: %w", err)
		}
		streams[i] = stream
	}
	m, err := startMeter(s)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	latencies := make([][]time.Duration, len(streams))
	failures := make([]failure, len(streams)+watchWriters)
	var readers, writers sync.WaitGroup
	for i, stream := range streams {
		readers.Go(func() { latencies[i], failures[i] = stream.receive(began) })
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

// stamped is a value that carries when it was written, in nanoseconds since began, and whether it is the last.
func stamped(began time.Time, last bool) string {
	b := make([]byte, valueBytes)
	binary.BigEndian.PutUint64(b, uint64(time.Since(began)))
	if last {
		b[8] = 1
	}
	return string(b)
}

type watchStream struct {
	stream   pb.Watch_WatchClient
	watchers int
}

// openWatchStream returns when all its watches are in force. The stream ends with ctx.
func openWatchStream(ctx context.Context, client *clientv3.Client, watchers int) (*watchStream, error) {
	stream, err := pb.NewWatchClient(client.ActiveConnection()).Watch(ctx)
	if err != nil {
		return nil, err
	}
	for range watchers {
		create := &pb.WatchCreateRequest{Key: []byte(watchedKey)}
		err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
		if err != nil {
			return nil, err
		}
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if !response.Created || response.Canceled {
			return nil, fmt.Errorf("a watch was answered with %v", response)
		}
	}
	return &watchStream{stream: stream, watchers: watchers}, nil
}

// receive returns the latency of every event, until each watch has had the last one.
func (w *watchStream) receive(began time.Time) ([]time.Duration, failure) {
	var latencies []time.Duration
	for finished := 0; finished < w.watchers; {
		response, err := w.stream.Recv()
		if err != nil {
			return latencies, failure{count: 1, first: err}
		}
		now := time.Since(began)
		for _, event := range response.Events {
			if len(event.Kv.Value) != valueBytes {
				return latencies, failure{count: 1, first: fmt.Errorf("an event of %d bytes", len(event.Kv.Value))}
			}
			latencies = append(latencies, now-time.Duration(binary.BigEndian.Uint64(event.Kv.Value)))
			finished += int(event.Kv.Value[8])
		}
	}
	return latencies, failure{}
}
