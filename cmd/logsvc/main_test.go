package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

func TestFlagsAreChecked(t *testing.T) {
	good := []string{"--name=a", "--region=us", "--data-dir=" + t.TempDir(), "--initial-cluster=a=127.0.0.1:1"}
	for _, test := range []struct {
		change, want string
	}{
		{"--name=", "--name is required"},
		{"--region=", "--region is required"},
		{"--data-dir=", "--data-dir is required"},
		{"--initial-cluster=", "needs the initial cluster, or to join"},
		{"--join=127.0.0.1:1", "either begins the log or joins it"},
		{"--initial-cluster=a", `"a" is not NAME=ADDRESS`},
		{"--initial-cluster=a=nowhere", `member "a"`},
		{"--initial-cluster=b=127.0.0.1:1", `does not hold this member, "a"`},
		{"--leader-policy=fixed", "leader policy"},
		{"--publication=none", "publication"},
		{"--log-level=loud", "--log-level"},
		{"--log-format=xml", "--log-format"},
		{"--segment-bytes=65535", "--segment-bytes 65535: must be between 65536 and 1073741824"},
		{"--segment-bytes=1073741825", "--segment-bytes 1073741825: must be between"},
		{"--listen=0.0.0.0:0", "--insecure"},
		{"--metrics-listen=0.0.0.0:0", "--metrics-listen: listen address 0.0.0.0:0 can be reached from other machines"},
		{"--listen=127.0.0.1:notaport", "--listen"},
		{"--cert=x", "--key"},
		{"--config=/nowhere.yaml", "/nowhere.yaml"},
	} {
		command := newCommand()
		command.SetArgs(append(append([]string{"--listen=127.0.0.1:0"}, good...), test.change))
		if err := command.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.change, err)
		}
	}
}

// One member is a log: it elects itself, serves, keeps what it was given, and ends when it is told to.
func TestServesUntilCanceled(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, []byte("name: a\nregion: us\nlog-level: error\ninitial-cluster: a="+address+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	indexes := []uint64{}
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			command := newCommand()
			command.SetArgs([]string{"--listen=" + address, "--data-dir=" + filepath.Join(dir, "data"), "--config=" + config,
				"--metrics-listen=127.0.0.1:0"})
			done <- command.ExecuteContext(ctx)
		}()
		indexes = append(indexes, appendOne(t, address))
		checkHealth(t, address)
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(3 * time.Second):
			t.Fatal("did not end within 3 s")
		}
	}
	if indexes[1] <= indexes[0] {
		t.Errorf("entries at %v", indexes)
	}
}

// checkHealth asks gRPC's health service for the member and for each of its services.
func checkHealth(t *testing.T, address string) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, service := range []string{"", logv1.LogService_ServiceDesc.ServiceName, logv1.PeerService_ServiceDesc.ServiceName} {
		told, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || told.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, told, err)
		}
	}
}

// appendOne hands a TICK to the log until it appears in the tail, and returns its index.
func appendOne(t *testing.T, address string) uint64 {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := logv1.NewLogServiceClient(conn)
	tail, err := client.Tail(ctx, &logv1.TailRequest{Handshake: &logv1.Handshake{}, FromIndex: 1}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := client.Append(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{}}); err != nil {
		t.Fatal(err)
	}
	payload := []byte(t.Name() + time.Now().String())
	tick := &logv1.AppendRequest{Proposals: []*logv1.Proposal{{Kind: logv1.EntryKind_ENTRY_KIND_TICK, Payload: payload}}}
	for {
		// Every answer of the tail, at least each half second, is a reason to try again: there may be no leader yet.
		response, err := tail.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range response.GetEntries() {
			if e.GetKind() == logv1.EntryKind_ENTRY_KIND_TICK && strings.Contains(string(e.GetEnvelope()), string(payload)) {
				return e.GetIndex()
			}
		}
		if err := stream.Send(tick); err != nil {
			t.Fatal(err)
		}
	}
}
