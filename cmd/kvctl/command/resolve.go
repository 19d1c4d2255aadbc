package command

import (
	"context"
	"fmt"
	"net"
	"strings"
)

// places are where addresses that processes advertise are dialed from here.
type places map[string]string

// parsePlaces reads HOST:PORT=HOST:PORT pairs.
func parsePlaces(pairs []string) (places, error) {
	found := make(places, len(pairs))
	for _, pair := range pairs {
		advertised, dialed, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("--resolve %q: want HOST:PORT=HOST:PORT", pair)
		}
		for _, address := range []string{advertised, dialed} {
			if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
				return nil, fmt.Errorf("--resolve %q: %q is not HOST:PORT", pair, address)
			}
		}
		if other, twice := found[advertised]; twice && other != dialed {
			return nil, fmt.Errorf("--resolve %s: both %s and %s", advertised, other, dialed)
		}
		found[advertised] = dialed
	}
	return found, nil
}

// dial opens a connection to an address, or to the place where it is found. Whoever answers still shows a certificate of the
// host that was advertised.
func (p places) dial(ctx context.Context, address string) (net.Conn, error) {
	if place, ok := p[address]; ok {
		address = place
	}
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}
