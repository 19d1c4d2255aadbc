package mirror

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/machinetest"
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

// TestImageComesBack: a disk that takes no more makes the mirror go on without its image. With room again the image comes back
// by itself, and a restart reads next to nothing of the log.
func TestImageComesBack(t *testing.T) {
	limit := machinetest.LimitFileSize(t)
	if limit == nil {
		return
	}
	bubble(t, func(t *testing.T, c *testCluster) {
		count, registry := &counter{}, prometheus.NewRegistry()
		c.config = func(config *Config) {
			observers := config.NewObservers
			config.NewObservers = func(machine *statemachine.Machine, m *Mirror) []Observer {
				return append(observers(machine, m), count)
			}
			config.Registerer = registry
		}
		m := c.start("eu")
		c.put("eu", "key", "before")
		limit(16 << 10)
		defer limit(0)
		puts := 0
		c.await(time.Minute, "the image is abandoned", func() bool {
			puts++
			c.put("eu", fmt.Sprintf("key-%d", puts%50), strings.Repeat("x", 1000))
			return m.image.Abandoned()
		})
		for range 300 {
			puts++
			c.put("eu", fmt.Sprintf("key-%d", puts%50), fmt.Sprint(puts))
		}
		if got := gathered(t, registry, "logmirror_mirror_image_abandoned", ""); got != 1 {
			t.Errorf("logmirror_mirror_image_abandoned is %v", got)
		}
		c.await(time.Minute, "an attempt has failed", func() bool {
			return gathered(t, registry, "logmirror_mirror_image_rebuilds_total", "failed") > 0
		})
		limit(0)
		c.await(time.Hour, "the image is back", func() bool { return !m.image.Abandoned() })
		if got := gathered(t, registry, "logmirror_mirror_image_rebuilds_total", "done"); got != 1 {
			t.Errorf("%v images were made", got)
		}
		index := m.AppliedIndex()
		m.Kill()
		count, registry = &counter{}, prometheus.NewRegistry()
		m = c.start("eu")
		c.await(time.Minute, "what was applied", func() bool { return m.AppliedIndex() >= index })
		if n := count.entries.Load(); n > 20 || n >= int64(puts) {
			t.Errorf("%d entries were applied again", n)
		}
		if got := get(m, fmt.Sprintf("key-%d", puts%50)); got != fmt.Sprint(puts) {
			t.Errorf("the last put gives %q", got)
		}
		registry = prometheus.NewRegistry()
		us := c.start("us") // from the whole log
		c.await(time.Minute, "both at one index", func() bool { return us.AppliedIndex() == m.AppliedIndex() })
		if a, b := digest(t, us.Machine()), digest(t, m.Machine()); a != b {
			t.Errorf("the states differ:\n%s\n%s", a, b)
		}
	})
}

// gathered is the value of a metric, of the series with the given outcome where there are several.
func gathered(t *testing.T, registry *prometheus.Registry, name, outcome string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, series := range family.GetMetric() {
			if family.GetName() == name && (outcome == "" || series.GetLabel()[0].GetValue() == outcome) {
				return series.GetGauge().GetValue() + series.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no %s of outcome %q", name, outcome)
	return 0
}
