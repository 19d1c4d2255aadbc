package watch

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// TestManyReadersAtOnce runs writer, readers and requests on goroutines of their own, for the race detector:
// each watch begins somewhere in the past, some readers are too slow for their buffer, and each must see every
// revision once.
func TestManyReadersAtOnce(t *testing.T) {
	f := newFixture(t, Config{StreamBufferBytes: 2048, CatchUpEvents: 64})
	const last = 3000
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var readers sync.WaitGroup
	for i := range 16 {
		readers.Go(func() {
			s := open(f.hub, StreamOptions{})
			defer s.Close()
			other, err := s.Watch(Request{Key: []byte("other"), Progress: true})
			if err != nil {
				t.Error(err)
			}
			if i%4 == 0 {
				s.Cancel(other)
			}
			id, err := s.Watch(Request{Key: []byte("a"), End: []byte("b"), StartRevision: 2, PreviousKV: i%2 == 0})
			if err != nil {
				t.Error(err)
			}
			s.RequestProgress()
			for revision := int64(2); revision <= last; {
				r, err := s.Next(ctx)
				if err != nil {
					t.Errorf("reader %d at %d: %v", i, revision, err)
					return
				}
				if r.WatchID != id {
					continue
				}
				for _, encoded := range r.Events {
					var e mvccpb.Event
					if err := proto.Unmarshal(encoded, &e); err != nil || e.Kv.ModRevision != revision {
						t.Errorf("reader %d: %v, %v; want revision %d", i, &e, err, revision)
						return
					}
					revision++
				}
			}
		})
	}
	for f.revision < last {
		f.put(fmt.Sprintf("a%d", f.revision%7))
	}
	readers.Wait()
}
