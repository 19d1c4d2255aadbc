// Package mutation breaks each rule of the log service in turn and shows that the seeded simulation finds it.
//
// A copy of some files of package logservice is patched so that each mistake can be switched on by name, and the tests of
// the package are built once with that copy (go build's overlay): the code itself knows nothing of it. Where a rule's code
// changes, its patch no longer fits, and the test says so: plant the mistake anew in mutants_test.go.
package mutation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	table    = flag.String("mutation.table", "", "write the table of mutants to this file, from searches without their profiles")
	limit    = flag.Int("mutation.seeds", 400, "how far to search for the table")
	patience = flag.Duration("mutation.patience", 20*time.Second, "how long one search for the table may take")
	only     = flag.String("mutation.only", "", "only mutants whose name matches this pattern")
)

// build makes a test binary of the log service in which mutants can be switched on.
func build(t *testing.T) (binary string) {
	t.Helper()
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	files := map[string]string{}
	for _, m := range mutants {
		for _, p := range m.patches {
			if files[p.file] == "" {
				content, err := os.ReadFile(filepath.Join(source, p.file))
				if err != nil {
					t.Fatal(err)
				}
				files[p.file] = string(content)
			}
			if n := strings.Count(files[p.file], p.old); n != 1 {
				t.Fatalf("mutant %s: %s holds %d times, not once:\n%s\nplant the mistake anew in mutants_test.go", m.name, p.file, n, p.old)
			}
			files[p.file] = strings.Replace(files[p.file], p.old, p.new, 1)
		}
	}
	helpers, err := os.ReadFile("testdata/mutant.go")
	if err != nil {
		t.Fatal(err)
	}
	files["mutant.go"] = string(helpers)
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, content := range files {
		replacement := filepath.Join(directory, name)
		if err := os.WriteFile(replacement, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[filepath.Join(source, name)] = replacement
	}
	encoded, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, "overlay.json"), encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(directory, "logservice.test")
	command := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", filepath.Join(directory, "overlay.json"),
		"-o", binary, source)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("build with the mutants: %v\n%s", err, output)
	}
	return binary
}

// finding is what the simulation says of a mutant; schedules is zero where it found nothing.
type finding struct {
	schedules int
	text      string
	// cutOff says that the search took too long, so that nothing is known.
	cutOff bool
}

var findingPattern = regexp.MustCompile(`seed \d+ \((.*), publication by \w+\) after (\d+) schedules: at \S+ (.*)`)

// search runs the simulation with a mutant until it is found.
func search(t *testing.T, binary string, m mutant, seeds int, arguments ...string) finding {
	t.Helper()
	arguments = append([]string{"-test.run", "^TestSimulation$", "-simulate.seeds", strconv.Itoa(seeds)}, arguments...)
	ctx := t.Context()
	if *table != "" {
		// A mistake may keep a schedule from ever ending.
		bounded, cancel := context.WithTimeout(ctx, *patience)
		defer cancel()
		ctx = bounded
	}
	command := exec.CommandContext(ctx, binary, arguments...)
	command.Env = append(os.Environ(), "LOGMIRROR_MUTANTS="+strings.Join(append(m.also, m.name), ","))
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err := command.Run()
	found := findingPattern.FindStringSubmatch(output.String())
	if found == nil && bytes.Contains(output.Bytes(), []byte("schedules, want at least")) {
		return finding{} // a mistake may keep schedules from what they are to reach
	}
	if found == nil && ctx.Err() != nil {
		return finding{cutOff: true}
	}
	if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || found == nil) {
		t.Fatalf("%s: %v\n%s", m.name, err, output.String())
	}
	if found == nil {
		return finding{}
	}
	schedules, err := strconv.Atoi(found[2])
	if err != nil {
		t.Fatal(err)
	}
	return finding{schedules: schedules, text: found[3]}
}

// TestMutants shows that the simulation finds each mutant within the number of schedules that the table of mutants gives
// for its profile; with -mutation.table, within how many of all profiles.
func TestMutants(t *testing.T) {
	binary := build(t)
	pattern := regexp.MustCompile(*only)
	// What is no mistake must not be found.
	for _, name := range []string{"none", "probes-are-empty"} {
		if found := search(t, binary, mutant{name: name}, 140); found.schedules > 0 {
			t.Fatalf("%s: %s", name, found.text)
		}
	}
	var rows strings.Builder
	for _, m := range mutants {
		if !pattern.MatchString(m.name) {
			continue
		}
		if *table != "" {
			rows.WriteString(row(t, binary, m))
			continue
		}
		found := search(t, binary, m, m.within*profiles, "-simulate.profile", m.profile)
		if found.schedules == 0 {
			t.Errorf("%s: not found within %d schedules of profile %q", m.name, m.within, m.profile)
		} else {
			t.Logf("%s: found after %d: %s", m.name, found.schedules, found.text)
		}
	}
	if *table != "" && !t.Failed() {
		if err := os.WriteFile(*table, []byte(fmt.Sprintf(document, *limit, rows.String())), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// profiles is the number of profiles that seeds take in turn.
const profiles = 9

// row searches for a mutant twice: by outcomes alone, and by all checks. What all profiles in turn do not find is looked for
// in the schedules of its own one.
func row(t *testing.T, binary string, m mutant) string {
	t.Helper()
	cell := func(arguments ...string) string {
		found, where := search(t, binary, m, *limit, arguments...), ""
		if found.schedules == 0 {
			found = search(t, binary, m, *limit*profiles, append(arguments, "-simulate.profile", m.profile)...)
			where = fmt.Sprintf(" of profile %q", m.profile)
		}
		switch {
		case found.cutOff:
			return fmt.Sprintf("cut off after %v | ", *patience)
		case found.schedules == 0:
			return "not found | "
		}
		return fmt.Sprintf("%d%s | %s", found.schedules, where, strings.ReplaceAll(kindOf(found.text), "|", "/"))
	}
	outcome := fmt.Sprintf("none | %s", m.hidden)
	if m.hidden == "" {
		outcome = cell("-simulate.outcomes")
	}
	all := cell()
	if strings.HasPrefix(all, "not found") {
		t.Errorf("%s: not found within %d schedules", m.name, *limit)
	}
	line := fmt.Sprintf("| %s | %s | %s |\n", m.rule, outcome, all)
	t.Log(m.name + " " + line)
	return line
}

// kindOf names the check that failed.
func kindOf(text string) string {
	for _, kind := range []struct{ pattern, name string }{
		{`publishes at \d+: term .*; was`, "two entries published at one index"},
		{`panics: logservice: published index`, "panic: a published entry would be replaced"},
		{`was replaced by one of`, "a published entry replaced in memory"},
		{`published in term .* was replaced in its log`, "a published entry replaced in a log"},
		{`was published before$`, "a round below what was published"},
		{`before it was published here`, "a round answered before its index was published"},
		{`round .* failed long after`, "a round not answered"},
		{`log time goes`, "log time goes back or jumps"},
		{`of kind .* after stamp`, "log time before the first entry"},
		{`not on the disks of a majority`, "fact: published, not on a majority's disks"},
		{`leads in term .* without`, "fact: a leader without a published entry"},
		{`its disk says that`, "fact: a change applied, its commit not durable"},
		{`which had a leader before`, "fact: two leaders in a term"},
		{`its disk knows of`, "fact: a leader whose disk does not know the term"},
		{`heard \d+ of \d+ voters`, "fact: a round without a majority of each half"},
		{`votes in term`, "fact: a vote that is not on the disk"},
		{`says that entry .* is durable`, "fact: told as durable, not on the disk"},
		{`publishes the configuration change`, "fact: a change published before its commit"},
		{`which was removed, is back`, "a removed member is back"},
		{`does not go on`, "the log does not go on"},
		{`is entry \d+$|which is in the log`, "a rejected proposal in the log"},
		{`written after|beyond the end`, "a group that does not fit the log on disk"},
		{`can't read`, "a published entry can't be read"},
		{`panics`, "panic"},
	} {
		if regexp.MustCompile(kind.pattern).MatchString(text) {
			return kind.name
		}
	}
	return text
}

const document = `# Mistakes that the simulation finds

Made by "make mutants": do not edit. Each mistake is made in a copy of the log service (logservice/mutation), and the
schedules of TestSimulation are run from seed 0 on, all profiles in turn, until a check fails, %d at the most; then as many of
the profile that reaches the mistake best. "Outcome" is what users could see, and "none" says why it can't be seen; "any
check" adds the facts within on which SAFETY.md builds (sim_check_test.go lists both). The number is that of the schedules run
until then, give or take the few that run at the same time. "make test" looks for each of them as well, with the profile that
finds it soonest.

| Mistake | Schedules to an outcome | Outcome | Schedules to any check | First check |
|---|---|---|---|---|
%s`
