package frontend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

// trimmed has a frontend's mirror build a checkpoint, and takes the log up to there away. Nobody is given the checkpoint
// before the channel is closed.
func (l *fakeLog) trimmed(builder *Server) (held chan struct{}) {
	l.t.Helper()
	var session uint64
	eventually(l.t, "the builder has a session", func() (ok bool) {
		session, _, ok = builder.Mirror().SessionHolder()
		return ok
	})
	payload, err := proto.Marshal(&logv1.CheckpointRequest{BuilderSessions: []uint64{session}, FormatVersion: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	l.append(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST, Payload: payload})
	eventually(l.t, "the checkpoint is uploaded", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.name != nil
	})
	held = make(chan struct{})
	l.change(func() { l.first, l.held = l.name.GetIndex()+1, held })
	return held
}

func (l *fakeLog) UploadCheckpoint(stream logv1.LogService_UploadCheckpointServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := stream.Send(&logv1.UploadCheckpointResponse{Handshake: l.handshake(), Wanted: true}); err != nil {
		return err
	}
	name, content := request.GetReport().GetName(), []byte{}
	for uint64(len(content)) < name.GetSizeBytes() {
		if request, err = stream.Recv(); err != nil {
			return err
		}
		content = append(content, request.GetData()...)
	}
	l.change(func() { l.checkpoint, l.name = content, name })
	return stream.Send(&logv1.UploadCheckpointResponse{Done: true})
}

func (l *fakeLog) DownloadCheckpoint(
	_ *logv1.DownloadCheckpointRequest, stream logv1.LogService_DownloadCheckpointServer,
) error {
	l.mu.Lock()
	name, content, held := l.name, l.checkpoint, l.held
	l.mu.Unlock()
	if err := stream.Send(&logv1.DownloadCheckpointResponse{
		Handshake: l.handshake(), Name: name, Term: fakeTerm, Data: content[:1],
	}); err != nil {
		return err
	}
	select {
	case <-held:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	return stream.Send(&logv1.DownloadCheckpointResponse{Data: content[1:]})
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for began := time.Now(); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// cuttable is the network of one frontend, which can be cut.
type cuttable struct {
	mu          sync.Mutex
	cut         bool
	connections []net.Conn
}

func (c *cuttable) dial(ctx context.Context, address string) (net.Conn, error) {
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.cut {
		connection.Close()
		err = errors.New("cut")
	}
	if err != nil {
		return nil, err
	}
	c.connections = append(c.connections, connection)
	return connection, nil
}

func (c *cuttable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	for _, connection := range c.connections {
		connection.Close()
	}
	c.connections = nil
}

func gauge(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestAFrontendThatWasAwayForTooLong is cut off until the log no longer holds what it needs, says so while it bootstraps,
// and serves again: its clients, watches and the writes that wait notice no more than a restart.
func TestAFrontendThatWasAwayForTooLong(t *testing.T) {
	c := newTestCluster(t)
	us := c.frontend("us-1", "us")
	network, registry := &cuttable{}, prometheus.NewRegistry()
	eu := c.frontend("eu-1", "eu", func(config *Config) { config.Dial, config.Registerer = network.dial, registry })
	ctx := testContext(t)
	near, far := c.etcdClient(us), c.etcdClient(eu)
	if _, err := far.Put(ctx, "k", "before"); err != nil {
		t.Fatal(err)
	}
	watched := far.Watch(ctx, "k", clientv3.WithRev(1))
	if first := <-watched; len(first.Events) != 1 {
		t.Fatalf("watched %v", first)
	}
	before := eu.Mirror().Identity()
	network.set(true)
	waiting := make(chan error, 1)
	go func() {
		_, err := far.Get(ctx, "k") // linearizable: it waits for the log
		waiting <- err
	}()
	for i := range 50 {
		if _, err := near.Put(ctx, "k", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	release := c.log.trimmed(us)
	network.set(false)

	eventually(t, "it bootstraps", func() bool {
		return strings.Contains(strings.Join(eu.NotReady(), " "), "MiB of the checkpoint of index")
	})
	connection := c.connection(eu)
	_, err := kvv1.NewKvServiceClient(connection).Get(ctx, &kvv1.GetRequest{Key: []byte("k")})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "bootstrapping") {
		t.Errorf("a read while it bootstraps: %v", err)
	}
	told, err := kvv1.NewClusterServiceClient(connection).Status(ctx, &kvv1.StatusRequest{})
	if err != nil || !strings.Contains(strings.Join(told.GetDegraded(), " "), "checkpoint of index") {
		t.Errorf("status while it bootstraps: %v, %v", told, err)
	}
	if gauge(t, registry, "logmirror_frontend_bootstrapping") != 1 || gauge(t, registry, "logmirror_frontend_bootstrap_received_bytes") != 1 {
		t.Error("the metrics tell nothing of the bootstrap")
	}
	close(release)

	eventually(t, "it serves", func() bool { return eu.NotReady() == nil })
	if err := <-waiting; err != nil {
		t.Errorf("the read that waited ended with %v", err) // etcd's client tries a read again
	}
	after := eu.Mirror().Identity()
	eventually(t, "it has a session", func() bool { after = eu.Mirror().Identity(); return after.Session != 0 })
	if after.FrontendID != before.FrontendID || after.Incarnation != before.Incarnation+1 {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	if _, err := far.Put(ctx, "k", "after"); err != nil {
		t.Fatal(err)
	}
	want := int64(3)
	for answer := range watched {
		if answer.Err() != nil {
			t.Fatal(answer.Err())
		}
		for _, e := range answer.Events {
			if e.Kv.ModRevision != want {
				t.Fatalf("the watch goes on with revision %d, want %d", e.Kv.ModRevision, want)
			}
			want++
		}
		if want == 54 {
			break
		}
	}
	if gauge(t, registry, "logmirror_frontend_bootstrapping") != 0 || gauge(t, registry, "logmirror_mirror_applied_index") == 0 {
		t.Error("the metrics do not tell of the new life")
	}
}

// TestStopWhileBootstrapping: nothing waits for a checkpoint that never comes.
func TestStopWhileBootstrapping(t *testing.T) {
	c := newTestCluster(t)
	us := c.frontend("us-1", "us")
	c.log.trimmed(us)
	config := Config{Name: "eu-1", Region: "eu", DataDir: t.TempDir(), Listener: listen(t), Log: []string{c.log.address}, Logger: c.logger}
	eu, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it bootstraps", func() bool { return strings.Contains(strings.Join(eu.Degraded(), " "), "checkpoint of index") })
	began := time.Now()
	eu.Stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if err := eu.Err(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestBootstrapOfANewerState: a build that was left behind by the cluster says so and ends, and downloads nothing again and
// again.
func TestBootstrapOfANewerState(t *testing.T) {
	c := newTestCluster(t)
	m := statemachine.New(statemachine.Options{ApplyVersion: statemachine.ApplyVersion + 1})
	apply := func(kind logv1.EntryKind, session, seq uint64, payload proto.Message) {
		encoded, err := proto.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Apply(m.Index()+1, fakeTerm, kind, &logv1.Envelope{Kind: kind, LogTimeNanoseconds: 1, Session: session, Seq: seq,
			Payload: encoded}, false); err != nil {
			t.Fatal(err)
		}
	}
	apply(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, &logv1.Genesis{ClusterId: fakeClusterID})
	apply(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, 0, &logv1.OpenSession{FrontendId: 1, Incarnation: 1, ApplyVersionMax: m.Understands()})
	apply(logv1.EntryKind_ENTRY_KIND_BATCH, 2, 1, &commandv1.CommandBatch{Commands: []*commandv1.Command{{
		Operation: &commandv1.Command_RaiseApplyVersion{RaiseApplyVersion: &commandv1.RaiseApplyVersion{ApplyVersion: m.Understands()}}}}})
	var content bytes.Buffer
	source := checkpoint.Pin(m, 1)
	defer source.Release()
	if _, err := source.Write(&content); err != nil {
		t.Fatal(err)
	}
	for range m.Index() {
		c.log.append(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_TICK})
	}
	sum, held := sha256.Sum256(content.Bytes()), make(chan struct{})
	close(held)
	c.log.change(func() {
		c.log.checkpoint, c.log.held, c.log.first = content.Bytes(), held, m.Index()+1
		c.log.name = &logv1.CheckpointName{Index: m.Index(), Sha256: sum[:], SizeBytes: uint64(content.Len()), FormatVersion: checkpoint.FormatVersion}
	})
	eu, err := Start(Config{Name: "eu-1", Region: "eu", DataDir: t.TempDir(), Listener: listen(t), Log: []string{c.log.address}, Logger: c.logger})
	if err != nil {
		t.Fatal(err)
	}
	defer eu.Stop()
	eventually(t, "it ends with the reason", func() bool { return errors.Is(eu.Err(), statemachine.ErrNewer) })
}

// TestAQuarantinedFrontendComesBack: damage that a scrub finds ends a life; the next one is built from the log and serves
// what was written.
func TestAQuarantinedFrontendComesBack(t *testing.T) {
	c := newTestCluster(t)
	data := t.TempDir()
	server := c.frontend("us-1", "us", func(config *Config) {
		config.DataDir = data
		config.Mirror.ScrubInterval = 20 * time.Millisecond
		config.Mirror.Image.Interval = 10 * time.Millisecond
	})
	ctx := testContext(t)
	client := c.etcdClient(server)
	const value = "a value that is found in the file"
	if _, err := client.Put(ctx, "k", value); err != nil {
		t.Fatal(err)
	}
	first := server.Mirror()
	path := filepath.Join(data, "image")
	// The image is written copy-on-write: the value stands in pages that are free again too, and damage there is none. So
	// every place is damaged, until one counts.
	eventually(t, "another life serves", func() bool {
		if server.Mirror() != first {
			return server.NotReady() == nil
		}
		if damageEach(t, path, value) == 0 {
			// An entry, so that the image is written. An error is the end of the first life.
			_, _ = client.Put(ctx, "other", "")
		}
		return false
	})
	got, err := client.Get(ctx, "k")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value {
		t.Fatalf("after the quarantine: %v, %v", got, err)
	}
	if quarantined := (*mirror.QuarantineError)(nil); !errors.As(first.Err(), &quarantined) {
		t.Errorf("the first life ended with %v", first.Err())
	}
}

// damageEach changes the first byte of each place of a file where a text stands, and tells how many there were.
func damageEach(t *testing.T, path, text string) int {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it was set aside
		t.Fatal(err)
	}
	places := 0
	for from := 0; ; places++ {
		at := bytes.Index(content[from:], []byte(text))
		if at < 0 {
			return places
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			return places
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = file.WriteAt([]byte{text[0] ^ 1}, int64(from+at))
		if err = errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		from += at + len(text)
	}
}
