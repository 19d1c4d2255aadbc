package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/playground"
)

// cluster is a playground of one region that the commands of a test are run against.
type cluster struct {
	t       *testing.T
	dataDir string
	address string
	stop    func()
}

func startCluster(t *testing.T, dataDir string) *cluster {
	t.Helper()
	running, err := playground.Start(playground.Config{Regions: []string{"us"}, DataDir: dataDir, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	c := &cluster{t: t, dataDir: dataDir, stop: func() {
		if stopped {
			return
		}
		stopped = true
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := running.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	}}
	t.Cleanup(c.stop)
	select {
	case <-running.Ready():
	case <-running.Done():
		t.Fatal(running.Err())
	case <-time.After(30 * time.Second):
		t.Fatal("the cluster does not get ready")
	}
	c.address = running.Info().Regions[0].Frontend
	return c
}

// run runs one command and checks its exit code.
func (c *cluster) run(code int, in string, arguments ...string) (out string) {
	c.t.Helper()
	var stdout, stderr bytes.Buffer
	got := Main(append([]string{"--endpoints", c.address}, arguments...), strings.NewReader(in), &stdout, &stderr)
	if got != code {
		c.t.Fatalf("kvctl %s: exit code %d, want %d\n%s%s", strings.Join(arguments, " "), got, code, stdout.String(), stderr.String())
	}
	return stdout.String() + stderr.String()
}

func (c *cluster) want(part string, code int, in string, arguments ...string) {
	c.t.Helper()
	if out := c.run(code, in, arguments...); !strings.Contains(out, part) {
		c.t.Errorf("kvctl %s printed %q; want it to hold %q", strings.Join(arguments, " "), out, part)
	}
}

func TestCommands(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.want("serves", exitOK, "", "health")
	c.want("OK, revision 2", exitOK, "", "put", "greeting", "hello")
	c.want("hello\n", exitOK, "", "get", "greeting")
	c.want("was: hello", exitOK, "from standard input", "put", "greeting", "--prev")
	c.want("from standard input", exitOK, "", "--consistency", "serializable", "get", "greeting")
	c.want("hello", exitOK, "", "get", "greeting", "--rev", "2")
	c.want("no key nothing", exitNotFound, "", "get", "nothing")

	c.want("swapped, revision 4", exitOK, "", "cas", "lock", "--expect-absent", "--put", "a")
	c.want("not swapped: it is a, revision 4", exitNotHeld, "", "cas", "lock", "--expect-value", "b", "--put", "c")
	c.want("swapped, revision 5", exitOK, "", "cas", "lock", "--expect-revision", "4", "--delete")
	c.want("no such key", exitNotHeld, "", "cas", "lock", "--expect-revision", "4", "--delete")

	c.want("then, revision 6", exitOK, "if version(lock) = 0\nthen put lock me\nelse get lock\n", "txn")
	c.want("lock\tme", exitNotHeld, "if version(lock) = 0\nthen put lock me\nelse get lock\n", "txn")

	c.want("greeting\tfrom standard input\nlock\tme\n", exitOK, "", "list")
	c.want("lock\n", exitOK, "", "list", "lo", "--keys-only")
	c.want("2\tput\tgreeting\thello\n3\tput\tgreeting\tfrom standard input\n4\tput\tlock\ta\n5\tdelete\tlock\n", exitOK, "",
		"watch", "", "--prefix", "--rev", "1", "--count", "4")
	c.want("1 deleted", exitOK, "", "del", "lock")
	c.want("0 deleted", exitNotFound, "", "del", "lock")

	c.want("1, revision 8", exitOK, "", "counter", "add", "visits")
	c.want("-2, revision 9", exitOK, "", "counter", "add", "visits", "--by", "-3")
	c.want("7, revision 10", exitOK, "", "counter", "max", "visits", "7")
	c.want("7, revision 10", exitOK, "", "counter", "max", "visits", "--", "-9")
	c.want("5, revision 11", exitOK, "", "counter", "min", "visits", "5")
	c.want("5\n", exitOK, "", "counter", "get", "visits")
	c.want("5\n", exitOK, "", "get", "visits")
	c.want("0\n", exitOK, "", "counter", "get", "none")
	c.want("not an integer", exitFailed, "", "counter", "get", "greeting")
	c.want(`key "greeting": value is not an integer`, exitFailed, "", "counter", "add", "greeting")
	c.want("limits -9223372036854775808 and", exitUsage, "", "counter", "add", "visits", "--by", "9223372036854775807")
	c.want("2 inserted, 2 members", exitOK, "", "set", "insert", "members", "us", "two\nlines")
	c.want("0 inserted, 2 members", exitOK, "", "set", "insert", "members", "us", "--max", "1")
	c.want("3 members, limit 2", exitNotHeld, "", "set", "insert", "members", "ap", "--max", "2")
	c.want("two\nlines\nus\n", exitOK, "", "set", "list", "members")
	c.want(`"members":["two\nlines","us"]`, exitOK, "", "-o", "json", "set", "list", "members")
	c.want("1 removed, 1 members", exitOK, "", "set", "remove", "members", "us", "none")
	c.want("two\\nlines\n", exitOK, "", "get", "members")
	c.want("at least one byte", exitUsage, "", "set", "insert", "members", "")
	c.want("0 removed, 0 members, revision 13", exitOK, "", "set", "remove", "none", "x", "y", "--request-id", "1-x")
	c.want("appended", exitOK, "line 1\n", "append", "log")
	c.want("appended", exitOK, "", "append", "log", "line 2")
	c.want("line 1\nline 2\n", exitOK, "", "get", "log")
	c.want("limit 5", exitNotHeld, "", "append", "log", "line 3", "--max-bytes", "5")
	c.want("visits\t6\nmembers\tap\ntwo", exitOK, "then add visits 1\nthen insert members ap\nthen append log !\n", "txn")
	c.want(`"integer":"6"`, exitOK, "then max visits 1\n", "-o", "json", "txn")

	for _, kind := range []string{"snowflake", "raindrop"} {
		if out := c.run(exitOK, "", "id", kind, "--stream", "--count", "2500"); strings.Count(out, "\n") != 2500 {
			t.Errorf("%d %ss streamed", strings.Count(out, "\n"), kind)
		}
	}
	c.want("1\n2\n3\n4\n5\n", exitOK, "", "id", "segment", "orders", "--stream", "--count", "5", "--block", "2")
	c.want("1\n2\n3\n", exitOK, "", "id", "sequence", "invoices", "--stream", "--count", "3")
	c.want("used up", exitFailed, "", "id", "segment", "few", "--max", "3", "--stream", "--block", "2")
	c.want("--block 0", exitUsage, "", "id", "snowflake", "--stream", "--block", "0")
	c.want("goes with --stream", exitUsage, "", "id", "snowflake", "--block", "5")

	var granted struct{ ID string }
	if err := json.Unmarshal([]byte(c.run(exitOK, "", "-o", "json", "lease", "grant", "60")), &granted); err != nil {
		t.Fatal(err)
	}
	c.run(exitOK, "", "put", "session", "me", "--lease", granted.ID)
	c.want("renewed, 60 s", exitOK, "", "lease", "keep-alive", granted.ID, "--once")
	c.want("session", exitOK, "", "lease", "ttl", granted.ID, "--keys")
	c.want("1 keys\tfrontend-us in us", exitOK, "", "lease", "list")
	c.want("revoked", exitOK, "", "lease", "revoke", granted.ID)
	c.want("no key session", exitNotFound, "", "get", "session")
	c.want("no lease", exitNotFound, "", "lease", "keep-alive", granted.ID, "--once")
	c.want("leader log-us", exitOK, "", "status")
	c.want("is sealed", exitOK, "", "log", "checkpoint", "--timeout=60s")
	c.want("+ (", exitOK, "", "log", "status")
	c.want("leads the log", exitOK, "", "log", "transfer", "log-us")
}

func TestWatchOfCompactedHistory(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.run(exitOK, "", "put", "a", "1")
	c.run(exitOK, "", "put", "a", "2")
	c.run(exitOK, "", "put", "a", "3")
	connection, err := client.New(client.Config{Endpoints: []string{c.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := connection.Compact(t.Context(), &kvv1.CompactRequest{Revision: 3}); err != nil {
		t.Fatal(err)
	}
	c.want("before revision 3 is compacted", exitUsage, "", "watch", "a", "--rev", "1")
	var answers int
	var last error
	for answer, err := range connection.Watch(t.Context(), &kvv1.WatchRequest_Create{Key: []byte("a"), StartRevision: 1}) {
		if last = err; err == nil && answer.GetCompactRevision() == 3 {
			answers++
		}
	}
	if answers != 1 || !errors.Is(last, client.ErrWatchCanceled) {
		t.Errorf("%d answers with the compact revision, then %v; want one, then the end of the watch", answers, last)
	}
}

// A frontend that advertises what this machine does not reach is dialed where --resolve says, also as the one of a region.
func TestResolve(t *testing.T) {
	c := startCluster(t, t.TempDir())
	const unreached = "frontend-us.invalid:2379"
	named := &cluster{t: t, address: unreached}
	named.want("make run", exitUnavailable, "", "get", "x", "--timeout", "5s")
	named.want("OK", exitOK, "", "--resolve", unreached+"="+c.address, "put", "x", "y")
	named.want("serves", exitOK, "", "--resolve", unreached+"="+c.address, "health")

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := listener.Addr().String()
	listener.Close()
	// The region's own frontend, as it advertises itself, is found where nobody listens.
	named.want("make run", exitUnavailable, "", "--resolve", unreached+"="+c.address+","+c.address+"="+nobody, "--region", "us", "get", "x", "--timeout", "5s")
	named.want("y", exitOK, "", "--resolve", unreached+"="+c.address, "--region", "us", "get", "x")
}

func TestWrongCommandLines(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.want("key must", exitUsage, "", "put", "", "x")
	c.want("not reached", exitUsage, "", "get", "x", "--rev", "99")
	c.want("--output", exitUsage, "", "-o", "xml", "get", "x")
	c.want("--consistency", exitUsage, "", "--consistency", "eventual", "get", "x")
	c.want("usage: kvctl get KEY", exitUsage, "", "get")
	c.want("unknown command", exitUsage, "", "frobnicate")
	c.want("unknown flag", exitUsage, "", "get", "x", "--frobnicate")
	c.want("--region mars", exitUsage, "", "--region", "mars", "get", "x")
	c.want("want HOST:PORT=HOST:PORT", exitUsage, "", "--resolve", "frontend-us:2379", "get", "x")
	c.want("\"here\" is not HOST:PORT", exitUsage, "", "--resolve", "frontend-us:2379=here", "get", "x")
	c.want("both", exitUsage, "", "--resolve", "a:1=b:1,a:1=c:1", "get", "x")
	c.want("hexadecimal", exitUsage, "", "lease", "revoke", "zz")
	c.want("there are: log-us", exitUsage, "", "log", "transfer", "log-mars")
	c.want("say what is expected", exitUsage, "", "cas", "x", "--put", "y")
	c.want("lease not found", exitNotFound, "", "put", "x", "y", "--lease", "7")
	away := &cluster{t: t, address: "127.0.0.1:1"}
	away.want("make run", exitUnavailable, "", "get", "x", "--timeout", "5s")
	away.want("does not answer", exitUnavailable, "", "health", "--timeout", "5s")
	away.want("make run", exitUnavailable, "", "put", "x", "y", "--timeout", "5s") // never sent: not applied
}

// A connection that breaks between the request and its answer leaves the outcome open, and the exit code says so.
func TestBrokenConnection(t *testing.T) {
	unknown, err := status.New(codes.Unknown, "not answered in time").WithDetails(&errdetails.ErrorInfo{Reason: "OUTCOME_UNKNOWN"})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); strings.HasSuffix(method, "/Txn") {
			return unknown.Err()
		}
		return status.Error(codes.Unavailable, "error reading from server: EOF")
	}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		<-served
	}()
	c := &cluster{t: t, address: listener.Addr().String()}
	c.want("is not known", exitUnknown, "", "put", "x", "y")
	c.want("is not known", exitUnknown, "", "lease", "grant", "5")
	c.want("Read before", exitUnknown, "then put x y\n", "txn")
	c.run(exitUnavailable, "", "lease", "list")
}

func TestImportResumes(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	c := startCluster(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "keys.jsonl")
	var lines strings.Builder
	for i := range 300 {
		fmt.Fprintf(&lines, "{\"key\":\"k/%03d\",\"value\":\"v%d\"}\n", i, i)
	}
	// The last line is refused: all before it are in, and a second run does not put them again.
	lines.WriteString("{\"value\":\"no key\"}\n")
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want("line 301: no key", exitUsage, "", "import", path)
	if n := strings.Count(c.run(exitOK, "", "list", "k/", "--keys-only"), "\n"); n != 256 {
		t.Fatalf("%d keys are in after the refused line; want the 256 of whole groups before it", n)
	}
	fixed := strings.Replace(lines.String(), "{\"value\":\"no key\"}", "{\"key\":\"k/end\",\"value_base64\":\"/w==\"}", 1)
	if err := os.WriteFile(path, []byte(fixed), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want("301 keys imported", exitOK, "", "import", path) // a changed file is another source
	c.want("\"\\xff\"", exitOK, "", "list", "k/end")

	tree := t.TempDir()
	if err := os.MkdirAll(filepath.Join(tree, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"top": "1", "a/x": "2", "a/b/y": "3"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.want("3 keys imported", exitOK, "", "import", tree, "--prefix", "tree/")
	c.want("tree/a/b/y\t3\ntree/a/x\t2\ntree/top\t1\n", exitOK, "", "list", "tree/")
}

func TestImportGoesOnAfterAnInterruption(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	c := startCluster(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "keys.jsonl")
	if err := os.WriteFile(path, []byte(strings.Repeat("{\"key\":\"same\",\"value\":\"x\"}\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	var status struct {
		Header struct {
			ClusterID string `json:"cluster_id"`
		} `json:"header"`
	}
	if err := json.Unmarshal([]byte(c.run(exitOK, "", "-o", "json", "status")), &status); err != nil {
		t.Fatal(err)
	}
	var id uint64
	if _, err := fmt.Sscan(status.Header.ClusterID, &id); err != nil {
		t.Fatal(err)
	}
	progress, err := openProgress(path, "", id, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := progress.advance(90); err != nil { // as a run leaves it that was interrupted there
		t.Fatal(err)
	}
	c.want("10 keys imported", exitOK, "", "import", path)
	if _, err := os.Stat(progress.path); !os.IsNotExist(err) {
		t.Errorf("the record of a finished import is still there: %v", err)
	}
}

func TestOfflineLog(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.run(exitOK, "", "put", "greeting", "hello")
	directory := filepath.Join(c.dataDir, "log", "log-us", "log")
	c.run(exitFailed, "", "log", "verify", directory) // in use
	c.stop()
	c.want("entries 1 to", exitOK, "", "log", "verify", directory)
	c.want("GENESIS", exitOK, "", "log", "dump", directory)
	c.want("OPEN_SESSION", exitOK, "", "log", "dump", directory)
}
