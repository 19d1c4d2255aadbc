package calls

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// RequestIDKey is the metadata key of a request id, of calls and of the trailers of those that failed.
const RequestIDKey = "x-request-id"

// maxRequestIDBytes bounds what a caller may send; anything longer is not taken.
const maxRequestIDBytes = 128

// call is one call, and its context.
type call struct {
	context.Context
	method *method
	began  time.Time
	// id is set when somebody first asks for it.
	id atomic.Pointer[string]
}

type callKey struct{}

// Value implements context.Context.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// RequestID returns the id of the call that ctx is of; empty where it is of none that is observed.
func RequestID(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.requestID()
	}
	return ""
}

func (c *call) requestID() string {
	if id := c.id.Load(); id != nil {
		return *id
	}
	id := sentRequestID(c.Context)
	if id == "" {
		id = rand.Text()
	}
	if !c.id.CompareAndSwap(nil, &id) {
		return *c.id.Load()
	}
	return id
}

// sentRequestID is the id that the caller sent; empty where it sent none that can be taken.
func sentRequestID(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, RequestIDKey)
	if len(values) == 0 || len(values[0]) > maxRequestIDBytes {
		return ""
	}
	for i := range len(values[0]) {
		if b := values[0][i]; b <= ' ' || b > '~' {
			return ""
		}
	}
	return values[0]
}

// Propagate returns options for connections on which unary calls carry the id of the call that they are made for.
func Propagate() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, answer any, on *grpc.ClientConn,
		invoke grpc.UnaryInvoker, options ...grpc.CallOption,
	) error {
		if id := RequestID(ctx); id != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, RequestIDKey, id)
		}
		return invoke(ctx, method, request, answer, on, options...)
	})
}
