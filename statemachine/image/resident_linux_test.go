package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/statemachine/machinetest"
)

// residentBytes returns how much of a mapped file this process holds in memory.
func residentBytes(t *testing.T, path string) (total int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	of := false
	for line := range bytes.Lines(maps) {
		switch text := strings.TrimSpace(string(line)); {
		case strings.HasSuffix(text, path):
			of = true
		case of && strings.HasPrefix(text, "Rss:"):
			var kibibytes int
			if _, err := fmt.Sscanf(text, "Rss: %d kB", &kibibytes); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			total += kibibytes << 10
			of = false
		}
	}
	return total
}

// A restart and a scrub read the whole file; what they read does not stay in this process's memory beside the state.
func TestReadingTheFileLeavesNoneOfItResident(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	im, m := begin(t, testConfig(path))
	for i, e := range machinetest.Puts(testIdentity.ClusterID, 20_000, 1) {
		im.Applied(machinetest.Apply(t, m, uint64(i+1), e))
	}
	im.Close(true)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	limit := int(info.Size()) / 10
	im, restored, err := Open(testConfig(path))
	if err != nil || restored == nil {
		t.Fatalf("%v, %v", restored, err)
	}
	defer im.Close(false)
	if resident := residentBytes(t, path); resident > limit {
		t.Errorf("after opening %d of %d bytes are resident", resident, info.Size())
	}
	im.Start(restored, known)
	if err := im.Scrub(noPause); err != nil {
		t.Fatal(err)
	}
	if resident := residentBytes(t, path); resident > limit {
		t.Errorf("after a scrub %d of %d bytes are resident", resident, info.Size())
	}
	if restored.Index() != m.Index() {
		t.Errorf("restored up to %d of %d", restored.Index(), m.Index())
	}
}
