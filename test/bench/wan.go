package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// wanRow is the name of the row about regions; it has servers of its own and a table of its own.
const wanRow = "wan"

var regions = []string{"us", "eu", "ap"}

// roundTrips between regions, as the design's examples have them.
var roundTrips = map[[2]string]time.Duration{
	{"us", "eu"}: 80 * time.Millisecond, {"us", "ap"}: 150 * time.Millisecond, {"eu", "ap"}: 100 * time.Millisecond,
}

func roundTrip(a, b string) time.Duration {
	return max(roundTrips[[2]string{a, b}], roundTrips[[2]string{b, a}])
}

// links stand before the addresses at which servers reach each other, and delay what goes between regions by half the
// round trip in each direction, in real time. Whose a connection is follows from the process that owns it.
type links struct {
	mu        sync.Mutex
	listeners []net.Listener
	owners    []owner
}

type owner struct {
	process *process
	region  string
}

// front returns addresses before those given, which are of one server in each region; without links, those given.
func (l *links) front(addresses []string) ([]string, error) {
	if l == nil {
		return addresses, nil
	}
	var fronts []string
	for i, address := range addresses {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.listeners = append(l.listeners, listener)
		l.mu.Unlock()
		fronts = append(fronts, listener.Addr().String())
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					return // closed
				}
				go l.carry(connection, address, regions[i])
			}
		}()
	}
	return fronts, nil
}

// own says in which region a process is.
func (l *links) own(p *process, region string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owners = append(l.owners, owner{p, region})
}

func (l *links) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, listener := range l.listeners {
		_ = listener.Close() // what it carried ends with the servers
	}
}

func (l *links) carry(from net.Conn, address, region string) {
	defer from.Close()
	source, err := l.regionOf(from.RemoteAddr().(*net.TCPAddr).Port)
	for attempt := 0; err != nil && attempt < 20; attempt++ { // its process may just have been started
		time.Sleep(50 * time.Millisecond)
		source, err = l.regionOf(from.RemoteAddr().(*net.TCPAddr).Port)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: a connection between regions is refused:", err)
		return
	}
	to, err := net.Dial("tcp", address)
	if err != nil {
		return // the server is not there yet; the other one tries again
	}
	defer to.Close()
	var both sync.WaitGroup
	both.Go(func() { delayed(to, from, roundTrip(source, region)/2) })
	both.Go(func() { delayed(from, to, roundTrip(source, region)/2) })
	both.Wait()
}

// regionOf finds the process that owns a local port.
func (l *links) regionOf(port int) (string, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	inode := ""
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			inode = fields[9]
		}
	}
	l.mu.Lock()
	owners := slices.Clone(l.owners)
	l.mu.Unlock()
	for _, o := range owners {
		descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", o.process.command.Process.Pid))
		if err != nil {
			return "", err
		}
		for _, descriptor := range descriptors {
			if target, err := os.Readlink(descriptor); err == nil && target == "socket:["+inode+"]" {
				return o.region, nil
			}
		}
	}
	return "", fmt.Errorf("no server owns port %d", port)
}

// delayed copies bytes, each so long after it came.
func delayed(to, from net.Conn, delay time.Duration) {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	pieces := make(chan piece, 4096)
	go func() {
		defer close(pieces)
		reader := bufio.NewReaderSize(from, 64<<10)
		for {
			if _, err := reader.Peek(1); err != nil {
				return
			}
			bytes := make([]byte, reader.Buffered())
			if _, err := io.ReadFull(reader, bytes); err != nil {
				return
			}
			pieces <- piece{bytes, time.Now().Add(delay)}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.bytes); err != nil {
			break
		}
	}
	_ = to.Close() // the end of one direction is the end of both
	_ = from.Close()
	for range pieces { // lets the reader end
	}
}

// wanResult is one operation from one region, in both systems.
type wanResult struct {
	Operation string            `json:"operation"`
	Region    string            `json:"region"`
	Clients   int               `json:"clients"` // in each region that is driven
	Systems   map[string]sample `json:"systems"`
}

// runWAN drives each system with its members, and frontends, in three regions and its leader in the first.
func runWAN(ctx context.Context, o options, directory string) (found []wanResult, err error) {
	for _, name := range []string{"etcd", "logmirror"} {
		between := &links{}
		s, err := startSystem(name, o.binaries, filepath.Join(directory, "wan-"+name), between)
		if err != nil {
			between.close()
			return found, err
		}
		err = driveRegions(ctx, s, o, &found)
		if err != nil {
			err = fmt.Errorf("across regions on %s: %w\n%s", name, err, s.lastOutput())
		}
		s.stop()
		between.close()
		if err := errors.Join(err, ctx.Err()); err != nil {
			return found, err
		}
	}
	return found, nil
}

func driveRegions(ctx context.Context, s *system, o options, found *[]wanResult) error {
	const keys = rangeKeys
	if err := s.awaitReady(ctx); err != nil {
		return err
	}
	if err := leadFromFirst(ctx, s); err != nil {
		return err
	}
	if err := preload(ctx, s, keys); err != nil {
		return err
	}
	record := func(operation, region string, clients int, one sample) {
		i := slices.IndexFunc(*found, func(r wanResult) bool {
			return r.Operation == operation && r.Region == region && r.Clients == clients
		})
		if i < 0 {
			i = len(*found)
			*found = append(*found, wanResult{operation, region, clients, map[string]sample{}})
		}
		(*found)[i].Systems[s.name] = one
	}
	for _, operation := range []row{
		{"put", "put", 1, 1, putWorker}, {"get", "linearizable get", 1, 1, getWorker()},
	} {
		for i, region := range regions {
			one, err := drive(ctx, s.only(i), operation, keys, o.duration)
			if err != nil {
				return err
			}
			record(operation.title, region, 1, one)
		}
	}
	// All regions at once: the load of one is part of what the others wait for.
	samples, failed := make([]sample, len(regions)), make([]error, len(regions))
	var driving sync.WaitGroup
	for i := range regions {
		driving.Go(func() {
			samples[i], failed[i] = drive(ctx, s.only(i), row{"put", "put", 10, 100, putWorker}, keys, o.duration)
		})
	}
	driving.Wait()
	for i, region := range regions {
		record("put", region, 100, samples[i])
	}
	return errors.Join(failed...)
}

// only is the system with one endpoint, and all its processes.
func (s *system) only(endpoint int) *system {
	one := *s
	one.endpoints = s.endpoints[endpoint : endpoint+1]
	return &one
}

// leadFromFirst waits until the leader is in the first region. Logmirror is told so by a flag; etcd is asked.
func leadFromFirst(ctx context.Context, s *system) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if s.name != "etcd" {
		return pause(ctx, 5*time.Second) // the policy moves leadership once the preferred member has been ready for a second
	}
	for {
		var statuses []*clientv3.StatusResponse
		var leader *clientv3.Client
		for _, endpoint := range s.endpoints {
			client, err := dial(endpoint)
			if err != nil {
				return err
			}
			defer client.Close()
			status, err := client.Status(ctx, endpoint)
			if err != nil {
				return err
			}
			if statuses = append(statuses, status); status.Header.MemberId == status.Leader {
				leader = client
			}
		}
		if statuses[0].Leader == statuses[0].Header.MemberId {
			return nil
		}
		if leader != nil {
			if _, err := leader.MoveLeader(ctx, statuses[0].Header.MemberId); err != nil {
				return err
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
}

func wanMarkdown(w io.Writer, found []wanResult) error {
	heading := "\n| across regions, leader in us | clients a region | etcd p50 / p99 ms | logmirror p50 / p99 ms |\n|---|---|---|---|\n"
	for _, r := range found {
		e, l := r.Systems["etcd"], r.Systems["logmirror"]
		_, err := fmt.Fprintf(w, "%s| %s from %s | %d | %.0f / %.0f | %.0f / %.0f |\n", heading, r.Operation, r.Region, r.Clients,
			e.P50Milliseconds, e.P99Milliseconds, l.P50Milliseconds, l.P99Milliseconds)
		if err != nil {
			return err
		}
		heading = ""
	}
	return nil
}
