package cluster

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/playground"
)

// leaseTest is a cluster whose processes have clocks of their own, with a referee beside it. The clients of a region are
// on the far side of a link without delay, clientsOf(region) to region, that can be cut.
type leaseTest struct {
	*virtual
	referee *referee
	clocks  map[string]*clock
	// drift is by which part of it a duration may be measured wrong.
	drift float64
	// outages: the log stands still at times, which is added to what was promised.
	outages bool
	// connections lead to each region's frontend from its clients.
	connections map[string]*grpc.ClientConn
}

func clientsOf(region string) string { return "clients-" + region }

// leaseBubble runs a test with clocks that run at these rates, 1 where none is named.
func leaseBubble(t *testing.T, rates map[string]float64, test func(t *testing.T, l *leaseTest)) {
	clocks := make(map[string]*clock)
	bubbleWith(t, func(config *playground.Config) {
		for _, region := range playground.DefaultRegions() {
			for _, name := range []string{"frontend-" + region, "log-" + region} {
				rate := rates[name]
				if rate == 0 {
					rate = 1
				}
				clocks[name] = newClock(rate)
			}
		}
		config.ProcessClock = func(name string) func() time.Duration { return clocks[name].now }
	}, func(t *testing.T, c *virtual) {
		l := &leaseTest{virtual: c, referee: c.newReferee(), clocks: clocks, connections: make(map[string]*grpc.ClientConn)}
		if len(rates) > 0 {
			l.drift = 0.01
		}
		for _, info := range c.Info().Regions {
			l.connections[info.Name] = c.dialFrom(clientsOf(info.Name), info.Frontend)
		}
		c.eventually("the referee has read the log", func() error {
			if l.referee.index() == 0 {
				return context.DeadlineExceeded
			}
			return nil
		})
		test(t, l)
	})
}

// dialFrom connects to an address from a region of the network.
func (c *virtual) dialFrom(region, address string) *grpc.ClientConn {
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return c.Network().Region(region).Dial(ctx, address)
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { connection.Close() })
	return connection
}

// grant makes a lease through a region's frontend.
func (l *leaseTest) grant(region string, ttl time.Duration) int64 {
	l.t.Helper()
	granted, err := kvv1.NewLeaseServiceClient(l.connections[region]).Grant(l.t.Context(),
		&kvv1.GrantRequest{TtlSeconds: int64(ttl / time.Second)})
	if err != nil {
		l.t.Fatal(err)
	}
	return granted.GetId()
}

// renewer is a client that renews one lease through one region's frontend, and through the next one's when that one does
// not confirm it.
type renewer struct {
	id     int64
	cancel context.CancelFunc
	done   chan struct{}

	mu            sync.Mutex
	confirmations []confirmation
	// refusals is how often a stream ended or said nothing; gone is when a frontend said that there is no such lease.
	refusals int
	gone     time.Time
}

type confirmation struct {
	at     time.Time
	region string
}

// silenceMax is how long a client waits for an answer before it goes elsewhere.
const silenceMax = 2 * time.Second

// renew begins to renew a lease.
func (l *leaseTest) renew(id int64, every time.Duration, regions ...string) *renewer {
	ctx, cancel := context.WithCancel(l.t.Context())
	r := &renewer{id: id, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for i := 0; ctx.Err() == nil && r.wasGone().IsZero(); i++ {
			region := regions[i%len(regions)]
			r.stream(ctx, l.connections[region], region, every)
			select {
			case <-time.After(every):
			case <-ctx.Done():
			}
		}
	}()
	l.t.Cleanup(r.stop)
	return r
}

// stream renews until something is wrong.
func (r *renewer) stream(ctx context.Context, connection *grpc.ClientConn, region string, every time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		r.mu.Lock()
		r.refusals++
		r.mu.Unlock()
	}()
	silence := time.AfterFunc(silenceMax, cancel)
	defer silence.Stop()
	stream, err := kvv1.NewLeaseServiceClient(connection).KeepAlive(ctx)
	if err != nil {
		return
	}
	for {
		silence.Reset(silenceMax)
		if stream.Send(&kvv1.KeepAliveRequest{Id: r.id}) != nil {
			return
		}
		answer, err := stream.Recv()
		if err != nil {
			return
		}
		silence.Stop()
		r.mu.Lock()
		if answer.GetTtlSeconds() > 0 {
			r.confirmations = append(r.confirmations, confirmation{time.Now(), region})
		} else {
			r.gone = time.Now()
		}
		r.mu.Unlock()
		if answer.GetTtlSeconds() == 0 {
			return
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return
		}
	}
}

// stop ends the renewing and waits for its end.
func (r *renewer) stop() {
	r.cancel()
	<-r.done
}

func (r *renewer) wasGone() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone
}

// last returns the last confirmation, before a moment unless that is zero.
func (r *renewer) last(before time.Time) (last confirmation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.confirmations {
		if before.IsZero() || c.at.Before(before) {
			last = c
		}
	}
	return last
}

// end waits for the end of a lease and holds the promise against it, both its halves: never before its TTL after its last
// confirmed renewal, and late by at most the session time, TTL + 2 S for each of `failures` of its owner, and the time in
// which the log took no entries. Nobody renews it any more.
func (l *leaseTest) end(id int64, ttl time.Duration, failures int, renewers ...*renewer) *decided {
	l.t.Helper()
	granted := l.referee.changed(1, id, lease.Granted)
	last := granted.first()
	for _, r := range renewers {
		if at := r.last(time.Time{}).at; at.After(last) {
			last = at
		}
	}
	var end *decided
	for limit := time.Now().Add(10 * time.Minute); end == nil; time.Sleep(10 * ms) {
		if end = l.referee.changed(granted.Index, id, lease.Expired, lease.Revoked); time.Now().After(limit) {
			l.t.Fatalf("lease %x does not end", id)
		}
	}
	time.Sleep(time.Second) // until every region has seen it
	l.referee.index()       // takes the lock that the regions' readers wrote under
	lasted := end.first().Sub(last)
	l.t.Logf("the lease of %v ended %v after its last confirmed renewal", ttl, lasted)
	if least := time.Duration(float64(ttl) / (1 + l.drift)); lasted < least {
		l.t.Errorf("the lease of %v ended %v after its last confirmed renewal, before %v", ttl, lasted, least)
	}
	most := ttl + sessionTime + time.Duration(failures)*(ttl+2*sessionTime)
	most = time.Duration(float64(most)*(1+l.drift)) + slowestCommit
	if failures > 0 || l.outages {
		most += l.referee.longestSilence(granted.Index)
	}
	if lasted > most {
		l.t.Errorf("the lease of %v ended %v after its last confirmed renewal, after %v", ttl, lasted, most)
	}
	return end
}

// slowestCommit is what an entry takes from the frontend that proposes it, wherever that is, until it is published there.
const slowestCommit = 150 * ms

func leaseID(id int64) clientv3.LeaseID { return clientv3.LeaseID(id) }

// grantMany makes many leases through a region's frontend, many at a time.
func (l *leaseTest) grantMany(region string, ttl time.Duration, count int) []int64 {
	l.t.Helper()
	const atOnce = 1000
	client := kvv1.NewLeaseServiceClient(l.connections[region])
	ids := make([]int64, count)
	var granting errgroup.Group
	granting.SetLimit(atOnce)
	for i := range ids {
		granting.Go(func() error {
			granted, err := client.Grant(l.t.Context(), &kvv1.GrantRequest{TtlSeconds: int64(ttl / time.Second)})
			ids[i] = granted.GetId()
			return err
		})
	}
	if err := granting.Wait(); err != nil {
		l.t.Fatal(err)
	}
	return ids
}
