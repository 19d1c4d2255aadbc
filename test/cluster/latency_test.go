package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/mirror"
)

// What the round trips allow, us leading: us-eu 80 ms, us-ap 150 ms, eu-ap 100 ms.
//
// Under PublicationLeader, stock Raft, a put and a linearizable read from another region wait for the leader's own
// round trip to a majority on top of their way to the leader and back. Under PublicationQuorum each member learns by
// itself what is committed: a put takes one round trip to the leader, or in the leader's region its round trip to the
// nearest majority; a read takes one round trip to the nearest majority.
const ms = time.Millisecond

var latencies = []struct {
	publication       logservice.Publication
	region            string
	put, linearizable time.Duration
}{
	{logservice.PublicationLeader, "us", 80 * ms, 80 * ms},
	{logservice.PublicationLeader, "eu", 160 * ms, 160 * ms},
	{logservice.PublicationLeader, "ap", 230 * ms, 230 * ms},
	{logservice.PublicationQuorum, "us", 80 * ms, 80 * ms},
	{logservice.PublicationQuorum, "eu", 80 * ms, 80 * ms},
	{logservice.PublicationQuorum, "ap", 150 * ms, 100 * ms},
}

// samples of each operation. Their best is what the operation costs; others may have had to wait for the start of the
// round after the one under way, which stays within slack.
const (
	samples = 20
	slack   = 5 * ms
)

func TestLatencies(t *testing.T) {
	for _, publication := range []logservice.Publication{logservice.PublicationLeader, logservice.PublicationQuorum} {
		t.Run(publication.String(), func(t *testing.T) {
			bubble(t, publication, func(t *testing.T, c *virtual) {
				for _, want := range latencies {
					if want.publication == publication {
						measureRegion(t, c.regions[want.region], want.put, want.linearizable)
					}
				}
			})
		})
	}
}

// TestMirrorsCostWritesNothing has ten mirrors more in ap, which are the farthest from the leader: what does not vote makes
// nobody's writes and reads slower.
func TestMirrorsCostWritesNothing(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		var further []*mirror.Mirror
		for i := range 10 {
			name := fmt.Sprintf("further-%d", i)
			config := mirror.Config{Name: name, Region: name, DataDir: filepath.Join(t.TempDir(), name),
				Log: logclient.Config{Dial: c.Network().Region("ap").Dial}, Clock: newClock(1).now}
			for _, member := range c.Info().Log {
				config.Log.Members = append(config.Log.Members, member.Address)
			}
			m, err := mirror.Start(config)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Stop()
			<-m.Ready()
			further = append(further, m)
		}
		for _, want := range latencies {
			if want.publication == logservice.PublicationQuorum {
				measureRegion(t, c.regions[want.region], want.put, want.linearizable)
			}
		}
		published := c.published()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for _, m := range further {
			if err := m.WaitApplied(ctx, published); err != nil {
				t.Errorf("a mirror has not had all of the log: %v", err)
			}
		}
	})
}

func measureRegion(t *testing.T, r *region, put, read time.Duration) {
	etcd := func(options ...clientv3.OpOption) func(int) {
		return func(int) {
			if _, err := r.etcd.Get(t.Context(), "key", options...); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, operation := range []struct {
		name string
		do   func(sample int)
		want time.Duration
	}{
		{"put", func(i int) { r.put(t, "key", fmt.Sprint(i)) }, put},
		{"linearizable get", func(int) { r.get(t, "key", linearizable) }, read},
		{"serializable get", func(int) { r.get(t, "key", serializable) }, 0},
		{"etcd put", func(i int) {
			if _, err := r.etcd.Put(t.Context(), "key", fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}, put},
		{"etcd linearizable get", etcd(), read},
		{"etcd serializable get", etcd(clientv3.WithSerializable()), 0},
	} {
		var took []time.Duration
		for i := range samples {
			time.Sleep(137 * ms) // not in step with any interval of the cluster's
			start := time.Now()
			operation.do(i)
			took = append(took, time.Since(start))
		}
		best, worst := slices.Min(took), slices.Max(took)
		t.Logf("%s: %-22s %v (at most %v)", r.name, operation.name, best, worst)
		if best != operation.want || worst > operation.want+slack {
			t.Errorf("%s: %s takes %v to %v, want %v: %v", r.name, operation.name, best, worst, operation.want, took)
		}
	}
}
