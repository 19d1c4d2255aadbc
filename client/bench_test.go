package client_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/playground"
)

// BenchmarkIDs asks one frontend for ids of every kind over gRPC on loopback, as programs do; client, frontend and a log
// member share the process, and the log's disk is in memory.
func BenchmarkIDs(b *testing.B) {
	running, err := playground.Start(playground.Config{Regions: []string{"us"}, DataDir: b.TempDir(), FS: disk.NewMemory(1)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := running.Stop(ctx); err != nil {
			b.Error(err)
		}
	}()
	<-running.Ready()
	c, err := client.New(client.Config{Endpoints: []string{running.Info().Regions[0].Frontend}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	snowflakes := func(count int64) *kvv1.GenerateRequest {
		return &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SNOWFLAKE, Count: count}
	}
	for _, stream := range []struct {
		name    string
		request *kvv1.GenerateRequest
	}{
		{"snowflake/stream of blocks of 10000", snowflakes(10_000)},
		{"snowflake/stream of blocks of 1000", snowflakes(1000)},
		{"segment/stream of blocks of 1000", &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "b", Count: 1000}},
	} {
		b.Run(stream.name, func(b *testing.B) {
			ids := int64(0)
			next := int64(b.N)
			for answer, err := range c.GenerateBlocks(b.Context(), stream.request) {
				if err != nil {
					b.Fatal(err)
				}
				for range client.IDs(answer) {
					ids++
				}
				if next--; next == 0 {
					break
				}
			}
			b.ReportMetric(float64(ids)/b.Elapsed().Seconds(), "ids/s")
		})
	}
	for _, calls := range []struct {
		name    string
		callers int
		request *kvv1.GenerateRequest
	}{
		{"snowflake/call of one", 1, snowflakes(1)},
		{"snowflake/calls of one by 100", 100, snowflakes(1)},
		{"sequence/call of one", 1, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "b"}},
		{"sequence/calls of one by 100", 100, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "b"}},
		{"sequence/calls of one by 1000", 1000, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "b"}},
		{"put for comparison/by 100", 100, nil},
		{"put for comparison/by 1000", 1000, nil},
	} {
		b.Run(calls.name, func(b *testing.B) {
			var asked atomic.Int64
			var asking sync.WaitGroup
			for range calls.callers {
				asking.Go(func() {
					for asked.Add(1) <= int64(b.N) {
						var err error
						if calls.request != nil {
							_, err = c.Generate(b.Context(), calls.request)
						} else {
							_, err = c.Put(b.Context(), &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v")})
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			asking.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}
