// Package e2e shows what users see, in real time: a cluster over TCP with the delays of its regions, clusters of real
// processes that are killed, and etcd's own client against both. It imports no part of a server but the playground.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// patience is how long a test waits for what must happen: far longer than it takes, on a busy machine too.
const patience = 60 * time.Second

// newClient returns etcd's client, connected to these frontends and no others.
func newClient(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// eventually asks again and again until the condition holds.
func eventually(t *testing.T, what string, condition func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
	}
}

// binaries builds the processes once for all tests of the package.
var binaries = sync.OnceValues(func() (directory string, err error) {
	directory = os.Getenv(binariesVariable)
	command := exec.Command("go", "build", "-o", directory+string(filepath.Separator), "../../cmd/logsvc", "../../cmd/frontend", "../../cmd/kvctl")
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, output)
	}
	return directory, nil
})

// binariesVariable tells where the binaries go: a directory that outlives single tests.
const binariesVariable = "LOGMIRROR_E2E_BINARIES"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	directory, err := os.MkdirTemp("", "logmirror-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(directory)
	if err := os.Setenv(binariesVariable, directory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
