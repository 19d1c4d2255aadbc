package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
)

// paced is what came of a load.
type paced struct {
	latencies    []time.Duration
	failures     int
	firstFailure string
}

// drivePaced has each client do one operation after the other; where a rate is due, at moments that are spread evenly over
// clients and time, whether or not the operation before was late.
func drivePaced(ctx context.Context, operations []func(context.Context) error, perSecond float64, duration time.Duration) (paced, error) {
	began := time.Now()
	end := began.Add(duration)
	latencies := make([][]time.Duration, len(operations))
	failures := make([]failure, len(operations))
	var running sync.WaitGroup
	for i, operation := range operations {
		running.Go(func() {
			if perSecond == 0 {
				latencies[i], failures[i] = closedLoop(ctx, operation, end)
				return
			}
			between := time.Duration(float64(len(operations)) / perSecond * float64(time.Second))
			for due := began.Add(between * time.Duration(i) / time.Duration(len(operations))); due.Before(end); due = due.Add(between) {
				if pause(ctx, time.Until(due)) != nil {
					return
				}
				start := time.Now()
				bounded, cancel := context.WithTimeout(ctx, operationTimeout)
				err := operation(bounded)
				cancel()
				if err != nil {
					failures[i] = failure{count: failures[i].count + 1, first: err}
					continue
				}
				latencies[i] = append(latencies[i], time.Since(start))
			}
		})
	}
	running.Wait()
	var all paced
	for i := range operations {
		all.latencies = append(all.latencies, latencies[i]...)
		if all.failures += failures[i].count; failures[i].first != nil {
			all.firstFailure = failures[i].first.Error()
		}
	}
	if len(all.latencies) == 0 {
		return all, fmt.Errorf("no operation succeeded: %s", all.firstFailure)
	}
	return all, ctx.Err()
}

// sizedPutWorker overwrites random keys with values of a size.
func sizedPutWorker(bytes int) func(context.Context, workerOptions) (func(context.Context) error, error) {
	return func(_ context.Context, w workerOptions) (func(context.Context) error, error) {
		content := string(randomLetters(bytes))
		return func(ctx context.Context) error {
			_, err := w.client.Put(ctx, key(rand.IntN(w.keys)), content)
			return err
		}, nil
	}
}

// keyedPutWorker overwrites random keys that another function names.
func keyedPutWorker(name func(i int) string) func(context.Context, workerOptions) (func(context.Context) error, error) {
	return func(_ context.Context, w workerOptions) (func(context.Context) error, error) {
		content := value()
		return func(ctx context.Context) error {
			_, err := w.client.Put(ctx, name(rand.IntN(w.keys)), content)
			return err
		}, nil
	}
}

// grantAll grants leases from many clients at once and returns their ids, and the longest that one of them took.
func grantAll(ctx context.Context, s *system, leases int) (ids []int64, longest time.Duration, err error) {
	const connections, callers, patience = 32, 512, time.Minute
	clients, closeAll, err := connect(s.only(0), connections)
	if err != nil {
		return nil, 0, err
	}
	defer closeAll()
	ids = make([]int64, leases)
	var next atomic.Int64
	failed, slowest := make([]error, callers), make([]time.Duration, callers)
	var granting sync.WaitGroup
	for n := range callers {
		granting.Go(func() {
			for failed[n] == nil && ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= leases {
					return
				}
				bounded, cancel := context.WithTimeout(ctx, patience)
				asked := time.Now()
				granted, err := clients[n%len(clients)].Grant(bounded, leaseSeconds)
				cancel()
				slowest[n] = max(slowest[n], time.Since(asked))
				if failed[n] = err; err == nil {
					ids[i] = int64(granted.ID)
				}
			}
		})
	}
	granting.Wait()
	return ids, slices.Max(slowest), errors.Join(append(failed, ctx.Err())...)
}

// renewKnownWorker renews leases of a list, at random, over a stream of its own.
func renewKnownWorker(ids []int64) func(context.Context, workerOptions) (func(context.Context) error, error) {
	return func(_ context.Context, w workerOptions) (func(context.Context) error, error) {
		if _, err := w.client.Get(w.client.Ctx(), "ready", clientv3.WithSerializable()); err != nil { // connects
			return nil, err
		}
		stream, err := pb.NewLeaseClient(w.client.ActiveConnection()).LeaseKeepAlive(w.client.Ctx())
		if err != nil {
			return nil, err
		}
		return func(context.Context) error {
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: ids[rand.IntN(len(ids))]}); err != nil {
				return err
			}
			response, err := stream.Recv()
			if err == nil && response.TTL <= 0 {
				return errors.New("a lease that is renewed has expired")
			}
			return err
		}, nil
	}
}

// openTails tails the log from its beginning on, as frontends do, many times from one member, and throws away what comes.
// They end with ctx; the function returned then waits for that.
func openTails(ctx context.Context, address string, tails int) (wait func(), err error) {
	var reading sync.WaitGroup
	var connections []*grpc.ClientConn
	wait = func() {
		reading.Wait()
		for _, c := range connections {
			_ = c.Close() // its streams have ended
		}
	}
	description := &grpc.StreamDesc{StreamName: "Tail", ServerStreams: true}
	for i := range tails {
		connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return wait, err
		}
		connections = append(connections, connection)
		stream, err := connection.NewStream(ctx, description, "/logmirror.log.v1.LogService/Tail", grpc.ForceCodecV2(rawCodec{}),
			grpc.MaxCallRecvMsgSize(64<<20))
		if err != nil {
			return wait, err
		}
		// A TailRequest from index 1 on, with the handshake of a frontend that does not know the cluster yet.
		handshake := protowire.AppendTag(nil, 3, protowire.BytesType)
		handshake = protowire.AppendString(handshake, fmt.Sprintf("tail-%d", i))
		handshake = protowire.AppendTag(handshake, 5, protowire.Fixed64Type)
		handshake = protowire.AppendFixed64(handshake, rand.Uint64())
		request := protowire.AppendTag(nil, 1, protowire.BytesType)
		request = protowire.AppendBytes(request, handshake)
		request = protowire.AppendTag(request, 2, protowire.VarintType)
		request = protowire.AppendVarint(request, 1)
		message := new(emptypb.Empty) // with the request's fields, all unknown to it
		message.ProtoReflect().SetUnknown(request)
		if err := errors.Join(stream.SendMsg(message), stream.CloseSend()); err != nil {
			return wait, err
		}
		var first []byte
		if err := stream.RecvMsg(&first); err != nil {
			return wait, fmt.Errorf("tail %s: %w", address, err)
		}
		reading.Go(func() {
			for {
				var message []byte
				if stream.RecvMsg(&message) != nil {
					return // ctx has ended, or the member: then the load fails, too
				}
			}
		})
	}
	return wait, nil
}
