package directstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// authority makes certificates.
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
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	encoded, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key}
}

func (a authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{encoded}, PrivateKey: key}
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// The interceptor sees who calls, and refuses; who shows no certificate of the authority gets nowhere.
func TestCertificates(t *testing.T) {
	trusted, stranger := newAuthority(t), newAuthority(t)
	who := func(_ any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		p, ok := peer.FromContext(stream.Context())
		shown, isTLS := p.AuthInfo.(credentials.TLSInfo)
		if !ok || !isTLS || p.Addr == nil || info.FullMethod != bothMethod {
			return errors.New("nobody knows who calls")
		}
		if name := shown.State.VerifiedChains[0][0].Subject.CommonName; name != "frontend" {
			return status.Errorf(codes.PermissionDenied, "not for %s", name)
		}
		return handle(nil, stream)
	}
	server := NewCombined(ServerConfig{Interceptor: who}, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{trusted.issue(t, "server")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted.pool()}))
	server.RegisterService(service(echo), nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	for _, c := range []struct {
		name, authority string
		certificate     tls.Certificate
		trusts          authority
		code            codes.Code
	}{
		{"the right one", "server:1", trusted.issue(t, "frontend"), trusted, codes.OK},
		{"another role", "server:1", trusted.issue(t, "operator"), trusted, codes.PermissionDenied},
		{"another authority", "server:1", stranger.issue(t, "frontend"), trusted, codes.Unavailable},
		{"another server", "other:1", trusted.issue(t, "frontend"), trusted, codes.Unavailable},
		{"a server of another authority", "server:1", trusted.issue(t, "frontend"), stranger, codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := NewClient(ClientConfig{Authority: c.authority, Methods: []string{bothMethod},
				Dial: func(ctx context.Context) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
				},
				Credentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.certificate}, RootCAs: c.trusts.pool()})})
			defer client.Close()
			stream, err := client.NewStream(t.Context(), &both, bothMethod)
			if err == nil {
				_ = stream.SendMsg(blob([]byte("x")))
				err = stream.RecvMsg(blob(nil))
			}
			if status.Code(err) != c.code {
				t.Error(err)
			}
		})
	}
}
