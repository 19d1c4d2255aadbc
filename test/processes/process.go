package processes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is a binary with its flags, which runs or does not.
type Process struct {
	Name string
	// Address is where it listens.
	Address string
	// Arguments are the binary and its flags.
	Arguments []string
	// Output is the file that gets what it says, of all its runs.
	Output string

	command *exec.Cmd
	// pid is 0 while it does not run. Links read it.
	pid atomic.Int64
}

// Start starts the process, for the first time or again.
func (p *Process) Start() error {
	output, err := os.OpenFile(p.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer output.Close()
	command := exec.Command(p.Arguments[0], p.Arguments[1:]...)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = endWithParent()
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.command = command
	p.pid.Store(int64(command.Process.Pid))
	return nil
}

// Running tells whether it was started and neither killed, stopped nor waited for since.
func (p *Process) Running() bool { return p.command != nil }

// Gone tells whether it has ended by itself since it was started.
func (p *Process) Gone() bool { return p.command != nil && gone(p.PID()) }

// PID is the process's, 0 where it does not run. It may be asked for by any goroutine.
func (p *Process) PID() int { return int(p.pid.Load()) }

func (p *Process) ended() {
	p.command = nil
	p.pid.Store(0)
}

// Signal sends a signal to a process that runs.
func (p *Process) Signal(signal syscall.Signal) error { return p.command.Process.Signal(signal) }

// Kill is kill -9. It waits for the end.
func (p *Process) Kill() {
	if p.command == nil {
		return
	}
	_ = p.command.Process.Kill() // it may have ended by itself
	_ = p.command.Wait()         // says that it was killed
	p.ended()
}

// KillAll kills all of them, the first before any has ended.
func KillAll(all []*Process) {
	for _, p := range all {
		if p.command != nil {
			_ = p.command.Process.Kill() // waited for below
		}
	}
	for _, p := range all {
		p.Kill()
	}
}

// Stop ends a process in order; the error is that of its end.
func (p *Process) Stop() error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.Wait(time.Minute)
}

// ErrStillRuns is returned by Wait.
var ErrStillRuns = errors.New("the process still runs")

// Wait waits until the process ends by itself, at most for so long. The error is an *exec.ExitError where it ended with
// another code than 0.
func (p *Process) Wait(atMost time.Duration) error {
	ended := make(chan error, 1)
	command := p.command
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		p.ended()
		return err
	case <-time.After(atMost):
		_ = p.command.Process.Kill()
		killed := <-ended
		p.ended()
		return fmt.Errorf("%s: %w after %v, and was ended: %v", p.Name, ErrStillRuns, atMost, killed)
	}
}

// Said counts how often its output holds a text.
func (p *Process) Said(text string) (int, error) {
	output, err := os.ReadFile(p.Output)
	return bytes.Count(output, []byte(text)), err
}

// Show writes the last of what each process said.
func Show(w io.Writer, all []*Process) {
	const shown = 8000
	for _, p := range all {
		output, err := os.ReadFile(p.Output)
		if err != nil {
			output = []byte(err.Error())
		}
		fmt.Fprintf(w, "--- the last of what %s said:\n%s\n", p.Name, output[max(0, len(output)-shown):])
	}
}

// Flag finds the value that a process is started with.
func (p *Process) Flag(name string) (value string, ok bool) {
	for i, argument := range p.Arguments[:len(p.Arguments)-1] {
		if argument == name {
			return p.Arguments[i+1], true
		}
	}
	return "", false
}

// Ports that FreePorts chooses from: below those that systems give to outgoing connections (Linux from 32768 on, others from 49152
// on), one of which could take a chosen port before its process listens, or while it is down.
const portFirst, portLast = 10000, 32767

// FreePorts returns addresses on loopback that nobody listened on a moment ago, all different.
func FreePorts(count int) (addresses []string, err error) {
	for attempts := 1000; len(addresses) < count; attempts-- {
		port := portFirst + rand.IntN(portLast-portFirst+1)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		switch {
		case err == nil:
			defer listener.Close() // only after all are chosen, so that all differ
			addresses = append(addresses, listener.Addr().String())
		case attempts <= 0:
			return nil, fmt.Errorf("find %d free ports: %w", count, err)
		}
	}
	return addresses, nil
}
