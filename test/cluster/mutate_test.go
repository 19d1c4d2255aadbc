package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/logservice"
)

// adders counts in one key from all regions at once. Every add must count once, whatever happens meanwhile: each gives
// another value, and none is left out.
type adders struct {
	clients map[string]*client.Client
	mu      sync.Mutex
	values  map[int64]string
	resent  int
}

// until sends a request through a region until it has an outcome, each time under the request id that it has.
func (a *adders) until(ctx context.Context, region string, r *kvv1.MutateRequest) (answer *kvv1.MutateResponse, sent int, err error) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
		answer, err = a.clients[region].Mutate(attempt, r)
		cancel()
		if sent++; err == nil {
			return answer, sent, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, sent, fmt.Errorf("%s in %s: %w", r.GetOptions().GetRequestId(), region, err)
}

// add adds one, and once more under the same id through another region, where again says so: that must get the first answer.
func (a *adders) add(ctx context.Context, region, other string, again bool) error {
	id, err := a.clients[region].RequestID(ctx)
	if err != nil {
		return err
	}
	request := &kvv1.MutateRequest{Mutation: client.Add("hits", 1), Options: &kvv1.WriteOptions{RequestId: id}}
	answer, sent, err := a.until(ctx, region, request)
	if err != nil {
		return err
	}
	value := answer.GetResult().GetInteger()
	if again {
		second, _, err := a.until(ctx, other, request)
		if err != nil || second.GetResult().GetInteger() != value || second.GetRevision() != answer.GetRevision() {
			return fmt.Errorf("%s again in %s: %v after %v, %w", id, other, second, answer, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if other, twice := a.values[value]; twice {
		return fmt.Errorf("%d was given to %s and to %s", value, other, region)
	}
	a.values[value] = region
	a.resent += sent - 1
	return nil
}

// Counts from three regions while the leader is killed and comes back, and a region is cut off and heals: each add counts
// exactly once, also those that had to be sent again because nobody knew what became of them.
func TestAddsCountOnce(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		names := []string{"us", "eu", "ap"}
		a := &adders{clients: make(map[string]*client.Client), values: make(map[int64]string)}
		for _, name := range names {
			a.clients[name] = c.ids(name)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		const workers, each = 4, 25
		var working sync.WaitGroup
		for i, name := range names {
			for range workers {
				working.Go(func() {
					for n := range each {
						if err := a.add(ctx, name, names[(i+1)%len(names)], n%5 == 0); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		time.Sleep(time.Second)
		if err := c.KillMember("log-us"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if err := c.RestartMember("log-us"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.Network().Isolate("ap")
		time.Sleep(3 * time.Second)
		c.Network().HealAll()
		working.Wait()
		for value := range int64(len(names) * workers * each) {
			if a.values[value+1] == "" {
				t.Errorf("no add gave %d", value+1)
			}
		}
		if a.resent == 0 {
			t.Error("nothing had to be sent again: the faults did not meet the adds")
		}

		// What is left is an ordinary value for etcd's clients, in every region.
		want := fmt.Sprint(len(names) * workers * each)
		for _, r := range c.regions {
			got, err := r.etcd.Get(ctx, "hits")
			if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != want {
				t.Errorf("%s: %v, %v", r.name, got, err)
			}
		}
	})
}

// Members of a set come and go in all regions at once, in a bounded set; a watch in another region sees each change as a put
// of the whole set, and etcd's transactions compare with it.
func TestSetsInAllRegions(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var working sync.WaitGroup
		for _, name := range []string{"us", "eu", "ap"} {
			region := c.ids(name)
			working.Go(func() {
				for i := range 10 {
					if _, err := region.Mutate(ctx, &kvv1.MutateRequest{
						Mutation: client.Insert("members", 30, fmt.Sprintf("%s-%d", name, i), "common"),
					}); err != nil && i < 9 {
						t.Error(err)
					}
				}
			})
		}
		working.Wait()
		us := c.ids("us")
		answer, err := us.Mutate(ctx, &kvv1.MutateRequest{Mutation: client.Remove("members", "common", "never")})
		if err != nil || answer.GetResult().GetMembers() != 29 || answer.GetResult().GetMembersChanged() != 1 {
			t.Fatalf("%v, %v", answer, err)
		}
		final := string(answer.GetResult().GetCurrent().GetValue())
		members, err := client.Members([]byte(final))
		if err != nil || len(members) != 29 {
			t.Fatalf("%q, %v", members, err)
		}
		seen, last := 0, int64(0)
		for answer, err := range c.ids("ap").Watch(ctx, &kvv1.WatchRequest_Create{Key: []byte("members"), StartRevision: 1}) {
			if err != nil {
				t.Fatalf("after %d events: %v", seen, err)
			}
			for _, event := range answer.GetEvents() {
				if event.GetKv().GetModRevision() <= last {
					t.Errorf("revision %d after %d", event.GetKv().GetModRevision(), last)
				}
				seen, last = seen+1, event.GetKv().GetModRevision()
				if got := string(event.GetKv().GetValue()); seen == 30 && got != final {
					t.Errorf("the last event has %q", got)
				}
			}
			if seen >= 30 {
				break
			}
		}
		txn, err := c.regions["eu"].etcd.Txn(ctx).If(clientv3.Compare(clientv3.Value("members"), "=", final)).Then(clientv3.OpDelete("members")).Commit()
		if err != nil || !txn.Succeeded {
			t.Errorf("%v, %v", txn, err)
		}
	})
}
