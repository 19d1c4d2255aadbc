package pages

import (
	"slices"
	"strings"
	"testing"
)

const page = "Text, and `code`.\n\n```\nmake run\n\nus watch --prefix '' 'a b'   # 2 put a; then more\n" +
	"us get a # no key a; it is gone; exit code 3\nus id # (a number)\n```\n\n```go\nus := 1\n```\n"

func TestSteps(t *testing.T) {
	steps, err := Steps(page)
	if err != nil || len(steps) != 4 {
		t.Fatalf("%+v, %v", steps, err)
	}
	if want := []string{"us", "watch", "--prefix", "", "a b"}; !slices.Equal(steps[1].Words, want) {
		t.Errorf("%q, want %q", steps[1].Words, want)
	}
	for i, want := range []Step{{Command: "make run"}, {Command: "us watch --prefix '' 'a b'", Output: "2 put a"},
		{Command: "us get a", Output: "no key a", ExitCode: 3}, {Command: "us id"}} {
		if got := steps[i]; got.Command != want.Command || got.Output != want.Output || got.ExitCode != want.ExitCode {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	for _, wrong := range []string{"```\nus get 'a\n```\n", "```\nus get a # b; exit code three\n```\n", "```\nus get a\n"} {
		if got, err := Steps(wrong); err == nil {
			t.Errorf("%q is read as %+v", wrong, got)
		}
	}
}

func TestCheckWantsOutputAndExitCode(t *testing.T) {
	step := Step{Output: "5 put a", ExitCode: 4}
	inserted := strings.NewReplacer("5", "7")
	if err := step.Check("7\tput  a\n", 4, inserted); err != nil {
		t.Error(err)
	}
	if step.Check("5\tput  a\n", 4, inserted) == nil || step.Check("7\tput  a\n", 0, inserted) == nil {
		t.Error("anything is taken")
	}
}
