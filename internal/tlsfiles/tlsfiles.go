// Package tlsfiles makes TLS configurations, and gRPC transport credentials, from certificate files.
//
// Certificates and authorities are read again when their files change, at most once a second, so that they can be
// renewed without a restart; a change that cannot be read is logged and the last good one stays in use. TLS 1.3 is the
// lowest version. With an authority, the other side must show a certificate that it signed (mutual TLS).
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/credentials"
)

// reloadInterval bounds how often the files are looked at.
const reloadInterval = time.Second

// Files names the PEM files of one side of a connection. The zero value means no TLS.
type Files struct {
	// Certificate chain and its private key.
	Certificate, Key string
	// Authority that the other side's certificate must be signed by. A server without one asks for no certificate; a
	// client without one trusts the system's authorities.
	Authority string
}

// AddServerFlags adds --cert, --key and --client-ca.
func (f *Files) AddServerFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.Certificate, "cert", "", "certificate `file` shown to clients")
	flags.StringVar(&f.Key, "key", "", "private key `file` of --cert")
	flags.StringVar(&f.Authority, "client-ca", "", "authority `file`: clients must show a certificate signed by it")
}

// AddPeerFlags adds --peer-cert, --peer-key and --peer-ca.
func (f *Files) AddPeerFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.Certificate, "peer-cert", "", "certificate `file` shown to log members and frontends")
	flags.StringVar(&f.Key, "peer-key", "", "private key `file` of --peer-cert")
	flags.StringVar(&f.Authority, "peer-ca", "", "authority `file` that log members' and frontends' certificates must be signed by")
}

// Empty tells whether no file is named.
func (f Files) Empty() bool { return f == Files{} }

// Validate refuses a certificate without its key and the reverse. prefix is "" or "peer-", for the message.
func (f Files) Validate(prefix string) error {
	if (f.Certificate == "") != (f.Key == "") {
		return fmt.Errorf("--%scert and --%skey go together", prefix, prefix)
	}
	return nil
}

// RequireForListener refuses a listener that others than this machine can reach without encryption, unless insecure
// says that this is meant.
func RequireForListener(address string, files Files, insecure bool) error {
	if insecure || files.Certificate != "" {
		return nil
	}
	if loopback, err := Loopback(address); loopback || err != nil {
		return err
	}
	return fmt.Errorf("listen address %s can be reached from other machines: give certificates, or --insecure to serve "+
		"without encryption", address)
}

// Loopback tells whether a listener's address is one that only this machine reaches.
func Loopback(address string) (bool, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, fmt.Errorf("listen address %q: %w", address, err)
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || (ip != nil && ip.IsLoopback()), nil
}

// Server returns credentials for a gRPC listener; nil for empty files.
func (f Files) Server(logger *slog.Logger) (credentials.TransportCredentials, error) {
	config, err := f.ServerConfig(logger, "h2")
	if config == nil || err != nil {
		return nil, err
	}
	return credentials.NewTLS(config), nil
}

// ServerConfig returns the configuration of a listener that speaks these protocols (ALPN); nil for empty files.
func (f Files) ServerConfig(logger *slog.Logger, protocols ...string) (*tls.Config, error) {
	if f.Empty() {
		return nil, nil
	}
	if f.Certificate == "" {
		return nil, errors.New("an authority without a certificate and key")
	}
	loader, err := newLoader(f, logger)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			pair, authority := loader.current()
			config := &tls.Config{
				MinVersion:   tls.VersionTLS13,
				NextProtos:   protocols,
				Certificates: []tls.Certificate{*pair},
			}
			if authority != nil {
				config.ClientAuth = tls.RequireAndVerifyClientCert
				config.ClientCAs = authority
			}
			return config, nil
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, _ := loader.current()
			return pair, nil
		},
	}, nil
}

// Client returns credentials for gRPC's dialing; nil for empty files. The server's name is that of the dialed address.
func (f Files) Client(logger *slog.Logger) (credentials.TransportCredentials, error) {
	config, err := f.ClientConfig(logger)
	if config == nil || err != nil {
		return nil, err
	}
	return credentials.NewTLS(config), nil
}

// ClientConfig returns the configuration for dialing; nil for empty files.
func (f Files) ClientConfig(logger *slog.Logger) (*tls.Config, error) {
	if f.Empty() {
		return nil, nil
	}
	loader, err := newLoader(f, logger)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if pair, _ := loader.current(); pair != nil {
				return pair, nil
			}
			return &tls.Certificate{}, nil
		},
	}
	if f.Authority != "" {
		// The standard check uses one fixed pool; this one follows the file.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			_, authority := loader.current()
			return verifyServer(state, authority)
		}
	}
	return config, nil
}

func verifyServer(state tls.ConnectionState, authority *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
		DNSName:       state.ServerName,
		Roots:         authority,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// loader holds the last good contents of the files.
type loader struct {
	files  Files
	logger *slog.Logger

	mu        sync.Mutex
	checked   time.Time
	stamps    [3]time.Time // modification times of the contents held
	pair      *tls.Certificate
	authority *x509.CertPool
}

func newLoader(files Files, logger *slog.Logger) (*loader, error) {
	l := &loader{files: files, logger: logger}
	if err := l.load(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *loader) current() (*tls.Certificate, *x509.CertPool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.checked) >= reloadInterval {
		l.checked = now
		if stamps := l.modified(); stamps != l.stamps {
			if err := l.load(); err != nil && l.logger != nil {
				l.logger.Error("certificates changed but cannot be read; the last good ones stay in use", "error", err)
			}
		}
	}
	return l.pair, l.authority
}

func (l *loader) modified() (stamps [3]time.Time) {
	for i, path := range []string{l.files.Certificate, l.files.Key, l.files.Authority} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil {
			stamps[i] = info.ModTime()
		}
	}
	return stamps
}

// load replaces both contents or neither.
func (l *loader) load() error {
	stamps := l.modified()
	var pair *tls.Certificate
	if l.files.Certificate != "" {
		loaded, err := tls.LoadX509KeyPair(l.files.Certificate, l.files.Key)
		if err != nil {
			return fmt.Errorf("certificate %s with key %s: %w", l.files.Certificate, l.files.Key, err)
		}
		pair = &loaded
	}
	var authority *x509.CertPool
	if l.files.Authority != "" {
		data, err := os.ReadFile(l.files.Authority)
		if err != nil {
			return fmt.Errorf("authority: %w", err)
		}
		authority = x509.NewCertPool()
		if !authority.AppendCertsFromPEM(data) {
			return fmt.Errorf("authority %s: holds no PEM certificate", l.files.Authority)
		}
	}
	l.pair, l.authority, l.stamps = pair, authority, stamps
	return nil
}
