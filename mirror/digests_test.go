package mirror

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
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
