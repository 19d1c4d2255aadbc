package frontend

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/internal/observe"
)

// A frontend that has lost the log is degraded, not dead: it is live and ready, says what is amiss, and its health service
// says SERVING. Only what asks for the whole, as etcd's /health does, fails. It takes some seconds until a log counts as lost.
func TestAFrontendThatLostTheLogIsDegradedNotDead(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us")
	ctx, connection := testContext(t), c.connection(server)
	if _, err := kvv1.NewKvServiceClient(connection).Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(observe.Handler(observe.NewRegistry(), observe.Health{
		Live: func() error { return server.Err() }, Ready: server.Checks,
		Etcd: &observe.EtcdHealth{Version: server.EtcdVersion(), Unhealthy: server.EtcdUnhealthy},
	}))
	defer web.Close()
	get := func(path string) (int, string) {
		response, err := http.Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	want := func(path string, status int, parts ...string) {
		t.Helper()
		gotStatus, body := get(path)
		if gotStatus != status {
			t.Errorf("%s: %d %q", path, gotStatus, body)
		}
		for _, part := range parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s: %q has no %q", path, body, part)
			}
		}
	}
	serves := func() {
		t.Helper()
		for _, name := range []string{"", "etcdserverpb.KV", "logmirror.kv.v1.KvService", "etcdserverpb.Watch"} {
			told, err := healthv1.NewHealthClient(connection).Check(ctx, &healthv1.HealthCheckRequest{Service: name})
			if err != nil || told.GetStatus() != healthv1.HealthCheckResponse_SERVING {
				t.Errorf("health of %q: %v, %v", name, told, err)
			}
		}
	}

	want("/livez", 200, "ok")
	want("/readyz", 200, "ok")
	want("/readyz?verbose", 200, "[+] log ok", "[+] caught-up ok", "[+] region ok", "[+] space ok")
	want("/health", 200, `{"health":"true","reason":""}`)
	want("/version", 200, `"etcdserver":"3.`)
	serves()

	c.log.setAway(true)
	eventually(t, "it says that it is degraded", func() bool { _, body := get("/readyz"); return strings.HasPrefix(body, "degraded\n") })
	eventually(t, "etcd's health says so", func() bool { status, _ := get("/health"); return status == 503 })
	want("/readyz", 200, "degraded\n")
	want("/readyz?verbose", 200, "[~] log degraded: ", "[+] mirror ok")
	want("/livez", 200, "ok")
	want("/health", 503, `{"health":"false","reason":"`)
	want("/health?serializable=true", 200, `"true"`)
	serves()

	c.log.setAway(false)
	eventually(t, "it is whole again", func() bool { _, body := get("/readyz"); return body == "ok\n" })
	want("/health", 200, `"true"`)
}
