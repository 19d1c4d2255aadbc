package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"
)

func TestBytesBetweenRegionsAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, near := net.Pipe()
		far, server := net.Pipe()
		go delayed(far, near, roundTrip("us", "ap")/2)
		began := time.Now()
		sent := bytes.Repeat([]byte("x"), 200<<10)
		go func() {
			client.Write(sent)
			client.Close()
		}()
		got, err := io.ReadAll(server)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes arrived, %v", len(got), err)
		}
		if late := time.Since(began); late != 75*time.Millisecond {
			t.Errorf("they came after %v", late)
		}
	})
}

func TestRoundTripsWorkBothWays(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want time.Duration
	}{{"us", "eu", 80}, {"eu", "us", 80}, {"ap", "eu", 100}, {"us", "us", 0}} {
		if got := roundTrip(c.a, c.b); got != c.want*time.Millisecond {
			t.Errorf("%s to %s: %v", c.a, c.b, got)
		}
	}
}

func TestUsageOfThisProcess(t *testing.T) {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p := &process{name: "self", command: &exec.Cmd{Process: self}}
	used, err := p.usage()
	if err != nil {
		t.Fatal(err)
	}
	if used.resident <= 0 || used.anonymous <= 0 || used.anonymous > used.resident || used.switches <= 0 {
		t.Errorf("%+v", used)
	}
	if _, err := machineDiskBytes(); err != nil {
		t.Error(err)
	}
}
