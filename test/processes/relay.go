package processes

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
)

// Relay carries the connections that it accepts to a target over a region's links.
type Relay struct {
	listener    net.Listener
	cancel      context.CancelFunc
	connections sync.WaitGroup
}

// NewRelay returns a relay whose address stands for the target's. source finds the region that a connection comes from;
// a connection of which it is not known is ended.
func NewRelay(target string, source func(net.Conn) (*wan.Region, error)) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Relay{listener: listener, cancel: cancel}
	r.connections.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // closed
			}
			r.connections.Go(func() {
				defer near.Close()
				if region, err := source(near); err == nil {
					relay(ctx, region, near, target)
				}
			})
		}
	})
	return r, nil
}

// Address is where the relay listens.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Close ends the relay and all that it carries.
func (r *Relay) Close() {
	r.cancel()
	_ = r.listener.Close() // nobody is left to tell
	r.connections.Wait()
}

// relay moves bytes both ways until either end is closed.
func relay(parent context.Context, region *wan.Region, near net.Conn, target string) {
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
