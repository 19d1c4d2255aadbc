package command

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// serveNothing runs a server without services, for the handshake with it.
func serveNothing(t *testing.T, options ...grpc.ServerOption) *cluster {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return &cluster{t: t, address: listener.Addr().String()}
}

// Whoever forgot a certificate, or has the wrong one, is sent to the flags and not to look for a cluster.
func TestDisagreementAboutEncryption(t *testing.T) {
	own, other := t.TempDir(), t.TempDir()
	nowhere := &cluster{t: t}
	for _, directory := range []string{own, other} {
		nowhere.run(exitOK, "", "certs", directory, "--frontend", "f=127.0.0.1", "--client", "app")
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(own, "f.pem"), filepath.Join(own, "f-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(own, "authority.pem"))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(authority) {
		t.Fatal("no authority")
	}
	encrypted := serveNothing(t, grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})))
	plain := serveNothing(t)
	file := func(directory, name string) string { return filepath.Join(directory, name) }
	for name, test := range map[string]struct {
		c     *cluster
		flags []string
	}{
		"plain to encrypted": {encrypted, nil},
		"no certificate":     {encrypted, []string{"--cacert", file(own, "authority.pem")}},
		"wrong authority":    {encrypted, []string{"--cacert", file(other, "authority.pem")}},
		"wrong certificate": {encrypted, []string{"--cacert", file(own, "authority.pem"),
			"--cert", file(other, "app.pem"), "--key", file(other, "app-key.pem")}},
		"encrypted to plain": {plain, []string{"--cacert", file(own, "authority.pem")}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cluster{t: t, address: test.c.address}
			c.want("--cert and --key", exitUnavailable, "", append(test.flags, "get", "x")...)
		})
	}
	agreed := []string{"--cacert", file(own, "authority.pem"), "--cert", file(own, "app.pem"), "--key", file(own, "app-key.pem")}
	encrypted.want("unknown service", exitFailed, "", append(agreed, "get", "x")...)
}
