package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/test/pages"
)

// followReadme types what the README says for breaking the running demo by hand, in a shell.
func followReadme(t *testing.T, d demo) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.top, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	steps, err := pages.Steps(string(text))
	if err != nil {
		t.Fatal(err)
	}
	// The ports may have been moved.
	moved := strings.NewReplacer("127.0.0.1:2379", d.endpoints["us"], "127.0.0.1:2479", d.endpoints["eu"], "127.0.0.1:2579", d.endpoints["ap"])
	var exports []string
	typed := 0
	for _, step := range steps {
		switch {
		case step.Words[0] == "export":
			exports = append(exports, step.Command)
		case slices.Contains([]string{"bin/kvctl", "bin/wanlink"}, step.Words[0]):
			typed++
			command := exec.CommandContext(t.Context(), "bash", "-c", strings.Join(append(slices.Clone(exports), moved.Replace(step.Command)), "\n"))
			command.Dir = d.top
			command.Env = append(os.Environ(), "LOGMIRROR_CONTROL="+d.control)
			output, err := command.CombinedOutput()
			t.Logf("%s\n%s", step.Command, output)
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if err := step.Check(string(output), command.ProcessState.ExitCode(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if typed < 8 {
		t.Errorf("only %d commands found", typed)
	}
}
