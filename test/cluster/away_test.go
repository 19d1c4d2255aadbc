package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/logservice"
)

// While the whole log is gone a region reads, watches what it knows, answers renewals as long as it may and says that it is
// degraded, not dead; it refuses at once what it cannot do, or lets it wait as asked. When the log is back, what waited is
// done in order, and a watch from before goes on without a gap.
func TestWhileTheLogIsAway(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		us, connection := c.regions["us"], c.dial("us")
		leases, cluster := kvv1.NewLeaseServiceClient(connection), kvv1.NewClusterServiceClient(connection)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		within := func(d time.Duration) context.Context {
			ctx, cancel := context.WithTimeout(ctx, d)
			t.Cleanup(cancel)
			return ctx
		}
		before := us.put(t, "away/known", "before")
		granted, err := leases.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 120})
		if err != nil {
			t.Fatal(err)
		}
		renew := func() (int64, error) {
			stream, err := leases.KeepAlive(within(patience))
			if err != nil {
				return 0, err
			}
			if err := stream.Send(&kvv1.KeepAliveRequest{Id: granted.GetId()}); err != nil {
				return 0, err
			}
			answer, err := stream.Recv()
			return answer.GetTtlSeconds(), err
		}
		watch := c.watchFrom(ctx, us, before.GetRevision()+1)
		far := c.watchFrom(ctx, c.regions["ap"], before.GetRevision()+1)

		for _, member := range c.Info().Log {
			if err := c.KillMember(member.Name); err != nil {
				t.Fatal(err)
			}
		}
		gone := time.Now()
		time.Sleep(3 * time.Second)
		if ttl, err := renew(); err != nil || ttl <= 0 {
			t.Errorf("a renewal while the session surely stands: %d s, %v", ttl, err)
		}
		time.Sleep(9 * time.Second)
		if ttl, err := renew(); code(err) != codes.Unavailable {
			t.Errorf("a renewal when the session may have ended: %d s, %v", ttl, err)
		}

		found, err := us.kv.Get(within(time.Second), &kvv1.GetRequest{Key: []byte("away/known"), Consistency: serializable})
		if err != nil || string(found.GetKeyValue().GetValue()) != "before" {
			t.Errorf("serializable read: %v, %v", found, err)
		}
		// The last round that was answered began at most an interval and a round trip before the log went.
		age, away := time.Duration(found.GetHeader().GetAgeMicroseconds())*time.Microsecond, time.Since(gone)
		if age < away || age > away+2*time.Second {
			t.Errorf("the answer says it is %v old, the log has been away for %v", age, away)
		}
		known := c.watchFrom(ctx, us, before.GetRevision())
		if r := <-known; len(r.GetEvents()) != 1 || string(r.GetEvents()[0].GetKv().GetValue()) != "before" {
			t.Errorf("a watch on what is known: %v", r)
		}
		if answer, err := healthv1.NewHealthClient(connection).Check(within(time.Second), &healthv1.HealthCheckRequest{}); err != nil ||
			answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health: %v, %v", answer, err)
		}
		told, err := cluster.Status(within(5*time.Second), &kvv1.StatusRequest{})
		if err != nil || len(told.GetDegraded()) == 0 {
			t.Errorf("status: %v, %v", told, err)
		}

		asked := time.Now()
		if _, err := us.kv.Put(within(patience), &kvv1.PutRequest{Key: []byte("away/refused")}); code(err) != codes.Unavailable {
			t.Errorf("a write that does not want to wait: %v", err)
		}
		if _, err := us.tryGet(within(patience), "away/known", linearizable); code(err) != codes.Unavailable {
			t.Errorf("a linearizable read: %v", err)
		}
		if took := time.Since(asked); took > time.Second {
			t.Errorf("they failed after %v", took)
		}
		asked = time.Now()
		_, err = us.kv.Put(within(2*time.Second), &kvv1.PutRequest{Key: []byte("away/late"), Options: &kvv1.WriteOptions{WaitForLog: true}})
		if took := time.Since(asked); code(err) != codes.DeadlineExceeded || took < 1900*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("a write that waits for 2 s: %v after %v", err, took)
		}

		const waiting = 5
		type written struct {
			answer *kvv1.PutResponse
			err    error
		}
		var waits [waiting]chan written
		for i := range waits {
			waits[i] = make(chan written, 1)
			go func() {
				answer, err := us.kv.Put(within(2*patience), &kvv1.PutRequest{
					Key: fmt.Appendf(nil, "away/waited-%d", i), Options: &kvv1.WriteOptions{WaitForLog: true},
				})
				waits[i] <- written{answer, err}
			}()
			time.Sleep(10 * time.Millisecond) // the next one is asked for after this one has come
			synctest.Wait()
		}
		time.Sleep(20 * time.Second)
		for _, member := range c.Info().Log {
			if err := c.RestartMember(member.Name); err != nil {
				t.Fatal(err)
			}
		}
		back := time.Now()
		last := before.GetRevision()
		for i := range waits {
			w := <-waits[i]
			if w.err != nil {
				t.Fatalf("write %d that waited: %v", i, w.err)
			}
			if w.answer.GetRevision() != last+1 {
				t.Errorf("write %d has revision %d, the one before it %d", i, w.answer.GetRevision(), last)
			}
			last = w.answer.GetRevision()
		}
		if took := time.Since(back); took > 15*time.Second {
			t.Errorf("writes that waited were done %v after the log was back", took)
		}
		us.put(t, "away/after", "x")
		for name, events := range map[string]<-chan *kvv1.WatchResponse{"us": watch, "ap": far} {
			next := before.GetRevision() + 1
			for next <= last+1 {
				select {
				case r, ok := <-events:
					if !ok {
						t.Fatalf("the watch in %s ended at revision %d", name, next)
					}
					for _, e := range r.GetEvents() {
						if at := e.GetKv().GetModRevision(); at != next {
							t.Errorf("the watch in %s tells revision %d, want %d", name, at, next)
						}
						next++
					}
				case <-time.After(patience):
					t.Fatalf("the watch in %s has not told revision %d", name, next)
				}
			}
		}
		if got := us.get(t, "away/refused", linearizable) + us.get(t, "away/late", linearizable); got != "" {
			t.Errorf("a write that was refused is there: %q", got)
		}
		c.eventually("nothing is degraded", func() error {
			told, err := cluster.Status(within(5*time.Second), &kvv1.StatusRequest{})
			if err == nil && len(told.GetDegraded()) > 0 {
				err = fmt.Errorf("%v", told.GetDegraded())
			}
			return err
		})
		c.eventually("the lease is renewed again", func() error {
			ttl, err := renew()
			if err == nil && ttl <= 0 {
				t.Fatal("the lease has ended")
			}
			return err
		})
	})
}

// watchFrom watches the keys under away/ from a revision on; its responses with events come out of the channel.
func (c *virtual) watchFrom(ctx context.Context, r *region, revision int64) <-chan *kvv1.WatchResponse {
	c.t.Helper()
	stream, err := r.watch.Watch(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := stream.Send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Create_{Create: &kvv1.WatchRequest_Create{
		Key: []byte("away/"), RangeEnd: []byte("away0"), StartRevision: revision,
	}}}); err != nil {
		c.t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || !r.GetCreated() {
		c.t.Fatalf("watch: %v, %v", r, err)
	}
	events := make(chan *kvv1.WatchResponse, 100)
	go func() {
		defer close(events)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			if len(r.GetEvents()) > 0 {
				events <- r
			}
		}
	}()
	return events
}
