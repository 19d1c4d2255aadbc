package tlsfiles

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// authority signs certificates for tests.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key}
}

// write puts a certificate for 127.0.0.1, its key and the authority that the other side is checked by into dir.
func (a authority) write(t *testing.T, dir string, other authority) Files {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := Files{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")}
	for path, block := range map[string]*pem.Block{
		files.Certificate: {Type: "CERTIFICATE", Bytes: der},
		files.Key:         {Type: "PRIVATE KEY", Bytes: keyDER},
		files.Authority:   {Type: "CERTIFICATE", Bytes: other.certificate.Raw},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// connect makes one connection between the two sides and returns what each saw. TLS 1.3 tells a client of a refused
// certificate only when it reads, so both sides exchange a byte.
func connect(t *testing.T, server, client credentials.TransportCredentials) error {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			served <- err
			return
		}
		defer raw.Close()
		connection, _, err := server.ServerHandshake(raw)
		if err == nil {
			_, err = connection.Write([]byte{1})
		}
		served <- err
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	connection, _, err := client.ClientHandshake(context.Background(), listener.Addr().String(), raw)
	if err == nil {
		_, err = connection.Read(make([]byte, 1))
	}
	raw.Close()
	if serverErr := <-served; err == nil {
		err = serverErr
	}
	return err
}

func both(t *testing.T, server, client Files) (credentials.TransportCredentials, credentials.TransportCredentials) {
	t.Helper()
	serverCredentials, err := server.Server(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	clientCredentials, err := client.Client(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return serverCredentials, clientCredentials
}

func TestMutualTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	good := ours.write(t, t.TempDir(), ours)
	stranger := theirs.write(t, t.TempDir(), ours)
	server, client := both(t, good, good)
	if err := connect(t, server, client); err != nil {
		t.Errorf("one authority: %v", err)
	}
	server, client = both(t, good, stranger)
	if connect(t, server, client) == nil {
		t.Error("the server took a client's certificate of another authority")
	}
	server, client = both(t, stranger, good)
	if connect(t, server, client) == nil {
		t.Error("the client took a server's certificate of another authority")
	}
	server, client = both(t, good, Files{Authority: good.Authority})
	if connect(t, server, client) == nil {
		t.Error("the server took a client without a certificate")
	}
}

func TestReload(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	files := first.write(t, dir, first)
	server, client := both(t, files, files)
	if err := connect(t, server, client); err != nil {
		t.Fatal(err)
	}
	second.write(t, dir, second)
	later := time.Now().Add(time.Minute) // a modification time of its own, however coarse the file system's clock
	for _, path := range []string{files.Certificate, files.Key, files.Authority} {
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	_, newClient := both(t, files, files)
	deadline := time.Now().Add(10 * time.Second)
	for connect(t, server, newClient) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the server never took up the renewed certificates")
		}
	}
}

func TestRefusals(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, ":1": false, "0.0.0.0:1": false, "10.0.0.1:1": false,
	} {
		if err := RequireForListener(address, Files{}, false); (err == nil) != want {
			t.Errorf("RequireForListener(%s) = %v; want allowed: %t", address, err, want)
		}
	}
	if err := RequireForListener(":1", Files{}, true); err != nil {
		t.Error(err)
	}
	if err := (Files{Certificate: "x"}).Validate("peer-"); err == nil || !strings.Contains(err.Error(), "--peer-key") {
		t.Errorf("a certificate without its key: %v", err)
	}
	if _, err := (Files{Authority: filepath.Join(t.TempDir(), "none")}).Client(nil); err == nil {
		t.Error("a missing authority was taken")
	}
}
