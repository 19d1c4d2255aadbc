package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// flows are the bytes that processes have received over TCP from each other, by the kernel's own count of every connection:
// payload with gRPC's framing, without TCP's and IP's headers. The keys are names of processes, sender first;
// clientName stands for this process.
type flows map[[2]string]int64

const clientName = "clients"

// connection is one end of a TCP connection on loopback, as the kernel tells it.
type connection struct {
	local, remote uint16
	inode         uint32
	received      int64
}

// flowLedger remembers what connections have carried that have ended since: the kernel forgets them at once.
type flowLedger struct {
	mu sync.Mutex
	// last is what each connection had carried when it was looked at last, by the socket of the receiver.
	last map[uint32]carried
}

type carried struct {
	pair  [2]string
	bytes int64
}

// lookInterval is how often connections are looked at while something is measured: what one carries after the last look before
// its end is not counted.
const lookInterval = 100 * time.Millisecond

// watchFlows looks at connections until stop is called, so that flows counts those too that end meanwhile. flows was called before.
func (s *system) watchFlows() (stop func()) {
	done := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		ticker := time.NewTicker(lookInterval)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				_, _ = s.flows() // a failure comes again when it is asked for
			}
		}
	})
	return func() { close(done); looking.Wait() }
}

// flows counts what the system's processes and this one have received since the first call, and on connections that were open then
// before that. Of connections that have ended it counts what they had carried when it was called last.
func (s *system) flows() (flows, error) {
	if s.ledger == nil {
		s.ledger = &flowLedger{last: map[uint32]carried{}}
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	owners := map[uint32]string{}
	if err := ownSockets(owners, "self", clientName); err != nil {
		return nil, err
	}
	for _, p := range s.processes {
		if err := ownSockets(owners, fmt.Sprint(p.command.Process.Pid), p.name); err != nil {
			return nil, err
		}
	}
	open, err := connections()
	if err != nil {
		return nil, err
	}
	ends := map[[2]uint16]string{}
	for _, c := range open {
		ends[[2]uint16{c.local, c.remote}] = owners[c.inode]
	}
	for _, c := range open {
		sender, receiver := ends[[2]uint16{c.remote, c.local}], owners[c.inode]
		if sender != "" && receiver != "" && sender != receiver {
			s.ledger.last[c.inode] = carried{[2]string{sender, receiver}, c.received}
		}
	}
	found := flows{}
	for _, c := range s.ledger.last {
		found[c.pair] += c.bytes
	}
	return found, nil
}

// since is what has come in since an earlier count.
func (f flows) since(before flows) flows {
	grown := flows{}
	for pair, n := range f {
		grown[pair] = n - before[pair]
	}
	return grown
}

// ownSockets notes the inodes of a process's sockets under a name.
func ownSockets(owners map[uint32]string, pid, name string) error {
	descriptors, err := filepath.Glob("/proc/" + pid + "/fd/*")
	if err != nil {
		return err
	}
	for _, descriptor := range descriptors {
		target, err := os.Readlink(descriptor)
		if err != nil {
			continue // closed meanwhile
		}
		var inode uint32
		if inner, ok := strings.CutPrefix(target, "socket:["); ok {
			if _, err := fmt.Sscanf(inner, "%d]", &inode); err != nil {
				return fmt.Errorf("socket %q: %w", target, err)
			}
			owners[inode] = name
		}
	}
	return nil
}

// The kernel's interface for questions about sockets, from linux/sock_diag.h and linux/inet_diag.h.
const (
	netlinkSocketDiagnosis = 4  // NETLINK_SOCK_DIAG
	socketDiagByFamily     = 20 // SOCK_DIAG_BY_FAMILY
	diagnosisInfo          = 2  // INET_DIAG_INFO: a struct tcp_info follows
	establishedState       = 1  // TCP_ESTABLISHED
	diagnosisBytes         = 72 // of struct inet_diag_msg
	receivedOffset         = 128
)

// connections asks the kernel for every established TCP connection over IPv4.
func connections() ([]connection, error) {
	socket, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkSocketDiagnosis)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer syscall.Close(socket)
	const headerBytes, questionBytes = 16, 56
	question := make([]byte, headerBytes+questionBytes)
	binary.NativeEndian.PutUint32(question, uint32(len(question)))
	binary.NativeEndian.PutUint16(question[4:], socketDiagByFamily)
	binary.NativeEndian.PutUint16(question[6:], syscall.NLM_F_REQUEST|syscall.NLM_F_DUMP)
	question[headerBytes] = syscall.AF_INET
	question[headerBytes+1] = syscall.IPPROTO_TCP
	question[headerBytes+2] = 1 << (diagnosisInfo - 1)
	binary.NativeEndian.PutUint32(question[headerBytes+4:], 1<<establishedState)
	if err := syscall.Sendto(socket, question, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	var found []connection
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := syscall.Recvfrom(socket, buffer, 0)
		if err != nil {
			return nil, fmt.Errorf("netlink: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			return nil, fmt.Errorf("netlink: %w", err)
		}
		for _, m := range messages {
			switch m.Header.Type {
			case syscall.NLMSG_DONE:
				return found, nil
			case syscall.NLMSG_ERROR:
				return nil, fmt.Errorf("netlink refuses a question about sockets")
			}
			if c, ok := parseConnection(m.Data); ok {
				found = append(found, c)
			}
		}
	}
}

// parseConnection reads a struct inet_diag_msg and the struct tcp_info after it.
func parseConnection(message []byte) (c connection, ok bool) {
	if len(message) < diagnosisBytes {
		return c, false
	}
	c.local, c.remote = binary.BigEndian.Uint16(message[4:]), binary.BigEndian.Uint16(message[6:])
	c.inode = binary.NativeEndian.Uint32(message[diagnosisBytes-4:])
	for attributes := message[diagnosisBytes:]; len(attributes) >= 4; {
		length, kind := int(binary.NativeEndian.Uint16(attributes)), binary.NativeEndian.Uint16(attributes[2:])
		if length < 4 || length > len(attributes) {
			return c, false
		}
		if kind == diagnosisInfo && length >= 4+receivedOffset+8 {
			c.received = int64(binary.NativeEndian.Uint64(attributes[4+receivedOffset:]))
			ok = true
		}
		attributes = attributes[min(len(attributes), (length+3)&^3):]
	}
	return c, ok
}
