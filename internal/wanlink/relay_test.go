package wanlink

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
)

const roundTrip = 60 * time.Millisecond

// The relay's hosts in the networks of the regions. The part listens on 127.0.0.1.
var hosts = map[string]string{"us": "127.0.1.1", "eu": "127.0.1.2"}

const doorHost = "127.0.1.3"

// part listens as a process in eu that says back what it hears.
func part(t *testing.T) (address, port string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			}()
		}
	}()
	_, port, err = net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String(), port
}

// relay starts one between us and eu, with an echo in eu, and returns the port that leads to it.
func relay(t *testing.T) (network *wan.Network, port string) {
	t.Helper()
	if probe, err := net.Listen("tcp", hosts["us"]+":0"); err != nil {
		t.Skipf("this machine has one loopback address only, and the relay needs one for each region: %v", err)
	} else {
		probe.Close()
	}
	address, port := part(t)
	network = wan.New(wan.Options{RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: roundTrip}})
	r, err := Start(Config{
		Network: network, Hosts: hosts, Parts: []Part{{Region: "eu", Address: address}}, Doors: []string{doorHost + ":" + port},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Stop()
		network.Close()
	})
	return network, port
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

// echo sends a word and waits for it, and returns how long that took.
func echo(t *testing.T, connection net.Conn, word string) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := io.WriteString(connection, word); err != nil {
		t.Fatal(err)
	}
	expect(t, connection, word)
	return time.Since(start)
}

func expect(t *testing.T, connection net.Conn, word string) {
	t.Helper()
	got := make([]byte, len(word))
	if _, err := io.ReadFull(connection, got); err != nil || string(got) != word {
		t.Fatalf("heard %q, %v; want %q", got, err, word)
	}
}

// silent fails if anything arrives within five round trips.
func silent(t *testing.T, connection net.Conn) {
	t.Helper()
	if err := connection.SetReadDeadline(time.Now().Add(5 * roundTrip)); err != nil {
		t.Fatal(err)
	}
	if n, err := connection.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("over a cut link: %d bytes, %v", n, err)
	}
	if err := connection.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

func TestRelayDelays(t *testing.T) {
	_, port := relay(t)
	connection := dial(t, hosts["us"]+":"+port)
	if took := echo(t, connection, "opens the way"); took < 2*roundTrip {
		t.Errorf("opening and one answer took %v, less than two round trips of %v", took, roundTrip)
	}
	if took := echo(t, connection, "again"); took < roundTrip {
		t.Errorf("an answer took %v, less than a round trip of %v", took, roundTrip)
	}
}

func TestRelayCuts(t *testing.T) {
	network, port := relay(t)
	open := dial(t, hosts["us"]+":"+port)
	echo(t, open, "open")

	network.Cut("us", "eu")
	late := dial(t, hosts["us"]+":"+port)
	for _, connection := range []net.Conn{open, late} {
		if _, err := io.WriteString(connection, "held back"); err != nil {
			t.Fatal(err)
		}
		silent(t, connection)
	}
	door := dial(t, doorHost+":"+port)
	echo(t, door, "a door is within the region")

	network.Heal("us", "eu")
	expect(t, open, "held back")
	expect(t, late, "held back")

	network.CutOneWay("eu", "us")
	if _, err := io.WriteString(open, "one way"); err != nil {
		t.Fatal(err)
	}
	silent(t, open)
	network.Heal("us", "eu")
	expect(t, open, "one way")
}

func TestRelayEndsWhatEnds(t *testing.T) {
	address, port := part(t)
	network := wan.New(wan.Options{})
	defer network.Close()
	lost, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, lostPort, _ := net.SplitHostPort(lost.Addr().String())
	r, err := Start(Config{
		Network: network, Hosts: hosts, ConnectionsMax: 1,
		Parts: []Part{{"eu", address}, {"eu", lost.Addr().String()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Stop()
	lost.Close()
	if n, err := dial(t, hosts["us"]+":"+lostPort).Read(make([]byte, 1)); err == nil {
		t.Errorf("a part that is not there said %d bytes", n)
	}
	for range 5 { // each gets the place of the one before
		connection := dial(t, hosts["us"]+":"+port)
		echo(t, connection, "word")
		connection.Close()
	}
	connection := dial(t, hosts["us"]+":"+port)
	echo(t, connection, "word")
	r.Stop()
	if _, err := connection.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the relay")
	}
}

func TestRelayRefuses(t *testing.T) {
	network := wan.New(wan.Options{})
	defer network.Close()
	for want, config := range map[string]Config{
		"same port":          {Parts: []Part{{"eu", "a:1"}, {"us", "b:1"}}},
		`region "ap"`:        {Parts: []Part{{"ap", "a:1"}}},
		"missing port":       {Parts: []Part{{"eu", "a"}}},
		"leads to no part":   {Parts: []Part{{"eu", "a:1"}}, Hosts: map[string]string{"eu": "127.0.0.1"}, Doors: []string{"127.0.0.1:2"}},
		"cannot assign":      {Parts: []Part{{"eu", "a:1"}}, Hosts: map[string]string{"eu": "x", "us": "192.0.2.1"}},
		"door \"127.0.0.1\"": {Parts: []Part{{"eu", "a:1"}}, Hosts: map[string]string{"eu": "x"}, Doors: []string{"127.0.0.1"}},
	} {
		config.Network = network
		if config.Hosts == nil {
			config.Hosts = hosts
		}
		r, err := Start(config)
		if err == nil {
			r.Stop()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q", config, err, want)
		}
	}
}
