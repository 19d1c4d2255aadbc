package cluster

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/logservice"
)

// ids connects the Go client to a region, from within it.
func (c *virtual) ids(region string) *client.Client {
	c.t.Helper()
	for _, info := range c.Info().Regions {
		if info.Name != region {
			continue
		}
		connection, err := client.New(client.Config{Endpoints: []string{info.Frontend}, Dial: c.Network().Region(region).Dial})
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { connection.Close() })
		return connection
	}
	c.t.Fatalf("there is no region %s", region)
	return nil
}

func generate(c *client.Client, r *kvv1.GenerateRequest) ([]int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := c.Generate(ctx, r)
	var ids []int64
	for id := range client.IDs(answer) {
		ids = append(ids, id)
	}
	return ids, err
}

// Every region gives ids of every kind at the same time, each once; those of a sequence follow the real order of calls
// everywhere; and those that need no entry each go on in a region that is cut off from the log.
func TestIDs(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		regions := map[string]*client.Client{"us": c.ids("us"), "eu": c.ids("eu"), "ap": c.ids("ap")}
		requests := []*kvv1.GenerateRequest{
			{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 10_000},
			{Kind: kvv1.GenerateRequest_KIND_RAINDROP, Count: 20_000},
			{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "orders", Max: math.MaxInt32, Count: 700},
			{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "invoices", Count: 5},
		}
		for _, request := range requests {
			var (
				mu     sync.Mutex
				asking sync.WaitGroup
			)
			seen := make(map[int64]bool)
			for name, region := range regions {
				for range 3 {
					asking.Go(func() {
						ids, err := generate(region, request)
						if err != nil || int64(len(ids)) != request.Count {
							t.Errorf("%s in %s: %d ids, %v", request.Kind, name, len(ids), err)
						}
						mu.Lock()
						defer mu.Unlock()
						for i, id := range ids {
							if seen[id] || id <= 0 || i > 0 && id <= ids[i-1] {
								t.Fatalf("%s in %s: %d again or out of order", request.Kind, name, id)
							}
							seen[id] = true
						}
					})
				}
			}
			asking.Wait()
		}

		last := int64(0)
		for range 3 {
			for _, region := range regions {
				ids, err := generate(region, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "invoices"})
				if err != nil || len(ids) != 1 || ids[0] <= last {
					t.Fatalf("%v after %d, %v", ids, last, err)
				}
				last = ids[0]
			}
		}
		if last != 9*5+9 {
			t.Errorf("the sequence has reached %d", last)
		}

		began := time.Now()
		if _, err := generate(regions["ap"], requests[0]); err != nil || time.Since(began) > time.Millisecond {
			t.Errorf("a block in ap took %v, %v", time.Since(began), err)
		}
		c.Network().Isolate("ap")
		time.Sleep(10 * time.Second)
		began = time.Now()
		for _, request := range requests[:3] {
			request.Count = 100
			if _, err := generate(regions["ap"], request); err != nil || time.Since(began) > 2*time.Millisecond {
				t.Errorf("%s in a region that is cut off: %v after %v", request.Kind, err, time.Since(began))
			}
		}
		time.Sleep(2 * time.Minute)
		if _, err := generate(regions["ap"], requests[0]); code(err) != codes.Unavailable {
			t.Errorf("beyond what was granted: %v", err)
		}
		c.Network().HealAll()
		c.eventually("ap gives ids again", func() error {
			_, err := generate(regions["ap"], requests[0])
			return err
		})
	})
}

// What a request for ids can be refused with.
func TestIDsRefused(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		us := c.ids("us")
		if _, err := generate(us, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "small", Max: 5}); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			request *kvv1.GenerateRequest
			code    codes.Code
		}{
			{&kvv1.GenerateRequest{}, codes.InvalidArgument},
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: -1}, codes.InvalidArgument},
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: 100_001}, codes.InvalidArgument},
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Name: "x"}, codes.InvalidArgument},
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE}, codes.InvalidArgument},
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "\xff"}, codes.Internal}, // by the encoder
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "small", Max: 6}, codes.InvalidArgument},
			{&kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "small", Count: 5}, codes.ResourceExhausted},
		} {
			if _, err := generate(us, test.request); code(err) != test.code {
				t.Errorf("%v: %v, want %v", test.request, err, test.code)
			}
		}
	})
}
