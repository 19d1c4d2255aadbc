package main

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchersCurve has three series: watchers that share 100 streams and watch a key each, watchers of one key on 100 streams,
// and watchers with a stream each; and what a connection takes that does nothing.
func (run *scaling) watchersCurve(ctx context.Context) (points []scalePoint, err error) {
	for _, series := range []func(context.Context) ([]scalePoint, error){run.apartWatchers, run.sameWatchers, run.lonelyWatchers} {
		more, err := series(ctx)
		if err != nil {
			return nil, err
		}
		points = append(points, more...)
	}
	return points, nil
}

const sharedStreams = 100

func watchedName(i int) string { return fmt.Sprintf("watched/%08d", i) }

// apartWatchers adds watchers of keys of their own, and puts to keys that nobody watches, and then to those.
func (run *scaling) apartWatchers(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, single, scaleKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	clients, closeAll, err := connect(s, sharedStreams)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	streams := make([]*watchStream, sharedStreams)
	for i, client := range clients {
		if _, err := client.Get(ctx, "ready", clientv3.WithSerializable()); err != nil { // connects
			return nil, err
		}
		if streams[i], err = openWatchStream(ctx, client, 0); err != nil {
			return nil, err
		}
	}
	watching := 0
	for _, watchers := range append([]int{0}, run.sizes(1000, 10000, 30000, 100000)...) {
		for ; watching < watchers; watching++ {
			if err := streams[watching%len(streams)].watch(watchedName(watching)); err != nil {
				return nil, err
			}
		}
		if err := s.settle(ctx); err != nil {
			return nil, err
		}
		held, err := s.processes[membersEach].usage()
		if err != nil {
			return nil, err
		}
		p, err := run.measure(ctx, s, pacedPuts)
		if err != nil {
			return nil, err
		}
		p.X, p.Series = float64(watchers), "a key each, 100 streams"
		p.Counted["held_anonymous_megabytes"] = float64(held.anonymous) / 1e6
		if watchers > 0 {
			load := pacedPuts
			load.keys, load.worker = watchers, keyedPutWorker(watchedName)
			watching := streams[:min(len(streams), watchers)]
			seen := make(chan error, len(watching))
			receiving, end := context.WithCancel(ctx)
			for _, stream := range watching {
				go func() { seen <- stream.discard(receiving) }()
			}
			watched, err := run.measure(ctx, s, load)
			if err != nil {
				end()
				return nil, err
			}
			p.Counted["watched_put_frontend_cpu_microseconds"] = watched.Mirrors[0].CPUMicrosPerOp
			// One more event for each stream ends its reader.
			end()
			if err := run.wakeAll(ctx, s, len(watching), seen); err != nil {
				return nil, err
			}
		}
		points = append(points, p)
	}
	return points, nil
}

// wakeAll puts a key of each stream, so that readers which were told to end see it.
func (run *scaling) wakeAll(ctx context.Context, s *system, streams int, seen <-chan error) error {
	client, err := dial(s.endpoints[0])
	if err != nil {
		return err
	}
	for i := range streams {
		if _, err := client.Put(ctx, watchedName(i), ""); err != nil {
			return errors.Join(err, client.Close())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for range streams {
		select {
		case failed := <-seen:
			err = errors.Join(err, failed)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return errors.Join(err, client.Close())
}

// sameWatchers has all watchers watch one key, and puts it again whenever all have had it.
func (run *scaling) sameWatchers(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, single, scaleKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	for _, watchers := range run.sizes(1000, 3000, 10000, 30000, 100000) {
		clients, closeAll, err := connect(s, sharedStreams)
		if err != nil {
			return nil, err
		}
		load := watchLoad{streams: min(sharedStreams, watchers), watchers: watchers, kind: lastDelivery}
		one, err := driveWatch(ctx, s, clients, load, run.duration)
		closeAll()
		if err != nil {
			return nil, err
		}
		p := scalePoint{X: float64(watchers), Series: "one key, 100 streams", Members: membersEach, Frontends: 1, Driven: 1,
			Operations: one.Operations, OperationsPerSecond: one.OperationsPerSecond, P50Milliseconds: one.P50Milliseconds,
			P99Milliseconds: one.P99Milliseconds, CPUMicrosPerOp: one.CPUMicrosPerOp,
			Counted: map[string]float64{"event_cpu_microseconds": one.CPUMicrosPerOp / float64(watchers)}}
		points = append(points, p)
	}
	return points, nil
}

// lonelyWatchers adds idle connections, and then streams with one watcher each on 100 connections.
func (run *scaling) lonelyWatchers(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, single, scaleKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	note := func(x int, series string) error {
		if err := s.settle(ctx); err != nil {
			return err
		}
		held, err := s.processes[membersEach].usage()
		points = append(points, scalePoint{X: float64(x), Series: series, Members: membersEach, Frontends: 1,
			Counted: map[string]float64{"held_anonymous_megabytes": float64(held.anonymous) / 1e6}})
		return err
	}
	var clients []*clientv3.Client
	defer func() {
		for _, client := range clients {
			_ = client.Close() // nothing is owed on it
		}
	}()
	for _, connections := range append([]int{0}, run.sizes(1000, 2000)...) {
		for len(clients) < connections {
			client, err := dial(s.endpoints[0])
			if err != nil {
				return nil, err
			}
			clients = append(clients, client)
			if _, err := client.Get(ctx, "ready", clientv3.WithSerializable()); err != nil {
				return nil, err
			}
		}
		if err := note(connections, "idle connections"); err != nil {
			return nil, err
		}
	}
	opened := 0
	for _, watchers := range append([]int{0}, run.sizes(1000, 3000, 10000)...) {
		if watchers > opened {
			if _, err := openWatchStreams(ctx, clients[:min(len(clients), sharedStreams)],
				watchLoad{streams: watchers - opened, watchers: watchers - opened}); err != nil {
				return nil, err
			}
			opened = watchers
		}
		if err := note(watchers, "a stream each"); err != nil {
			return nil, err
		}
	}
	return points, nil
}
