// Package units lets systemd look at the units of deploy/systemd, where systemd is.
package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

func TestUnitsAreValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	units, err := filepath.Glob("../../deploy/systemd/*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("%q, %v: want the units of logsvc and frontend", units, err)
	}
	// It wants that the program is there, which only an installation has.
	installed, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile(`(?m)^ExecStart=\S+`)
	check := func(name string, text []byte) (string, error) {
		copied := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(copied, text, 0o600); err != nil {
			t.Fatal(err)
		}
		output, err := exec.CommandContext(t.Context(), analyze, "verify", copied).CombinedOutput()
		return string(output), err
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		text = program.ReplaceAll(text, []byte("ExecStart="+installed))
		// What it finds odd, such as an unknown setting, it says and passes.
		if output, err := check(filepath.Base(unit), text); err != nil || output != "" {
			t.Errorf("%s: %v\n%s", unit, err, output)
		}
		if output, err := check(filepath.Base(unit), append(text, "\n[Service]\nRestartSecs=1s\n"...)); err == nil && output == "" {
			t.Errorf("%s: a misspelt setting is not noticed", unit)
		}
	}
}
