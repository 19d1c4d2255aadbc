package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSnapshotSaveAndVerify(t *testing.T) {
	c := startCluster(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "backup")
	c.run(exitOK, "", "put", "k", "v1")
	c.run(exitOK, "", "put", "k", "v2")
	c.run(exitOK, "", "put", "gone", "x")
	c.run(exitOK, "", "delete", "gone")
	c.want("revision 5", exitOK, "", "snapshot", "save", file)
	c.stop()
	c.want("1 keys, 4 versions, 0 leases", exitOK, "", "snapshot", "verify", file)
	c.want(`"revision":5`, exitOK, "", "-o", "json", "snapshot", "verify", file)

	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 100, len(whole) / 2, len(whole) - 40, len(whole) - 1} {
		damaged := append([]byte(nil), whole...)
		damaged[at] ^= 0x10
		for what, content := range map[string][]byte{"altered": damaged, "cut": whole[:at]} {
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if out := c.run(exitFailed, "", "snapshot", "verify", file); !strings.Contains(out, "corrupt") {
				t.Errorf("%s at %d: %s", what, at, out)
			}
		}
	}
	// What is there stays when nothing can be saved over it.
	c.run(exitUnavailable, "", "--timeout", "1s", "snapshot", "save", "--save-timeout", "1s", file)
	names, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(names) != 1 {
		t.Errorf("left beside the backup: %v, %v", names, err)
	}
}
