package command

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/logmirror/logmirror/playground"
)

var (
	tutorialLine = regexp.MustCompile(`^(us|eu|ap) ([^#]*[^# ]) *(?:# (.*?)(?:; exit code (\d))?)?$`)
	grantedLease = regexp.MustCompile(`lease ([0-9a-f]+) granted`)
)

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
			followTutorial(t, string(text), startRegions(t))
		})
	}
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

func followTutorial(t *testing.T, text string, addresses map[string]string) {
	t.Helper()
	lease, steps, block := "5f1c…", 0, false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			block = !block
			continue
		}
		if !block || strings.HasPrefix(line, "alias ") || line == "\n" {
			continue
		}
		step := tutorialLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if step == nil {
			t.Fatalf("%snot understood", line)
		}
		steps++
		arguments := append([]string{"--endpoints", addresses[step[1]]},
			strings.Fields(strings.NewReplacer("5f1c…", lease, "'", "").Replace(step[2]))...)
		var out bytes.Buffer
		code := Main(arguments, strings.NewReader(""), &out, &out)
		if granted := grantedLease.FindStringSubmatch(out.String()); granted != nil {
			lease = granted[1]
		}
		want, _ := strconv.Atoi(step[4]) // none is 0
		promised := strings.ReplaceAll(step[3], "5f1c…", lease)
		if code != want || !strings.Contains(out.String(), promised) {
			t.Fatalf("%sexit code %d, want %d; want %q in:\n%s", line, code, want, promised, out.String())
		}
	}
	if steps < 5 {
		t.Errorf("only %d steps found", steps)
	}
}
