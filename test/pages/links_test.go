package pages

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const top = "../.."

// files returns the files of the repository with some endings, by their paths from its top.
func files(t *testing.T, endings ...string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != top && (strings.HasPrefix(entry.Name(), ".") || slices.Contains([]string{"bin", "dist"}, entry.Name())):
			return fs.SkipDir
		case !entry.IsDir() && slices.Contains(endings, filepath.Ext(path)):
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile("(?m)^#{1,6} +(.+)$")
	fenced  = regexp.MustCompile("(?ms)^```.*?^```$")
	marks   = regexp.MustCompile(`[^\p{L}\p{N}\p{Pc} -]`)
)

// prose is a page without what stands between fences, where neither headings nor links are meant.
func prose(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fenced.ReplaceAllString(string(text), "")
}

// anchors are the fragments by which the headings of a page are reached, made as the usual renderers make them.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, match := range heading.FindAllStringSubmatch(page, -1) {
		text := link.ReplaceAllString(match[1], "]")
		base := strings.ReplaceAll(strings.ToLower(marks.ReplaceAllString(text, "")), " ", "-")
		anchor := base
		for n := 1; found[anchor]; n++ {
			anchor = fmt.Sprintf("%s-%d", base, n)
		}
		found[anchor] = true
	}
	return found
}

// Each link of a page to another file, or to a heading, leads there.
func TestLinksLeadSomewhere(t *testing.T) {
	const least = 50 // fewer would mean that they are not found
	checked := 0
	for _, path := range files(t, ".md") {
		for _, match := range link.FindAllStringSubmatch(prose(t, path), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(match[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", path, match[1], err)
			} else if anchor != "" && !anchors(prose(t, target))[anchor] {
				t.Errorf("%s: %s: no such heading", path, match[1])
			}
		}
	}
	if checked < least {
		t.Errorf("only %d links were found", checked)
	}
}

func TestAnchorsAreMadeOfHeadings(t *testing.T) {
	got := anchors("# Leases, `kvctl` & locks\n\ntext\n## A [link](page.md) here\n## Twice\n## Twice\n")
	for _, want := range []string{"leases-kvctl--locks", "a-link-here", "twice", "twice-1"} {
		if !got[want] {
			t.Errorf("no %s among %v", want, got)
		}
	}
}

// The decisions are numbered 1, 2, 3 …, each number once, and each title and each link tells the number of the file.
func TestDecisionsAreNumbered(t *testing.T) {
	decisions, err := filepath.Glob(filepath.Join(top, "docs/decisions/*.md"))
	if err != nil || len(decisions) == 0 {
		t.Fatal(decisions, err)
	}
	for i, path := range decisions {
		name := filepath.Base(path)
		if want := fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(name, want) {
			t.Errorf("%s: its name should begin with %s", name, want)
		}
		if want := fmt.Sprintf("# %d. ", i+1); !strings.HasPrefix(prose(t, path), want) {
			t.Errorf("%s: its title should begin with %q", name, want)
		}
	}
	named := regexp.MustCompile(`\[[Dd]ecision ([0-9]+)\]\([^)]*?0*([0-9]+)-[^)]*\)`)
	checked := 0
	for _, path := range files(t, ".md") {
		for _, match := range named.FindAllStringSubmatch(prose(t, path), -1) {
			checked++
			if match[1] != match[2] {
				t.Errorf("%s: %s", path, match[0])
			}
		}
	}
	if checked == 0 {
		t.Error("no page names a decision")
	}
}

// Comments and programs that name a page of the documentation name one that is there.
func TestSourcesNamePagesThatExist(t *testing.T) {
	named := regexp.MustCompile(`\bdocs/[\w./-]+\.md\b`)
	checked := 0
	for _, path := range files(t, ".go", ".sh", ".yml", ".yaml", ".proto", ".service") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range named.FindAllString(string(text), -1) {
			checked++
			if _, err := os.Stat(filepath.Join(top, page)); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if checked == 0 {
		t.Error("no source names a page")
	}
}
