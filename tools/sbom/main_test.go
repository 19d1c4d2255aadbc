package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the schema of CycloneDX 1.6 requires, and forbids, of the parts that are used; and that every reference leads somewhere.
func TestBillIsValid(t *testing.T) {
	directory := t.TempDir()
	binaries := []string{filepath.Join(directory, "one-linux-amd64"), filepath.Join(directory, "two-linux-amd64")}
	build := exec.Command("go", "build", "-o", binaries[0], "github.com/logmirror/logmirror/cmd/wanlink")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	if err := os.Link(binaries[0], binaries[1]); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, to := range []*bytes.Buffer{&first, &second} {
		if err := write(to, "v1.2.3", binaries); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same binaries give other bytes")
	}
	var bill struct {
		Format  string `json:"bomFormat"`
		Spec    string `json:"specVersion"`
		Serial  string `json:"serialNumber"`
		Version int    `json:"version"`
		Meta    struct {
			Component component `json:"component"`
		} `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	strict := json.NewDecoder(&first)
	strict.DisallowUnknownFields()
	if err := strict.Decode(&bill); err != nil {
		t.Fatal(err)
	}
	if bill.Format != "CycloneDX" || bill.Spec != "1.6" || bill.Version < 1 {
		t.Errorf("%s %s, version %d", bill.Format, bill.Spec, bill.Version)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bill.Serial) {
		t.Errorf("serial number %q", bill.Serial)
	}
	if c := bill.Meta.Component; c.Name != "github.com/logmirror/logmirror" || c.Version != "v1.2.3" || c.Type != "application" {
		t.Errorf("it is of %+v", c)
	}
	refs := map[string]bool{bill.Meta.Component.Ref: true}
	for _, c := range bill.Components {
		checkComponent(t, c)
		if refs[c.Ref] {
			t.Errorf("bom-ref %s is given twice", c.Ref)
		}
		refs[c.Ref] = true
	}
	for _, d := range bill.Dependencies {
		for _, ref := range append(slices.Clone(d.DependsOn), d.Ref) {
			if !refs[ref] {
				t.Errorf("%s is referred to, and not there", ref)
			}
		}
		if !slices.IsSorted(d.DependsOn) || len(slices.Compact(slices.Clone(d.DependsOn))) != len(d.DependsOn) {
			t.Errorf("%s depends on %q: in order, each once", d.Ref, d.DependsOn)
		}
	}
	if len(bill.Dependencies) != 3 {
		t.Errorf("%d have dependencies, not two binaries and the whole", len(bill.Dependencies))
	}
	for _, want := range []string{"pkg:golang/stdlib@1.", "pkg:golang/github.com/spf13/cobra@v1.", "file:one-linux-amd64"} {
		if !slices.ContainsFunc(bill.Components, func(c component) bool { return strings.HasPrefix(c.Ref, want) }) {
			t.Errorf("no component %s…", want)
		}
	}
}

func checkComponent(t *testing.T, c component) {
	t.Helper()
	if c.Name == "" || c.Ref == "" || !slices.Contains([]string{"application", "library"}, c.Type) {
		t.Errorf("%+v lacks what a component must have", c)
	}
	if c.Type == "library" && c.PURL != "pkg:golang/"+c.Name+"@"+c.Version {
		t.Errorf("%+v: the package URL is not of name and version", c)
	}
	if c.Type == "application" && len(c.Hashes) != 1 {
		t.Errorf("%s has no checksum", c.Name)
	}
	for _, h := range c.Hashes {
		if h.Algorithm != "SHA-256" || !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(h.Content) {
			t.Errorf("%s: %+v", c.Name, h)
		}
	}
}

func TestWhatIsNoBinaryIsRefused(t *testing.T) {
	if err := write(&bytes.Buffer{}, "v1", []string{"main.go"}); err == nil || !strings.Contains(err.Error(), "main.go") {
		t.Errorf("%v", err)
	}
}
