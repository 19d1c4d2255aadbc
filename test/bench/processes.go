package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// system is one side of the comparison: its running processes and the addresses that clients reach it at.
type system struct {
	name      string
	endpoints []string
	processes []*process
	ledger    *flowLedger // nil until flows is called first
}

// process is one server. The kernel kills it when the benchmark dies, however that comes about.
type process struct {
	name      string
	arguments []string // the binary first
	command   *exec.Cmd
	output    string // file with what it logged
	metrics   string // address of /metrics; empty for none
}

// startProcess must be called from the main goroutine, which is locked to the main thread: a parent-death signal comes
// when the starting thread ends.
func startProcess(name, directory, binary string, arguments ...string) (*process, error) {
	p := &process{name: name, arguments: append([]string{binary}, arguments...), output: filepath.Join(directory, name+".output")}
	return p, p.start()
}

// start starts the process, for the first time or again.
func (p *process) start() error {
	file, err := os.OpenFile(p.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	p.command = exec.Command(p.arguments[0], p.arguments[1:]...)
	p.command.Stdout, p.command.Stderr = file, file
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	return nil
}

// stop kills every process and waits for them; the data is thrown away, so none needs to end in order.
func (s *system) stop() {
	for _, p := range s.processes {
		_ = p.command.Process.Kill() // it may have ended by itself: Wait tells
	}
	for _, p := range s.processes {
		_ = p.command.Wait() // killed on purpose
	}
}

// lastOutput is the end of what every process logged, for a failure's message.
func (s *system) lastOutput() string {
	const shown = 2000
	var all strings.Builder
	for _, p := range s.processes {
		output, err := os.ReadFile(p.output)
		if err != nil {
			output = []byte(err.Error())
		}
		fmt.Fprintf(&all, "--- the last of what %s said:\n%s\n", p.name, output[max(0, len(output)-shown):])
	}
	return all.String()
}

// awaitReady waits until every endpoint has answered a linearizable read.
func (s *system) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	for _, endpoint := range s.endpoints {
		client, err := dial(endpoint)
		if err != nil {
			return err
		}
		for {
			attempt, cancelAttempt := context.WithTimeout(ctx, time.Second)
			_, err = client.Get(attempt, "ready")
			cancelAttempt()
			if err == nil || ctx.Err() != nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		err = errors.Join(err, client.Close())
		if err != nil {
			return fmt.Errorf("%s at %s is not ready: %w\n%s", s.name, endpoint, err, s.lastOutput())
		}
	}
	return nil
}

func dial(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// freePorts returns loopback addresses that nobody listens on. The system would choose them among those that it gives to
// connections, too, and the load's might be quicker than the server that is to listen.
func freePorts(n int) ([]string, error) {
	const first, end, attempts = 10_000, 32_000, 1_000
	var addresses []string
	var err error
	for range attempts {
		if len(addresses) == n {
			return addresses, nil
		}
		var listener net.Listener
		listener, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(end-first)))
		if err != nil {
			continue
		}
		defer listener.Close() // only after all are chosen, so that all differ
		addresses = append(addresses, listener.Addr().String())
	}
	return nil, fmt.Errorf("%d free ports, not %d: %w", len(addresses), n, err)
}

const membersEach = 3

// shape is how many processes logmirror has, and what differs from their defaults.
type shape struct {
	members, frontends int
	memberFlags        []string
	// tailed is the member that a frontend knows at its start, and stays with where others are no nearer; nil for all. With
	// it every process is in a region of its own number, and the leader in the first.
	tailed func(frontend int) (member int)
}

func (of shape) region(between *links, i int) string {
	switch {
	case between != nil:
		return regions[i]
	case of.tailed != nil:
		return fmt.Sprintf("region-%d", i)
	}
	return "local"
}

// startSystem starts etcd or logmirror with data in a directory of its own, which is made. With links, the servers are in
// three regions and reach each other through them; nil for one region. memberFlags are given to our log members.
func startSystem(name, binaries, directory string, between *links, memberFlags ...string) (*system, error) {
	return startShape(name, binaries, directory, between, shape{members: membersEach, frontends: membersEach, memberFlags: memberFlags})
}

// startShape does the same with other numbers of processes, which are logmirror's only; links are for the usual ones only.
func startShape(name, binaries, directory string, between *links, of shape) (s *system, err error) {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, err
	}
	s = &system{name: name}
	if name == "etcd" {
		err = s.startEtcd(filepath.Join(binaries, "etcdmember"), directory, between)
	} else {
		err = s.startLogmirror(filepath.Join(binaries, "logsvc"), filepath.Join(binaries, "frontend"), directory, between, of)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// start starts a process of the system, in a region.
func (s *system) start(between *links, region, directory, name, binary string, arguments ...string) (*process, error) {
	p, err := startProcess(name, directory, binary, arguments...)
	if err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	between.own(p, region)
	return p, nil
}

// startEtcd starts three members of etcd as a release runs them: every flag that is not given is its default, so that
// each write is on the disks of a majority before it is answered. Between regions the heartbeats and elections have the
// times that its documentation recommends for such distances.
func (s *system) startEtcd(binary, directory string, between *links) error {
	addresses, err := freePorts(2 * membersEach)
	if err != nil {
		return err
	}
	peers, err := between.front(addresses[membersEach:])
	if err != nil {
		return err
	}
	var initial, timing []string
	for i := range membersEach {
		initial = append(initial, fmt.Sprintf("etcd-%d=http://%s", i, peers[i]))
	}
	if between != nil {
		timing = []string{"--heartbeat-interval", "150", "--election-timeout", "1500"}
	}
	for i := range membersEach {
		client, name := "http://"+addresses[i], fmt.Sprintf("etcd-%d", i)
		arguments := append([]string{"--name", name, "--data-dir", filepath.Join(directory, name),
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", "http://" + addresses[membersEach+i], "--initial-advertise-peer-urls", "http://" + peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--log-level", "error"}, timing...)
		if _, err := s.start(between, regions[i], directory, name, binary, arguments...); err != nil {
			return err
		}
		s.endpoints = append(s.endpoints, addresses[i])
	}
	return nil
}

// startLogmirror starts log members and frontends, every flag that is not given at its default but that of the
// metrics, which tell how the load was packed, and between regions the one that says where the leader is.
func (s *system) startLogmirror(logsvc, frontend, directory string, between *links, of shape) error {
	processes := of.members + of.frontends
	addresses, err := freePorts(2 * processes)
	if err != nil {
		return err
	}
	listening, clients, metrics := addresses[:of.members], addresses[of.members:processes], addresses[processes:]
	members, err := between.front(listening)
	if err != nil {
		return err
	}
	var initial []string
	for i, address := range members {
		initial = append(initial, fmt.Sprintf("log-%d=%s", i, address))
	}
	start := func(name, binary, address string, i int, more ...string) error {
		measured := metrics[len(s.processes)]
		p, err := s.start(between, of.region(between, i), directory, name, binary, append([]string{"--name", name, "--region", of.region(between, i),
			"--listen", address, "--data-dir", filepath.Join(directory, name), "--log-level", "warn",
			"--metrics-listen", measured}, more...)...)
		if err == nil {
			p.metrics = measured
		}
		return err
	}
	more := append([]string{"--initial-cluster", strings.Join(initial, ",")}, of.memberFlags...)
	if leading := of.region(between, 0); leading != "local" {
		more = append(more, "--leader-policy", "fixed="+leading)
	}
	for i, address := range listening {
		if err := start(fmt.Sprintf("log-%d", i), logsvc, address, i, more...); err != nil {
			return err
		}
	}
	for i, address := range clients {
		known := members
		if of.tailed != nil {
			known = members[of.tailed(i):][:1]
		}
		if err := start(fmt.Sprintf("frontend-%d", i), frontend, address, i, "--log", strings.Join(known, ",")); err != nil {
			return err
		}
		s.endpoints = append(s.endpoints, address)
	}
	return nil
}
