package frontend

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
)

// floodClient is one of the two APIs, as much of it as a flood needs, without a client's own retries.
type floodClient struct {
	put func(ctx context.Context, key string) error
	// version is how many times a key was written.
	version func(ctx context.Context, key string, serializable bool) (version int64, revision int64, err error)
}

func nativeFlood(connection *grpc.ClientConn) floodClient {
	kv := kvv1.NewKvServiceClient(connection)
	return floodClient{
		put: func(ctx context.Context, key string) error {
			_, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte("v")})
			return err
		},
		version: func(ctx context.Context, key string, serializable bool) (int64, int64, error) {
			request := &kvv1.GetRequest{Key: []byte(key)}
			if serializable {
				request.Consistency = &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE}
			}
			found, err := kv.Get(ctx, request)
			return found.GetKeyValue().GetVersion(), found.GetHeader().GetRevision(), err
		},
	}
}

func etcdFlood(connection *grpc.ClientConn) floodClient {
	kv := pb.NewKVClient(connection)
	return floodClient{
		put: func(ctx context.Context, key string) error {
			_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v")})
			return err
		},
		version: func(ctx context.Context, key string, serializable bool) (version, revision int64, err error) {
			found, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(key), Serializable: serializable})
			if len(found.GetKvs()) > 0 {
				version = found.GetKvs()[0].GetVersion()
			}
			return version, found.GetHeader().GetRevision(), err
		},
	}
}

// Writes that find the frontend's queue full are refused at once, for certain and with a hint when to come again; reads go on;
// what was taken is written once when the log takes it, what was refused never, and then there is room again.
func TestFloodOfAFrontend(t *testing.T) {
	const queue, writers = 8, 40
	for _, api := range []struct {
		name   string
		client func(*grpc.ClientConn) floodClient
	}{{"native", nativeFlood}, {"etcd", etcdFlood}} {
		for _, trouble := range []struct {
			name         string
			set          func(*fakeLog, bool)
			serializable bool
		}{
			{"the log loses what it is given", (*fakeLog).setSwallow, false},
			{"the log is away", (*fakeLog).setAway, true}, // then only serializable reads can go on
		} {
			t.Run(api.name+", "+trouble.name, func(t *testing.T) {
				c := newTestCluster(t)
				client := api.client(c.connection(c.frontend("us-1", "us", func(config *Config) {
					// One command is under way and few wait; nothing is given up meanwhile.
					m := &config.Mirror
					m.BatchesInFlight, m.BatchBytesMax, m.QueueCommands = 1, 1, queue
					m.FailFastAfter, m.UnknownAfter, m.StallAfter = time.Hour, time.Hour, time.Hour
					m.ResendAfterMin, m.ResendAfterMax = 50*time.Millisecond, 200*time.Millisecond
				})))
				ctx := testContext(t)
				if err := client.put(ctx, "before"); err != nil {
					t.Fatal(err)
				}
				_, before, err := client.version(ctx, "before", false)
				if err != nil {
					t.Fatal(err)
				}
				trouble.set(c.log, true)
				type outcome struct {
					key string
					err error
				}
				outcomes := make(chan outcome)
				for i := range writers {
					go func() {
						key := fmt.Sprintf("flood-%d", i)
						outcomes <- outcome{key, client.put(ctx, key)}
					}()
				}
				var taken, refused []string
				receive := func() {
					switch o := <-outcomes; {
					case o.err == nil:
						taken = append(taken, o.key)
					case isRefusal(t, o.err):
						refused = append(refused, o.key)
					default:
						t.Fatalf("put %s: %v (%q)", o.key, o.err, reason(o.err))
					}
				}
				// But for those that wait and the one under way, all are told.
				for len(taken)+len(refused) < writers-queue-1 {
					receive()
				}
				if len(taken) > 0 {
					t.Fatalf("%d writes succeeded without a log", len(taken))
				}
				if version, _, err := client.version(ctx, "before", trouble.serializable); err != nil || version != 1 {
					t.Errorf("read during the flood: version %d, %v", version, err)
				}
				trouble.set(c.log, false)
				for len(taken)+len(refused) < writers {
					receive()
				}
				if len(taken) < queue {
					t.Errorf("%d writes were taken, and %d have room", len(taken), queue)
				}
				check := func(when string, keys []string, want int64) {
					t.Helper()
					for _, key := range keys {
						version, _, err := client.version(ctx, key, false)
						if err != nil || version != want {
							t.Errorf("%s: %s was written %d times, want %d (%v)", when, key, version, want, err)
						}
					}
				}
				check("taken", taken, 1)
				check("refused", refused, 0)
				if _, after, err := client.version(ctx, "before", false); err != nil || after != before+int64(len(taken)) {
					t.Errorf("revision %d, then, after %d writes, %d (%v)", before, len(taken), after, err)
				}
				for _, key := range refused {
					if err := client.put(ctx, key); err != nil {
						t.Fatalf("put %s after the flood: %v", key, err)
					}
				}
				check("repeated", refused, 1)
			})
		}
	}
}

// isRefusal tells whether a write was refused because of load, and holds such an answer to what it must tell.
func isRefusal(t *testing.T, err error) bool {
	t.Helper()
	if status.Code(err) != codes.ResourceExhausted {
		return false
	}
	if got := reason(err); got != serving.ReasonNotApplied {
		t.Errorf("%v: reason %q, want %q", err, got, serving.ReasonNotApplied)
	}
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok && info.GetRetryDelay().AsDuration() > 0 {
			return true
		}
	}
	t.Errorf("%v does not say when to come again", err)
	return true
}
