package cluster

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/lease"
)

// How long a lease has left only its owner knows: a frontend elsewhere asks it, and says UNAVAILABLE rather than a guess
// when it cannot.
func TestTimeToLiveAsksTheOwner(t *testing.T) {
	leaseBubble(t, nil, func(t *testing.T, l *leaseTest) {
		const ttl = 60 * time.Second
		id := l.grant("eu", ttl)
		put := &kvv1.PutRequest{Key: []byte("held"), Value: []byte("v"), Lease: id}
		if _, err := l.regions["us"].kv.Put(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		r := l.renew(id, time.Hour, "eu")
		time.Sleep(20 * time.Second)
		r.stop()
		ask := func(region string) (*kvv1.TimeToLiveResponse, error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			return kvv1.NewLeaseServiceClient(l.connections[region]).TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: id, Keys: true})
		}
		for _, region := range []string{"us", "eu", "ap"} {
			if _, err := ask(region); err != nil { // finds the connection to the owner
				t.Fatalf("%s: %v", region, err)
			}
			asked := time.Now()
			answer, err := ask(region)
			if err != nil {
				t.Fatalf("%s: %v", region, err)
			}
			// Half the way to the owner later than the question, in whole seconds.
			left := time.Until(r.last(time.Time{}).at.Add(ttl))
			if got := answer.GetTtlSeconds(); got != int64(left/time.Second) && got != int64(left/time.Second)+1 {
				t.Errorf("%s: %d s left, want %v", region, got, left)
			}
			if answer.GetGrantedTtlSeconds() != 60 || len(answer.GetKeys()) != 1 || string(answer.GetKeys()[0]) != "held" {
				t.Errorf("%s: %v", region, answer)
			}
			t.Logf("asked in %s: %v", region, time.Since(asked))
			etcd, err := l.regions[region].etcd.TimeToLive(t.Context(), leaseID(id))
			if err != nil || etcd.GrantedTTL != 60 || etcd.TTL < 30 {
				t.Errorf("%s: etcd's answer: %v, %v", region, etcd, err)
			}
		}

		// Its owner is out of reach, and lives: nobody else knows.
		l.Network().Cut("ap", "eu")
		if answer, err := ask("ap"); code(err) != codes.Unavailable {
			t.Errorf("asked while the owner is out of reach: %v, %v", answer, err)
		}
		l.Network().HealAll()
		// Its owner has gone: once its session has ended, the lease ends by the log's time, which every frontend knows.
		if err := l.KillFrontend("eu"); err != nil {
			t.Fatal(err)
		}
		if answer, err := ask("us"); code(err) != codes.Unavailable {
			t.Errorf("asked while the owner is dead: %v, %v", answer, err)
		}
		l.eventually("the lease is an orphan", func() error {
			if l.referee.changed(1, id, lease.Orphaned) == nil {
				return context.DeadlineExceeded
			}
			return nil
		})
		time.Sleep(2 * time.Second)
		answer, err := ask("us")
		if err != nil || answer.GetTtlSeconds() < 56 || answer.GetTtlSeconds() > 60 {
			t.Errorf("an orphan has %v left, %v", answer, err)
		}
	})
}

// A client comes with a thousand leases from another region, all on one stream as etcd's client has them: they are taken
// over in two round trips, not one after the other.
func TestClientMovesWithManyLeases(t *testing.T) {
	leaseBubble(t, nil, func(t *testing.T, l *leaseTest) {
		const count = 1000
		ids := l.grantMany("eu", 10*time.Second, count)
		stream, err := kvv1.NewLeaseServiceClient(l.connections["ap"]).KeepAlive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		go func() {
			for _, id := range ids {
				if stream.Send(&kvv1.KeepAliveRequest{Id: id}) != nil {
					return
				}
			}
		}()
		confirmed := make(map[int64]bool)
		for len(confirmed) < count {
			answer, err := stream.Recv()
			if err != nil || answer.GetTtlSeconds() != 10 {
				t.Fatalf("after %d: %v, %v", len(confirmed), answer, err)
			}
			confirmed[answer.GetId()] = true
		}
		took := time.Since(began)
		t.Logf("%d leases adopted in %v", count, took)
		if took > 2*commitAp+50*ms {
			t.Errorf("%d leases adopted in %v", count, took)
		}
		var listed []int64
		request := &kvv1.ListLeasesRequest{}
		for more := true; more; more = request.PageToken != "" {
			list, err := kvv1.NewLeaseServiceClient(l.connections["us"]).ListLeases(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			for _, status := range list.GetLeases() {
				listed = append(listed, status.GetId())
				if status.GetOwnerRegion() != "ap" {
					t.Fatalf("owned in %q", status.GetOwnerRegion())
				}
			}
			request.PageToken = list.GetNextPageToken()
		}
		slices.Sort(ids)
		if !slices.Equal(listed, ids) {
			t.Errorf("%d leases listed, want %d, by id", len(listed), len(ids))
		}
	})
}

// A frontend that stops in order leaves its session to the one that starts next: its leases move with that one entry, and
// none has to be adopted. What is renewed elsewhere meanwhile is adopted at once.
func TestStoppedFrontendsLeases(t *testing.T) {
	leaseBubble(t, nil, func(t *testing.T, l *leaseTest) {
		const ttl = 15 * time.Second
		ids := l.grantMany("eu", ttl, 100)
		moves, stays := ids[0], ids[1]
		time.Sleep(time.Second) // every region knows them
		before := l.referee.index()
		if err := l.StopFrontend("eu"); err != nil {
			t.Fatal(err)
		}
		asked := time.Now()
		r := l.renew(moves, every, "ap")
		time.Sleep(3 * time.Second)
		r.mu.Lock()
		first := r.confirmations[0]
		r.mu.Unlock()
		// The connection is opened first, within the region.
		if got := first.at.Sub(asked); got != commitAp {
			t.Errorf("confirmed elsewhere after %v, want %v", got, commitAp)
		}
		if err := l.RestartFrontend("eu"); err != nil {
			t.Fatal(err)
		}
		l.eventually("the leases have moved", func() error {
			if l.referee.changed(before, stays, lease.Adopted) == nil {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		moved := l.referee.changed(before, stays, lease.Adopted)
		if len(moved.LeaseChanges) != 99 || len(moved.SessionsOpened) != 1 {
			t.Errorf("entry %d moved %d leases", moved.Index, len(moved.LeaseChanges))
		}
		if orphaned := l.referee.changed(before, stays, lease.Orphaned); orphaned != nil {
			t.Errorf("entry %d orphaned a lease of a frontend that was only restarted", orphaned.Index)
		}
		r.stop()
		l.end(moves, ttl, 1, r)
		l.end(stays, ttl, 1)
	})
}
