// Package flagreference keeps the tables of flags in docs/flags.md equal to the flags that binaries have, in their tests:
//
//	go test ./cmd/... -run FlagReference -update-flag-reference
//
// A file has a table for each name, between the lines <!-- begin NAME --> and <!-- end NAME -->.
package flagreference

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update-flag-reference", false, "write the tables of flags instead of comparing them")

// Table is a markdown table of flags, in alphabetical order; empty where there is none that is shown.
func Table(flags *pflag.FlagSet) string {
	var rows []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" {
			name += " " + kind
		}
		value := f.DefValue
		if value == "[]" || value == "false" {
			value = ""
		}
		if value != "" {
			value = "`" + value + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", name, value, cell(usage)))
	})
	if len(rows) == 0 {
		return ""
	}
	slices.Sort(rows)
	return "| Flag | Default | What it does |\n|---|---|---|\n" + strings.Join(rows, "")
}

func cell(text string) string {
	return strings.NewReplacer("\n", " ", "|", "\\|").Replace(text)
}

// Check compares a table with the one of that name in the file at path, or writes it there.
func Check(t *testing.T, path, name, want string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := fmt.Sprintf("<!-- begin %s -->\n", name), fmt.Sprintf("<!-- end %s -->\n", name)
	before, rest, found := strings.Cut(string(content), begin)
	got, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no lines %q and %q", path, begin, end)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s does not have the flags of %s as they are; write them with -update-flag-reference", path, name)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
