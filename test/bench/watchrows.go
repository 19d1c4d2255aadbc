package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchLoad is what a row about watches does with watchers of one key.
type watchLoad struct {
	streams, watchers int
	kind              watchKind
}

type watchKind uint8

const (
	// fanOut: writers put as fast as they can; an operation is one event delivered.
	fanOut watchKind = iota
	// lastDelivery: one put after the other, each once all watchers have the one before; an operation is a put with all
	// its deliveries, its latency that from before the put to the last of them.
	lastDelivery
	// idleMemory: nothing is written. Each round has servers of its own, since memory that was in use before would hide
	// what the watchers take.
	idleMemory
)

// watchLoads are the rows about watches by their names.
var watchLoads = map[string]struct {
	title string
	load  watchLoad
}{
	"watch":               {"watch, one key, 1,000 watchers on 100 streams (per event)", watchLoad{100, 1000, fanOut}},
	"watch-1000":          {"watch, one key, 1,000 watchers on 1,000 streams (per event)", watchLoad{1000, 1000, fanOut}},
	"watch-10000":         {"watch, one key, 10,000 watchers on 10,000 streams (per event)", watchLoad{10000, 10000, fanOut}},
	"watch-10000-shared":  {"watch, one key, 10,000 watchers on 100 streams (per event)", watchLoad{100, 10000, fanOut}},
	"watch-last":          {"put to the last of 10,000 deliveries, 10,000 streams (per put)", watchLoad{10000, 10000, lastDelivery}},
	"watch-last-shared":   {"put to the last of 10,000 deliveries, 100 streams (per put)", watchLoad{100, 10000, lastDelivery}},
	"watch-memory":        {"memory added by 10,000 watchers on 10,000 streams", watchLoad{10000, 10000, idleMemory}},
	"watch-memory-shared": {"memory added by 10,000 watchers on 100 streams", watchLoad{100, 10000, idleMemory}},
}

func watchRows() []row {
	const connections = 100
	var all []row
	for _, name := range slices.Sorted(maps.Keys(watchLoads)) {
		w := watchLoads[name]
		all = append(all, row{name: name, title: w.title, connections: connections, clients: w.load.watchers})
	}
	return all
}

// runMemoryRow starts servers of each system anew for each round.
func runMemoryRow(ctx context.Context, r row, o options, directory string) (*result, error) {
	measured := &result{Name: r.name, Title: r.title, Connections: r.connections, Clients: r.clients}
	ctx, cancel := context.WithCancel(ctx) // one system's failure ends the wait for the other
	defer cancel()
	for round := range o.rounds {
		into := filepath.Join(directory, fmt.Sprintf("%s-%d", r.name, round))
		// Most of a round is waiting until the servers are at rest, so both systems wait at once.
		var samples [2]sample
		var failures [2]error
		var both sync.WaitGroup
		for i, name := range []string{"etcd", "logmirror"} {
			s, err := startSystem(name, o.binaries, into, nil)
			if err != nil {
				failures[i] = err
				cancel()
				break
			}
			both.Go(func() {
				defer s.stop()
				if samples[i], failures[i] = idleRound(ctx, s, r); failures[i] != nil {
					cancel()
					failures[i] = fmt.Errorf("%s on %s: %w\n%s", r.name, s.name, failures[i], s.lastOutput())
				}
			})
		}
		both.Wait()
		if err := errors.Join(failures[0], failures[1], ctx.Err()); err != nil {
			return nil, err
		}
		measured.Base, measured.Logmirror = append(measured.Base, samples[0]), append(measured.Logmirror, samples[1])
	}
	measured.finish()
	return measured, nil
}

// idleRound measures what a row's watchers add to the memory of servers that nobody else uses. Their connections exist
// before.
func idleRound(ctx context.Context, s *system, r row) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second+2*settleMost)
	defer cancel()
	if err := s.awaitReady(ctx); err != nil {
		return sample{}, err
	}
	clients, closeAll, err := connect(s, r.connections)
	if err != nil {
		return sample{}, err
	}
	defer closeAll()
	for _, client := range clients {
		if _, err := client.Get(ctx, "ready", clientv3.WithSerializable()); err != nil {
			return sample{}, err
		}
	}
	if err := s.settle(ctx); err != nil {
		return sample{}, err
	}
	before, err := s.usage()
	if err != nil {
		return sample{}, err
	}
	if _, err := openWatchStreams(ctx, clients, watchLoads[r.name].load); err != nil {
		return sample{}, err
	}
	if err := s.settle(ctx); err != nil {
		return sample{}, err
	}
	after, err := s.usage()
	if err != nil {
		return sample{}, err
	}
	return sample{ResidentMegabytes: float64(after.resident) / 1e6, AnonymousMegabytes: float64(after.anonymous) / 1e6,
		AddedMegabytes: float64(after.resident-before.resident) / 1e6}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
