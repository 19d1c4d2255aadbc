package mirror

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// flip alters a bit of a value in a mirror's memory: of the newest version of the key or, with history, of the one before.
func (c *testCluster) flip(region, key string, history bool) {
	c.t.Helper()
	synctest.Wait() // nobody reads it at this moment
	snapshot := c.mirrors[region].Machine().Space().Acquire()
	defer snapshot.Release()
	live, ok, err := snapshot.Get([]byte(key), 0)
	if err != nil || !ok {
		c.t.Fatalf("%s in %s: %v", key, region, err)
	}
	if !history {
		live.Value[0] ^= 0x40
		return
	}
	flipped := false
	if err := snapshot.History(snapshot.CompactRevision(), 0, func(v keyspace.Version) bool {
		if string(v.Key) == key && v.ModRevision < live.ModRevision && len(v.Value) > 0 {
			v.Value[0] ^= 0x40
			flipped = true
		}
		return !flipped
	}); err != nil || !flipped {
		c.t.Fatalf("%s has no history in %s: %v", key, region, err)
	}
}

// quarantined waits for a mirror to end by itself, and returns why.
func (c *testCluster) quarantined(region string, within time.Duration) string {
	c.t.Helper()
	var quarantine *QuarantineError
	c.await(within, region+" is quarantined", func() bool { return errors.As(c.mirrors[region].Err(), &quarantine) })
	<-c.mirrors[region].Done()
	return quarantine.Reason
}

// rebuilt starts a quarantined mirror again and expects the state that all others have.
func (c *testCluster) rebuilt(region, key, value string) {
	c.t.Helper()
	m := c.start(region)
	if _, err := os.Stat(filepath.Join(c.directory, region, quarantineFile)); err == nil {
		c.t.Error("the quarantine has not ended")
	}
	if _, err := os.Stat(filepath.Join(c.directory, region, imageFile+".bad")); err != nil {
		c.t.Errorf("the image was not set aside: %v", err)
	}
	if got := get(m, key); got != value {
		c.t.Errorf("%s is %q after the rebuild, want %q", key, got, value)
	}
	time.Sleep(30 * time.Second) // a few digests
	for name, m := range c.mirrors {
		if err := m.Err(); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}
}

// A mirror whose state went wrong in a way that its checksums cannot tell, since it wrote the wrong state itself, is found
// by the digests, within the interval of digests and the time in which they are gathered.
func TestTheMinorityIsFoundByItsDigest(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		c.put("us", "k", "right")
		time.Sleep(20 * time.Second) // equal so far
		c.flip("ap", "k", false)
		c.put("us", "k", "later") // what ap takes out of its sum is not what it had put in
		reason := c.quarantined("ap", 20*time.Second)
		if !strings.Contains(reason, "1 of 3") {
			t.Errorf("reason: %s", reason)
		}
		for _, region := range []string{"us", "eu"} {
			if err := c.mirrors[region].Err(); err != nil {
				t.Errorf("%s: %v", region, err)
			}
		}
		c.rebuilt("ap", "k", "later")
	})
}

// Of two mirrors that disagree the one that is wrong finds out by itself, and the other goes on.
func TestATieIsSettled(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.start("us")
		c.start("eu")
		time.Sleep(15 * time.Second)
		c.put("us", "k", "right")
		c.flip("eu", "k", false)
		c.put("us", "k", "later")
		if reason := c.quarantined("eu", 30*time.Second); !strings.Contains(reason, "memory is damaged") {
			t.Errorf("reason: %s", reason)
		}
		time.Sleep(time.Minute)
		if err := c.mirrors["us"].Err(); err != nil {
			t.Errorf("the mirror that is right: %v", err)
		}
		c.rebuilt("eu", "k", "later")
	})
}

// A mirror whose memory agrees with its own digest may still be wrong: the log tells.
func TestATieIsSettledByTheLog(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		for i := range 30 {
			c.put("us", "k", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		tie := func(region string, alter bool) {
			m := c.mirrors[region]
			m.digests.mu.Lock()
			if alter {
				for i := range m.digests.kept {
					m.digests.kept[i].Tables ^= 1
				}
			}
			index := m.digests.kept[len(m.digests.kept)-2].Index
			m.digests.mu.Unlock()
			m.digests.Judged([]*logv1.DigestVerdict{{
				Session: m.Identity().Session, Index: index, Verdict: logv1.DigestVerdict_VERDICT_TIE, Reports: 2, Agreeing: 1,
			}})
		}
		tie("us", false)
		tie("eu", true)
		if reason := c.quarantined("eu", 30*time.Second); !strings.Contains(reason, "replayed") {
			t.Errorf("reason: %s", reason)
		}
		time.Sleep(30 * time.Second)
		if err := c.mirrors["us"].Err(); err != nil {
			t.Errorf("the mirror that is right: %v", err)
		}
		c.rebuilt("eu", "k", "29")
	})
}

// What rots where nobody looks is found within one scrub.
func TestScrubFindsWhatRots(t *testing.T) {
	for name, damage := range map[string]func(c *testCluster){
		"live value": func(c *testCluster) { c.flip("ap", "k1", false) },
		"history":    func(c *testCluster) { c.flip("ap", "k1", true) },
		"image": func(c *testCluster) {
			synctest.Wait()
			path := filepath.Join(c.directory, "ap", imageFile)
			content, err := os.ReadFile(path)
			if err != nil {
				c.t.Fatal(err)
			}
			at := strings.Index(string(content), "value-7")
			if at < 0 {
				c.t.Fatal("the value is not in the image")
			}
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				c.t.Fatal(err)
			}
			defer file.Close()
			if _, err := file.WriteAt([]byte("rotten"), int64(at)); err != nil {
				c.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *testCluster) {
				const interval = time.Minute
				c.config = func(config *Config) { config.ScrubInterval = interval }
				c.startAll()
				for i := range 20 {
					c.put("us", fmt.Sprintf("k%d", i%10), fmt.Sprintf("value-%d", i))
				}
				time.Sleep(2 * time.Minute) // a scrub that finds nothing, and the image is written
				damage(c)
				if reason := c.quarantined("ap", interval+time.Second); !strings.Contains(reason, "damaged") {
					t.Errorf("reason: %s", reason)
				}
				c.rebuilt("ap", "k1", "value-11")
			})
		})
	}
}

// What a checkpoint is made of is looked at on the way: a mirror that finds damage there ends at once, the checkpoint with
// it, and does not wait for the next scrub.
func TestACheckpointFindsWhatRots(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us")
		m := l.ready("us")
		l.put(m, 20)
		c := testCluster{t: t, mirrors: map[string]*Mirror{"us": m}}
		session, _, _ := m.SessionHolder()
		var key string
		snapshot := m.Machine().Space().Acquire()
		if err := snapshot.Range(nil, nil, 0, func(v keyspace.Version) bool { key = string(v.Key); return len(v.Value) == 0 }); err != nil {
			t.Fatal(err)
		}
		snapshot.Release()
		c.flip("us", key, false)
		l.request(1, session)
		if reason := c.quarantined("us", 10*time.Second); !strings.Contains(reason, "memory is damaged") {
			t.Errorf("reason: %s", reason)
		}
		l.with(func() {
			if name := l.reports[session]; name != nil {
				t.Errorf("reported %v", name)
			}
		})
	})
}

// A mirror that is right in a tie says so once and then rests, however often the tie is told: a replay is the whole state.
func TestATieIsNotLookedIntoAllTheTime(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		c.startAll()
		m := c.mirrors["us"]
		for range 30 {
			c.put("us", "k", "v")
			time.Sleep(time.Second)
		}
		tie := func() {
			m.digests.mu.Lock()
			index := m.digests.kept[len(m.digests.kept)-1].Index
			m.digests.mu.Unlock()
			m.digests.Judged([]*logv1.DigestVerdict{{
				Session: m.Identity().Session, Index: index, Verdict: logv1.DigestVerdict_VERDICT_TIE, Reports: 2, Agreeing: 1,
			}})
			synctest.Wait()
		}
		tieAgain := func() time.Duration {
			m.digests.mu.Lock()
			defer m.digests.mu.Unlock()
			return m.digests.tieAgain
		}
		tie()
		c.await(time.Minute, "the tie is settled", func() bool { return tieAgain() > 0 })
		again := tieAgain()
		for range 5 {
			time.Sleep(5 * time.Second)
			tie()
		}
		if tieAgain() != again {
			t.Error("the same tie was looked into again at once")
		}
		time.Sleep(2 * tieRest)
		tie()
		c.await(time.Minute, "a later tie is settled", func() bool { return tieAgain() > again })
		if err := m.Err(); err != nil {
			t.Error(err)
		}
	})
}

// otherBuild is a frontend of another build, as far as digests go: it reports at each index at which they are due.
type otherBuild struct {
	client   *logclient.Client
	reporter *logclient.Reporter
	session  uint64
	report   logv1.DigestReport

	mu       sync.Mutex
	verdicts []*logv1.DigestVerdict
}

func (*otherBuild) ReportUp()                       {}
func (*otherBuild) Reported([]*logv1.AppliedReport) {}
func (o *otherBuild) Judged(verdicts []*logv1.DigestVerdict) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.verdicts = append(o.verdicts, verdicts...)
}

func (o *otherBuild) told() []*logv1.DigestVerdict {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.verdicts
}

// Applied implements Observer, of a mirror that says when digests are due.
func (o *otherBuild) Applied(a *statemachine.Applied) {
	if a.DigestDue {
		report := proto.CloneOf(&o.report)
		report.Session, report.Index = o.session, a.Index
		o.reporter.SendDigest(report)
	}
}

func (c *testCluster) otherBuild(region string, session uint64, applyVersion, digestVersion uint32, digest string) *otherBuild {
	c.t.Helper()
	o := &otherBuild{session: session}
	o.report.ApplyVersion, o.report.DigestVersion, o.report.Digest = applyVersion, digestVersion, []byte(digest)
	config := logclient.Config{Name: "other", Region: region, FrontendID: session, Dial: c.net.Region(region).Dial}
	for _, r := range testRegions {
		config.Members = append(config.Members, r+":1")
	}
	var err error
	if o.client, err = logclient.Open(config); err != nil {
		c.t.Fatal(err)
	}
	o.reporter = o.client.Reporter(o)
	o.reporter.Listen(session)
	return o
}

// While a cluster is upgraded, builds that make digests in another way, or apply in another version, are compared with
// their like only: nobody is quarantined, although each would be the minority or in a tie among all. One that reports
// another digest of the same versions is told, so the reports do arrive.
func TestBuildsOfOtherVersionsRaiseNoAlarm(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		const digests, applies = statemachine.DigestVersion, statemachine.ApplyVersion
		others := []*otherBuild{
			c.otherBuild("us", 1_000_001, applies, digests+1, "of another way"),
			c.otherBuild("eu", 1_000_002, applies, digests+1, "of another way"),
			c.otherBuild("ap", 1_000_003, applies, digests+1, "of another way"),
			c.otherBuild("eu", 1_000_004, applies+1, digests, "of later rules"),
			c.otherBuild("ap", 1_000_005, applies+1, digests, "of later rules"),
		}
		wrong := c.otherBuild("ap", 1_000_006, applies, digests, "wrong")
		alarmed := func() (alarms []string) {
			for _, member := range c.mirrors["us"].LogStatus(t.Context()) {
				alarms = append(alarms, member.Status.GetAlarms()...)
			}
			return alarms
		}
		var wrongToo atomic.Bool
		c.config = func(config *Config) {
			if config.Region != "us" {
				return
			}
			config.NewObservers = func(*statemachine.Machine, *Mirror) []Observer {
				observers := []Observer{observer{c}, observerFunc(func(a *statemachine.Applied) {
					if wrongToo.Load() {
						wrong.Applied(a)
					}
				})}
				for _, o := range others {
					observers = append(observers, o)
				}
				return observers
			}
		}
		defer func() {
			for _, o := range append(others, wrong) {
				o.reporter.Close()
				o.client.Close()
			}
		}()
		c.startAll()
		rounds := func() {
			for i := range 30 {
				c.put(testRegions[i%3], "k", fmt.Sprint(i))
				time.Sleep(time.Second)
			}
		}
		fine := func() {
			t.Helper()
			for region, m := range c.mirrors {
				if err := m.Err(); err != nil {
					t.Errorf("%s: %v", region, err)
				}
			}
			for _, o := range others {
				if told := o.told(); len(told) > 0 {
					t.Errorf("session %d: %v", o.session, told)
				}
			}
		}
		rounds()
		fine()
		if alarms := alarmed(); len(alarms) > 0 {
			t.Errorf("alarms: %v", alarms)
		}
		wrongToo.Store(true)
		rounds()
		fine()
		told := wrong.told()
		if len(told) == 0 {
			t.Fatal("a mirror with another digest of the same versions was told nothing")
		}
		if v := told[0]; v.GetVerdict() != logv1.DigestVerdict_VERDICT_MINORITY || v.GetReports() != 4 || v.GetAgreeing() != 1 {
			t.Errorf("verdict %v", v)
		}
		if alarms := alarmed(); len(alarms) == 0 {
			t.Error("no alarm says so")
		}
	})
}

type observerFunc func(*statemachine.Applied)

func (f observerFunc) Applied(a *statemachine.Applied) { f(a) }
