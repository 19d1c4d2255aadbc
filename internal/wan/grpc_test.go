package wan_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/logmirror/logmirror/internal/wan"
)

// gRPC over the network in memory runs in virtual time: a call takes one round trip exactly, also a large one.
func TestGRPCInVirtualTime(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		listener, err := n.Region("eu").Listen("eu:1")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		healthv1.RegisterHealthServer(server, health.NewServer())
		served := make(chan error)
		go func() { served <- server.Serve(listener) }()

		client, err := grpc.NewClient("passthrough:///eu:1",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return n.Region("us").Dial(ctx, address)
			}))
		if err != nil {
			t.Fatal(err)
		}
		for call := range 10 {
			start := time.Now()
			_, err := healthv1.NewHealthClient(client).Check(t.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if call > 0 { // the first one connects
				after(t, start, roundTrip, "answered")
			}
		}
		client.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
