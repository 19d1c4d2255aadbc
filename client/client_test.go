package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func TestConfigIsChecked(t *testing.T) {
	for _, endpoints := range [][]string{nil, {"us"}, {"us:1", ""}} {
		if c, err := client.New(client.Config{Endpoints: endpoints}); err == nil {
			c.Close()
			t.Errorf("%q was taken", endpoints)
		}
	}
}

// Reads are retried while a frontend is away, writes are not: whether they were applied is for the caller to judge.
func TestReadsAreRetried(t *testing.T) {
	gets, writes := 0, 0
	f := &fake{
		get: func() (*kvv1.GetResponse, error) {
			if gets++; gets < 3 {
				return nil, status.Error(codes.Unavailable, "away")
			}
			return &kvv1.GetResponse{Header: header(7, 3)}, nil
		},
		mutate: func(*kvv1.MutateRequest) (*kvv1.MutateResponse, error) {
			writes++
			return nil, status.Error(codes.Unavailable, "away")
		},
	}
	with(t, f, func(t *testing.T, c *client.Client) {
		if _, err := c.Get(t.Context(), &kvv1.GetRequest{}); err != nil || gets != 3 {
			t.Errorf("%v after %d attempts", err, gets)
		}
		if _, err := c.Mutate(t.Context(), &kvv1.MutateRequest{}); status.Code(err) != codes.Unavailable || writes != 1 {
			t.Errorf("%v after %d attempts", err, writes)
		}
	})
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a\xff": "b", "\xff": "\x00", "": "\x00", "ab": "ac"} {
		if got := string(client.PrefixEnd([]byte(prefix))); got != want {
			t.Errorf("PrefixEnd(%q) = %q; want %q", prefix, got, want)
		}
	}
}

// Pages asks for the next page by the token of the one before, until there is none or the caller has enough.
func TestPages(t *testing.T) {
	var asked []string
	f := &fake{list: func(r *kvv1.ListRequest) (*kvv1.ListResponse, error) {
		asked = append(asked, string(r.GetKey())+r.GetPageToken())
		switch r.GetPageToken() {
		case "":
			return &kvv1.ListResponse{Revision: 7, NextPageToken: "1"}, nil
		case "1":
			return &kvv1.ListResponse{Revision: 7, NextPageToken: "2"}, nil
		default:
			return nil, status.Error(codes.OutOfRange, "compacted")
		}
	}}
	with(t, f, func(t *testing.T, c *client.Client) {
		request, pages := &kvv1.ListRequest{Key: []byte("k")}, 0
		var last error
		for page, err := range c.Pages(t.Context(), request) {
			if last = err; err == nil && page.GetRevision() == 7 {
				pages++
			}
		}
		if got := strings.Join(asked, " "); got != "k k1 k2" || pages != 2 || status.Code(last) != codes.OutOfRange || request.GetPageToken() != "" {
			t.Errorf("asked %s, %d pages, %v", got, pages, last)
		}
		asked = nil
		for range c.Pages(t.Context(), request) {
			break
		}
		if len(asked) != 1 {
			t.Errorf("asked %q after the caller had enough", asked)
		}
	})
}

// A request id names the highest log index that any answer told, and asks for one only where none has.
func TestRequestIDs(t *testing.T) {
	asked, index := 0, uint64(70)
	f := &fake{
		status: func() (*kvv1.StatusResponse, error) {
			asked++
			return &kvv1.StatusResponse{Header: header(41, 1)}, nil
		},
		get: func() (*kvv1.GetResponse, error) {
			index -= 10
			return &kvv1.GetResponse{Header: header(index, 1)}, nil
		},
	}
	with(t, f, func(t *testing.T, c *client.Client) {
		seen := make(map[string]bool)
		for _, want := range []string{"41-", "41-", "60-", "60-"} {
			id, err := c.RequestID(t.Context())
			if err != nil || !strings.HasPrefix(id, want) || seen[id] || len(id) > 128 {
				t.Errorf("%q, %v; want it to begin with %s", id, err, want)
			}
			if seen[id] = true; len(seen) >= 2 {
				if _, err := c.Get(t.Context(), &kvv1.GetRequest{}); err != nil { // told 60, then 50, then 40
					t.Fatal(err)
				}
			}
		}
		if asked != 1 {
			t.Errorf("the index was asked for %d times", asked)
		}
	})
}

// Once sends a write again, under one id, as long as that may bring an outcome, and returns what is an outcome as it is.
func TestOnce(t *testing.T) {
	refusal := protoadapt.MessageV1Of(&kvv1.RegionRefusal{Region: "us"})
	for _, test := range []struct {
		name     string
		failures []error
		sent     int
		code     codes.Code
	}{
		{"at once", nil, 1, codes.OK},
		{"away", []error{
			failed(t, codes.Unavailable, ""), failed(t, codes.Unavailable, "NOT_APPLIED"), failed(t, codes.Unknown, "OUTCOME_UNKNOWN"),
		}, 4, codes.OK},
		{"refused", []error{failed(t, codes.FailedPrecondition, "LIMIT_EXCEEDED")}, 1, codes.FailedPrecondition},
		{"invalid", []error{failed(t, codes.Unavailable, ""), failed(t, codes.InvalidArgument, "")}, 2, codes.InvalidArgument},
		{"overloaded", []error{failed(t, codes.ResourceExhausted, "NOT_APPLIED")}, 1, codes.ResourceExhausted},
		{"drained", []error{failed(t, codes.Unavailable, "NOT_APPLIED", refusal)}, 1, codes.Unavailable},
		{"not synced", []error{failed(t, codes.DeadlineExceeded, "APPLIED")}, 1, codes.DeadlineExceeded},
		{"unknown error", []error{failed(t, codes.Unknown, "")}, 1, codes.Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ids []string
			f := &fake{
				status: func() (*kvv1.StatusResponse, error) { return &kvv1.StatusResponse{Header: header(5, 1)}, nil },
				mutate: func(r *kvv1.MutateRequest) (*kvv1.MutateResponse, error) {
					if ids = append(ids, r.GetOptions().GetRequestId()); len(ids) <= len(test.failures) {
						return nil, test.failures[len(ids)-1]
					}
					return &kvv1.MutateResponse{Header: header(9, 2), Result: &kvv1.MutationResult{Integer: 4}}, nil
				},
			}
			with(t, f, func(t *testing.T, c *client.Client) {
				var answer *kvv1.MutateResponse
				err := c.Once(t.Context(), func(ctx context.Context, id string) (err error) {
					answer, err = c.Mutate(ctx, &kvv1.MutateRequest{
						Mutation: client.Add("n", 1), Options: &kvv1.WriteOptions{RequestId: id},
					})
					return err
				})
				if status.Code(err) != test.code || err == nil && answer.GetResult().GetInteger() != 4 {
					t.Errorf("%v, %v", answer, err)
				}
				if len(ids) != test.sent || slices.ContainsFunc(ids, func(id string) bool { return id != ids[0] || id == "" }) {
					t.Errorf("sent as %q", ids)
				}
			})
		})
	}
}

// Where its time ends, Once tells of the attempt that left the outcome open, if one did, and else that nothing was applied.
func TestOnceEnds(t *testing.T) {
	for _, test := range []struct {
		first, others error
		notApplied    bool
	}{
		{failed(t, codes.Unavailable, "NOT_APPLIED"), failed(t, codes.Unavailable, "NOT_APPLIED"), true},
		{failed(t, codes.Unknown, "OUTCOME_UNKNOWN"), failed(t, codes.Unavailable, "NOT_APPLIED"), false},
		{failed(t, codes.Unavailable, ""), failed(t, codes.Unavailable, "NOT_APPLIED"), false},
	} {
		sent := 0
		f := &fake{
			status: func() (*kvv1.StatusResponse, error) { return &kvv1.StatusResponse{Header: header(5, 1)}, nil },
			mutate: func(*kvv1.MutateRequest) (*kvv1.MutateResponse, error) {
				if sent++; sent == 1 {
					return nil, test.first
				}
				return nil, test.others
			},
		}
		with(t, f, func(t *testing.T, c *client.Client) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			began := time.Now()
			err := c.Once(ctx, func(ctx context.Context, id string) error {
				_, err := c.Mutate(ctx, &kvv1.MutateRequest{Options: &kvv1.WriteOptions{RequestId: id}})
				return err
			})
			if err == nil || client.NotApplied(err) != test.notApplied || time.Since(began) > 11*time.Second {
				t.Errorf("%v first: %v after %v", test.first, err, time.Since(began))
			}
			if sent < 5 || sent > 20 {
				t.Errorf("sent %d times within 10 s", sent)
			}
		})
	}
	c, err := client.New(client.Config{Endpoints: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Mutate(t.Context(), &kvv1.MutateRequest{}); !client.NotApplied(err) {
		t.Errorf("without a connection: %v", err)
	}
}

func event(key string, revision int64) *kvv1.Event {
	return &kvv1.Event{Kv: &kvv1.KeyValue{Key: []byte(key), ModRevision: revision}}
}

// watchScript answers one stream of a watch: what it must ask for, what it gets, and how the stream ends.
type watchScript struct {
	start   int64
	answers []*kvv1.WatchResponse
	end     error
}

// A watch goes on after a lost stream with the revision that follows the last one seen, by an event or by progress, whoever
// lost it and how often; what is final is told as it is.
func TestWatchResumes(t *testing.T) {
	away := status.Error(codes.Unavailable, "away")
	created := &kvv1.WatchResponse{Created: true, Header: header(0, 40)}
	events := func(revisions ...int64) *kvv1.WatchResponse {
		answer := &kvv1.WatchResponse{Header: header(0, 100)}
		for _, revision := range revisions {
			answer.Events = append(answer.Events, event("k", revision))
		}
		return answer
	}
	progress := &kvv1.WatchResponse{Progress: true, Header: header(0, 60)}
	compacted := &kvv1.WatchResponse{Canceled: true, CompactRevision: 70, CancelReason: "compacted"}
	for _, test := range []struct {
		name    string
		start   int64
		streams []watchScript
		seen    string
		err     error
		code    codes.Code
	}{
		{"from now on", 0, []watchScript{
			{0, []*kvv1.WatchResponse{created}, away},
			{41, []*kvv1.WatchResponse{created, events(41, 41), events(43)}, away},
			{44, nil, nil}, // an end without a status
			{44, []*kvv1.WatchResponse{created, progress}, away},
			{61, []*kvv1.WatchResponse{created, events(90)}, status.Error(codes.PermissionDenied, "no")},
		}, "[41 41] [43] progress [90]", nil, codes.PermissionDenied},
		{"from a revision", 7, []watchScript{
			{7, nil, away},
			{7, []*kvv1.WatchResponse{created, events(8)}, away},
			{9, []*kvv1.WatchResponse{compacted}, nil},
		}, "[8] compacted", client.ErrWatchCanceled, codes.Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			streams := 0
			f := &fake{watch: func(create *kvv1.WatchRequest_Create, stream kvv1.WatchService_WatchServer) error {
				script := test.streams[streams]
				streams++
				if create.GetStartRevision() != script.start || string(create.GetKey()) != "k" || !create.GetNoDeletes() {
					t.Errorf("stream %d asks for %v; want it to start at %d", streams, create, script.start)
				}
				for _, answer := range script.answers {
					if err := stream.Send(answer); err != nil {
						return err
					}
				}
				return script.end
			}}
			with(t, f, func(t *testing.T, c *client.Client) {
				var seen []string
				var last error
				create := &kvv1.WatchRequest_Create{Key: []byte("k"), NoDeletes: true, StartRevision: test.start}
				for answer, err := range c.Watch(t.Context(), create) {
					switch last = err; {
					case err != nil:
					case answer.GetProgress():
						seen = append(seen, "progress")
					case answer.GetCanceled():
						seen = append(seen, "compacted")
					default:
						var revisions []int64
						for _, e := range answer.GetEvents() {
							revisions = append(revisions, e.GetKv().GetModRevision())
						}
						seen = append(seen, fmt.Sprint(revisions))
					}
				}
				if got := strings.Join(seen, " "); got != test.seen {
					t.Errorf("saw %s; want %s", got, test.seen)
				}
				if last == nil || test.err != nil && !errors.Is(last, test.err) || test.err == nil && status.Code(last) != test.code {
					t.Errorf("ended with %v", last)
				}
				if streams != len(test.streams) {
					t.Errorf("%d streams", streams)
				}
			})
		})
	}
}

// A watch ends when its caller has enough, and with the caller's context.
func TestWatchEnds(t *testing.T) {
	f := &fake{watch: func(_ *kvv1.WatchRequest_Create, stream kvv1.WatchService_WatchServer) error {
		if err := stream.Send(&kvv1.WatchResponse{Events: []*kvv1.Event{event("k", 2)}}); err != nil {
			return err
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}}
	with(t, f, func(t *testing.T, c *client.Client) {
		create := &kvv1.WatchRequest_Create{Key: []byte("k")}
		for answer, err := range c.Watch(t.Context(), create) {
			if err != nil || len(answer.GetEvents()) != 1 {
				t.Errorf("%v, %v", answer, err)
			}
			break
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last error
		for _, err := range c.Watch(ctx, create) {
			cancel()
			last = err
		}
		if status.Code(last) != codes.Canceled {
			t.Errorf("%v", last)
		}
	})
}

// KeepAlive renews every third of the time to live, goes on while no frontend can confirm, and tells the end of the lease
// from an error.
func TestKeepAlive(t *testing.T) {
	type answer struct {
		seconds int64
		err     error
	}
	away := answer{0, status.Error(codes.Unavailable, "away")}
	for _, test := range []struct {
		name    string
		answers []answer
		renewed int
		took    time.Duration
		code    codes.Code
	}{
		{"ends", []answer{{6, nil}, {6, nil}, {0, nil}}, 2, 4 * time.Second, codes.OK},
		{"away for a while", []answer{{6, nil}, away, away, {6, nil}, {0, status.Error(codes.NotFound, "no lease")}}, 2, 5 * time.Second, codes.OK},
		{"refused", []answer{{6, nil}, {0, status.Error(codes.PermissionDenied, "no")}}, 1, 2 * time.Second, codes.PermissionDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			next := 0
			f := &fake{renew: func(id int64) (int64, error) {
				if id != 9 {
					t.Errorf("renews %d", id)
				}
				next++
				return test.answers[next-1].seconds, test.answers[next-1].err
			}}
			with(t, f, func(t *testing.T, c *client.Client) {
				began, renewed := time.Now(), 0
				var last error
				for seconds, err := range c.KeepAlive(t.Context(), 9) {
					if last = err; err == nil && seconds == 6 {
						renewed++
					}
				}
				if renewed != test.renewed || status.Code(last) != test.code || time.Since(began) != test.took {
					t.Errorf("%d renewals in %v, %v", renewed, time.Since(began), last)
				}
			})
		})
	}
}

// Blocks of ids are asked for one ahead and no more, resumed after a lost connection, and never under a request id.
func TestGenerateBlocks(t *testing.T) {
	next, asked := int64(1), atomic.Int64{}
	f := &fake{generate: func(r *kvv1.GenerateRequest) (*kvv1.GenerateResponse, error) {
		switch asked.Add(1) {
		case 3:
			return nil, status.Error(codes.Unavailable, "away")
		case 5:
			return nil, failed(t, codes.Unknown, "OUTCOME_UNKNOWN")
		case 8:
			return nil, status.Error(codes.ResourceExhausted, "used up")
		}
		first := next
		next += r.GetCount()
		return &kvv1.GenerateResponse{Blocks: []*kvv1.IdBlock{{First: first, Count: r.GetCount()}}}, nil
	}}
	with(t, f, func(t *testing.T, c *client.Client) {
		last, answers := int64(0), 0
		var end error
		for answer, err := range c.GenerateBlocks(t.Context(), &kvv1.GenerateRequest{Count: 10}) {
			if end = err; err != nil {
				continue
			}
			answers++
			for id := range client.IDs(answer) {
				if id <= last {
					t.Errorf("%d after %d", id, last)
				}
				last = id
			}
			if n := asked.Load(); n > int64(answers)+3 { // one ahead, and those that failed
				t.Errorf("asked %d times for %d answers", n, answers)
			}
		}
		if status.Code(end) != codes.ResourceExhausted || answers != 5 || last != 50 {
			t.Errorf("%d answers up to %d, then %v", answers, last, end)
		}
		for _, err := range c.GenerateBlocks(t.Context(), &kvv1.GenerateRequest{Options: &kvv1.WriteOptions{RequestId: "1-x"}}) {
			if err == nil {
				t.Error("blocks under one request id")
			}
		}
	})
}

func TestMembers(t *testing.T) {
	for value, want := range map[string]string{
		"": "[]", "a": `["a"]`, "a\nb": `["a" "b"]`, `\n` + "\n" + `a\\b`: `["\n" "a\\b"]`,
	} {
		if got, err := client.Members([]byte(value)); err != nil || fmt.Sprintf("%q", got) != want {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
	for _, value := range []string{"\n", "a\n", "b\na", "a\na", `\`, `\x`, "a\n\nb"} {
		if got, err := client.Members([]byte(value)); !errors.Is(err, client.ErrNotSet) {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
}
