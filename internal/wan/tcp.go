package wan

import (
	"context"
	"errors"
	"io"
	"net"
)

// pumpBytes is the buffer of one goroutine that moves bytes between a socket and a flow.
const pumpBytes = 64 << 10

// dialTCP connects to a real socket. Its other end is a plain one, so this end delays both directions: what is
// written waits in a flow before it goes into the socket, what comes out of the socket waits in another before it
// is read.
func (r *Region) dialTCP(ctx context.Context, remote Addr, forth, back *link) (net.Conn, error) {
	var dialer net.Dialer
	socket, err := dialer.DialContext(ctx, "tcp", remote.Address)
	if err != nil {
		return nil, err
	}
	n := r.network
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		_ = socket.Close() // never used
		return nil, dialError(remote, net.ErrClosed)
	}
	n.sockets[socket] = struct{}{}
	if forth.local {
		n.mu.Unlock()
		return &countingConn{Conn: socket, network: n, link: forth}, nil
	}
	n.pumps.Add(2)
	n.mu.Unlock()

	out, in := newFlow(forth, n.options.MaxBytesInFlight), newFlow(back, n.options.MaxBytesInFlight)
	go func() {
		defer n.pumps.Done()
		defer n.release(socket)
		pumpOut(out, socket)
	}()
	go func() {
		defer n.pumps.Done()
		pumpIn(socket, in)
	}()
	return &conn{in: in, out: out, local: socket.LocalAddr(), remote: socket.RemoteAddr()}, nil
}

// release closes a dialed socket.
func (n *Network) release(socket net.Conn) {
	n.mu.Lock()
	delete(n.sockets, socket)
	n.mu.Unlock()
	_ = socket.Close() // all that could be delivered was
}

// pumpOut writes what has arrived at the far end into the socket, until the end of the stream has arrived. While
// the link is cut a connection that was closed stays open at the far end, as it would.
func pumpOut(out *flow, socket net.Conn) {
	defer out.closeRead()
	buffer := make([]byte, pumpBytes)
	for {
		n, err := out.read(buffer)
		if err != nil {
			return
		}
		if _, err := socket.Write(buffer[:n]); err != nil {
			// The far end is gone; pumpIn learns why and tells the near end. Bytes still to come are lost, but
			// the socket stays until the near end closes, so that what the far end sent can still be read.
			drain(out, buffer)
			return
		}
	}
}

func drain(f *flow, buffer []byte) {
	for {
		if _, err := f.read(buffer); err != nil {
			return
		}
	}
}

// pumpIn takes what the far end sent and lets it travel. It ends with the socket, whoever closes it.
func pumpIn(socket net.Conn, in *flow) {
	buffer := make([]byte, pumpBytes)
	for {
		n, err := socket.Read(buffer)
		if n > 0 {
			if _, writeErr := in.write(buffer[:n]); writeErr != nil {
				return // only when the network is closed
			}
		}
		if err != nil {
			if cause := new(net.OpError); errors.As(err, &cause) {
				err = cause.Err
			}
			if errors.Is(err, net.ErrClosed) {
				err = io.EOF
			}
			in.closeWrite(err)
			return
		}
	}
}

// countingConn is a connection within one region: a plain socket whose bytes are counted.
type countingConn struct {
	net.Conn
	network *Network
	link    *link
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.link.count(n)
	return n, err
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.link.count(n)
	return n, err
}

func (c *countingConn) Close() error {
	c.network.mu.Lock()
	delete(c.network.sockets, c.Conn)
	c.network.mu.Unlock()
	return c.Conn.Close()
}
