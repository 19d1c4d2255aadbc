package logservice

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// reader asks one member for read rounds.
type reader struct {
	stream logv1.LogService_ReadRoundClient
	send   sync.Mutex
	mu     sync.Mutex
	next   uint64
	wait   map[uint64]chan *logv1.ReadRoundResponse
}

func (c *testCluster) reader(ctx context.Context, region string) (*reader, error) {
	stream, err := c.client(region).ReadRound(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&logv1.ReadRoundRequest{Handshake: &logv1.Handshake{}}); err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); err != nil {
		return nil, err
	}
	r := &reader{stream: stream, wait: map[uint64]chan *logv1.ReadRoundResponse{}}
	go func() {
		for {
			answer, err := stream.Recv()
			r.mu.Lock()
			if err != nil {
				for _, waiting := range r.wait {
					close(waiting)
				}
				r.wait = nil
				r.mu.Unlock()
				return
			}
			r.wait[answer.Id] <- answer
			delete(r.wait, answer.Id)
			r.mu.Unlock()
		}
	}()
	return r, nil
}

// ask returns nil when the stream has ended.
func (r *reader) ask() *logv1.ReadRoundResponse {
	r.mu.Lock()
	if r.wait == nil {
		r.mu.Unlock()
		return nil
	}
	r.next++
	id, answered := r.next, make(chan *logv1.ReadRoundResponse, 1)
	r.wait[id] = answered
	r.mu.Unlock()
	r.send.Lock()
	_ = r.stream.Send(&logv1.ReadRoundRequest{Id: id})
	r.send.Unlock()
	return <-answered
}

func TestReadRoundLatency(t *testing.T) {
	for _, test := range []struct {
		publication Publication
		want        map[string]time.Duration
	}{
		{PublicationLeader, map[string]time.Duration{"us": 80 * time.Millisecond, "eu": 160 * time.Millisecond, "ap": 230 * time.Millisecond}},
		{PublicationQuorum, map[string]time.Duration{"us": 80 * time.Millisecond, "eu": 80 * time.Millisecond, "ap": 100 * time.Millisecond}},
	} {
		t.Run(test.publication.String(), func(t *testing.T) {
			config := func(_ string, c *Config) { c.Publication = test.publication }
			bubble(t, config, func(t *testing.T, c *testCluster) {
				c.lead("us")
				for _, region := range c.regions {
					r, err := c.reader(t.Context(), region)
					if err != nil {
						t.Fatal(err)
					}
					for n := range 5 {
						began := time.Now()
						answer := r.ask()
						within(t, fmt.Sprintf("round %d in %s", n, region), time.Since(began), test.want[region])
						if answer.GetFailure() != "" || answer.GetIndex() == 0 {
							t.Errorf("answer %v", answer)
						}
						time.Sleep(77 * time.Millisecond)
					}
				}
			})
		})
	}
}

// While everybody writes and members are killed, paused and cut off, no round is answered with an index below what had
// been published anywhere before its question.
func TestReadRoundsAreLinearizable(t *testing.T) {
	for _, publication := range []Publication{PublicationQuorum, PublicationLeader} {
		t.Run(publication.String(), func(t *testing.T) {
			config := func(_ string, c *Config) { c.Publication = publication }
			bubble(t, config, func(t *testing.T, c *testCluster) {
				c.lead("us")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for i, region := range c.regions {
					c.writer(ctx, region, uint64(100+i))
				}
				var answered, failed sync.Map
				for _, region := range c.regions {
					go c.readOn(ctx, region, &answered, &failed)
				}
				random := rand.New(rand.NewPCG(1, uint64(publication)))
				for range 12 {
					time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond)
					region := c.regions[random.IntN(3)]
					switch random.IntN(4) {
					case 0:
						c.kill(region)
						time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond)
						c.start(region)
					case 1:
						resume := c.pause(region)
						time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond)
						resume()
					case 2:
						c.net.Isolate(region)
						time.Sleep(time.Duration(random.IntN(6000)) * time.Millisecond)
						c.net.Rejoin(region)
					case 3:
						other := c.regions[random.IntN(3)]
						if other != region {
							c.net.CutOneWay(region, other)
						}
						time.Sleep(time.Duration(random.IntN(6000)) * time.Millisecond)
						c.net.HealAll()
					}
				}
				cancel()
				for _, region := range c.regions {
					n, _ := answered.Load(region)
					f, _ := failed.Load(region)
					t.Logf("%s: %v rounds, %v failed", region, n, f)
					if n == nil || n.(int) < 50 {
						t.Errorf("%s: only %v rounds were answered", region, n)
					}
				}
			})
		})
	}
}

// highestSeen is the highest index that any tail has seen until now.
func (c *testCluster) highestSeen() (highest uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.highest
}

func (c *testCluster) readOn(ctx context.Context, region string, answered, failed *sync.Map) {
	good, bad := 0, 0
	for ctx.Err() == nil {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		r, err := c.reader(limit, region)
		for err == nil {
			before := c.highestSeen()
			answer := r.ask()
			if answer == nil {
				break
			}
			if answer.Failure != "" {
				bad++
			} else if good++; answer.Index < before {
				c.t.Errorf("%s: a round was answered with %d after %d had been seen", region, answer.Index, before)
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		answered.Store(region, good)
		failed.Store(region, bad)
		time.Sleep(50 * time.Millisecond)
	}
}
