package observe

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	var live error
	var reasons []string
	server := httptest.NewServer(Handler(NewRegistry(), Health{
		Live:     func() error { return live },
		NotReady: func() []string { return reasons },
	}))
	defer server.Close()
	check := func(path string, status int, part string) {
		t.Helper()
		response, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != status || !strings.Contains(string(body), part) {
			t.Errorf("%s: %d %q; want %d with %q", path, response.StatusCode, body, status, part)
		}
	}
	check("/livez", 200, "ok")
	check("/readyz", 200, "ok")
	check("/metrics", 200, "go_goroutines")
	reasons = []string{"the log cannot be reached", "not caught up"}
	check("/readyz", 503, "reached\nnot caught up")
	check("/livez", 200, "ok")
	live = errors.New("apply stopped")
	check("/livez", 503, "apply stopped")
}
