// Package client is the Go SDK of logmirror's native API.
//
// A Client talks to the frontends of one region and fails over between them; calls are those of kv.v1, reached through
// the generated clients it embeds. What this package adds is what every program needs around them: watches, lease renewals
// and streams of ids that survive a lost connection (Watch, KeepAlive, GenerateBlocks), request ids that make a retried write
// safe (RequestID), and a write that is retried under one until it has an outcome (Once). A unary call whose context has a span of
// OpenTelemetry carries it as W3C Trace Context.
//
// A Client is safe for use by any number of goroutines. The SDK retries reads and streams, never a write outside of
// Once: a write that failed with UNAVAILABLE may be sent again if it carries a request id.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// Bounds of the wait between two attempts to resume a stream.
const (
	resumeDelayMin = 50 * time.Millisecond
	resumeDelayMax = 2 * time.Second
)

// messageBytesMax bounds one answer; a page of a listing is the largest there is.
const messageBytesMax = 64 << 20

// readsRetry retries reads, which change nothing, while no frontend can be reached.
const readsRetry = `{
  "methodConfig": [{
    "name": [
      {"service": "logmirror.kv.v1.KvService", "method": "Get"},
      {"service": "logmirror.kv.v1.KvService", "method": "List"},
      {"service": "logmirror.kv.v1.ClusterService", "method": "Status"}
    ],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// Config says how to reach a region.
type Config struct {
	// Endpoints are host:port addresses of the region's frontends: the first that answers is used, the others are for
	// failing over. At least one.
	Endpoints []string
	// Credentials of the connection; nil for none.
	Credentials credentials.TransportCredentials
	// Dial replaces the network; nil for TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Client is a connection to a region.
type Client struct {
	kvv1.KvServiceClient
	kvv1.LeaseServiceClient
	kvv1.ClusterServiceClient
	kvv1.IdServiceClient
	kvv1.AdminServiceClient

	watches    kvv1.WatchServiceClient
	connection *grpc.ClientConn
	indexSeen  atomic.Uint64
}

// New returns a client without waiting for a connection. Close ends it.
func New(config Config) (*Client, error) {
	if len(config.Endpoints) == 0 {
		return nil, errors.New("client: no endpoints")
	}
	addresses := make([]resolver.Address, len(config.Endpoints))
	for i, endpoint := range config.Endpoints {
		host, _, err := net.SplitHostPort(endpoint)
		if err != nil {
			return nil, fmt.Errorf("client: endpoint %q: want host:port", endpoint)
		}
		addresses[i] = resolver.Address{Addr: endpoint, ServerName: host}
	}
	builder := manual.NewBuilderWithScheme("logmirror")
	builder.InitialState(resolver.State{Addresses: addresses})
	transport := config.Credentials
	if transport == nil {
		transport = insecure.NewCredentials()
	}
	c := &Client{}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(readsRetry),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithChainUnaryInterceptor(c.noteIndex, tellTrace),
	}
	if config.Dial != nil {
		options = append(options, grpc.WithContextDialer(config.Dial))
	}
	connection, err := grpc.NewClient("logmirror:///region", options...)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c.connection = connection
	c.KvServiceClient = kvv1.NewKvServiceClient(connection)
	c.LeaseServiceClient = kvv1.NewLeaseServiceClient(connection)
	c.ClusterServiceClient = kvv1.NewClusterServiceClient(connection)
	c.IdServiceClient = kvv1.NewIdServiceClient(connection)
	c.AdminServiceClient = kvv1.NewAdminServiceClient(connection)
	c.watches = kvv1.NewWatchServiceClient(connection)
	return c, nil
}

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.connection.Close() }

// noteIndex keeps the highest log index that any answer told, for RequestID.
func (c *Client) noteIndex(ctx context.Context, method string, request, answer any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, answer, connection, options...)
	if with, ok := answer.(interface{ GetHeader() *kvv1.ResponseHeader }); ok && err == nil {
		index := with.GetHeader().GetLogIndex()
		for seen := c.indexSeen.Load(); index > seen && !c.indexSeen.CompareAndSwap(seen, index); {
			seen = c.indexSeen.Load()
		}
	}
	return err
}

// tellTrace sends the span of the caller's context, if it has one, as W3C Trace Context does.
func tellTrace(ctx context.Context, method string, request, answer any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if trace.SpanContextFromContext(ctx).IsValid() {
		carrier := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, carrier)
		for key, value := range carrier {
			ctx = metadata.AppendToOutgoingContext(ctx, key, value)
		}
	}
	return invoke(ctx, method, request, answer, connection, options...)
}

// RequestID returns a new id for WriteOptions.request_id. The same id may be sent any number of times, through any
// region: the write happens once. It asks the frontend for its log index if no answer has told one yet.
func (c *Client) RequestID(ctx context.Context) (string, error) {
	if c.indexSeen.Load() == 0 {
		if _, err := c.Status(ctx, &kvv1.StatusRequest{}); err != nil {
			return "", err
		}
	}
	return strconv.FormatUint(c.indexSeen.Load(), 10) + "-" + rand.Text(), nil
}

// Watch yields the answers of one watch: every change once, in order, without its creation and progress answers unless
// create asks for progress. A lost connection is resumed after the last revision seen, so an error is final: the
// context's end, a compacted start (the answer before it has compact_revision), or a request that was refused.
func (c *Client) Watch(ctx context.Context, create *kvv1.WatchRequest_Create) iter.Seq2[*kvv1.WatchResponse, error] {
	return func(yield func(*kvv1.WatchResponse, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		watch := watchState{create: create, next: create.GetStartRevision()}
		delay := resumeDelayMin
		for {
			heard, err := c.watchOnce(ctx, &watch, yield)
			if err == nil {
				return // the caller has enough
			}
			if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
				yield(nil, err)
				return
			}
			if heard {
				delay = resumeDelayMin
			}
			if wait(ctx, delay) != nil {
				yield(nil, ctx.Err())
				return
			}
			delay = min(2*delay, resumeDelayMax)
		}
	}
}

// watchState is what outlives one stream of a watch.
type watchState struct {
	create *kvv1.WatchRequest_Create
	// next is the first revision that has not been yielded whole; zero until the frontend told where the watch began.
	next int64
}

// ErrWatchCanceled is wrapped by the error that ends a watch which the frontend canceled.
var ErrWatchCanceled = errors.New("watch canceled")

// watchOnce runs one stream. It returns nil when the caller has enough, and whether anything was heard.
func (c *Client) watchOnce(ctx context.Context, watch *watchState, yield func(*kvv1.WatchResponse, error) bool) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.watches.Watch(ctx)
	if err != nil {
		return false, err
	}
	request := &kvv1.WatchRequest_Create{
		WatchId: watch.create.GetWatchId(), Key: watch.create.GetKey(), RangeEnd: watch.create.GetRangeEnd(),
		StartRevision: watch.next, ReturnPrevious: watch.create.GetReturnPrevious(), NoPuts: watch.create.GetNoPuts(),
		NoDeletes: watch.create.GetNoDeletes(), Progress: watch.create.GetProgress(),
	}
	// A failed Send says only that the stream is over; why is what Recv returns.
	_ = stream.Send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Create_{Create: request}})
	for {
		answer, err := stream.Recv()
		if err != nil {
			if status.Code(err) == codes.Unknown { // an end of stream without a status
				err = status.Error(codes.Unavailable, err.Error())
			}
			return heard, err
		}
		heard = true
		switch {
		case answer.GetCanceled():
			if !yield(answer, nil) {
				return heard, nil
			}
			return heard, fmt.Errorf("%w: %s", ErrWatchCanceled, answer.GetCancelReason())
		case answer.GetCreated():
			if watch.next == 0 {
				watch.next = answer.GetHeader().GetRevision() + 1
			}
		case answer.GetProgress():
			watch.next = max(watch.next, answer.GetHeader().GetRevision()+1)
			if !yield(answer, nil) {
				return heard, nil
			}
		case len(answer.GetEvents()) > 0:
			last := answer.GetEvents()[len(answer.GetEvents())-1]
			watch.next = max(watch.next, last.GetKv().GetModRevision()+1)
			if !yield(answer, nil) {
				return heard, nil
			}
		}
	}
}

// KeepAlive renews a lease every third of its time to live and yields each confirmed one, in seconds. It ends without an
// error when there is no such lease any more, and with the context's error. While no frontend can confirm a renewal it
// goes on trying: the lease may well live.
func (c *Client) KeepAlive(ctx context.Context, id int64) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		for {
			seconds, err := c.renew(ctx, id)
			if err == nil && seconds <= 0 || status.Code(err) == codes.NotFound {
				return
			}
			pause := time.Duration(seconds) * time.Second / 3
			if err != nil {
				if ctx.Err() != nil || status.Code(err) != codes.Unavailable {
					yield(0, err)
					return
				}
				pause = 500 * time.Millisecond
			} else if !yield(seconds, nil) {
				return
			}
			if wait(ctx, pause) != nil {
				yield(0, ctx.Err())
				return
			}
		}
	}
}

// renew confirms one renewal.
func (c *Client) renew(ctx context.Context, id int64) (seconds int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.LeaseServiceClient.KeepAlive(ctx)
	if err != nil {
		return 0, err
	}
	_ = stream.Send(&kvv1.KeepAliveRequest{Id: id}) // if it fails, Recv returns why
	answer, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	return answer.GetTtlSeconds(), nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
