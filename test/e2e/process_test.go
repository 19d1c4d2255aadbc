package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// process is a binary with its flags, which runs or does not.
type process struct {
	name, address string
	arguments     []string
	output        string // file
	command       *exec.Cmd
}

func (p *process) start(t *testing.T) {
	t.Helper()
	output, err := os.OpenFile(p.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p.command = exec.Command(p.arguments[0], p.arguments[1:]...)
	p.command.Stdout, p.command.Stderr = output, output
	// The process ends with the test, even if the test is killed.
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (p *process) kill() {
	if p.command == nil {
		return
	}
	_ = p.command.Process.Kill() // it may have ended by itself
	_ = p.command.Wait()         // says that it was killed
	p.command = nil
}

// processCluster is one of real processes: a log member and a frontend for each region, on loopback without delay.
type processCluster struct {
	regions            []string
	members, frontends []*process
	// removed are members that are to be removed, and have not ended.
	removed        []*process
	binaries, data string
	// memberFlags are those that members have beside their names and places.
	memberFlags []string
}

func newProcessCluster(t *testing.T, regions ...string) *processCluster {
	t.Helper()
	directory, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	ports := freePorts(t, 2*len(regions))
	var initial, log []string
	for i, region := range regions {
		initial = append(initial, "log-"+region+"="+ports[i])
		log = append(log, ports[i])
	}
	c := &processCluster{regions: regions, binaries: directory, data: data}
	for i, region := range regions {
		c.members = append(c.members, c.newProcess("log-"+region, ports[i], "logsvc",
			"--region", region, "--initial-cluster", strings.Join(initial, ",")))
		c.frontends = append(c.frontends, c.newProcess("frontend-"+region, ports[len(regions)+i], "frontend",
			"--region", region, "--log", strings.Join(log, ",")))
	}
	t.Cleanup(func() {
		c.killAll()
		if t.Failed() {
			c.showOutputs(t)
		}
	})
	return c
}

func (c *processCluster) newProcess(name, address, binary string, flags ...string) *process {
	arguments := append([]string{filepath.Join(c.binaries, binary), "--name", name, "--listen", address,
		"--data-dir", filepath.Join(c.data, name)}, flags...)
	return &process{name: name, address: address, arguments: arguments, output: filepath.Join(c.data, name+".output")}
}

// all are the processes that may run.
func (c *processCluster) all() []*process { return slices.Concat(c.members, c.removed, c.frontends) }

func (c *processCluster) startAll(t *testing.T) {
	t.Helper()
	for _, p := range c.all() {
		p.start(t)
	}
}

// killAll kills every process, the first before any has ended.
func (c *processCluster) killAll() {
	for _, p := range c.all() {
		if p.command != nil {
			_ = p.command.Process.Kill() // waited for below
		}
	}
	for _, p := range c.all() {
		p.kill()
	}
}

func (c *processCluster) showOutputs(t *testing.T) {
	for _, p := range c.all() {
		output, err := os.ReadFile(p.output)
		if err != nil {
			t.Log(err)
			continue
		}
		const shown = 8000
		t.Logf("--- the last of what %s said:\n%s", p.name, output[max(0, len(output)-shown):])
	}
}

// leader returns the member that leads now, as it says itself.
func (c *processCluster) leader(ctx context.Context) (*process, error) {
	for _, p := range slices.Concat(c.members, c.removed) {
		if p.command == nil {
			continue
		}
		status, err := memberStatus(ctx, p.address)
		if err == nil && status.GetLeaderId() != 0 && status.GetLeaderId() == status.GetHandshake().GetId() {
			return p, nil
		}
	}
	return nil, errors.New("no member says that it leads")
}

func memberStatus(ctx context.Context, address string) (*logv1.StatusResponse, error) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return logv1.NewLogServiceClient(connection).Status(ctx, &logv1.StatusRequest{})
}

// freePorts returns addresses on loopback that nobody listened on a moment ago, all different.
func freePorts(t *testing.T, count int) []string {
	t.Helper()
	var addresses []string
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(fmt.Errorf("find a free port: %w", err))
		}
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses
}
