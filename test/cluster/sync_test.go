package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/logservice"
)

// incomplete returns who is missing by the detail of an error; the write must have been applied.
func incomplete(t *testing.T, err error) (missing, ended []string) {
	t.Helper()
	for _, detail := range status.Convert(err).Details() {
		if d, ok := detail.(*kvv1.SyncIncomplete); ok {
			for _, m := range d.GetMissing() {
				missing = append(missing, m.GetRegion())
			}
			if d.GetHeader().GetRevision() == 0 {
				t.Errorf("no revision in %v", d)
			}
			return missing, d.GetEnded()
		}
	}
	t.Fatalf("%v has no SyncIncomplete", err)
	return nil, nil
}

func everywhere(timeout time.Duration) *kvv1.WriteOptions {
	return &kvv1.WriteOptions{SyncRegions: []string{"*"}, SyncTimeoutMilliseconds: timeout.Milliseconds()}
}

// A write with sync is answered once the mirrors asked for have applied it, and not a moment later: the way of the entry to
// the region, and of the report back. A serializable read there then sees it without waiting.
func TestSyncWaitsForTheMirrorsNamed(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		for _, row := range []struct {
			through string
			regions []string
			want    time.Duration
		}{
			{"us", []string{"us"}, 80 * time.Millisecond},
			{"us", []string{"eu"}, 80 * time.Millisecond},
			{"us", []string{"ap"}, 150 * time.Millisecond},
			{"us", []string{"*"}, 150 * time.Millisecond},
			// The entry is in us, and on its way, after 40 ms; ap has it at 115 and its report is in eu at 165.
			{"eu", []string{"*"}, 165 * time.Millisecond},
			// us publishes once the ack of eu has come, 40 ms after eu itself.
			{"eu", []string{"us", "eu"}, 160 * time.Millisecond},
		} {
			key := "sync/" + row.through + "/" + strings.Join(row.regions, "+")
			took, err := c.regions[row.through].tryPut(t, key, &kvv1.WriteOptions{SyncRegions: row.regions}, patience)
			if err != nil {
				t.Errorf("%s: %v", key, err)
				continue
			}
			if took < row.want || took > row.want+time.Millisecond {
				t.Errorf("%s took %v, want %v", key, took, row.want)
			}
			for name, r := range c.regions {
				asked := row.regions[0] == "*" || slices.Contains(row.regions, name)
				if asked && r.get(t, key, serializable) != row.through {
					t.Errorf("%s has not applied %s", name, key)
				}
			}
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "logmirror-sync-regions", "*")
		start := time.Now()
		if _, err := c.regions["us"].etcd.Put(ctx, "sync/etcd", "us"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 150*time.Millisecond || took > 151*time.Millisecond {
			t.Errorf("through etcd's API it took %v", took)
		}
	})
}

func TestSyncNamesWhoIsMissing(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		us := c.regions["us"]
		_, err := us.tryPut(t, "nowhere", &kvv1.WriteOptions{SyncRegions: []string{"mars"}}, patience)
		if code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "mars") {
			t.Errorf("a region without a frontend: %v", err)
		}
		if us.get(t, "nowhere", linearizable) != "" {
			t.Error("a refused write was applied")
		}

		c.Network().Isolate("ap")
		took, err := us.tryPut(t, "cut", everywhere(2*time.Second), patience)
		if code(err) != codes.DeadlineExceeded || took < 2*time.Second || took > 2*time.Second+time.Millisecond {
			t.Errorf("while ap is cut off: %v after %v", err, took)
		}
		if missing, ended := incomplete(t, err); !slices.Equal(missing, []string{"ap"}) || len(ended) > 0 {
			t.Errorf("missing %v, ended %v", missing, ended)
		}
		if us.get(t, "cut", linearizable) != "us" {
			t.Error("the write is not there")
		}
		// The caller's own deadline leaves time to tell.
		took, err = us.tryPut(t, "short", everywhere(0), time.Second)
		if missing, _ := incomplete(t, err); !slices.Equal(missing, []string{"ap"}) || took >= time.Second {
			t.Errorf("missing %v after %v", missing, took)
		}
		// Once ap's session has ended, waiting is no use any more; and then it is not live.
		_, err = us.tryPut(t, "ends", everywhere(time.Minute), 2*time.Minute)
		if missing, ended := incomplete(t, err); code(err) != codes.Aborted || !slices.Equal(missing, []string{"ap"}) || len(ended) != 1 {
			t.Errorf("when ap's session has ended: %v", err)
		}
		if took, err := us.tryPut(t, "without", everywhere(0), patience); err != nil || took > 81*time.Millisecond {
			t.Errorf("without ap: %v after %v", err, took)
		}

		c.Network().Rejoin("ap")
		c.eventually("ap reports again", func() error {
			_, err := us.tryPut(t, "healed", &kvv1.WriteOptions{SyncRegions: []string{"ap"}}, patience)
			return err
		})
	})
}

// A report that is lost with a link is made again: a cut shorter than the wait does no harm.
func TestSyncOutlivesALostReport(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		us := c.regions["us"]
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		go func() {
			_, err := us.kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("us"), Options: everywhere(30 * time.Second)})
			done <- err
		}()
		// ap has the entry after 75 ms, and its report has not come.
		time.Sleep(100 * time.Millisecond)
		c.Network().CutOneWay("ap", "us")
		c.Network().CutOneWay("ap", "eu")
		time.Sleep(3 * time.Second)
		c.Network().HealAll()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Many writes of all regions that wait for all regions at once are each answered after the way there and back, and are then
// everywhere.
func TestManySyncedWritesAtOnce(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		const each = 200
		type outcome struct {
			key  string
			took time.Duration
			err  error
		}
		outcomes := make(chan outcome, each*len(c.regions))
		for name, r := range c.regions {
			for i := range each {
				go func() {
					key := fmt.Sprintf("many/%s/%d", name, i)
					took, err := r.tryPut(t, key, everywhere(0), patience)
					outcomes <- outcome{key, took, err}
				}()
			}
		}
		var keys []string
		for range each * len(c.regions) {
			o := <-outcomes
			// The slowest way is that of a put through ap, and to eu and back; half as much again for batches that wait.
			if o.err != nil || o.took > 500*time.Millisecond {
				t.Errorf("%s: %v after %v", o.key, o.err, o.took)
			}
			keys = append(keys, o.key)
		}
		for name, r := range c.regions {
			for _, key := range keys {
				if r.get(t, key, serializable) == "" {
					t.Errorf("%s has not applied %s", name, key)
				}
			}
		}
	})
}
