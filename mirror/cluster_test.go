package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/statemachine"
)

var testRoundTrips = map[wan.Pair]time.Duration{
	{A: "us", B: "eu"}: 80 * time.Millisecond,
	{A: "us", B: "ap"}: 150 * time.Millisecond,
	{A: "eu", B: "ap"}: 100 * time.Millisecond,
}

var testRegions = []string{"us", "eu", "ap"}

// testCluster is a real log with a member per region, and mirrors, in virtual time.
type testCluster struct {
	t         *testing.T
	net       *wan.Network
	members   map[string]*logservice.Server
	disks     map[string]*disk.Memory
	directory string
	mirrors   map[string]*Mirror
	config    func(*Config)

	mu       sync.Mutex
	observed map[uint64]string
}

// bubble runs a test on a cluster whose leader is in us, and ends everything.
func bubble(t *testing.T, test func(t *testing.T, c *testCluster)) {
	directory := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := &testCluster{
			t: t, net: wan.New(wan.Options{InMemory: true, RoundTrips: testRoundTrips}),
			members: map[string]*logservice.Server{}, disks: map[string]*disk.Memory{}, directory: directory,
			mirrors: map[string]*Mirror{}, observed: map[uint64]string{},
		}
		defer func() {
			for _, m := range c.mirrors {
				m.Stop()
			}
			for _, s := range c.members {
				s.Kill()
			}
			c.net.Close()
			time.Sleep(10 * time.Second)
		}()
		for i, region := range testRegions {
			c.disks[region] = disk.NewMemory(uint64(i + 1))
		}
		for _, region := range testRegions {
			c.startMember(region)
		}
		test(t, c)
	})
}

func testLogger() *slog.Logger {
	if os.Getenv("LOGMIRROR_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (c *testCluster) startMember(region string) {
	c.t.Helper()
	listener, err := c.net.Region(region).Listen(region + ":1")
	if err != nil {
		c.t.Fatal(err)
	}
	config := logservice.Config{
		Name: region, Region: region, DataDir: "/" + region, Listener: listener,
		Dial: c.net.Region(region).Dial, FS: c.disks[region], SegmentBytes: 1 << 20,
		LeaderPolicy: logservice.LeaderPolicy{Region: "us"},
	}
	for _, r := range testRegions {
		config.InitialCluster = append(config.InitialCluster, logservice.InitialMember{Name: r, Region: r, Address: r + ":1"})
	}
	server, err := logservice.Start(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.members[region] = server
}

func (c *testCluster) killMember(region string) {
	c.members[region].Kill()
	delete(c.members, region)
}

// observer checks that every mirror applies the same.
type observer struct{ c *testCluster }

func (o observer) Applied(a *statemachine.Applied) {
	text := fmt.Sprintf("term %d kind %v session %d seq %d skipped %v revision %d", a.Term, a.Kind, a.Session, a.Seq, a.Skipped, a.Revision)
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if before, ok := o.c.observed[a.Index]; ok && before != text {
		o.c.t.Errorf("index %d: %s and %s", a.Index, before, text)
	}
	o.c.observed[a.Index] = text
}

func (c *testCluster) tryStart(region string) (*Mirror, error) {
	config := Config{
		Name: region + "-1", Region: region, DataDir: filepath.Join(c.directory, region),
		Log:          logclient.Config{Dial: c.net.Region(region).Dial},
		Clock:        func() time.Duration { return time.Duration(time.Now().UnixNano()) },
		NewObservers: func(*statemachine.Machine, *Mirror) []Observer { return []Observer{observer{c}} },
		Logger:       testLogger(),
	}
	for _, r := range testRegions {
		config.Log.Members = append(config.Log.Members, r+":1")
	}
	if c.config != nil {
		c.config(&config)
	}
	m, err := Start(config)
	if err == nil {
		c.mirrors[region] = m
	}
	return m, err
}

// start starts the mirror of a region and waits until it is ready and has a session.
func (c *testCluster) start(region string) *Mirror {
	c.t.Helper()
	m, err := c.tryStart(region)
	if err != nil {
		c.t.Fatal(err)
	}
	c.await(10*time.Second, region+" ready", func() bool {
		_, _, ok := m.SessionHolder()
		_, known := m.Age()
		return ok && known
	})
	return m
}

func (c *testCluster) startAll() {
	c.t.Helper()
	for _, region := range testRegions {
		c.start(region)
	}
	// Leadership moves to where it is preferred, and probes settle.
	time.Sleep(15 * time.Second)
}

// await waits in virtual time.
func (c *testCluster) await(limit time.Duration, what string, condition func() bool) {
	c.t.Helper()
	for began := time.Now(); !condition(); time.Sleep(time.Millisecond) {
		if time.Since(began) > limit {
			for region, m := range c.mirrors {
				c.t.Logf("%s: %v, %v, err %v", region, m.Identity(), m.Health(), m.Err())
			}
			c.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func put(key, value string) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_Put{Put: &commandv1.Put{Key: []byte(key), Value: []byte(value)}}}
}

func (c *testCluster) put(region, key, value string) statemachine.Result {
	c.t.Helper()
	result, err := c.mirrors[region].Propose(c.t.Context(), put(key, value), ProposeOptions{WaitForLog: true})
	if err != nil {
		c.t.Fatalf("put of %s in %s: %v", key, region, err)
	}
	if result.Err != nil {
		c.t.Fatalf("put of %s in %s: %v", key, region, result.Err)
	}
	return result
}

func get(m *Mirror, key string) string {
	snapshot := m.Machine().Space().Acquire()
	defer snapshot.Release()
	version, ok, err := snapshot.Get([]byte(key), 0)
	if err != nil || !ok {
		return ""
	}
	return string(version.Value)
}

// What a caller in each region waits for, to the microsecond: one round trip of a put to the leader in us, and of a
// linearizable read to the nearest majority's or the leader's answer; nothing is added here.
func TestRoundTripsOfWritesAndReads(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		wantPut := map[string]time.Duration{"us": 80 * time.Millisecond, "eu": 80 * time.Millisecond, "ap": 150 * time.Millisecond}
		wantRead := map[string]time.Duration{"us": 80 * time.Millisecond, "eu": 80 * time.Millisecond, "ap": 100 * time.Millisecond}
		for _, region := range testRegions {
			began := time.Now()
			c.put(region, "key", region)
			put := time.Since(began)
			if got := get(c.mirrors[region], "key"); got != region {
				t.Errorf("%s reads %q after its own put", region, got)
			}
			began = time.Now()
			if _, err := c.mirrors[region].Linearize(t.Context()); err != nil {
				t.Fatal(err)
			}
			if read := time.Since(began); put > wantPut[region] || read > wantRead[region] {
				t.Errorf("%s: put %v, linearize %v; want at most %v and %v", region, put, read, wantPut[region], wantRead[region])
			}
			for _, other := range testRegions {
				if _, err := c.mirrors[other].Linearize(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := get(c.mirrors[other], "key"); got != region {
					t.Errorf("%s reads %q after a read round, want %q", other, got, region)
				}
			}
		}
		for region, m := range c.mirrors {
			if age, ok := m.Age(); !ok || age > 2*time.Second {
				t.Errorf("%s: age %v, %v", region, age, ok)
			}
			if health := m.Health(); len(health) != 0 {
				t.Errorf("%s: %v", region, health)
			}
		}
	})
}

// Reads that wait at one moment share a round, and cost one round trip together.
func TestLinearizableReadsShareRounds(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.start("eu")
		time.Sleep(15 * time.Second)
		m := c.mirrors["eu"]
		var group sync.WaitGroup
		began := time.Now()
		for range 500 {
			group.Go(func() {
				if _, err := m.Linearize(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		// Of the first that starts a round alone, the others wait for the spacing at most.
		if took := time.Since(began); took > 80*time.Millisecond+m.config.ReadRoundSpacing {
			t.Errorf("500 reads took %v", took)
		}
	})
}

// Puts that wait at one moment share batches: with one in flight, the rest is held for a few milliseconds at most.
func TestConcurrentPutsShareBatches(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.start("eu")
		time.Sleep(15 * time.Second)
		m := c.mirrors["eu"]
		before := m.AppliedIndex()
		var group sync.WaitGroup
		began := time.Now()
		for i := range 500 {
			group.Go(func() { c.put("eu", fmt.Sprint(i), "x") })
		}
		group.Wait()
		if took := time.Since(began); took > 80*time.Millisecond+m.config.BatchHold {
			t.Errorf("500 puts took %v", took)
		}
		if entries := m.AppliedIndex() - before; entries > 3 {
			t.Errorf("500 puts made %d entries", entries)
		}
	})
}

// A session outlives idleness, and a restart opens the next incarnation at once.
func TestRestartOpensTheNextIncarnation(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		before := c.mirrors["eu"].Identity()
		time.Sleep(time.Minute)
		c.put("eu", "a", "1")
		if now := c.mirrors["eu"].Identity(); now.Session != before.Session {
			t.Fatalf("session %d became %d in an idle minute", before.Session, now.Session)
		}
		c.mirrors["eu"].Kill()
		if _, err := c.mirrors["eu"].Propose(t.Context(), put("a", "2"), ProposeOptions{}); !errors.Is(err, ErrStopped) {
			t.Fatalf("Propose of a killed mirror: %v", err)
		}
		after := c.start("eu").Identity()
		if after.Incarnation != before.Incarnation+1 || after.FrontendID != before.FrontendID || after.Session == before.Session {
			t.Fatalf("%+v came back as %+v", before, after)
		}
		if got := get(c.mirrors["eu"], "a"); got != "1" {
			t.Fatalf("after the restart a is %q", got)
		}
	})
}

// Every acknowledged put is there and none twice, while the leader is killed under load and members come back.
func TestLeaderLossUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		const writers, each = 8, 40
		var group sync.WaitGroup
		for _, region := range testRegions {
			for w := range writers {
				group.Go(func() {
					for i := range each {
						result := c.put(region, fmt.Sprintf("%s-%d-%d", region, w, i), "x")
						if result.Put == nil {
							t.Errorf("no result")
						}
					}
				})
			}
		}
		time.Sleep(time.Second)
		c.killMember("us")
		time.Sleep(5 * time.Second)
		c.startMember("us")
		group.Wait()
		total := int64(len(testRegions) * writers * each)
		for region, m := range c.mirrors {
			if _, err := m.Linearize(t.Context()); err != nil {
				t.Fatal(err)
			}
			snapshot := m.Machine().Space().Acquire()
			// The first revision of a key space is 1; each put makes one.
			if got := snapshot.Revision() - 1; got != total {
				t.Errorf("%s: %d revisions for %d puts", region, got, total)
			}
			snapshot.Release()
		}
	})
}

// Without the log, commands that do not want to wait fail as not applied, reads tell their age, and all resumes.
func TestLogAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		c.put("ap", "a", "1")
		for _, region := range testRegions {
			c.killMember(region)
		}
		m := c.mirrors["ap"]
		time.Sleep(m.config.FailFastAfter + time.Second)
		began := time.Now()
		_, err := m.Propose(t.Context(), put("a", "2"), ProposeOptions{})
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrNotApplied) || time.Since(began) != 0 {
			t.Errorf("Propose without a log: %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err = m.Propose(ctx, put("a", "3"), ProposeOptions{WaitForLog: true})
		cancel()
		if !errors.Is(err, ErrNotApplied) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Propose that waits a second: %v", err)
		}
		if _, err = m.Linearize(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Linearize without a log: %v", err)
		}
		if age, ok := m.Age(); !ok || age < 3*time.Second {
			t.Errorf("age %v, %v", age, ok)
		}
		if get(m, "a") != "1" || len(m.Health()) == 0 {
			t.Errorf("a is %q, health %v", get(m, "a"), m.Health())
		}
		done := make(chan error, 1)
		go func() {
			_, err := m.Propose(t.Context(), put("a", "4"), ProposeOptions{WaitForLog: true})
			done <- err
		}()
		time.Sleep(30 * time.Second)
		for _, region := range testRegions {
			c.startMember(region)
		}
		if err := <-done; err != nil {
			t.Errorf("Propose that waits for the log: %v", err)
		}
		if _, err := m.Linearize(t.Context()); err != nil || get(m, "a") != "4" {
			t.Errorf("after the outage a is %q, %v", get(m, "a"), err)
		}
		c.await(10*time.Second, "health", func() bool { return len(m.Health()) == 0 })
	})
}

// A region that is cut off loses its session; what it had in flight is unknown or not applied, never both, and it
// writes again once healed.
func TestCutOffRegion(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		m := c.mirrors["ap"]
		session := m.Identity().Session
		c.net.Isolate("ap")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := m.Propose(ctx, put("lost", "1"), ProposeOptions{WaitForLog: true})
		cancel()
		if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotApplied) {
			t.Errorf("Propose of a cut-off region: %v", err)
		}
		waited := make(chan error, 1)
		go func() {
			_, err := m.Propose(t.Context(), put("late", "1"), ProposeOptions{WaitForLog: true})
			waited <- err
		}()
		time.Sleep(30 * time.Second)
		if _, until, ok := m.SessionHolder(); ok && until > m.config.Clock() {
			t.Errorf("still holder of %d after 30 s", session)
		}
		c.put("us", "other", "1")
		c.net.HealAll()
		if err := <-waited; err != nil {
			t.Errorf("Propose that waits for the link: %v", err)
		}
		if now := m.Identity().Session; now == session || now == 0 {
			t.Errorf("session is %d, was %d", now, session)
		}
		if _, err := c.mirrors["us"].Linearize(t.Context()); err != nil || get(c.mirrors["us"], "late") != "1" {
			t.Errorf("us reads %q, %v", get(c.mirrors["us"], "late"), err)
		}
	})
}

// While the log is away readers are told at once; a region whose round trips are longer than that moment finds the log again
// all the same.
func TestFarRegionFindsTheLogAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.net.SetRoundTrip("us", "ap", 600*time.Millisecond)
		c.net.SetRoundTrip("eu", "ap", 600*time.Millisecond)
		c.startAll()
		m := c.mirrors["ap"]
		c.net.Isolate("ap")
		time.Sleep(10 * time.Second)
		began := time.Now()
		if _, err := m.Linearize(t.Context()); !errors.Is(err, ErrUnavailable) || time.Since(began) > time.Second {
			t.Errorf("Linearize of a cut-off region: %v after %v", err, time.Since(began))
		}
		c.net.HealAll()
		healed := time.Now()
		for {
			if _, err := m.Linearize(t.Context()); err == nil {
				break
			} else if time.Since(healed) > 15*time.Second {
				t.Fatalf("15 s after it was healed: %v", err)
			}
		}
		// Readers who come all the time do not keep it from being found.
		began = time.Now()
		if _, err := m.Linearize(t.Context()); err != nil {
			t.Errorf("Linearize: %v after %v", err, time.Since(began))
		}
	})
}

// What can never work says so.
func TestWrongDirectories(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.start("us")
		if _, err := c.tryStart("us"); !errors.Is(err, ErrDirectoryInUse) {
			t.Errorf("second process on one directory: %v", err)
		}
		first := c.mirrors["us"]
		first.Stop()
		c.config = func(config *Config) { config.Name = "another" }
		if _, err := c.tryStart("us"); !errors.Is(err, ErrOtherFrontend) {
			t.Errorf("another frontend's directory: %v", err)
		}
		c.config = nil
		// The directory of another cluster.
		directory, err := openDataDirectory(filepath.Join(c.directory, "us"), "us-1")
		if err != nil {
			t.Fatal(err)
		}
		record := directory.record
		record.ClusterID++
		if err := directory.write(record); err != nil {
			t.Fatal(err)
		}
		directory.close()
		m, err := c.tryStart("us")
		if err != nil {
			t.Fatal(err)
		}
		<-m.Done()
		if !errors.Is(m.Err(), logclient.ErrOtherLog) {
			t.Errorf("another cluster's log: %v", m.Err())
		}
		// An old copy of the directory.
		directory, err = openDataDirectory(filepath.Join(c.directory, "us"), "us-1")
		if err != nil {
			t.Fatal(err)
		}
		record.ClusterID--
		record.Incarnation = 0
		if err := directory.write(record); err != nil {
			t.Fatal(err)
		}
		directory.close()
		m, err = c.tryStart("us")
		if err != nil {
			t.Fatal(err)
		}
		<-m.Done()
		if !errors.Is(m.Err(), ErrIncarnationTaken) {
			t.Errorf("old copy of a directory: %v", m.Err())
		}
	})
}
