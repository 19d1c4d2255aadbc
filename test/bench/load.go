package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	valueBytes       = 256
	operationTimeout = 10 * time.Second
	boundRenewal     = time.Second
	rangeKeys        = 1000
	preloadBatch     = 100 // puts in one transaction; etcd takes 128
)

// row is one operation under one load.
type row struct {
	name        string
	title       string
	connections int
	clients     int
	worker      func(ctx context.Context, w workerOptions) (func(context.Context) error, error) // nil: a row of watchRows
}

// workerOptions is what one client of a row's load has: a connection that it may share, and a number of its own.
type workerOptions struct {
	client *clientv3.Client
	other  *clientv3.Client // connected to another endpoint, where the row has connections to several
	number int
	keys   int // preloaded
}

func key(i int) string { return fmt.Sprintf("bench/%08d", i) }

// value is new at each call, so that nothing along the way profits from equal values.
func value() string { return string(randomLetters(valueBytes)) }

func randomLetters(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(rand.IntN(26))
	}
	return b
}

func rows() []row {
	return append([]row{
		{"put", "put, clients spread", 100, 1000, putWorker},
		{"put-100", "put, 10 connections / 100 clients", 10, 100, putWorker},
		{"put-1", "put by one client", 1, 1, putWorker},
		{"cas", "CAS txn", 100, 1000, casWorker},
		{"get", "linearizable get", 100, 1000, getWorker()},
		{"get-serializable", "serializable get", 100, 1000, getWorker(clientv3.WithSerializable())},
		{"range", "range of 1,000 keys, 10 clients", 10, 10, rangeWorker},
		{"lease-keepalive", "lease keep-alive, spread", 100, 1000, keepAliveWorker},
		{"lease-keepalive-away", "lease keep-alive, not at the leader and not where it was granted", 100, 1000, keepAliveAwayWorker},
		{"lease-grant", "lease grant, 10 connections / 100 clients", 10, 100, grantWorker},
	}, append(watchRows(), row{name: largeRow, title: "a server that holds many keys"},
		row{name: bootstrapRow, title: "a frontend without data joins"}, row{name: wanRow, title: "across regions"})...)
}

func putWorker(_ context.Context, w workerOptions) (func(context.Context) error, error) {
	content := value()
	return func(ctx context.Context) error {
		_, err := w.client.Put(ctx, key(rand.IntN(w.keys)), content)
		return err
	}, nil
}

// casWorker swaps a key of its own, so that every comparison holds.
func casWorker(ctx context.Context, w workerOptions) (func(context.Context) error, error) {
	own, content := fmt.Sprintf("cas/%08d", w.number), value()
	response, err := w.client.Put(ctx, own, content)
	if err != nil {
		return nil, err
	}
	revision := response.Header.Revision
	return func(ctx context.Context) error {
		response, err := w.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(own), "=", revision)).
			Then(clientv3.OpPut(own, content)).Commit()
		if err != nil {
			return err
		}
		if !response.Succeeded {
			return errors.New("a key that nobody else writes has changed")
		}
		revision = response.Header.Revision
		return nil
	}, nil
}

func getWorker(options ...clientv3.OpOption) func(context.Context, workerOptions) (func(context.Context) error, error) {
	return func(_ context.Context, w workerOptions) (func(context.Context) error, error) {
		return func(ctx context.Context) error {
			response, err := w.client.Get(ctx, key(rand.IntN(w.keys)), options...)
			if err == nil && len(response.Kvs) != 1 {
				return fmt.Errorf("a preloaded key has %d values", len(response.Kvs))
			}
			return err
		}, nil
	}
}

func rangeWorker(_ context.Context, w workerOptions) (func(context.Context) error, error) {
	return func(ctx context.Context) error {
		first := rand.IntN(w.keys - rangeKeys + 1)
		response, err := w.client.Get(ctx, key(first), clientv3.WithRange(key(first+rangeKeys)))
		if err == nil && len(response.Kvs) != rangeKeys {
			return fmt.Errorf("a range of %d preloaded keys has %d", rangeKeys, len(response.Kvs))
		}
		return err
	}, nil
}

// keepAliveWorker renews a lease of its own over a stream of its own, one message at a time: the client library's own
// keeper would pace them.
func keepAliveWorker(ctx context.Context, w workerOptions) (func(context.Context) error, error) {
	return renewer(ctx, w.client, w.client)
}

// keepAliveAwayWorker renews through another endpoint than the lease was granted at, and not through etcd's leader, which
// is where a member sends renewals on to. No frontend of logmirror leads.
func keepAliveAwayWorker(ctx context.Context, w workerOptions) (func(context.Context) error, error) {
	status, err := w.client.Status(ctx, w.client.Endpoints()[0])
	if err != nil {
		return nil, err
	}
	if status.Leader == status.Header.MemberId {
		return renewer(ctx, w.client, w.other)
	}
	return renewer(ctx, w.other, w.client)
}

func grantWorker(_ context.Context, w workerOptions) (func(context.Context) error, error) {
	return func(ctx context.Context) error {
		_, err := w.client.Grant(ctx, leaseSeconds)
		return err
	}, nil
}

// otherEndpoint returns a connection to another endpoint than that of connection i, which is the one at i modulo endpoints.
func otherEndpoint(i, endpoints, connections int) int {
	return min(i/endpoints*endpoints+(i+1)%endpoints, connections-1)
}

// leaseSeconds is long enough for no lease to end while other rows are measured.
const leaseSeconds = 3600

// renewer grants a lease through one client and renews it through another. The first renewal is not measured: with
// logmirror it moves the lease.
func renewer(ctx context.Context, granter, client *clientv3.Client) (func(context.Context) error, error) {
	granted, err := granter.Grant(ctx, leaseSeconds)
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewLeaseClient(client.ActiveConnection()).LeaseKeepAlive(client.Ctx())
	if err != nil {
		return nil, err
	}
	request := &pb.LeaseKeepAliveRequest{ID: int64(granted.ID)}
	renew := func(context.Context) error {
		if err := stream.Send(request); err != nil {
			return err
		}
		response, err := stream.Recv()
		if err == nil && response.TTL <= 0 {
			return errors.New("a lease that is renewed has expired")
		}
		return err
	}
	return renew, renew(ctx)
}

// preload writes the keys that reads find and puts overwrite.
func preload(ctx context.Context, s *system, keys int) error { return preloadFrom(ctx, s, 0, keys) }

// preloadFrom writes those that come after so many which are there.
func preloadFrom(ctx context.Context, s *system, held, keys int) error {
	clients, closeAll, err := connect(s, loaders)
	if err != nil {
		return err
	}
	defer closeAll()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var loading sync.WaitGroup
	for n, client := range clients {
		loading.Go(func() {
			for first := held + n*preloadBatch; first < keys && ctx.Err() == nil; first += loaders * preloadBatch {
				var puts []clientv3.Op
				for i := first; i < min(first+preloadBatch, keys); i++ {
					puts = append(puts, clientv3.OpPut(key(i), value()))
				}
				bounded, done := context.WithTimeout(ctx, operationTimeout)
				_, err := client.Txn(bounded).Then(puts...).Commit()
				done()
				if err != nil {
					cancel(fmt.Errorf("preload %s: %w", s.name, err))
				}
			}
		})
	}
	loading.Wait()
	return context.Cause(ctx)
}

// connect opens a row's connections, spread over the endpoints. Closing them ends every stream on them.
func connect(s *system, connections int) (clients []*clientv3.Client, closeAll func(), err error) {
	closeAll = func() {
		for _, client := range clients {
			_ = client.Close() // nothing is owed on it
		}
	}
	for i := range connections {
		client, err := dial(s.endpoints[i%len(s.endpoints)])
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		clients = append(clients, client)
	}
	return clients, closeAll, nil
}

// drive runs one row against one system for about the duration given and returns what it cost.
func drive(ctx context.Context, s *system, r row, keys int, duration time.Duration) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, duration+60*time.Second) // preparing and draining are bounded too
	defer cancel()
	clients, closeAll, err := connect(s, r.connections)
	if err != nil {
		return sample{}, err
	}
	defer closeAll()
	if r.worker == nil {
		return driveWatch(ctx, s, clients, watchLoads[r.name].load, duration)
	}
	operations, err := prepare(ctx, s, r, clients, keys)
	if err != nil {
		return sample{}, err
	}
	time.AfterFunc(duration+30*time.Second, closeAll) // ends a stream that nobody answers on; harmless afterwards
	m, err := startMeter(s)
	if err != nil {
		return sample{}, err
	}
	end := time.Now().Add(duration)
	latencies := make([][]time.Duration, len(operations))
	failures := make([]failure, len(operations))
	var running sync.WaitGroup
	for i, operation := range operations {
		running.Go(func() { latencies[i], failures[i] = closedLoop(ctx, operation, end) })
	}
	running.Wait()
	return m.stop(latencies, failures)
}

// prepare makes what each client of a row's load does again and again.
func prepare(ctx context.Context, s *system, r row, clients []*clientv3.Client, keys int) ([]func(context.Context) error, error) {
	operations := make([]func(context.Context) error, r.clients)
	prepared := make([]error, r.clients)
	var preparing sync.WaitGroup
	for i := range operations {
		preparing.Go(func() {
			operations[i], prepared[i] = r.worker(ctx, workerOptions{
				client: clients[i%len(clients)], other: clients[otherEndpoint(i%len(clients), len(s.endpoints), len(clients))],
				number: i, keys: keys,
			})
		})
	}
	preparing.Wait()
	if err := errors.Join(prepared...); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", r.name, err)
	}
	return operations, nil
}

// failure is what went wrong for one client: how often, and the first of it.
type failure struct {
	count int
	first error
}

// closedLoop does one operation after the other until the end. A client gives up after a few failures, so that a broken
// server is not driven in vain.
func closedLoop(ctx context.Context, operation func(context.Context) error, end time.Time) ([]time.Duration, failure) {
	const mostFailures = 5
	var latencies []time.Duration
	var failed failure
	for began := time.Now(); began.Before(end) && failed.count < mostFailures; {
		// Operations share a timeout for a while: one for each was a twentieth of what the load itself did.
		bounded, cancel := context.WithTimeout(ctx, operationTimeout)
		renewal := began.Add(boundRenewal)
		for began.Before(end) && began.Before(renewal) && failed.count < mostFailures {
			err := operation(bounded)
			if now := time.Now(); err == nil {
				latencies = append(latencies, now.Sub(began))
				began = now
				continue
			}
			if failed.count++; failed.first == nil {
				failed.first = err
			}
			time.Sleep(10 * time.Millisecond)
			began = time.Now()
		}
		cancel()
	}
	return latencies, failed
}
