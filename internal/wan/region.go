package wan

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// Region is one end of links: what listens and dials through it is in that region.
type Region struct {
	name    string
	network *Network
}

// Name returns the region's name.
func (r *Region) Name() string { return r.name }

// Listen opens a listener in this region and remembers whose the address is, also after it is closed, so that
// dials to a part that is down are delayed and cut as ever. In memory the address is any "name:port"; otherwise it
// is a TCP address, and the listener a plain one. Port 0 means any free port.
// An address in use is reported as syscall.EADDRINUSE inside the error.
func (r *Region) Listen(address string) (net.Listener, error) {
	if r.network.options.InMemory {
		return r.listenMemory(address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	r.network.mu.Lock()
	defer r.network.mu.Unlock()
	r.network.region(r.name)
	r.network.owners[listener.Addr().String()] = r.name
	if !strings.HasSuffix(address, ":0") {
		r.network.owners[address] = r.name
	}
	return listener, nil
}

// Own says that an address at which another process listens is in this region. It has no use in memory.
func (r *Region) Own(address string) {
	r.network.mu.Lock()
	defer r.network.mu.Unlock()
	r.network.owners[address] = r.name
}

// Dial connects to an address that was given to Listen or Own, in this region or another. An address that was
// given to neither counts as one of this region. Nobody listening is syscall.ECONNREFUSED inside the error, one round
// trip later; over a cut link Dial waits until ctx ends.
func (r *Region) Dial(ctx context.Context, address string) (net.Conn, error) {
	n := r.network
	n.mu.Lock()
	if target, ok := n.aliases[address]; ok {
		address = target
	}
	owner, ok := n.owners[address]
	if !ok {
		owner = r.name
	}
	forth, back := n.linkLocked(r.name, owner), n.linkLocked(owner, r.name)
	closed := n.closed
	n.mu.Unlock()

	remote := Addr{Region: owner, Address: address}
	if closed {
		return nil, dialError(remote, net.ErrClosed)
	}
	if !forth.local {
		if err := forth.cross(ctx); err != nil {
			return nil, dialError(remote, err)
		}
	}
	var c net.Conn
	var err error
	if n.options.InMemory {
		c, err = r.dialMemory(ctx, remote, forth, back)
	} else {
		c, err = r.dialTCP(ctx, remote, forth, back)
	}
	if !back.local {
		if crossErr := back.cross(ctx); crossErr != nil {
			if c != nil {
				_ = c.Close() // the connection is given up
			}
			return nil, dialError(remote, crossErr)
		}
	}
	return c, err
}

func dialError(remote Addr, err error) error {
	return &net.OpError{Op: "dial", Net: "wan", Addr: remote, Err: err}
}

// memoryListener hands out the listening ends of connections in memory.
type memoryListener struct {
	addr    Addr
	network *Network
	backlog chan net.Conn
	done    chan struct{} // closed by Close, under network.mu
}

func (r *Region) listenMemory(address string) (net.Listener, error) {
	n := r.network
	n.mu.Lock()
	defer n.mu.Unlock()
	listenError := func(err error) error {
		return &net.OpError{Op: "listen", Net: "wan", Addr: Addr{Region: r.name, Address: address}, Err: err}
	}
	if n.closed {
		return nil, listenError(net.ErrClosed)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, listenError(err)
	}
	if port == "0" {
		address = n.freeAddress(host)
	}
	if n.listeners[address] != nil {
		return nil, listenError(fmt.Errorf("bind: %w", syscall.EADDRINUSE))
	}
	l := &memoryListener{
		addr: Addr{Region: r.name, Address: address}, network: n,
		backlog: make(chan net.Conn, n.options.AcceptBacklog), done: make(chan struct{}),
	}
	n.region(r.name)
	n.listeners[address] = l
	n.owners[address] = r.name
	return l, nil
}

// freeAddress picks a port of that host that was never used. The caller holds n.mu.
func (n *Network) freeAddress(host string) string {
	for {
		n.lastPort++
		address := net.JoinHostPort(host, strconv.Itoa(n.lastPort))
		if _, used := n.owners[address]; !used {
			return address
		}
	}
}

func (r *Region) dialMemory(ctx context.Context, remote Addr, forth, back *link) (net.Conn, error) {
	n := r.network
	n.mu.Lock()
	l := n.listeners[remote.Address]
	n.mu.Unlock()
	if l == nil {
		return nil, dialError(remote, fmt.Errorf("connect: %w", syscall.ECONNREFUSED))
	}
	out, in := newFlow(forth, n.options.MaxBytesInFlight), newFlow(back, n.options.MaxBytesInFlight)
	local := Addr{Region: r.name, Address: r.name}
	dialing := &conn{in: in, out: out, local: local, remote: remote}
	listening := &conn{in: out, out: in, local: remote, remote: local}
	select {
	case l.backlog <- listening:
		select {
		case <-l.done: // closed meanwhile: whichever of the two sees the connection ends it
			l.drain()
		default:
		}
		return dialing, nil
	case <-l.done:
		closeBoth(dialing, listening)
		return nil, dialError(remote, fmt.Errorf("connect: %w", syscall.ECONNREFUSED))
	case <-ctx.Done():
		closeBoth(dialing, listening)
		return nil, dialError(remote, ctx.Err())
	}
}

func closeBoth(a, b net.Conn) {
	_ = a.Close() // neither was ever used
	_ = b.Close()
}

// Accept waits for the next connection.
func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.backlog:
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "wan", Addr: l.addr, Err: net.ErrClosed}
}

// Close stops listening and ends the connections that were never accepted.
func (l *memoryListener) Close() error {
	l.network.mu.Lock()
	select {
	case <-l.done:
	default:
		close(l.done)
		delete(l.network.listeners, l.addr.Address)
	}
	l.network.mu.Unlock()
	l.drain()
	return nil
}

func (l *memoryListener) drain() {
	for {
		select {
		case c := <-l.backlog:
			_ = c.Close() // never fails
		default:
			return
		}
	}
}

// Addr returns where it listens, with the port it was given for port 0.
func (l *memoryListener) Addr() net.Addr { return l.addr }
