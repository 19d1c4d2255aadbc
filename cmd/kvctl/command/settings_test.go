package command

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseSettings(t *testing.T) {
	for _, test := range []struct {
		arguments string
		want      string // of the quota and the session time, or a part of the error
	}{
		{"quota_bytes=5", "5 0"},
		{"quota_bytes=512MiB session_time_milliseconds=1m30s", "536870912 90000"},
		{"session_time_milliseconds=12000 quota_bytes=-1", "-1 12000"}, // the bounds are the cluster's
		{"quota_bytes=8388608TiB", "want bytes"},                       // 2^63
		{"quota_bytes=1.5GiB", "want bytes"},
		{"session_time_milliseconds=1us", "whole milliseconds"},
		{"session_time_milliseconds=10", "0 10"},
		{"request_ids_max=10s", "want a whole number"},
		{"quota_bytes=1 quota_bytes=2", "given twice"},
		{"quota=1", "there are: session_time_milliseconds, quota_bytes"},
		{"quota_bytes", "want KEY=VALUE"},
	} {
		settings, err := parseSettings(strings.Fields(test.arguments))
		got := fmt.Sprint(settings.GetQuotaBytes(), settings.GetSessionTimeMilliseconds())
		if err != nil {
			got = err.Error()
		}
		if (err == nil && got != test.want) || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.arguments, got, test.want)
		}
	}
}

func TestRegionsAndSettings(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.want("region us is drained", exitOK, "", "region", "drain", "us")
	c.want("us      drained  frontend-us (http://"+c.address+")", exitOK, "", "region", "list")
	if out := c.run(exitUnavailable, "", "put", "k", "v"); !strings.Contains(out, "region us is drained") || strings.Contains(out, "make run") {
		t.Errorf("a put in a drained region printed %q", out)
	}
	c.want(`"state":"open","frontends":[{"name":"frontend-us"`, exitOK, "", "-o", "json", "region", "open", "us")
	c.run(exitOK, "", "put", "k", "v")
	c.want("is the name right?", exitOK, "", "region", "fence", "misspelt")
	c.want("through its own frontend", exitFailed, "", "region", "fence", "us")

	c.want("4.0 GiB", exitOK, "", "settings", "set", "quota_bytes=4GiB", "auto_compaction_revisions=10")
	c.want(`"quota_bytes":4294967296`, exitOK, "", "-o", "json", "settings", "get")
	c.want("session_time_milliseconds: invalid settings: 1000, limit 10000", exitUsage, "", "settings", "set", "session_time_milliseconds=1s")
	c.want("there are:", exitUsage, "", "settings", "set", "quota=1")
}
