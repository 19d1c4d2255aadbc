package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// withCertificates makes the certificates of a cluster by kvctl certs, and has every process use its own.
func (c *processCluster) withCertificates(t *testing.T) (directory string) {
	t.Helper()
	directory = filepath.Join(t.TempDir(), "certs")
	arguments := []string{"certs", directory, "--operator", "admin", "--client", "app"}
	for _, p := range c.members {
		arguments = append(arguments, "--member", p.Name+"=127.0.0.1")
	}
	for _, p := range c.frontends {
		arguments = append(arguments, "--frontend", p.Name+"=127.0.0.1")
	}
	kvctl(t, arguments...)
	authority := filepath.Join(directory, "authority.pem")
	for _, p := range c.all() {
		certificate, key := filepath.Join(directory, p.Name+".pem"), filepath.Join(directory, p.Name+"-key.pem")
		p.Arguments = append(p.Arguments, "--cert", certificate, "--key", key, "--client-ca", authority,
			"--peer-cert", certificate, "--peer-key", key, "--peer-ca", authority)
	}
	return directory
}

func kvctl(t *testing.T, arguments ...string) string {
	t.Helper()
	output, err := runKvctl(t, arguments...)
	if err != nil {
		t.Fatalf("kvctl %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return output
}

func runKvctl(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	directory, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command(filepath.Join(directory, "kvctl"), arguments...).CombinedOutput()
	return string(output), err
}

// as connects to a log member with somebody's certificate.
func as(t *testing.T, directory, name, address string) *grpc.ClientConn {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(directory, name+".pem"), filepath.Join(directory, name+"-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(directory, "authority.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

// Every part talks to every other under mutual TLS, and a certificate gives its own role and name only.
func TestCertificatesGiveRoles(t *testing.T) {
	c := newProcessCluster(t, "us", "eu", "ap")
	certs := c.withCertificates(t)
	c.startAll(t)
	flagsOf := func(name string) []string {
		return []string{"--endpoints", c.frontends[0].Address, "--cacert", filepath.Join(certs, "authority.pem"),
			"--cert", filepath.Join(certs, name+".pem"), "--key", filepath.Join(certs, name+"-key.pem")}
	}
	eventually(t, "a put", func(context.Context) error {
		output, err := runKvctl(t, append(flagsOf("app"), "put", "key", "value", "--sync", "*")...)
		if err != nil {
			err = errors.New(output)
		}
		return err
	})
	if output, err := runKvctl(t, append(flagsOf("app"), "log", "transfer", "log-eu")...); err == nil ||
		!strings.Contains(output, "operators") {
		t.Errorf("an application moves leadership: %v %s", err, output)
	}
	kvctl(t, append(flagsOf("admin"), "log", "transfer", "log-eu")...)

	address := c.members[0].Address
	appendAs := func(name string, handshake *logv1.Handshake) error {
		stream, err := logv1.NewLogServiceClient(as(t, certs, name, address)).Append(t.Context())
		if err == nil {
			_ = stream.Send(&logv1.AppendRequest{Handshake: handshake}) // Recv tells why
			_, err = stream.Recv()
		}
		return err
	}
	peer := func(name string) error {
		stream, err := logv1.NewPeerServiceClient(as(t, certs, name, address)).Send(t.Context())
		if err == nil {
			_ = stream.Send(&logv1.SendRequest{Handshake: &logv1.PeerHandshake{Handshake: &logv1.Handshake{Name: "log-eu"}}})
			_, err = stream.Recv()
		}
		return err
	}
	if err := appendAs("frontend-us", &logv1.Handshake{Name: "frontend-us"}); err != nil {
		t.Errorf("a frontend under its own name: %v", err)
	}
	for what, err := range map[string]error{
		"an application appends":           appendAs("app", &logv1.Handshake{Name: "app"}),
		"a member appends":                 appendAs("log-us", &logv1.Handshake{Name: "log-us"}),
		"a frontend under another's name":  appendAs("frontend-us", &logv1.Handshake{Name: "frontend-eu"}),
		"an application speaks as a peer":  peer("app"),
		"a frontend speaks as a peer":      peer("frontend-us"),
		"an operator speaks as a peer":     peer("admin"),
		"a member speaks as another peer ": peer("log-us"),
	} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
}
