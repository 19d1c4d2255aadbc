package cluster

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/idgen"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// raindropsUsedUp is up to when the numbers are used up that nobody holds. In a bubble, where it is before the epoch of
// ids, a frontend's id time begins when it is first asked for ids.
const raindropsUsedUp = 5 * time.Minute

// useUpRaindropNodes uses up all numbers of raindrops but one, by a frontend of its own.
func (c *virtual) useUpRaindropNodes() {
	c.t.Helper()
	config := mirror.Config{
		Name: "hoarder", Region: "us", DataDir: filepath.Join(c.t.TempDir(), "hoarder"),
		Log: logclient.Config{Dial: c.Network().Region("us").Dial}, Clock: newClock(1).now,
	}
	for _, member := range c.Info().Log {
		config.Log.Members = append(config.Log.Members, member.Address)
	}
	hoarder, err := mirror.Start(config)
	if err != nil {
		c.t.Fatal(err)
	}
	defer hoarder.Stop()
	layout := statemachine.IDRaindrop.Layout()
	grant := &commandv1.Command{Operation: &commandv1.Command_IdNodeGrant{IdNodeGrant: &commandv1.IdNodeGrant{
		Kind: commandv1.IdKind_ID_KIND_RAINDROP, Until: int64(raindropsUsedUp / layout.Unit),
	}}}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for range layout.Nodes() - 1 {
		if _, err := hoarder.Propose(ctx, grant, mirror.ProposeOptions{}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// onceOnly notes what every region is given.
type onceOnly struct {
	t       *testing.T
	clients map[string]*client.Client
	given   map[kvv1.GenerateRequest_Kind]map[int64]string
}

// take asks for ids, fails the test if one was given before, and returns the last.
func (o *onceOnly) take(region string, r *kvv1.GenerateRequest) (last int64, err error) {
	o.t.Helper()
	ids, err := generate(o.clients[region], r)
	for _, id := range ids {
		if by, again := o.given[r.Kind][id]; again {
			o.t.Fatalf("%s gives %s %d, which %s gave before", region, r.Kind, id, by)
		}
		o.given[r.Kind][id], last = region, id
	}
	return last, err
}

// must takes ids that must be had.
func (o *onceOnly) must(region string, r *kvv1.GenerateRequest) (last int64) {
	o.t.Helper()
	last, err := o.take(region, r)
	if err != nil {
		o.t.Fatalf("%s in %s: %v", r.Kind, region, err)
	}
	return last
}

// until asks every second, for as long as numbers are used up, and returns the last id of the first answer that will do and
// which errors came before.
func (o *onceOnly) until(region string, r *kvv1.GenerateRequest, will func(id int64) bool) (last int64, refused map[codes.Code]int) {
	o.t.Helper()
	refused = make(map[codes.Code]int)
	for began := time.Now(); time.Since(began) < 2*raindropsUsedUp; time.Sleep(time.Second) {
		last, err := o.take(region, r)
		if err == nil && will(last) {
			return last, refused
		}
		if err != nil {
			refused[code(err)]++
		}
	}
	o.t.Fatalf("no %s in %s, but %v", r.Kind, region, refused)
	return 0, nil
}

// A frontend is frozen with a node number and a block of a range, until its session has ended and its number is another's.
// When it wakes up, within the times that it was granted or after them, it gives nothing that was given before; what it has
// left of them it may give, then it says that no number is free until it has another.
func TestFrozenHolderOfIDs(t *testing.T) {
	for _, test := range []struct {
		name string
		// asleep is how long it sleeps on when the other gives ids under its number.
		asleep time.Duration
	}{
		{"awake within its times", 0},
		{"awake after its times", time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaseBubble(t, nil, func(t *testing.T, l *leaseTest) {
				s := &scenario{leaseTest: l}
				o := &onceOnly{
					t:       t,
					clients: map[string]*client.Client{"us": l.ids("us"), "eu": l.ids("eu")},
					given: map[kvv1.GenerateRequest_Kind]map[int64]string{
						kvv1.GenerateRequest_KIND_RAINDROP: {}, kvv1.GenerateRequest_KIND_SEGMENT: {},
					},
				}
				raindrops := &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_RAINDROP, Count: 1000}
				orders := &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "orders", Count: 10}
				node := func(id int64) int64 { return idgen.Split(statemachine.IDRaindrop.Layout(), id).Node }

				l.useUpRaindropNodes()
				number := node(o.must("eu", raindrops))
				o.must("eu", orders)
				s.pause("eu")
				_, refused := o.until("us", raindrops, func(id int64) bool { return node(id) == number })
				t.Logf("us has the number after %v", refused)
				if refused[codes.ResourceExhausted] == 0 || len(refused) > 2 {
					t.Errorf("while the number was held, and its times ahead: %v", refused)
				}
				o.must("us", orders)
				time.Sleep(test.asleep)
				o.must("us", raindrops)

				s.wake("eu")
				left := 0
				last, refused := o.until("eu", raindrops, func(id int64) bool {
					if node(id) == number {
						left++
					}
					o.must("us", raindrops)
					return node(id) != number
				})
				t.Logf("eu has number %d after %d answers under number %d and %v", node(last), left, number, refused)
				if refused[codes.ResourceExhausted] == 0 {
					t.Errorf("without a number: %v", refused)
				}
				if (left > 0) != (test.asleep == 0) {
					t.Errorf("%d answers under the number that it had lost", left)
				}
				o.must("eu", orders)
				o.must("us", orders)
				o.must("us", raindrops)
			})
		})
	}
}
