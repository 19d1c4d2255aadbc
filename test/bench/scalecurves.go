package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// scaleKeys are the keys that the curves about puts overwrite.
const scaleKeys = 10000

// onePerRegion has three members and three frontends, the first of which, which has the clients, tails a follower.
var onePerRegion = shape{members: membersEach, frontends: membersEach, tailed: func(i int) int { return []int{1, 0, 2}[i] }}

// single has one frontend, which tails a follower.
var single = shape{members: membersEach, frontends: 1, tailed: func(int) int { return 1 }}

// sizes are the values of a curve's quantity; of a small run, a hundredth of the large ones.
func (run *scaling) sizes(all ...int) []int {
	if run.small {
		for i := range all {
			all[i] /= 100
		}
	}
	return all
}

// idle measures what the processes use without any load; an operation is a second.
func (run *scaling) idle(ctx context.Context, s *system) (scalePoint, error) {
	before, err := s.snapshot()
	if err != nil {
		return scalePoint{}, err
	}
	if err := pause(ctx, 3*run.duration); err != nil {
		return scalePoint{}, err
	}
	after, err := s.snapshot()
	if err != nil {
		return scalePoint{}, err
	}
	p := s.point(before, after, after.at.Sub(before.at).Seconds(), 0)
	p.Series = "idle"
	return p, nil
}

func (run *scaling) clientsCurve(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, onePerRegion, scaleKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	p, err := run.idle(ctx, s)
	if err != nil {
		return nil, err
	}
	points = append(points, p)
	for _, clients := range []int{1, 4, 16, 64, 256, 1000} {
		p, err := run.measure(ctx, s, scaleLoad{driven: 1, connections: min(clients, 100), clients: clients, keys: scaleKeys, valueBytes: valueBytes})
		if err != nil {
			return nil, err
		}
		p.X = float64(clients)
		points = append(points, p)
	}
	return points, nil
}

// valueCurve puts at most 32 MiB a second: the history of every frontend holds all of it until it is compacted.
func (run *scaling) valueCurve(ctx context.Context) (points []scalePoint, err error) {
	const keys, clients, bytesPerSecond = 100, 64, 32 << 20
	s, err := run.start(ctx, onePerRegion, rangeKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	for _, bytes := range []int{16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10} {
		load := scaleLoad{driven: 1, connections: 16, clients: clients, keys: keys, valueBytes: bytes}
		if bytes > 1<<10 {
			load.perSecond = float64(bytesPerSecond / bytes)
		}
		p, err := run.measure(ctx, s, load)
		if err != nil {
			return nil, err
		}
		p.X = float64(bytes)
		points = append(points, p)
		if err := compactAll(ctx, s); err != nil {
			return nil, err
		}
	}
	return points, nil
}

// compactAll forgets all history.
func compactAll(ctx context.Context, s *system) error {
	client, err := dial(s.endpoints[0])
	if err != nil {
		return err
	}
	response, err := client.Put(ctx, "compacted", "")
	if err == nil {
		_, err = client.Compact(ctx, response.Header.Revision)
	}
	return errors.Join(err, client.Close())
}

func (run *scaling) frontendsCurve(ctx context.Context) (points []scalePoint, err error) {
	const clients = 900
	counts := []int{1, 2, 3, 5, 7, 9}
	if run.small {
		counts = counts[:3]
	}
	for _, frontends := range counts {
		p, err := run.once(ctx, shape{members: membersEach, frontends: frontends, tailed: func(i int) int { return i % membersEach }},
			scaleLoad{driven: frontends, connections: 90, clients: clients, keys: scaleKeys, valueBytes: valueBytes})
		if err != nil {
			return nil, err
		}
		p.X = float64(frontends)
		points = append(points, p)
	}
	return points, nil
}

// once measures one load on servers of its own.
func (run *scaling) once(ctx context.Context, of shape, load scaleLoad) (p scalePoint, err error) {
	s, err := run.start(ctx, of, scaleKeys)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	return run.measure(ctx, s, load)
}

// pacedPuts is a load that all machines carry, so that points which differ in their servers only have the same batches.
var pacedPuts = scaleLoad{driven: 1, connections: 16, clients: 64, keys: scaleKeys, valueBytes: valueBytes, perSecond: 1000}

// regionsCurve has the first frontend tail one follower and all others the other one: what mirrors cost is told from what
// taking proposals does. The series with five voters has a member beside each of five frontends.
func (run *scaling) regionsCurve(ctx context.Context) (points []scalePoint, err error) {
	further := []int{0, 1, 2, 4, 8, 16}
	if run.small {
		further = further[:3]
	}
	for _, mirrors := range further {
		p, err := run.once(ctx, shape{members: membersEach, frontends: 1 + mirrors, tailed: func(i int) int { return min(i+1, 2) }}, pacedPuts)
		if err != nil {
			return nil, err
		}
		p.X, p.Series = float64(mirrors), "mirrors"
		points = append(points, p)
	}
	p, err := run.once(ctx, shape{members: 5, frontends: 5, tailed: func(i int) int { return (i + 1) % 5 }}, pacedPuts)
	if err != nil {
		return nil, err
	}
	p.X, p.Series = 4, "five voters"
	return append(points, p), nil
}

// tailsCurve puts tails on a follower that no frontend uses.
func (run *scaling) tailsCurve(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, single, scaleKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	for _, tails := range []int{0, 1, 4, 16, 50, 100} {
		for _, perSecond := range []float64{pacedPuts.perSecond, 0} {
			tailing, end := context.WithCancel(ctx)
			wait, err := openTails(tailing, s.addressOf(2), tails)
			if err == nil {
				load := pacedPuts
				load.perSecond = perSecond
				var p scalePoint
				p, err = run.measure(ctx, s, load)
				p.X, p.Series = float64(tails), "1,000 puts/s"
				if perSecond == 0 {
					p.Series = "64 clients, as fast as it goes"
				}
				points = append(points, p)
			}
			end()
			wait()
			if err != nil {
				return nil, err
			}
		}
	}
	return points, nil
}

// addressOf is where the process listens.
func (s *system) addressOf(i int) string {
	arguments := s.processes[i].arguments
	for j, argument := range arguments {
		if argument == "--listen" {
			return arguments[j+1]
		}
	}
	return ""
}

func (run *scaling) keysCurve(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, single, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	if _, err := run.kvctl(ctx, s, "settings", "set", "quota_bytes=16GiB"); err != nil {
		return nil, err
	}
	held := 0
	for _, keys := range run.sizes(100000, 300000, 1000000, 2000000, 5000000) {
		loaded := time.Now()
		if err := preloadFrom(ctx, s.only(0), held, keys); err != nil {
			return nil, err
		}
		took := time.Since(loaded).Seconds()
		if err := compactAll(ctx, s); err != nil {
			return nil, err
		}
		if err := s.settle(ctx); err != nil {
			return nil, err
		}
		p, err := run.heldPoint(ctx, s, scaleLoad{driven: 1, connections: 20, clients: 200, keys: keys, valueBytes: valueBytes})
		if err != nil {
			return nil, err
		}
		p.X = float64(keys)
		p.Counted["loaded_per_second"] = float64(keys-held) / took
		gets, err := run.measure(ctx, s, scaleLoad{driven: 1, connections: 20, clients: 200, keys: keys, worker: getWorker(clientv3.WithSerializable())})
		if err != nil {
			return nil, err
		}
		p.Counted["serializable_get_cpu_microseconds"] = gets.CPUMicrosPerOp
		if p.Counted["restart_seconds"], err = s.restartFrontend(ctx); err != nil {
			return nil, err
		}
		points = append(points, p)
		held = keys
	}
	return points, nil
}

// heldPoint measures the state that a frontend holds: its memory, a load of puts, and a checkpoint.
func (run *scaling) heldPoint(ctx context.Context, s *system, load scaleLoad) (p scalePoint, err error) {
	frontend := s.processes[membersEach]
	used, err := frontend.usage()
	if err != nil {
		return p, err
	}
	figures, err := frontend.allFigures()
	if err != nil {
		return p, err
	}
	if p, err = run.measure(ctx, s, load); err != nil {
		return p, err
	}
	p.Counted["held_anonymous_megabytes"] = float64(used.anonymous) / 1e6
	p.Counted["held_resident_megabytes"] = float64(used.resident) / 1e6
	p.Counted["slab_megabytes"] = figures["logmirror_mirror_slab_bytes"] / 1e6
	p.Counted["heap_megabytes"] = figures["go_memstats_heap_alloc_bytes"] / 1e6
	p.Counted["logical_megabytes"] = figures["logmirror_mirror_size_bytes"] / 1e6
	before, err := s.snapshot()
	if err != nil {
		return p, err
	}
	took, err := run.checkpoint(ctx, s)
	if err != nil {
		return p, err
	}
	after, err := s.snapshot()
	if err != nil {
		return p, err
	}
	grown := func(figure string) float64 {
		return after.figures[frontend.name][figure] - before.figures[frontend.name][figure]
	}
	p.Counted["checkpoint_seconds"] = took.Seconds()
	p.Counted["checkpoint_megabytes"] = after.figures["log-0"]["logmirror_logservice_checkpoint_bytes"] / 1e6
	p.Counted["checkpoint_frontend_cpu_seconds"] = (after.used[frontend.name].cpu - before.used[frontend.name].cpu).Seconds()
	p.Counted["pin_milliseconds"] = 1e3 * grown("logmirror_mirror_checkpoint_pin_seconds_sum") / max(1, grown("logmirror_mirror_checkpoint_pin_seconds_count"))
	if image, err := os.Stat(s.directoryOf(membersEach) + "/image"); err == nil {
		p.Counted["image_megabytes"] = float64(image.Size()) / 1e6
	}
	return p, nil
}

func (s *system) directoryOf(i int) string {
	arguments := s.processes[i].arguments
	for j, argument := range arguments {
		if argument == "--data-dir" {
			return arguments[j+1]
		}
	}
	return ""
}

// restartFrontend restarts the last process, a frontend, and returns the time to its first linearizable answer.
func (s *system) restartFrontend(ctx context.Context) (seconds float64, err error) {
	if err := s.processes[len(s.processes)-1].restart(); err != nil {
		return 0, err
	}
	began := time.Now()
	err = awaitAnswer(ctx, s.endpoints[len(s.endpoints)-1])
	return time.Since(began).Seconds(), err
}

func (run *scaling) leasesCurve(ctx context.Context) (points []scalePoint, err error) {
	s, err := run.start(ctx, single, scaleKeys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.finish(s)) }()
	var ids []int64
	for _, leases := range append([]int{0}, run.sizes(10000, 100000, 300000, 1000000)...) {
		before, err := s.snapshot()
		if err != nil {
			return nil, err
		}
		granted, longest, err := grantAll(ctx, s, leases-len(ids))
		if err != nil {
			return nil, err
		}
		after, err := s.snapshot()
		if err != nil {
			return nil, err
		}
		if err := s.settle(ctx); err != nil {
			return nil, err
		}
		p, err := run.heldPoint(ctx, s, pacedPuts)
		if err != nil {
			return nil, err
		}
		if len(granted) > 0 {
			ids = append(ids, granted...)
			grants := s.point(before, after, float64(len(granted)), 1)
			p.Counted["grant_cpu_microseconds"] = grants.CPUMicrosPerOp
			p.Counted["slowest_grant_seconds"] = longest.Seconds()
			p.Counted["grants_per_second"] = grants.OperationsPerSecond
			renewals, err := run.measure(ctx, s, scaleLoad{driven: 1, connections: 20, clients: 200, worker: renewKnownWorker(ids)})
			if err != nil {
				return nil, err
			}
			p.Counted["renewal_cpu_microseconds"] = renewals.CPUMicrosPerOp
			p.Counted["renewal_entries"] = renewals.EntriesPerOp
		}
		p.X = float64(leases)
		points = append(points, p)
	}
	if len(points) == 0 {
		return nil, nil
	}
	last := &points[len(points)-1]
	last.Counted["restart_seconds"], err = s.restartFrontend(ctx)
	return points, err
}

// checkCurve measures what the model is held against: none of it is used to fit the model.
func (run *scaling) checkCurve(ctx context.Context) (points []scalePoint, err error) {
	for i, c := range []struct {
		of   shape
		load scaleLoad
	}{
		{shape{members: 3, frontends: 12, tailed: func(i int) int { return i % 3 }},
			scaleLoad{driven: 1, connections: 16, clients: 128, keys: scaleKeys, valueBytes: 1024, perSecond: 500}},
		{shape{members: 5, frontends: 5, tailed: func(i int) int { return (i + 1) % 5 }},
			scaleLoad{driven: 1, connections: 32, clients: 200, keys: scaleKeys, valueBytes: 512}},
		{shape{members: 3, frontends: 4, tailed: func(i int) int { return (i + 1) % 3 }},
			scaleLoad{driven: 4, connections: 40, clients: 400, keys: scaleKeys, valueBytes: 2048}},
	} {
		p, err := run.once(ctx, c.of, c.load)
		if err != nil {
			return nil, fmt.Errorf("configuration %d: %w", i+1, err)
		}
		p.X = float64(i + 1)
		points = append(points, p)
	}
	return points, nil
}
