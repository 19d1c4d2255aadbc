package mirror

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/logmirror/logmirror/statemachine"
)

// counter counts what a mirror applies.
type counter struct{ entries atomic.Int64 }

func (c *counter) Applied(*statemachine.Applied) { c.entries.Add(1) }

// digest is the canonical export of the tables, and the keys.
func digest(t *testing.T, m *statemachine.Machine) string {
	var ids []int64
	for _, l := range m.Leases() {
		ids = append(ids, l.ID)
	}
	x := m.Export(0, ids)
	state, err := x.State()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %+v", state, m.Space().Stats().LogicalBytes)
}

func TestRestartFromTheImage(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster) {
		var count *counter
		c.config = func(config *Config) {
			before := config.NewObservers
			config.NewObservers = func(machine *statemachine.Machine, m *Mirror) []Observer {
				return append(before(machine, m), count)
			}
		}
		count = &counter{}
		c.start("us")
		count = &counter{}
		c.start("eu")
		const puts = 300
		for i := range puts {
			c.put("eu", fmt.Sprintf("key-%d", i%50), fmt.Sprint(i))
		}
		restart := func(what string, end func(*Mirror), most int64) {
			t.Helper()
			end(c.mirrors["eu"])
			c.put("us", what, "while it was down")
			count = &counter{}
			m := c.start("eu")
			if got := get(m, what); got != "while it was down" {
				t.Errorf("%s: lost what was written meanwhile: %q", what, got)
			}
			if got := get(m, "key-49"); got != fmt.Sprint(puts-1) {
				t.Errorf("%s: key-49 is %q", what, got)
			}
			us := c.mirrors["us"]
			c.await(10*time.Second, "both at one index", func() bool { return us.AppliedIndex() == m.AppliedIndex() })
			if a, b := digest(t, us.Machine()), digest(t, m.Machine()); a != b {
				t.Errorf("%s: the states differ:\n%s\n%s", what, a, b)
			}
			if n := count.entries.Load(); n > most {
				t.Errorf("%s: %d entries were applied, at most %d were to come", what, n, most)
			}
		}
		image := filepath.Join(c.directory, "eu", imageFile)
		// A stop commits everything: what comes is the put, the Open, and what ticks.
		restart("after a stop", (*Mirror).Stop, 12)
		// A crash leaves what was applied since the last commit.
		for i := range 50 {
			c.put("eu", "more", fmt.Sprint(i))
			time.Sleep(100 * time.Millisecond)
		}
		restart("after a crash", (*Mirror).Kill, 40)
		for _, damage := range []struct {
			name string
			do   func() error
		}{
			{"missing", func() error { return os.Remove(image) }},
			{"cut short", func() error { return os.Truncate(image, 10000) }},
			{"not an image", func() error { return os.WriteFile(image, make([]byte, 1<<16), 0o600) }},
		} {
			restart(damage.name, func(m *Mirror) {
				m.Stop()
				if err := damage.do(); err != nil {
					t.Fatal(err)
				}
			}, 1<<30)
			if n := count.entries.Load(); n < puts {
				t.Errorf("%s: only %d entries were applied", damage.name, n)
			}
		}
		restart("after the rebuild", (*Mirror).Stop, 12)
	})
}
