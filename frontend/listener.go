package frontend

import (
	"net"
	"sync"
)

// sharedListener lends one listener to one server after another: the port stays open between them, and what connects
// meanwhile waits for the next.
type sharedListener struct {
	listener net.Listener
	accepted chan net.Conn
	// failed is closed when the listener has ended, with err set before.
	failed chan struct{}
	err    error
	done   sync.WaitGroup
	closed chan struct{}
}

func shareListener(listener net.Listener) *sharedListener {
	l := &sharedListener{
		listener: listener, accepted: make(chan net.Conn), failed: make(chan struct{}), closed: make(chan struct{}),
	}
	l.done.Go(l.accept)
	return l
}

func (l *sharedListener) accept() {
	defer close(l.failed)
	for {
		connection, err := l.listener.Accept()
		if err != nil {
			l.err = err
			return
		}
		select {
		case l.accepted <- connection:
		case <-l.closed:
			_ = connection.Close()
		}
	}
}

// Close closes the listener. No loan is used any more.
func (l *sharedListener) Close() {
	close(l.closed)
	_ = l.listener.Close()
	l.done.Wait()
}

// lend returns a listener for one server.
func (l *sharedListener) lend() net.Listener {
	return &loan{from: l, ended: make(chan struct{})}
}

type loan struct {
	from  *sharedListener
	once  sync.Once
	ended chan struct{}
}

func (l *loan) Accept() (net.Conn, error) {
	select {
	case <-l.ended:
		return nil, net.ErrClosed
	default:
	}
	select {
	case connection := <-l.from.accepted:
		return connection, nil
	case <-l.ended:
		return nil, net.ErrClosed
	case <-l.from.failed:
		return nil, l.from.err
	}
}

func (l *loan) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

func (l *loan) Addr() net.Addr { return l.from.listener.Addr() }
