package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/internal/tlsfiles"
)

// Applications have an authority of their own, which makes nobody a part of the cluster. Certificates are renewed while all
// goes on, and what operators look at from other machines is encrypted too.
func TestAuthoritiesOfTheirOwn(t *testing.T) {
	c := newProcessCluster(t, "us", "eu", "ap")
	parts := c.withCertificates(t)
	applications := filepath.Join(t.TempDir(), "applications")
	kvctl(t, "certs", applications, "--client", "app", "--member", "log-us=127.0.0.1")
	// A frontend takes applications, and other frontends, which ask it about leases.
	both := filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(both, bytes.Join([][]byte{content(t, parts), content(t, applications)}, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.frontends {
		p.Arguments = append(p.Arguments, "--client-ca", both)
	}
	_, port, err := net.SplitHostPort(freePorts(t, 1)[0])
	if err != nil {
		t.Fatal(err)
	}
	c.members[0].Arguments = append(c.members[0].Arguments, "--metrics-listen", "0.0.0.0:"+port)
	c.startAll(t)
	app := func(frontend int, arguments ...string) (string, error) {
		return runKvctl(t, append([]string{"--endpoints", c.frontends[frontend].Address,
			"--cacert", filepath.Join(parts, "authority.pem"), "--cert", filepath.Join(applications, "app.pem"),
			"--key", filepath.Join(applications, "app-key.pem")}, arguments...)...)
	}
	writes := func(value string) {
		t.Helper()
		eventually(t, "a put of "+value, func(context.Context) error {
			output, err := app(0, "put", "key", value, "--sync", "*")
			if err != nil {
				err = errors.New(output)
			}
			return err
		})
	}
	writes("first")
	granted, err := app(0, "lease", "grant", "60")
	if err != nil {
		t.Fatal(granted)
	}
	if output, err := app(1, "lease", "ttl", strings.Fields(granted)[1]); err != nil {
		t.Errorf("one frontend asks another about its lease: %s", output)
	}

	member := tlsfiles.Files{Certificate: filepath.Join(applications, "log-us.pem"), Key: filepath.Join(applications, "log-us-key.pem"),
		Authority: filepath.Join(parts, "authority.pem")}
	if _, err := shown(c.members[0].Address, member); err == nil {
		t.Error("a member took a member's certificate of the applications' authority")
	}

	operator := tlsfiles.Files{Certificate: filepath.Join(parts, "admin.pem"), Key: filepath.Join(parts, "admin-key.pem"),
		Authority: filepath.Join(parts, "authority.pem")}
	if body, err := metrics("https://127.0.0.1:"+port, operator); err != nil || !strings.Contains(body, "logmirror_build_info") {
		t.Errorf("metrics by an operator: %.200s, %v", body, err)
	}
	for what, files := range map[string]tlsfiles.Files{"nobody": {Authority: operator.Authority}, "a stranger": member} {
		if body, err := metrics("https://127.0.0.1:"+port, files); err == nil {
			t.Errorf("metrics by %s: %.200s", what, body)
		}
	}

	before, err := shown(c.members[0].Address, operator)
	if err != nil {
		t.Fatal(err)
	}
	arguments := []string{"certs", parts, "--renew", "--operator", "admin"}
	for _, p := range c.members {
		arguments = append(arguments, "--member", p.Name+"=127.0.0.1")
	}
	kvctl(t, arguments...)
	eventually(t, "the renewed certificate", func(context.Context) error {
		now, err := shown(c.members[0].Address, operator)
		if err == nil && now == before {
			err = errors.New("it still shows the one before")
		}
		return err
	})
	writes("second")
}

// content is the certificate of a directory's authority.
func content(t *testing.T, directory string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(directory, "authority.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// shown connects and returns the serial number of the certificate that a process shows. It begins a conversation as well, as a client
// of HTTP/2 does: TLS 1.3 tells a client of a refusal only when it reads.
func shown(address string, files tlsfiles.Files) (serial string, err error) {
	config, err := files.ClientConfig(nil)
	if err != nil {
		return "", err
	}
	config.NextProtos = []string{"h2"}
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		return "", err
	}
	if _, err := connection.Read(make([]byte, 1)); err != nil {
		return "", err
	}
	return connection.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func metrics(url string, files tlsfiles.Files) (body string, err error) {
	config, err := files.ClientConfig(nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	response, err := client.Get(url + "/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return string(data), err
}
