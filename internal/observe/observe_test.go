package observe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spf13/pflag"
)

// served is a handler whose health a test sets.
type served struct {
	t      *testing.T
	url    string
	live   error
	checks []Check
}

func serve(t *testing.T, etcd *EtcdHealth) *served {
	s := &served{t: t}
	health := Health{Live: func() error { return s.live }, Ready: func() []Check { return s.checks }, Etcd: etcd}
	registry := NewRegistry()
	if err := RegisterHealth(registry, health); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(Handler(registry, health))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *served) get(path string) (int, string) {
	s.t.Helper()
	response, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func (s *served) want(path string, status int, body string) {
	s.t.Helper()
	if gotStatus, got := s.get(path); gotStatus != status || got != body {
		s.t.Errorf("%s: %d %q; want %d %q", path, gotStatus, got, status, body)
	}
}

func (s *served) wantMetric(line string) {
	s.t.Helper()
	if _, got := s.get("/metrics"); !strings.Contains(got, "\n"+line+"\n") {
		s.t.Errorf("/metrics has no line %q", line)
	}
}

func TestReadyLiveAndDegraded(t *testing.T) {
	s := serve(t, nil)
	s.want("/livez", 200, "ok\n")
	s.want("/livez?verbose", 200, "[+] process ok\nok\n")
	s.want("/readyz", 200, "ok\n")

	s.checks = []Check{{Name: "mirror"}, {Name: "log", Reason: "the log cannot be reached", Degraded: true}}
	s.want("/readyz", 200, "degraded\nthe log cannot be reached\n")
	s.want("/readyz?verbose", 200, "[+] mirror ok\n[~] log degraded: the log cannot be reached\ndegraded\n")
	s.wantMetric("logmirror_ready 1")
	s.wantMetric("logmirror_degraded 1")

	s.checks[0].Reason = "not caught up"
	s.want("/readyz", 503, "not caught up\nthe log cannot be reached\n")
	s.want("/readyz?verbose", 503, "[-] mirror failed: not caught up\n[~] log degraded: the log cannot be reached\nfailed\n")
	s.wantMetric("logmirror_ready 0")
	s.want("/livez", 200, "ok\n")

	s.live = errors.New("apply stopped")
	s.want("/livez", 503, "apply stopped\n")
	for _, path := range []string{"/health", "/version"} {
		if status, _ := s.get(path); status != 404 {
			t.Errorf("%s of a process that does not speak etcd's API: %d", path, status)
		}
	}
}

func TestEtcdsHealthAndVersion(t *testing.T) {
	s := serve(t, &EtcdHealth{Version: "3.7.3", Unhealthy: func(_ context.Context, serializable bool, excluded []string) string {
		switch {
		case len(excluded) == 2 && excluded[0] == "NOSPACE" && excluded[1] == "CORRUPT":
			return ""
		case serializable:
			return "ALARM NOSPACE"
		default:
			return "RAFT NO LEADER"
		}
	}})
	s.want("/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`+"\n")
	s.want("/health?serializable=true", 503, `{"health":"false","reason":"ALARM NOSPACE"}`+"\n")
	s.want("/health?exclude=NOSPACE&exclude=CORRUPT", 200, `{"health":"true","reason":""}`+"\n")
	s.want("/version", 200, `{"etcdserver":"3.7.3","etcdcluster":"3.7.3","storage":"3.7.3"}`+"\n")
}

func TestMetricsOfTheProcessFollowTheConventions(t *testing.T) {
	registry := NewRegistry()
	if err := RegisterHealth(registry, Health{Ready: func() []Check { return nil }}); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestLogging(t *testing.T) {
	logger := func(arguments ...string) (*slog.Logger, *bytes.Buffer, error) {
		var logging Logging
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		logging.AddFlags(flags)
		if err := flags.Parse(arguments); err != nil {
			t.Fatal(err)
		}
		to := new(bytes.Buffer)
		l, err := logging.New(to)
		return l, to, err
	}
	for _, test := range []struct {
		arguments []string
		want      string
	}{
		{nil, `level=INFO msg=told member=a key=1`},
		{[]string{"--log-format=json"}, `"level":"INFO","msg":"told","member":"a","key":1`},
		{[]string{"--log-level=warn"}, ""},
	} {
		l, to, err := logger(test.arguments...)
		if err != nil {
			t.Fatal(err)
		}
		l.With("member", "a").InfoContext(t.Context(), "told", "key", 1)
		if got := to.String(); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%v: %q", test.arguments, got)
		}
	}
	for argument, want := range map[string]string{"--log-level=loud": "--log-level", "--log-format=xml": `--log-format "xml": want text or json`} {
		if _, _, err := logger(argument); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", argument, err)
		}
	}
}

func TestProfilesAreForThisMachine(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for address, want := range map[string]string{
		"0.0.0.0:0": "can be reached from other machines", ":0": "can be reached from other machines", "nowhere": "missing port",
	} {
		if _, err := StartPprof(address, false, logger); err == nil || !strings.Contains(err.Error(), "--pprof-listen") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for address, insecure := range map[string]bool{"127.0.0.1:0": false, "localhost:0": false, "0.0.0.0:0": true} {
		server, err := StartPprof(address, insecure, logger)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		recorder := httptest.NewRecorder()
		server.server.Handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/debug/pprof/goroutine?debug=1", nil))
		if recorder.Code != 200 || !strings.Contains(recorder.Body.String(), "goroutine profile") {
			t.Errorf("%s: %d", address, recorder.Code)
		}
		server.Stop()
	}
}
