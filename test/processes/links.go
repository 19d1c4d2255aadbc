package processes

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
)

// Links stand before the addresses at which processes reach each other, and carry what goes between regions over a
// wan.Network, with its delays and cuts. Each process has one address for all the others; the region that a connection
// comes from is that of the process whose socket it is, which /proc tells: Linux only.
//
// A cut is silent, as on a wide-area network. Unlike TCP's, its retransmissions come at once: what was held back arrives
// half a round trip after the heal.
type Links struct {
	Network *wan.Network

	mu     sync.Mutex
	relays []*Relay
	owners []owner
}

type owner struct {
	region  string
	process *Process
}

// NewLinks returns links between regions with these round trips. End them with Close.
func NewLinks(roundTrips map[wan.Pair]time.Duration) *Links {
	return &Links{Network: wan.New(wan.Options{RoundTrips: roundTrips})}
}

// Own says in which region a process is, in all its runs.
func (l *Links) Own(region string, p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owners = append(l.owners, owner{region, p})
}

// Front returns the address at which others reach the process of a region that listens on the given one.
func (l *Links) Front(region, address string) (front string, err error) {
	// The network remembers whose an address is.
	listener, err := l.Network.Region(region).Listen(address)
	if err != nil {
		return "", err
	}
	if err := listener.Close(); err != nil {
		return "", err
	}
	relay, err := NewRelay(address, l.source)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.relays = append(l.relays, relay)
	return relay.Address(), nil
}

// Close ends all that the links carry.
func (l *Links) Close() {
	l.Network.Close()
	l.mu.Lock()
	relays := l.relays
	l.mu.Unlock()
	for _, relay := range relays {
		relay.Close()
	}
}

// source finds the region of the process that dialed a connection.
func (l *Links) source(connection net.Conn) (*wan.Region, error) {
	port := connection.RemoteAddr().(*net.TCPAddr).Port
	inode, err := socketInode(port)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	owners := slices.Clone(l.owners)
	l.mu.Unlock()
	for _, o := range owners {
		pid := o.process.PID()
		if pid == 0 {
			continue
		}
		descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			return nil, err
		}
		for _, descriptor := range descriptors {
			if target, err := os.Readlink(descriptor); err == nil && target == "socket:["+inode+"]" {
				return l.Network.Region(o.region), nil
			}
		}
	}
	return nil, fmt.Errorf("no process of the cluster owns port %d", port)
}

// socketInode finds the inode of the socket that is bound to a port of loopback and connected.
func socketInode(port int) (string, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", fmt.Errorf("links between processes need Linux: %w", err)
	}
	for line := range strings.Lines(string(table)) {
		const local, inode = 1, 9
		if fields := strings.Fields(line); len(fields) > inode && strings.HasSuffix(fields[local], fmt.Sprintf(":%04X", port)) {
			return fields[inode], nil
		}
	}
	return "", fmt.Errorf("nobody has port %d", port)
}
