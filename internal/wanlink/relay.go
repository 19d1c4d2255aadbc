package wanlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
)

// Defaults of Config.
const (
	connectionsMaxDefault = 1024
	dialTimeoutDefault    = 30 * time.Second
)

// Part is a process in a region that other regions reach through the relay.
type Part struct {
	Region  string
	Address string // host:port within its region's network; the port is the part's own, in all regions
}

// Config of a Relay.
type Config struct {
	// Network has the links. It works over TCP, and belongs to the caller, who closes it after Stop.
	Network *wan.Network
	// Hosts is the relay's own host in the network of each region.
	Hosts map[string]string
	Parts []Part
	// Doors are the relay's own addresses, host:port, at which the part of that port is reached as from within its region.
	Doors []string

	// ConnectionsMax bounds the connections that are carried at once; those beyond it wait. Default 1024.
	ConnectionsMax int
	// DialTimeout bounds how long a connection waits for its way to the part. Default 30 s.
	DialTimeout time.Duration
	Logger      *slog.Logger
}

// Relay carries connections between regions. Create it with Start and end it with Stop.
type Relay struct {
	config    Config
	ctx       context.Context
	cancel    context.CancelFunc
	listeners []net.Listener
	carried   chan struct{} // a place for each connection
	running   sync.WaitGroup
}

// Start listens in every region and at every door.
func Start(config Config) (*Relay, error) {
	if config.ConnectionsMax <= 0 {
		config.ConnectionsMax = connectionsMaxDefault
	}
	if config.DialTimeout <= 0 {
		config.DialTimeout = dialTimeoutDefault
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	byPort, err := partsByPort(config)
	if err != nil {
		return nil, err
	}
	r := &Relay{config: config, carried: make(chan struct{}, config.ConnectionsMax)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.listenAll(byPort); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

// partsByPort checks the parts, and finds each by the port that names it.
func partsByPort(config Config) (map[string]Part, error) {
	byPort := make(map[string]Part, len(config.Parts))
	for _, part := range config.Parts {
		if config.Hosts[part.Region] == "" {
			return nil, fmt.Errorf("part %s is in region %q, of which no host is known", part.Address, part.Region)
		}
		_, port, err := net.SplitHostPort(part.Address)
		if err != nil {
			return nil, fmt.Errorf("part %q: %w", part.Address, err)
		}
		if other, taken := byPort[port]; taken {
			return nil, fmt.Errorf("parts %s and %s have the same port: it is what tells them apart", other.Address, part.Address)
		}
		byPort[port] = part
	}
	return byPort, nil
}

func (r *Relay) listenAll(byPort map[string]Part) error {
	for port, part := range byPort {
		r.config.Network.Region(part.Region).Own(part.Address)
		for region, host := range r.config.Hosts {
			if region == part.Region {
				continue
			}
			if err := r.listen(net.JoinHostPort(host, port), r.config.Network.Region(region), part); err != nil {
				return err
			}
		}
	}
	for _, door := range r.config.Doors {
		_, port, err := net.SplitHostPort(door)
		if err != nil {
			return fmt.Errorf("door %q: %w", door, err)
		}
		part, ok := byPort[port]
		if !ok {
			return fmt.Errorf("door %s leads to no part: none has its port", door)
		}
		if err := r.listen(door, r.config.Network.Region(part.Region), part); err != nil {
			return err
		}
	}
	return nil
}

// listen carries what connects to address from a region to a part.
func (r *Relay) listen(address string, from *wan.Region, to Part) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	r.listeners = append(r.listeners, listener)
	logger := r.config.Logger.With("from", from.Name(), "to", to.Region, "part", to.Address)
	logger.Debug("listening", "address", listener.Addr().String())
	r.running.Go(func() {
		for {
			near, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // one connection that broke, or no descriptor left
				logger.Error("a connection was not taken", "error", err)
				r.rest()
				continue
			}
			select {
			case r.carried <- struct{}{}:
			case <-r.ctx.Done():
				_ = near.Close() // never used
				return
			}
			r.running.Go(func() {
				defer func() { <-r.carried }()
				if err := r.carry(near, from, to.Address); err != nil && r.ctx.Err() == nil {
					logger.Debug("connection ended", "error", err)
				}
			})
		}
	})
	return nil
}

// restAfterFailure keeps a listener that fails again and again from taking a processor.
const restAfterFailure = 100 * time.Millisecond

func (r *Relay) rest() {
	timer := time.NewTimer(restAfterFailure)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.ctx.Done():
	}
}

// carry opens the way to the part and moves bytes both ways until either end has ended.
func (r *Relay) carry(near net.Conn, from *wan.Region, address string) error {
	defer near.Close()
	dialCtx, cancel := context.WithTimeout(r.ctx, r.config.DialTimeout)
	far, err := from.Dial(dialCtx, address)
	cancel()
	if err != nil {
		return err
	}
	defer far.Close()
	stop := context.AfterFunc(r.ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	var there sync.WaitGroup
	there.Go(func() {
		_, _ = io.Copy(far, near) // whatever ended it: the other side sees an end
		far.Close()
		near.Close()
	})
	_, err = io.Copy(near, far)
	near.Close()
	far.Close()
	there.Wait()
	return err
}

// Stop ends every connection and listener, and returns when none is left.
func (r *Relay) Stop() {
	r.cancel()
	for _, listener := range r.listeners {
		_ = listener.Close() // there is nobody left to tell
	}
	r.running.Wait()
}
