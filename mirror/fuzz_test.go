package mirror

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/logmirror/logmirror/internal/durable"
)

// FuzzIdentity opens a data directory whose identity file holds arbitrary bytes, as a record or as they are. It is refused,
// or it is of the frontend that asks.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"name":"us-1","frontend_id":7,"cluster_id":1,"epoch":1,"incarnation":3}`), true)
	f.Add([]byte(`{"name":"eu-1"}`), true)
	f.Add([]byte(`{"name":"us-1"}`), true)
	f.Add([]byte("logmirror-record-1\n"), false)
	f.Fuzz(func(t *testing.T, content []byte, record bool) {
		directory := t.TempDir()
		path := filepath.Join(directory, identityFile)
		write := func() error { return os.WriteFile(path, content, 0o600) }
		if record {
			write = func() error { return durable.Write(path, content) }
		}
		if err := write(); err != nil {
			t.Fatal(err)
		}
		d, err := openDataDirectory(directory, "us-1")
		if err != nil {
			return
		}
		defer d.close()
		if d.record.Name != "us-1" || d.record.FrontendID == 0 {
			t.Errorf("opened with %+v", d.record)
		}
	})
}

// FuzzBootstrapName takes up a download whose name file holds arbitrary bytes, as a record or as they are. It begins anew, or
// goes on with a name that can be asked for and no more bytes than that has.
func FuzzBootstrapName(f *testing.F) {
	f.Add([]byte(`{"index":7,"sha256":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","size_bytes":9,"format":1}`), uint8(5), true)
	f.Add([]byte(`{"index":7,"sha256":"AAAA","size_bytes":9,"format":1}`), uint8(5), true)
	f.Add([]byte(`{"size_bytes":18446744073709551615}`), uint8(0), true)
	f.Add([]byte(`{"size_bytes":-1}`), uint8(1), true)
	f.Add([]byte("logmirror-record-1\n"), uint8(9), false)
	f.Fuzz(func(t *testing.T, content []byte, downloaded uint8, record bool) {
		directory := &dataDirectory{path: t.TempDir()}
		path := filepath.Join(directory.path, bootstrapNameFile)
		write := func() error { return os.WriteFile(path, content, 0o600) }
		if record {
			write = func() error { return durable.Write(path, content) }
		}
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(directory.path, bootstrapFile), make([]byte, downloaded), 0o600); err != nil {
			t.Fatal(err)
		}
		b := newBootstrap(t.Context(), &Config{}, directory, nil, bootstrapFile, bootstrapNameFile)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.file.Close() }()
		switch name, bytes := b.Partial(); {
		case name == nil && bytes != 0:
			t.Errorf("%d bytes of nothing", bytes)
		case name != nil && (bytes > name.GetSizeBytes() || len(name.GetSha256()) != sha256.Size || name.GetIndex() == 0):
			t.Errorf("%d bytes of %v", bytes, name)
		}
	})
}
