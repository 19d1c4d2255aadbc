package e2e

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
)

// serveProxy returns an address at which what a region's process dials reaches a target over the region's links.
func serveProxy(t *testing.T, region *wan.Region, target string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // closed
			}
			connections.Go(func() { relay(ctx, region, near, target) })
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		connections.Wait()
	})
	return listener.Addr().String()
}

// relay moves bytes both ways until either end is closed.
func relay(parent context.Context, region *wan.Region, near net.Conn, target string) {
	defer near.Close()
	dialCtx, cancel := context.WithTimeout(parent, 5*time.Second)
	far, err := region.Dial(dialCtx, target)
	cancel()
	if err != nil {
		return // as a refused connection
	}
	defer far.Close()
	ctx, done := context.WithCancel(parent)
	stop := context.AfterFunc(ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	var copies sync.WaitGroup
	copies.Go(func() { defer done(); _, _ = io.Copy(far, near) })
	copies.Go(func() { defer done(); _, _ = io.Copy(near, far) })
	copies.Wait()
}
