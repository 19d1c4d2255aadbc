package command

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/internal/tlsfiles"
)

const certsHelp = `Make an authority and certificates for development and for small clusters, in a directory:

  authority.pem authority-key.pem     made where there is none yet
  NAME.pem NAME-key.pem               for each --member, --frontend, --operator and --client

What a certificate is for stands among its subject alternative names, as logmirror://ROLE/NAME. A log member takes the
streams of members only from a member's certificate, those of frontends only from a frontend's, and changes of its membership
only from an operator's. The key of the authority can make any of them: keep it where nothing else runs.

A certificate that is there already is left as it is, unless --renew says otherwise; processes take new ones up by
themselves.`

// Lifetimes of what is made.
const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	certDays          = 365
)

func newCerts(o *options) *cobra.Command {
	m := certMaker{o: o}
	asked := map[string]*[]string{}
	var days int
	c := &cobra.Command{
		Use:   "certs DIRECTORY",
		Short: "Make a development authority and the certificates of a cluster",
		Long:  certsHelp,
		Example: "  kvctl certs certs --member log-us=log-us.example,10.0.0.1 --frontend frontend-us=frontend-us.example \\\n" +
			"    --operator admin --client app",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if days < 1 || days > 3650 {
				return exitError{exitUsage, errors.New("--days must be from 1 to 3650")}
			}
			m.directory, m.lifetime = args[0], time.Duration(days)*24*time.Hour
			return m.run(asked)
		},
	}
	for role, help := range map[string]string{
		tlsfiles.RoleMember:   "a log member: `NAME=HOST,...`, with the names and addresses that others reach it at; repeatable",
		tlsfiles.RoleFrontend: "a frontend: `NAME=HOST,...`; repeatable",
		tlsfiles.RoleOperator: "an operator: `NAME`; repeatable",
		tlsfiles.RoleClient:   "an application: `NAME`; repeatable",
	} {
		asked[role] = c.Flags().StringArray(role, nil, help)
	}
	c.Flags().IntVar(&days, "days", certDays, "how long the certificates are valid")
	c.Flags().BoolVar(&m.renew, "renew", false, "make the certificates that are there anew")
	return c
}

var certRoles = []string{tlsfiles.RoleMember, tlsfiles.RoleFrontend, tlsfiles.RoleOperator, tlsfiles.RoleClient}

// certMaker makes certificates in a directory.
type certMaker struct {
	o         *options
	directory string
	lifetime  time.Duration
	renew     bool

	authority    *x509.Certificate
	authorityKey *ecdsa.PrivateKey
}

func (m *certMaker) run(asked map[string]*[]string) error {
	if err := os.MkdirAll(m.directory, 0o700); err != nil {
		return err
	}
	if err := m.loadAuthority(); err != nil {
		return err
	}
	for _, role := range certRoles {
		for _, text := range *asked[role] {
			name, hosts, _ := strings.Cut(text, "=")
			if name == "" || strings.ContainsAny(name, "/\\ \t\n?#%") || name == "authority" || strings.HasPrefix(name, ".") {
				return exitError{exitUsage, fmt.Errorf("--%s %q: not a name that a certificate can have", role, text)}
			}
			if hosts == "" && (role == tlsfiles.RoleMember || role == tlsfiles.RoleFrontend) {
				return exitError{exitUsage, fmt.Errorf("--%s %s: needs the names or addresses that others reach it at, as NAME=HOST,…", role, text)}
			}
			if err := m.certificate(tlsfiles.Identity{Role: role, Name: name}, hosts); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *certMaker) path(name string) string { return filepath.Join(m.directory, name) }

// loadAuthority takes the authority of the directory, made where there is none.
func (m *certMaker) loadAuthority() error {
	certificate, key := m.path("authority.pem"), m.path("authority-key.pem")
	_, err := os.Stat(certificate)
	if errors.Is(err, fs.ErrNotExist) {
		return m.makeAuthority(certificate, key)
	}
	if err != nil {
		return err
	}
	der, err := readPEM(certificate, "CERTIFICATE")
	if err != nil {
		return err
	}
	if m.authority, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("%s: %w", certificate, err)
	}
	if der, err = readPEM(key, "PRIVATE KEY"); err != nil {
		return err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	var ok bool
	if m.authorityKey, ok = parsed.(*ecdsa.PrivateKey); !ok || !m.authorityKey.PublicKey.Equal(m.authority.PublicKey) {
		return fmt.Errorf("%s is not the key of %s", key, certificate)
	}
	return nil
}

func (m *certMaker) makeAuthority(certificate, key string) (err error) {
	if m.authorityKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "logmirror development authority"}, IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(authorityLifetime),
	}
	m.authority = template
	if m.authority, err = m.sign(template, m.authorityKey, certificate, key); err != nil {
		return err
	}
	m.o.line("%s\tan authority, until %s", certificate, m.authority.NotAfter.Format(time.DateOnly))
	return nil
}

// certificate makes one that is not there.
func (m *certMaker) certificate(identity tlsfiles.Identity, hosts string) error {
	path, key := m.path(identity.Name+".pem"), m.path(identity.Name+"-key.pem")
	if _, err := os.Stat(path); err == nil && !m.renew {
		m.o.line("%s\tis there already", path)
		return nil
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: identity.Name}, URIs: []*url.URL{identity.URI()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(m.lifetime),
	}
	for _, host := range strings.FieldsFunc(hosts, func(r rune) bool { return r == ',' }) {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	if hosts != "" {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if _, err := m.sign(template, private, path, key); err != nil {
		return err
	}
	m.o.line("%s\t%s, until %s", path, identity, template.NotAfter.Format(time.DateOnly))
	return nil
}

// sign signs a certificate and writes it after its key, so that a certificate that is there has its key.
func (m *certMaker) sign(template *x509.Certificate, private *ecdsa.PrivateKey, path, keyPath string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, m.authority, &private.PublicKey, m.authorityKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	if err := writePEM(keyPath, "PRIVATE KEY", keyDER, 0o600); err != nil {
		return nil, err
	}
	if err := writePEM(path, "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func readPEM(path, kind string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s holds no PEM block of type %s", path, kind)
	}
	return block.Bytes, nil
}

// writePEM replaces a file in one step: a process may read it at any moment.
func writePEM(path, kind string, der []byte, mode fs.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
