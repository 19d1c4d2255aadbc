package tlsfiles

import (
	"crypto/x509"
	"net/url"
	"testing"
)

func TestIdentityOf(t *testing.T) {
	for _, row := range []struct {
		uris []string
		want Identity
		bad  bool
	}{
		{nil, Identity{}, false},
		{[]string{"https://example.com/member/x"}, Identity{}, false},
		{[]string{"logmirror://member/log-us"}, Identity{RoleMember, "log-us"}, false},
		{[]string{"spiffe://x/y", "logmirror://operator/admin"}, Identity{RoleOperator, "admin"}, false},
		{[]string{"logmirror://member/a", "logmirror://frontend/b"}, Identity{}, true},
		{[]string{"logmirror://member"}, Identity{}, true},
		{[]string{"logmirror://member/"}, Identity{}, true},
		{[]string{"logmirror:///a"}, Identity{}, true},
		{[]string{"logmirror://member/a?b"}, Identity{}, true},
	} {
		certificate := &x509.Certificate{}
		for _, text := range row.uris {
			uri, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			certificate.URIs = append(certificate.URIs, uri)
		}
		have, err := IdentityOf(certificate)
		if have != row.want || (err != nil) != row.bad {
			t.Errorf("%q: %v, %v", row.uris, have, err)
		}
		if row.want != (Identity{}) {
			if again, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{have.URI()}}); again != have || err != nil {
				t.Errorf("%v does not come back: %v, %v", have, again, err)
			}
		}
	}
}
