package main

import (
	"context"
	"errors"
	"fmt"
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
}

// process is one server. The kernel kills it when the benchmark dies, however that comes about.
type process struct {
	name    string
	command *exec.Cmd
	output  string // file with what it logged
	metrics string // address of /metrics; empty for none
}

// startProcess must be called from the main goroutine, which is locked to the main thread: a parent-death signal comes
// when the starting thread ends.
func startProcess(name, directory, binary string, arguments ...string) (*process, error) {
	output := filepath.Join(directory, name+".output")
	file, err := os.Create(output)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	command := exec.Command(binary, arguments...)
	command.Stdout, command.Stderr = file, file
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &process{name: name, command: command, output: output}, nil
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

// freePorts returns loopback addresses that nobody listens on.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close() // only after all are chosen, so that all differ
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses, nil
}

const membersEach = 3

// startSystem starts etcd or logmirror with data in a directory of its own, which is made.
func startSystem(name, binaries, directory string) (*system, error) {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, err
	}
	if name == "etcd" {
		return startEtcd(filepath.Join(binaries, "etcdmember"), directory)
	}
	return startLogmirror(filepath.Join(binaries, "logsvc"), filepath.Join(binaries, "frontend"), directory)
}

// startEtcd starts three members of etcd as a release runs them: every flag that is not given is its default, so that
// each write is on the disks of a majority before it is answered.
func startEtcd(binary, directory string) (*system, error) {
	s := &system{name: "etcd"}
	addresses, err := freePorts(2 * membersEach)
	if err != nil {
		return nil, err
	}
	var initial []string
	for i := range membersEach {
		initial = append(initial, fmt.Sprintf("etcd-%d=http://%s", i, addresses[membersEach+i]))
	}
	for i := range membersEach {
		client, peer := "http://"+addresses[i], "http://"+addresses[membersEach+i]
		p, err := startProcess(fmt.Sprintf("etcd-%d", i), directory, binary,
			"--name", fmt.Sprintf("etcd-%d", i), "--data-dir", filepath.Join(directory, fmt.Sprintf("etcd-%d", i)),
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(initial, ","), "--log-level", "error")
		if err != nil {
			s.stop()
			return nil, err
		}
		s.processes = append(s.processes, p)
		s.endpoints = append(s.endpoints, addresses[i])
	}
	return s, nil
}

// startLogmirror starts three log members and three frontends of one region, every other flag at its default but that
// of the metrics, which tell how the load was packed.
func startLogmirror(logsvc, frontend, directory string) (*system, error) {
	s := &system{name: "logmirror"}
	addresses, err := freePorts(4 * membersEach)
	if err != nil {
		return nil, err
	}
	members, clients, metrics := addresses[:membersEach], addresses[membersEach:2*membersEach], addresses[2*membersEach:]
	var initial []string
	for i, address := range members {
		initial = append(initial, fmt.Sprintf("log-%d=%s", i, address))
	}
	start := func(name, binary, address string, more ...string) error {
		p, err := startProcess(name, directory, binary, append([]string{"--name", name, "--region", "local",
			"--listen", address, "--data-dir", filepath.Join(directory, name), "--log-level", "warn",
			"--metrics-listen", metrics[len(s.processes)]}, more...)...)
		if err == nil {
			p.metrics = metrics[len(s.processes)]
			s.processes = append(s.processes, p)
		}
		return err
	}
	for i, address := range members {
		if err := start(fmt.Sprintf("log-%d", i), logsvc, address, "--initial-cluster", strings.Join(initial, ",")); err != nil {
			s.stop()
			return nil, err
		}
	}
	for i, address := range clients {
		if err := start(fmt.Sprintf("frontend-%d", i), frontend, address, "--log", strings.Join(members, ",")); err != nil {
			s.stop()
			return nil, err
		}
		s.endpoints = append(s.endpoints, address)
	}
	return s, nil
}
