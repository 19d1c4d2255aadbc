package frontend

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/internal/observe/calls"
	"github.com/logmirror/logmirror/lease/keeper"
)

// ownersMax bounds the connections to other frontends that are kept open.
const ownersMax = 64

// askTimeout bounds a question to another frontend.
const askTimeout = 5 * time.Second

// owners are connections to the frontends that own leases, made when first asked for.
type owners struct {
	dial        func(ctx context.Context, address string) (net.Conn, error)
	credentials credentials.TransportCredentials

	mu          sync.Mutex
	closed      bool
	connections map[string]*grpc.ClientConn
}

func newOwners(dial func(context.Context, string) (net.Conn, error), transport credentials.TransportCredentials) *owners {
	if transport == nil {
		transport = insecure.NewCredentials()
	}
	return &owners{dial: dial, credentials: transport, connections: make(map[string]*grpc.ClientConn)}
}

// connection returns the connection to an address. gRPC dials it when it is used.
func (o *owners) connection(address string) (*grpc.ClientConn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, keeper.ErrUnavailable
	}
	if connection, ok := o.connections[address]; ok {
		return connection, nil
	}
	if len(o.connections) >= ownersMax {
		for other, connection := range o.connections { // any: a question that it carries fails and may be asked again
			connection.Close()
			delete(o.connections, other)
			break
		}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(o.credentials), calls.Propagate()}
	if o.dial != nil {
		options = append(options, grpc.WithContextDialer(o.dial))
	}
	connection, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return nil, err
	}
	o.connections[address] = connection
	return connection, nil
}

func (o *owners) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for address, connection := range o.connections {
		connection.Close()
		delete(o.connections, address)
	}
}

// askOwner asks the frontend of a session how long a lease has left by its own clock.
func (s *life) askOwner(ctx context.Context, session uint64, id int64) (remaining, granted time.Duration, err error) {
	address, err := s.addressOf(session)
	if err != nil {
		return 0, 0, err
	}
	connection, err := s.server.owners.connection(address)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %v", keeper.ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, ownedKey, "true")
	response, err := kvv1.NewLeaseServiceClient(connection).TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: id})
	switch {
	case status.Code(err) == codes.NotFound:
		return 0, 0, keeper.ErrLeaseNotFound
	case err != nil:
		return 0, 0, fmt.Errorf("%w: asking its owner: %v", keeper.ErrUnavailable, err)
	}
	return time.Duration(response.GetTtlSeconds()) * time.Second,
		time.Duration(response.GetGrantedTtlSeconds()) * time.Second, nil
}

// addressOf returns the host:port of the frontend that opened a session.
func (s *life) addressOf(session uint64) (string, error) {
	owner, _ := s.region.Machine().Session(session)
	for _, clientURL := range owner.ClientURLs {
		if u, err := url.Parse(clientURL); err == nil && u.Host != "" {
			return u.Host, nil
		}
	}
	return "", fmt.Errorf("%w: the address of its owner is not known", keeper.ErrUnavailable)
}
