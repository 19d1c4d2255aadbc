package wan

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// Addr is an address inside a region.
type Addr struct {
	Region  string
	Address string // as given to Listen; for the dialing side of a connection in memory its region's name
}

// Network names the kind of network, as net.Addr asks.
func (a Addr) Network() string { return "wan" }

// String is the address as it is dialed.
func (a Addr) String() string { return a.Address }

// conn is one end of a connection.
type conn struct {
	in, out       *flow
	local, remote net.Addr
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.wrap("read", err)
}

func (c *conn) Write(b []byte) (int, error) {
	if c.in.ended() {
		return 0, c.wrap("write", syscall.EPIPE)
	}
	n, err := c.out.write(b)
	return n, c.wrap("write", err)
}

// Close returns at once; what was written before still arrives, followed by the end.
func (c *conn) Close() error {
	c.out.closeWrite(io.EOF)
	c.in.closeRead()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // these two never fail
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.readDeadline.set(t, &c.in.readable)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.writeDeadline.set(t, &c.out.writable)
	return nil
}

func (c *conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "wan", Source: c.local, Addr: c.remote, Err: err}
}
