package wanlink

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/wan"
)

// control serves the links of three regions, and returns its answers as from/to pairs that are cut and the like.
func control(t *testing.T) (network *wan.Network, handler http.Handler) {
	t.Helper()
	network = wan.New(wan.Options{RoundTrips: map[wan.Pair]time.Duration{
		{A: "us", B: "eu"}: 80 * time.Millisecond, {A: "us", B: "ap"}: 150 * time.Millisecond, {A: "eu", B: "ap"}: 100 * time.Millisecond,
	}})
	t.Cleanup(network.Close)
	return network, Handler(network, slog.New(slog.DiscardHandler))
}

func cuts(links []Link) string {
	var cut []string
	for _, link := range links {
		if link.Cut {
			cut = append(cut, link.From+">"+link.To)
		}
	}
	return strings.Join(cut, " ")
}

func TestControl(t *testing.T) {
	_, handler := control(t)
	server := httptest.NewServer(handler)
	defer server.Close()
	client := Client{URL: server.URL, HTTP: server.Client()}
	links, err := client.Links(t.Context())
	if err != nil || len(links) != 6 || links[0].From != "ap" || links[0].To != "eu" || links[0].DelayMilliseconds != 50 {
		t.Fatalf("links: %+v, %v", links, err)
	}
	for _, step := range []struct {
		path    string
		request Request
		want    string
	}{
		{PathCut, Request{From: "us", To: "ap"}, "ap>us us>ap"},
		{PathCut, Request{From: "us", To: "eu", OneWay: true}, "ap>us us>ap us>eu"},
		{PathHeal, Request{From: "ap", To: "us"}, "us>eu"},
		{PathCut, Request{From: "ap"}, "ap>eu ap>us eu>ap us>ap us>eu"},
		{PathHeal, Request{From: "ap"}, "us>eu"},
		{PathHeal, Request{}, ""},
		{PathCut, Request{From: "us", To: "ap", OneWay: true}, "us>ap"},
		{PathCut, Request{From: "ap", To: "us", OneWay: true}, "ap>us us>ap"},
	} {
		links, err := client.Change(t.Context(), step.path, step.request)
		if err != nil || cuts(links) != step.want {
			t.Errorf("%s %+v: cut are %q, %v; want %q", step.path, step.request, cuts(links), err, step.want)
		}
	}
	milliseconds, probability := 200.0, 0.25
	if _, err = client.Change(t.Context(), PathRoundTrip, Request{From: "eu", To: "us", RoundTripMilliseconds: &milliseconds}); err != nil {
		t.Fatal(err)
	}
	if links, err = client.Change(t.Context(), PathLoss, Request{From: "eu", To: "us", LossProbability: &probability}); err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if changed := link.DelayMilliseconds == 100 && link.LossProbability == 0.25; changed != (link.From != "ap" && link.To != "ap") {
			t.Errorf("after the changes between eu and us: %+v", link)
		}
	}
}

func TestControlRefuses(t *testing.T) {
	network, handler := control(t)
	for _, c := range []struct{ method, path, body, want string }{
		{"POST", PathCut, `{"from":"mars"}`, "ap, eu, us"},
		{"POST", PathCut, `{"from":"us","to":"us"}`, "both us"},
		{"POST", PathCut, `{"to":"us"}`, "to without from"},
		{"POST", PathCut, `{"from":"us","one_way":true}`, "one_way"},
		{"POST", PathCut, `{"form":"us"}`, "form"},
		{"POST", PathCut, `{"from":"` + strings.Repeat("u", requestBytesMax) + `"}`, "too large"},
		{"POST", PathRoundTrip, `{"from":"us"}`, "from 0 to 10000"},
		{"POST", PathRoundTrip, `{"from":"us","round_trip_ms":10001}`, "from 0 to 10000"},
		{"POST", PathLoss, `{"from":"us","loss":1.5}`, "from 0 to 1"},
		{"GET", PathCut, ``, "Method Not Allowed"},
		{"GET", "/", ``, "404"},
	} {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Code < 400 || answer.Code >= 500 || !strings.Contains(string(body), c.want) {
			t.Errorf("%s %s %.40s: %d %s; want %q", c.method, c.path, c.body, answer.Code, body, c.want)
		}
	}
	for _, link := range network.Links() {
		if link.Cut {
			t.Errorf("a refused request cut %+v", link)
		}
	}
}

func TestControlIsForOperators(t *testing.T) {
	_, handler := control(t)
	for role, want := range map[string]int{
		tlsfiles.RoleOperator: http.StatusOK, tlsfiles.RoleClient: http.StatusForbidden, tlsfiles.RoleMember: http.StatusForbidden,
	} {
		certificate := &x509.Certificate{URIs: []*url.URL{tlsfiles.Identity{Role: role, Name: "somebody"}.URI()}}
		for path, status := range map[string]int{PathCut: want, PathHeal: want} {
			request := httptest.NewRequest("POST", path, strings.NewReader("{}"))
			request.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{certificate}}}
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, request)
			if answer.Code != status {
				t.Errorf("%s by a %s: %d; want %d", path, role, answer.Code, status)
			}
		}
	}
}
