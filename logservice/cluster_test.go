package logservice

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/internal/wan"
)

// roundTrips are the distances that all tests of this package use.
var roundTrips = map[wan.Pair]time.Duration{
	{A: "us", B: "eu"}: 80 * time.Millisecond,
	{A: "us", B: "ap"}: 150 * time.Millisecond,
	{A: "eu", B: "ap"}: 100 * time.Millisecond,
	{A: "us", B: "sa"}: 120 * time.Millisecond,
	{A: "eu", B: "sa"}: 190 * time.Millisecond,
	{A: "ap", B: "sa"}: 260 * time.Millisecond,
	{A: "us", B: "af"}: 220 * time.Millisecond,
	{A: "eu", B: "af"}: 140 * time.Millisecond,
	{A: "ap", B: "af"}: 240 * time.Millisecond,
	{A: "sa", B: "af"}: 300 * time.Millisecond,
}

// testCluster is a log with one member per region, in virtual time.
type testCluster struct {
	t       *testing.T
	net     *wan.Network
	regions []string
	config  func(region string, c *Config)
	servers map[string]*Server
	disks   map[string]*disk.Memory

	mu    sync.Mutex
	conns []*grpc.ClientConn
	// agreed is the one entry that was published at each index, by whichever member first.
	agreed map[uint64]agreedEntry
	// highest is the highest index that any tail has seen.
	highest uint64
}

// agreedEntry is what makes an entry.
type agreedEntry struct {
	term     uint64
	kind     logv1.EntryKind
	envelope string
}

func (e agreedEntry) String() string { return fmt.Sprintf("term %d %v %x", e.term, e.kind, e.envelope) }

func logger(t *testing.T) *slog.Logger {
	if os.Getenv("LOGMIRROR_TEST_LOG") == "" {
		return nil
	}
	level := slog.LevelInfo
	if os.Getenv("LOGMIRROR_TEST_LOG") == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// bubble runs a test with a cluster of us, eu and ap in virtual time, and checks the cluster at its end.
func bubble(t *testing.T, config func(region string, c *Config), test func(t *testing.T, c *testCluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &testCluster{t: t, net: wan.New(wan.Options{InMemory: true, RoundTrips: roundTrips}),
			regions: []string{"us", "eu", "ap"}, config: config,
			servers: map[string]*Server{}, disks: map[string]*disk.Memory{}, agreed: map[uint64]agreedEntry{}}
		for i, region := range c.regions {
			c.disks[region] = disk.NewMemory(uint64(i))
		}
		defer func() {
			c.mu.Lock()
			conns := c.conns
			c.mu.Unlock()
			for _, conn := range conns {
				conn.Close()
			}
			for _, s := range c.servers {
				s.Kill()
			}
			c.net.Close()
			time.Sleep(10 * time.Second) // whoever still waits for something ends
		}()
		for _, region := range c.regions {
			c.start(region)
		}
		test(t, c)
	})
}

// start starts a member on what it left on its disk.
func (c *testCluster) start(region string) *Server {
	c.t.Helper()
	s, err := c.tryStart(region)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *testCluster) tryStart(region string) (*Server, error) {
	config := c.memberConfig(region, region)
	for _, r := range c.regions {
		config.InitialCluster = append(config.InitialCluster, InitialMember{Name: r, Address: r + ":1"})
	}
	var err error
	if config.Listener, err = c.net.Region(region).Listen(region + ":1"); err != nil {
		return nil, err
	}
	if c.config != nil {
		c.config(region, &config)
	}
	s, err := Start(config)
	if err == nil {
		c.servers[region] = s
	}
	return s, err
}

func (c *testCluster) memberConfig(name, region string) Config {
	if c.disks[name] == nil {
		c.disks[name] = disk.NewMemory(uint64(len(c.disks)))
	}
	return Config{Name: name, Region: region, DataDir: "/" + name, Dial: c.net.Region(region).Dial, FS: c.disks[name],
		SegmentBytes: 64 << 10, Logger: logger(c.t)}
}

// kill cuts a member's power: what it did not sync may be lost.
func (c *testCluster) kill(region string) {
	c.disks[region].Crash()
	c.servers[region].Kill()
	c.disks[region].Restart()
	delete(c.servers, region)
}

// stall lets no sync of a member's disk return until the returned function is called.
func (c *testCluster) stall(region string) (resume func()) {
	release := make(chan struct{})
	c.disks[region].SetHook(func(o disk.Operation) error {
		if o.Kind == disk.OpSync {
			<-release
		}
		return nil
	})
	return func() { c.disks[region].SetHook(nil); close(release) }
}

// client connects to the member of a region from the region itself.
func (c *testCluster) client(region string) logv1.LogServiceClient {
	conn, err := grpc.NewClient("passthrough:///"+region+":1", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return c.net.Region(region).Dial(ctx, address)
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	return logv1.NewLogServiceClient(conn)
}

// until waits in virtual time for a condition, and tells to a hundredth how long it took: asking costs more than waiting.
func (c *testCluster) until(limit time.Duration, what string, condition func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	for !condition() {
		if time.Since(began) > limit {
			c.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(time.Millisecond + time.Since(began)/100)
	}
	return time.Since(began)
}

// leader is the region that a majority of the running members takes for the leader's, and that agrees.
func (c *testCluster) leader() string {
	counts := map[uint64]int{}
	for _, s := range c.servers {
		counts[s.Status().LeaderId]++
	}
	for region, s := range c.servers {
		if counts[s.id] > len(c.regions)/2 && s.Status().LeaderId == s.id {
			return region
		}
	}
	return ""
}

// lead moves leadership to a region, once there is a leader and all are connected.
func (c *testCluster) lead(region string) {
	c.t.Helper()
	c.until(5*time.Second, "a first leader", func() bool {
		return c.leader() != "" && c.servers[region].Status().LeaderId != 0
	})
	c.until(5*time.Second, "connections", func() bool {
		for _, s := range c.servers {
			for _, other := range c.servers {
				if other != s && !s.transport.Health(other.id).Connected {
					return false
				}
			}
		}
		return true
	})
	for attempt := 0; c.leader() != region && attempt < 3; attempt++ {
		ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Second)
		if _, err := c.servers[region].transfer(ctx, c.servers[region].id); err != nil {
			c.t.Logf("transfer: %v", err)
		}
		cancel()
	}
	c.until(5*time.Second, "leader in "+region, func() bool { return c.leader() == region })
	time.Sleep(time.Second)
}

// tail reads the tail of a region's member from an index on until the context ends, and checks that all tails of the
// cluster ever see the same. each gets every entry; false ends it.
func (c *testCluster) tail(ctx context.Context, region string, from, previousTerm uint64, each func(*logv1.Entry) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.client(region).Tail(ctx, &logv1.TailRequest{Handshake: &logv1.Handshake{}, FromIndex: from, PreviousTerm: previousTerm})
	if err != nil {
		return err
	}
	for next := from; ; {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, e := range response.Entries {
			if e.Index != next {
				c.t.Errorf("tail of %s: index %d follows %d", region, e.Index, next-1)
			}
			next++
			c.check(region, e)
			if !each(e) {
				return nil
			}
		}
	}
}

// check holds an entry that a tail has seen against what others have seen.
func (c *testCluster) check(region string, e *logv1.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := agreedEntry{e.Term, e.Kind, string(e.Envelope)}
	if known, ok := c.agreed[e.Index]; ok && known != entry {
		c.t.Errorf("tail of %s: entry %d is %v and was %v", region, e.Index, entry, known)
	}
	c.agreed[e.Index] = entry
	c.highest = max(c.highest, e.Index)
}

// appender is one frontend's stream to a member.
type appender struct {
	stream logv1.LogService_AppendClient
	cancel context.CancelFunc
	mu     sync.Mutex
	got    []*logv1.AppendRejection
}

func (c *testCluster) appender(ctx context.Context, region string) *appender {
	c.t.Helper()
	stream, err := c.client(region).Append(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := stream.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{Name: "test-" + region}}); err != nil {
		c.t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if first.GetHandshake().GetName() != region {
		c.t.Fatalf("handshake %v", first)
	}
	a := &appender{stream: stream}
	go func() {
		for {
			response, err := stream.Recv()
			if err != nil {
				return
			}
			a.mu.Lock()
			a.got = append(a.got, response.Rejections...)
			a.mu.Unlock()
		}
	}()
	return a
}

func (a *appender) rejections() []*logv1.AppendRejection {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got
}

func (a *appender) batch(session, seq uint64, payload string) {
	_ = a.stream.Send(&logv1.AppendRequest{Proposals: []*logv1.Proposal{{Kind: logv1.EntryKind_ENTRY_KIND_BATCH,
		Session: session, Seq: seq, Payload: []byte(payload)}}})
}
