package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var whole = flag.Bool("tour", false, "start the demo, walk through it and end it: some minutes of containers")

// The demo is brought up, does what the tour and then the README say of it, and leaves nothing behind.
func TestTour(t *testing.T) {
	if output, err := exec.Command("docker", "info").CombinedOutput(); err != nil {
		t.Skipf("no Docker Engine is reachable, so there is nothing to tour: %v\n%s", err, output)
	}
	if !*whole {
		t.Skip("the tour takes minutes of containers: it is walked with -tour (make test-demo)")
	}
	d, err := newDemo()
	if err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("docker", "inspect", "logmirror-wan").CombinedOutput(); err == nil {
		t.Fatalf("a demo is there already, and would be removed by this test: make demo-down first\n%.200s", output)
	}
	demo := func(what string) error {
		command := exec.Command(filepath.Join(d.top, "deploy", "compose", "demo"), what)
		output, err := command.CombinedOutput()
		t.Logf("demo %s:\n%s", what, output)
		return err
	}
	t.Cleanup(func() {
		if err := demo("down"); err != nil {
			t.Errorf("demo down: %v", err)
		}
		left, err := exec.Command("docker", "ps", "-aq", "--filter", "name=^logmirror-").Output()
		if err != nil || len(bytes.TrimSpace(left)) > 0 {
			t.Errorf("containers are left: %s, %v", left, err)
		}
	})
	if err := demo("up"); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	err = run(t.Context(), &text)
	t.Logf("\n%s", text.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	followReadme(t, d)
}

// A tour that took any answer would test nothing.
func TestWrongAnswersEndTheTour(t *testing.T) {
	for name, walk := range map[string]func(*tour){
		"exit code 3":   func(t *tour) { t.shows(0, "", "sh", "-c", "exit 3") },
		`want 0 and "b`: func(t *tour) { t.shows(0, "b", "echo", "a") },
		"light":         func(t *tour) { t.atLeast(answer{took: time.Millisecond}, time.Second, "a put") },
		"no-such":       func(t *tour) { t.do("no-such-command") },
		"exit code 7":   func(t *tour) { t.background("sh", "-c", "exit 7")(0, "") },
		"signal":        func(t *tour) { t.shows(0, "", "sh", "-c", "echo signal; kill -9 $$") },
		"exit code 5": func(t *tour) { // for ever: excused three times only
			t.shows(0, "", "sh", "-c", "echo away; exit 5")
			if lines := strings.Count(t.out.(*strings.Builder).String(), "away\n"); lines != 1+excusesMax {
				t.fail("%d answers are told", lines)
			}
		},
		"want 5": func(t *tour) { t.shows(5, "", "sh", "-c", "exit 0") },
	} {
		var out strings.Builder
		told := &tour{ctx: t.Context(), out: &out}
		walk(told)
		if told.err == nil || !strings.Contains(told.err.Error(), name) {
			t.Errorf("%s: the tour goes on after %q: %v", name, out.String(), told.err)
		}
		before := out.Len()
		told.shows(0, "", "echo", "more")
		if out.Len() != before {
			t.Errorf("%s: steps after a failure are walked", name)
		}
	}
	var out strings.Builder
	busy := &tour{ctx: t.Context(), out: &out}
	missing := filepath.Join(t.TempDir(), "missing")
	busy.shows(0, "done", "sh", "-c", "test -e "+missing+" && echo done || { touch "+missing+"; exit 5; }")
	if busy.err != nil || busy.excused != 1 || !strings.Contains(out.String(), "Once more") {
		t.Errorf("an answer that the second attempt gives: %v\n%s", busy.err, out.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := &tour{ctx: ctx, out: io.Discard}
	if ended.until(0, "never", "echo", "again"); ended.err == nil {
		t.Error("an interrupted tour waits on")
	}
}
