package playground

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDataDirServesOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "data")
	first, err := openDataDir(path, []string{"us", "eu"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDataDir(path, []string{"us", "eu"}); !errors.Is(err, ErrDataDirInUse) {
		t.Errorf("opened twice: %v", err)
	}
	first.layout.Log[0].Address = "127.0.0.1:1"
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	again, err := openDataDir(path, []string{"us", "eu"})
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.layout.Log[0].Address != "127.0.0.1:1" {
		t.Errorf("the layout came back as %+v", again.layout)
	}
}

func TestLayout(t *testing.T) {
	for regions, want := range map[string]string{
		"us":          "log-us",
		"us,eu":       "log-us log-eu log-us.2",
		"us,us-2":     "log-us log-us-2 log-us.2",
		"us,eu,ap":    "log-us log-eu log-ap",
		"us,eu,ap,sa": "log-us log-eu log-ap log-sa",
	} {
		var names []string
		for _, m := range newLayout(strings.Split(regions, ",")).Log {
			names = append(names, m.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: members %s, want %s", regions, got, want)
		}
	}
}

func TestDataDirRefusesOthers(t *testing.T) {
	regions := []string{"us", "eu"}
	for name, tc := range map[string]struct {
		file, content, problem string
	}{
		"foreign":  {"family-photos", "", "is not a playground's"},
		"damaged":  {"playground.json", "{", "is damaged"},
		"newer":    {"playground.json", `{"version":2}`, "layout version 2"},
		"regions":  {"playground.json", `{"version":1,"regions":["us"]}`, "holds a cluster of the regions us, not us,eu"},
		"members":  {"playground.json", `{"version":1,"regions":["us","eu"]}`, "names other log members"},
		"interim":  {"playground.json.new", "half", ""},
		"unlocked": {"lock", "", ""},
	} {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, tc.file), []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := openDataDir(path, regions)
		if (err == nil) != (tc.problem == "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("%s: error %v, want %q", name, err, tc.problem)
		}
		if err == nil {
			d.close()
		} else if d, err := openDataDir(path, regions); errors.Is(err, ErrDataDirInUse) {
			t.Errorf("%s: the lock was kept after an error (%v)", name, d)
		}
	}
}

func TestReadyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ready")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	info := Info{
		Regions: []RegionInfo{{Name: "us", Frontend: "127.0.0.1:2379"}},
		Log:     []MemberInfo{{Name: "log-us", Region: "us", Address: "127.0.0.1:9"}},
	}
	if err := WriteReadyFile(path, info); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"regions":[{"name":"us","frontend":"127.0.0.1:2379"}],` +
		`"log":[{"name":"log-us","region":"us","address":"127.0.0.1:9"}]}`
	if strings.TrimSpace(string(content)) != want {
		t.Errorf("wrote %s", content)
	}
	var back Info
	if err := json.Unmarshal(content, &back); err != nil || !slices.Equal(back.Regions, info.Regions) {
		t.Errorf("read back %+v, %v", back, err)
	}
	if err := WriteReadyFile(filepath.Join(path, "below-a-file"), info); err == nil {
		t.Error("wrote below a file")
	}
}
