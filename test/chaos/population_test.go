package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/test/check"
)

const (
	// callTimeout bounds a call, so that harm shows as outcomes that are not known.
	callTimeout = 2 * time.Second
	// valueKeys and counterKeys are few: clients get into each other's way.
	valueKeys, counterKeys = 5, 2
	leaseSeconds           = 3
	// betweenCalls is the mean time between two calls of a client: the search for an order grows with what overlaps.
	betweenCalls = 15 * time.Millisecond
)

// history is all that clients saw. Its clock is the test's own.
type history struct {
	began time.Time

	mu         sync.Mutex
	operations []check.Operation
	reads      []check.Read
	ids        []check.IDs
	guarded    []check.Guarded
	leases     map[string]*check.Lease // by the key that is attached
	watches    []*watcher
}

func newHistory() *history { return &history{began: time.Now(), leases: map[string]*check.Lease{}} }

func (h *history) now() time.Duration { return time.Since(h.began) }

// note runs with the history locked.
func (h *history) note(add func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	add()
}

// inhabitant is one client of a region.
type inhabitant struct {
	h      *history
	number int
	region int
	random *rand.Rand
	client *client.Client
	etcd   *clientv3.Client
	// written numbers the values, so that each is written once.
	written int
}

// pause lets some time pass between two calls.
func (i *inhabitant) pause(ctx context.Context) {
	select {
	case <-time.After(time.Duration(i.random.Int64N(int64(2 * betweenCalls)))):
	case <-ctx.Done():
	}
}

// outcome tells what is known of a write that was answered with err.
func outcome(err error) check.Outcome {
	switch {
	case err == nil:
		return check.Done
	case client.NotApplied(err):
		return check.NotApplied
	default:
		return check.Unknown
	}
}

// operate reads and writes single keys until ctx ends.
func (i *inhabitant) operate(ctx context.Context) {
	for ctx.Err() == nil {
		o := check.Operation{Client: i.number, Key: fmt.Sprintf("value/%d", i.random.IntN(valueKeys))}
		// A call that has begun is let come to its end.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		o.Call = i.h.now()
		err := i.operation(call, &o)
		o.Return, o.Outcome = i.h.now(), outcome(err)
		cancel()
		i.h.note(func() { i.h.operations = append(i.h.operations, o) })
		i.pause(ctx)
	}
}

// operation draws one and makes it.
func (i *inhabitant) operation(ctx context.Context, o *check.Operation) error {
	switch i.random.IntN(10) {
	case 0:
		return i.delete(ctx, o)
	case 1, 2:
		return i.compareAndSwap(ctx, o)
	case 3:
		return i.add(ctx, o)
	case 4, 5, 6:
		return i.get(ctx, o)
	default:
		return i.put(ctx, o)
	}
}

func (i *inhabitant) newValue() string {
	i.written++
	return fmt.Sprintf("%d.%d", i.number, i.written)
}

func (i *inhabitant) put(ctx context.Context, o *check.Operation) error {
	o.Kind, o.Value, o.Applied = check.Put, i.newValue(), true
	answer, err := i.client.Put(ctx, &kvv1.PutRequest{Key: []byte(o.Key), Value: []byte(o.Value)})
	o.Revision = answer.GetRevision()
	return err
}

func (i *inhabitant) get(ctx context.Context, o *check.Operation) error {
	o.Kind = check.Get
	answer, err := i.client.Get(ctx, &kvv1.GetRequest{Key: []byte(o.Key)})
	o.Read, o.Revision = string(answer.GetKeyValue().GetValue()), answer.GetHeader().GetRevision()
	return err
}

func (i *inhabitant) delete(ctx context.Context, o *check.Operation) error {
	o.Kind = check.Delete
	answer, err := i.client.Delete(ctx, &kvv1.DeleteRequest{Key: []byte(o.Key)})
	o.Applied, o.Revision = answer.GetDeleted() > 0, answer.GetRevision()
	return err
}

// compareAndSwap expects what the region has, which may be old by then.
func (i *inhabitant) compareAndSwap(ctx context.Context, o *check.Operation) error {
	o.Kind, o.Value = check.CompareAndSwap, i.newValue()
	request := &kvv1.CompareAndSwapRequest{Key: []byte(o.Key), Change: &kvv1.CompareAndSwapRequest_Put{Put: []byte(o.Value)},
		Expect: &kvv1.CompareAndSwapRequest_Absent{Absent: true}}
	found, err := i.client.Get(ctx, &kvv1.GetRequest{Key: []byte(o.Key), Consistency: serializable})
	if err == nil && found.GetKeyValue() != nil {
		o.Expect = string(found.GetKeyValue().GetValue())
		request.Expect = &kvv1.CompareAndSwapRequest_Value{Value: []byte(o.Expect)}
	}
	o.Call = i.h.now()
	answer, err := i.client.CompareAndSwap(ctx, request)
	o.Applied, o.Revision = answer.GetSucceeded(), answer.GetRevision()
	return err
}

func (i *inhabitant) add(ctx context.Context, o *check.Operation) error {
	o.Kind, o.Delta, o.Applied = check.Add, 1+i.random.Int64N(5), true
	o.Key = fmt.Sprintf("counter/%d", i.random.IntN(counterKeys))
	answer, err := i.client.Mutate(ctx, &kvv1.MutateRequest{Mutation: client.Add(o.Key, o.Delta)})
	o.Read, o.Revision = fmt.Sprint(answer.GetResult().GetInteger()), answer.GetRevision()
	return err
}

var serializable = &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE}

// read reads all values of the region at once until ctx ends.
func (i *inhabitant) read(ctx context.Context) {
	for ctx.Err() == nil {
		r := check.Read{Frontend: uint64(i.region), Call: i.h.now(), Values: map[string]string{}}
		for key := range valueKeys {
			r.Values[fmt.Sprintf("value/%d", key)] = ""
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err := i.client.List(call, &kvv1.ListRequest{Key: []byte("value/"), RangeEnd: []byte("value0"), Consistency: serializable})
		cancel()
		if err == nil {
			r.Return, r.Revision, r.Life = i.h.now(), answer.GetRevision(), answer.GetHeader().GetIncarnation()
			for _, kv := range answer.GetKeyValues() {
				r.Values[string(kv.GetKey())] = string(kv.GetValue())
			}
			i.h.note(func() { i.h.reads = append(i.h.reads, r) })
		}
		i.pause(ctx)
	}
}

// takeIDs takes snowflakes and numbers of a sequence until ctx ends.
func (i *inhabitant) takeIDs(ctx context.Context) {
	for ctx.Err() == nil {
		request := &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 1 + i.random.Int64N(20)}
		taken := check.IDs{Space: "snowflake"}
		if i.random.IntN(3) == 0 {
			request = &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Count: 1 + i.random.Int64N(3), Name: "orders"}
			taken = check.IDs{Space: "sequence", Global: true}
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		taken.Call = i.h.now()
		answer, err := i.client.Generate(call, request)
		cancel()
		if err == nil {
			taken.Return = i.h.now()
			i.h.note(func() {
				for _, block := range answer.GetBlocks() {
					taken.First, taken.Count = block.GetFirst(), block.GetCount()
					i.h.ids = append(i.h.ids, taken)
				}
			})
		}
		i.pause(ctx)
	}
}

// lock takes a lock with etcd's package, again and again, and writes under it.
func (i *inhabitant) lock(ctx context.Context) {
	for ctx.Err() == nil {
		i.holdLock(ctx)
		i.pause(ctx)
	}
}

func (i *inhabitant) holdLock(ctx context.Context) {
	trying, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	session, err := concurrency.NewSession(i.etcd, concurrency.WithTTL(leaseSeconds), concurrency.WithContext(trying))
	if err != nil {
		return
	}
	defer session.Close()
	mutex := concurrency.NewMutex(session, "lock/")
	if mutex.Lock(trying) != nil {
		return
	}
	answer, err := i.etcd.Get(trying, mutex.Key())
	if err != nil || len(answer.Kvs) == 0 {
		return
	}
	fence := answer.Kvs[0].CreateRevision
	for range i.random.IntN(8) {
		written, err := i.etcd.Txn(trying).If(clientv3.Compare(clientv3.CreateRevision(mutex.Key()), "=", fence)).
			Then(clientv3.OpPut("guarded", i.newValue())).Commit()
		if err != nil || !written.Succeeded {
			break
		}
		g := check.Guarded{Client: i.number, Lock: mutex.Key(), Fence: fence, Revision: written.Header.Revision}
		i.h.note(func() { i.h.guarded = append(i.h.guarded, g) })
	}
	_ = mutex.Unlock(trying) // or its lease ends
}

// lease takes leases, renews each a few times and leaves it, until ctx ends.
func (i *inhabitant) lease(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		if err := i.holdLease(ctx, fmt.Sprintf("leased/%d/%d", i.number, n)); err != nil {
			i.pause(ctx)
		}
	}
}

func (i *inhabitant) holdLease(ctx context.Context, key string) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	asked := i.h.now()
	granted, err := i.client.Grant(call, &kvv1.GrantRequest{TtlSeconds: leaseSeconds})
	if err != nil {
		return err
	}
	lease := &check.Lease{ID: granted.GetId(), TTL: leaseSeconds * time.Second, Confirmed: []time.Duration{asked}}
	i.h.note(func() { i.h.leases[key] = lease })
	if _, err := i.client.Put(call, &kvv1.PutRequest{Key: []byte(key), Value: []byte(i.newValue()), Lease: granted.GetId()}); err != nil {
		return err
	}
	for range i.random.IntN(5) {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
		if err := i.renew(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

func (i *inhabitant) renew(ctx context.Context, lease *check.Lease) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stream, err := i.client.LeaseServiceClient.KeepAlive(call)
	if err != nil {
		return err
	}
	asked := i.h.now()
	if err := stream.Send(&kvv1.KeepAliveRequest{Id: lease.ID}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	if answer.GetTtlSeconds() <= 0 {
		return errors.New("the lease has ended")
	}
	i.h.note(func() { lease.Confirmed = append(lease.Confirmed, asked) })
	return nil
}
