package tlsfiles

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Roles that a certificate may give.
const (
	// RoleMember is that of a log member.
	RoleMember = "member"
	// RoleFrontend is that of a frontend.
	RoleFrontend = "frontend"
	// RoleOperator is that of a person or program that changes the log's membership and leader.
	RoleOperator = "operator"
	// RoleClient is that of an application.
	RoleClient = "client"
)

// Identity is what a certificate says of its holder, by a URI among its subject alternative names:
// logmirror://ROLE/NAME. Nothing else of a certificate is looked at.
type Identity struct{ Role, Name string }

// URI returns the subject alternative name that says so.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "logmirror", Host: i.Role, Path: "/" + i.Name}
}

// String returns it as people read it.
func (i Identity) String() string {
	if i == (Identity{}) {
		return "a certificate without a logmirror:// name"
	}
	return i.Role + " " + i.Name
}

// IdentityOf reads a certificate. Without a logmirror:// name it is the zero Identity; more than one is an error, since which
// of them counts would be a guess.
func IdentityOf(certificate *x509.Certificate) (Identity, error) {
	var found Identity
	for _, uri := range certificate.URIs {
		if uri.Scheme != "logmirror" {
			continue
		}
		if found != (Identity{}) {
			return Identity{}, errors.New("the certificate has more than one logmirror:// name")
		}
		if uri.Host == "" || len(uri.Path) < 2 || uri.RawQuery != "" || uri.Fragment != "" {
			return Identity{}, fmt.Errorf("the certificate's name %q is not logmirror://ROLE/NAME", uri)
		}
		found = Identity{Role: uri.Host, Name: uri.Path[1:]}
	}
	return found, nil
}

// Caller returns who calls, by the certificate that was verified. shown is false where the listener asks for none.
func Caller(ctx context.Context) (identity Identity, shown bool, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, false, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return Identity{}, false, nil
	}
	identity, err = IdentityOf(info.State.VerifiedChains[0][0])
	return identity, true, err
}
