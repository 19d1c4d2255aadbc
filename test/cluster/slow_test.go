package cluster

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/metadata"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/internal/observe"
	"github.com/logmirror/logmirror/internal/observe/calls"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/playground"
)

// journal keeps what processes log.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// logger writes as the processes do with these flags.
func (j *journal) logger(t *testing.T, level string) *slog.Logger {
	var logging observe.Logging
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	logging.AddFlags(flags)
	if err := flags.Parse([]string{"--log-level", level, "--log-format", "json"}); err != nil {
		t.Fatal(err)
	}
	logger, err := logging.New(j)
	if err != nil {
		t.Fatal(err)
	}
	return logger
}

// lines are those of a message, of which field has a value; all where field is empty.
func (j *journal) lines(t *testing.T, message, field string, value any) (found []map[string]any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.text.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if record["msg"] == message && (field == "" || record[field] == value) {
			found = append(found, record)
		}
	}
	return found
}

// Who has the id of a slow request finds the line of its frontend, with where the time went, and by the session and seq in that
// line those of the member that took its batch.
func TestSlowWriteIsFoundByItsRequestID(t *testing.T) {
	members, frontends := map[string]*journal{}, map[string]*journal{}
	registries := map[string]*prometheus.Registry{}
	bubbleWith(t, func(config *playground.Config) {
		config.Publication = logservice.PublicationLeader
		config.Member = func(c *logservice.Config) {
			members[c.Region] = new(journal)
			c.Logger, c.SlowBatchAfter = members[c.Region].logger(t, "debug"), 200*ms
			registries[c.Name] = prometheus.NewRegistry()
			c.Registerer = registries[c.Name]
		}
		config.Frontend = func(c *frontend.Config) {
			frontends[c.Region] = new(journal)
			c.Logger, c.Mirror.SlowWriteAfter = frontends[c.Region].logger(t, "info"), 200*ms
			registries[c.Name] = prometheus.NewRegistry()
			c.Registerer = registries[c.Name]
		}
	}, func(t *testing.T, c *virtual) {
		put := func(region, id string) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), calls.RequestIDKey, id)
			if _, err := c.regions[region].kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second) // virtual: whatever the start has made slow is over
		put("eu", "quick")          // 160 ms with the leader in us
		put("ap", "slow")           // 230 ms
		if lines := frontends["eu"].lines(t, "a write took long", "request_id", "quick"); len(lines) != 0 {
			t.Errorf("a write below the bound is told: %v", lines)
		}
		lines := frontends["ap"].lines(t, "a write took long", "request_id", "slow")
		if len(lines) != 1 {
			t.Fatalf("%d lines of the slow write", len(lines))
		}
		line := lines[0]
		for stage, want := range map[string]time.Duration{"took": 230 * ms, "queued": 0, "log": 230 * ms, "apply": 0} {
			if got := line[stage]; got != float64(want) {
				t.Errorf("%s %v, want %v", stage, got, want)
			}
		}
		for _, message := range []string{"a proposal came", "a batch took long to be published"} {
			matched := 0
			for _, l := range members["ap"].lines(t, message, "seq", line["seq"]) {
				if l["session"] == line["session"] {
					matched++
				}
			}
			if matched != 1 {
				t.Errorf("%d lines %q of session %v, seq %v at the member in ap", matched, message, line["session"], line["seq"])
			}
		}
		// One warning a second, and a count of the others.
		for range 3 {
			put("ap", "more")
		}
		if n := len(frontends["ap"].lines(t, "a write took long", "", nil)); n > 2 {
			t.Errorf("%d warnings within a second", n)
		}
		for name, want := range map[string]string{"frontend-ap": "logmirror_mirror_slow_writes_total", "log-ap": "logmirror_logservice_slow_batches_total"} {
			if n, err := testutil.GatherAndCount(registries[name], want); err != nil || n != 1 {
				t.Errorf("%s: %d samples of %s, %v", name, n, want, err)
			}
		}
	})
}
