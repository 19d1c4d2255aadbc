package command

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/logmirror/logmirror/playground"
	"github.com/logmirror/logmirror/test/pages"
)

var grantedLease = regexp.MustCompile(`lease ([0-9a-f]+) granted`)

// TestTutorials types what each tutorial says into a fresh cluster of three regions, and wants what it promises.
func TestTutorials(t *testing.T) {
	files, err := filepath.Glob("../../../docs/tutorials/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tutorials: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".md"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			follow(t, string(text), startRegions(t), "alias")
		})
	}
}

// TestReadme types what the tour of the README says for make run. What it says for make demo is typed by test/tour.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	follow(t, string(text), startRegions(t), "alias", "make", "export", "bin/kvctl", "bin/wanlink")
}

// startRegions returns the addresses of the frontends of a new cluster, by region.
func startRegions(t *testing.T) map[string]string {
	t.Helper()
	running, err := playground.Start(playground.Config{DataDir: t.TempDir(), LeaderRegion: "us", Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := running.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	select {
	case <-running.Ready():
	case <-running.Done():
		t.Fatal(running.Err())
	case <-time.After(time.Minute):
		t.Fatal("the cluster does not get ready")
	}
	addresses := make(map[string]string)
	for _, region := range running.Info().Regions {
		addresses[region.Name] = region.Frontend
	}
	return addresses
}

// follow types the commands of a page in the place of a reader, who has aliases for kvctl at each region. Lines that
// begin with one of others are not for kvctl.
func follow(t *testing.T, page string, addresses map[string]string, others ...string) {
	t.Helper()
	all, err := pages.Steps(page)
	if err != nil {
		t.Fatal(err)
	}
	inserted, steps := strings.NewReplacer(), 0
	for _, step := range all {
		if slices.Contains(others, step.Words[0]) {
			continue
		}
		address, known := addresses[step.Words[0]]
		if !known {
			t.Fatalf("%s: not understood", step.Line)
		}
		steps++
		arguments := []string{"--endpoints", address}
		for _, word := range step.Words[1:] {
			arguments = append(arguments, inserted.Replace(word))
		}
		var out bytes.Buffer
		code := Main(arguments, strings.NewReader(""), &out, &out)
		// On a machine that has no time for the cluster, its log may lose its leader for a moment: what was surely not done is
		// done again, as a reader would.
		for tries := 0; code == exitUnavailable && step.ExitCode != exitUnavailable && tries < 60; tries++ {
			t.Logf("%s: %s", step.Command, out.String())
			select {
			case <-time.After(time.Second):
			case <-t.Context().Done():
			}
			out.Reset()
			code = Main(arguments, strings.NewReader(""), &out, &out)
		}
		if granted := grantedLease.FindStringSubmatch(out.String()); granted != nil {
			inserted = strings.NewReplacer("5f1c…", granted[1])
		}
		if err := step.Check(out.String(), code, inserted); err != nil {
			t.Fatal(err)
		}
	}
	if steps < 5 {
		t.Errorf("only %d steps found", steps)
	}
}
