package main

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var updateCapacity = flag.Bool("capacity.update", false, "write the tables of docs/capacity.md anew from docs/plots/scaling.json")

// TestCapacityPage holds the tables of docs/capacity.md to the figures that were measured: constants are fitted and
// predictions made anew.
func TestCapacityPage(t *testing.T) {
	const page = "../../docs/capacity.md"
	curves, err := readScale("../../docs/plots")
	if err != nil {
		t.Fatal(err)
	}
	m, err := fitModel(curves)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	checks, worst := m.checks(curves)
	if worst > 1 {
		t.Errorf("the model is off by %.0f %%: it is none", 100*worst)
	}
	text := string(encoded)
	for name, table := range map[string]string{"constants": m.constants(), "check": checks, "examples": m.examplesTable()} {
		begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
		before, rest, found := strings.Cut(text, begin)
		present, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			t.Fatalf("%s has no %q", page, begin)
		}
		if present == table {
			continue
		}
		if !*updateCapacity {
			t.Errorf("%s: the table %q is not what docs/plots/scaling.json gives; go test -run TestCapacityPage . -capacity.update", page, name)
		}
		text = before + begin + table + end + after
	}
	if *updateCapacity {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
