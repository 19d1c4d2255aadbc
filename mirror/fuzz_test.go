package mirror

import (
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
