package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestFlowsCountBytes sends a known number of bytes through one connection of this process, and finds them in the kernel's
// count of that very connection.
func TestFlowsCountBytes(t *testing.T) {
	const sent = 123457
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	from, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	failed := make(chan error, 1)
	go func() {
		_, err := from.Write(make([]byte, sent))
		failed <- err
	}()
	if _, err := io.ReadFull(to, make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	open, err := connections()
	if err != nil {
		t.Fatal(err)
	}
	local, remote := uint16(to.LocalAddr().(*net.TCPAddr).Port), uint16(to.RemoteAddr().(*net.TCPAddr).Port)
	for _, c := range open {
		if c.local == local && c.remote == remote {
			if c.received != sent {
				t.Fatalf("the kernel counted %d bytes of %d", c.received, sent)
			}
			owners := map[uint32]string{}
			if err := ownSockets(owners, "self", clientName); err != nil {
				t.Fatal(err)
			}
			if owners[c.inode] != clientName {
				t.Fatal("the connection is not found among this process's sockets")
			}
			return
		}
	}
	t.Fatal("the connection is not among the kernel's")
}

// TestFlowsName finds who sent what, by name: here a process that is fed and says nothing.
func TestFlowsName(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := accepted.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = accepted.Close() // the other process has it now
	command := exec.Command("cat")
	command.Stdin = file
	command.Stdout = io.Discard
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}()
	_ = file.Close()
	s := &system{processes: []*process{{name: "server", command: command}}}
	const sent = 4321
	if _, err := dialed.Write(make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	pair := [2]string{clientName, "server"}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		found, err := s.flows()
		if err != nil {
			t.Fatal(err)
		}
		if found[pair] == sent {
			// What a connection has carried is not forgotten when it ends.
			_ = dialed.Close()
			_ = command.Process.Kill()
			_ = command.Wait()
			if found, err = s.flows(); err != nil || found[pair] != sent {
				t.Fatalf("%d bytes are known after the end, %v", found[pair], err)
			}
			if grown := found.since(flows{pair: sent - 21}); grown[pair] != 21 {
				t.Fatalf("grown by %d, not 21", grown[pair])
			}
			return
		}
	}
	t.Fatalf("process %d was sent %d bytes, which nobody has counted", os.Getpid(), sent)
}
