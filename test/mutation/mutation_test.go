// Package mutation plants mistakes in the whole system outside of the log service's consensus, one at a time, and shows which
// check finds each: the system simulation (test/sim), or a test of the package that has the mistake. The log service has a table
// of its own, logservice/mutation.
//
// All mistakes stand in one patched copy of the sources, in which each can be switched on by name when a process starts; the
// tests of each package are built once with that copy (go build's overlay), and the code itself knows nothing of it. Where
// patched code changes, its patch no longer fits, and the test says so: plant the mistake anew in mutants_test.go.
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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	table    = flag.String("mutation.table", "", "search for all mutants, and write what finds them to this file, row by row")
	seeds    = flag.Int("mutation.seeds", 30, "how many seeds of its profile to search for a mutant at most; zero for tests alone")
	patience = flag.Duration("mutation.patience", 2*time.Minute, "how long one run of the simulation or of a test may take")
	only     = flag.String("mutation.only", "", "only mutants of which group/name matches this pattern; other rows of the table stay")
	missing  = flag.Bool("mutation.missing", false, "only mutants that the table does not have yet")
)

const (
	module     = "github.com/logmirror/logmirror"
	simulation = "test/sim"
	// helperPackage is imported by all patched files, and is nowhere but in the overlay.
	helperPackage = "internal/mutant"
	// profiles is the number of the simulation's profiles, which seeds take in turn.
	profiles = 9
)

// workshop is the patched copy and what was built with it.
type workshop struct {
	root, directory, overlay string
	// patched are the packages that have mistakes.
	patched []string

	mu       sync.Mutex
	binaries map[string]*binary
}

// binary is the test binary of one package, built when first wanted.
type binary struct {
	once sync.Once
	path string
	err  error
}

// newWorkshop makes the patched copy. Each patch must fit once.
func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	w := &workshop{root: root, directory: t.TempDir(), binaries: map[string]*binary{}}
	files := patchedFiles(t, root)
	helper, err := os.ReadFile("testdata/mutant.go")
	if err != nil {
		t.Fatal(err)
	}
	files[helperPackage+"/mutant.go"] = string(helper)
	replace := map[string]string{}
	for name, content := range files {
		copied := filepath.Join(w.directory, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(copied, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, name)] = copied
		if p := filepath.Dir(name); p != helperPackage && !slices.Contains(w.patched, p) {
			w.patched = append(w.patched, p)
		}
	}
	slices.Sort(w.patched)
	encoded, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	w.overlay = filepath.Join(w.directory, "overlay.json")
	if err := os.WriteFile(w.overlay, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// patchedFiles returns the sources with all mistakes.
func patchedFiles(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, m := range mutants {
		for _, p := range m.patches {
			if files[p.file] == "" {
				content, err := os.ReadFile(filepath.Join(root, p.file))
				if err != nil {
					t.Fatal(err)
				}
				clause := packageClause.FindString(string(content))
				// On the clause's line, so that lines keep their numbers.
				files[p.file] = strings.Replace(string(content), clause, clause+`; import "`+module+"/"+helperPackage+`"`, 1)
			}
			if n := strings.Count(files[p.file], p.old); n != 1 {
				t.Fatalf("mutant %s: %s holds %d times, not once:\n%s\nplant the mistake anew in mutants_test.go", m.name, p.file, n, p.old)
			}
			files[p.file] = strings.Replace(files[p.file], p.old, p.new, 1)
		}
	}
	return files
}

var packageClause = regexp.MustCompile(`(?m)^package \w+`)

func (w *workshop) goTool(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = w.root
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(arguments, " "), err, output)
	}
	return nil
}

// binary returns the test binary of a package, built with the mistakes.
func (w *workshop) binary(t *testing.T, name string) string {
	t.Helper()
	w.mu.Lock()
	b := w.binaries[name]
	if b == nil {
		b = &binary{path: filepath.Join(w.directory, strings.ReplaceAll(name, "/", "_")+".test")}
		w.binaries[name] = b
	}
	w.mu.Unlock()
	b.once.Do(func() {
		b.err = w.goTool(t.Context(), "test", "-c", "-vet=off", "-overlay", w.overlay, "-o", b.path, "./"+name)
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// run runs a test binary where its package is, with mistakes switched on. cutOff says that it took too long, so that nothing
// is known.
func (w *workshop) run(t *testing.T, name string, mistakes []string, arguments ...string) (output string, failed, cutOff bool) {
	t.Helper()
	binary := w.binary(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), *patience)
	defer cancel()
	if usesRapid(filepath.Join(w.root, name)) {
		arguments = append(arguments, "-rapid.nofailfile") // what fails here is no example to keep
	}
	command := exec.CommandContext(ctx, binary, append(arguments, "-test.count=1")...)
	command.Dir = filepath.Join(w.root, name)
	command.Env = append(os.Environ(), "LOGMIRROR_MUTANTS="+strings.Join(mistakes, ","), "GOGC=300")
	var both bytes.Buffer
	command.Stdout, command.Stderr = &both, &both
	err := command.Run()
	if ctx.Err() != nil {
		return both.String(), true, true
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Errorf("%s: %v", name, err)
	}
	return both.String(), err != nil, false
}

// usesRapid tells whether the tests of a package draw their examples with rapid, and know its flags.
func usesRapid(directory string) bool {
	files, _ := filepath.Glob(filepath.Join(directory, "*_test.go"))
	return slices.ContainsFunc(files, func(name string) bool {
		content, err := os.ReadFile(name)
		return err == nil && bytes.Contains(content, []byte(`"pgregory.net/rapid"`))
	})
}

// finding is what was found of a mutant.
type finding struct {
	// ran are the seeds of its profile that were run, zero for none, and check is what failed; empty where nothing did.
	ran   int
	check string
	// tests failed, of those that are named.
	tests []string
	// cutOff says that a run took too long, so that nothing is known.
	cutOff bool
}

func (f finding) found() bool { return f.check != "" || len(f.tests) > 0 }

var seedPattern = regexp.MustCompile(`seed (\d+) \((.*)\): at \S+: (.*(?:\n.*)?)`)

// simulate runs seeds of the mutant's profile, from the first on, until a check fails.
func (w *workshop) simulate(t *testing.T, m mutant, count int) finding {
	t.Helper()
	output, _, cutOff := w.run(t, simulation, m.switched(), "-test.run", "^TestSeeds$",
		"-sim.seeds", strconv.Itoa(count*profiles), "-sim.profile", m.profile)
	found := seedPattern.FindStringSubmatch(output)
	if found == nil {
		return finding{ran: count, cutOff: cutOff}
	}
	seed, err := strconv.Atoi(found[1])
	if err != nil {
		t.Error(err)
	}
	return finding{ran: seed/profiles + 1, check: kindOf(found[3])}
}

var (
	failedPattern = regexp.MustCompile(`(?m)^--- FAIL: (Test\w+)`)
	endedPattern  = regexp.MustCompile(`(?m)^(?:panic|fatal error): (.*)`)
)

// unit runs the tests that are named to find the mutant.
func (w *workshop) unit(t *testing.T, m mutant) (f finding) {
	t.Helper()
	for _, u := range m.tests {
		output, failed, cutOff := w.run(t, u.in, m.switched(), "-test.run", u.pattern(), "-test.timeout", "10m")
		switch names := failedPattern.FindAllStringSubmatch(output, -1); {
		case cutOff:
			f.cutOff = true
		case len(names) > 0:
			var all []string
			for _, name := range names {
				all = append(all, name[1])
			}
			f.tests = append(f.tests, u.in+" "+strings.Join(all, ", "))
		case failed:
			// A panic on another goroutine than a test's ends the process before that can be named.
			if reason := endedPattern.FindStringSubmatch(output); reason != nil {
				f.tests = append(f.tests, fmt.Sprintf("%s %s (panic)", u.in, u.run))
			}
		}
	}
	return f
}

// The patches fit, the copy compiles, mutants do not share a name or a row, and the table has them all.
func TestPatchesFit(t *testing.T) {
	w := newWorkshop(t)
	packages := []string{"build", "-overlay", w.overlay}
	for _, p := range w.patched {
		packages = append(packages, "./"+p)
	}
	if err := w.goTool(t.Context(), packages...); err != nil {
		t.Fatal(err)
	}
	names, rules := map[string]bool{}, map[string]bool{}
	for _, m := range mutants {
		if names[m.name] || rules[m.rule] {
			t.Errorf("mutant %s: another one has its name or its rule", m.name)
		}
		names[m.name], rules[m.rule] = true, true
		if m.profile == "" && len(m.tests) == 0 {
			t.Errorf("mutant %s: it is not said what finds it", m.name)
		}
	}
	for _, m := range mutants {
		for _, other := range m.also {
			if !names[other] {
				t.Errorf("mutant %s: there is no %s", m.name, other)
			}
		}
	}
	content, err := os.ReadFile(filepath.Join(w.root, "docs/mutants.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := rowsOf(string(content))
	for rule := range rows {
		if !rules[rule] {
			t.Errorf("docs/mutants.md has a row of %q, which is no mutant: make mutants", rule)
		}
	}
	for rule := range rules {
		if rows[rule] == "" {
			t.Errorf("docs/mutants.md has no row of %q: make mutants", rule)
		}
	}
}

// TestMutants finds a few mutants that are found within seconds; with -mutation.table all, and writes what finds them.
func TestMutants(t *testing.T) {
	if *table == "" && testing.Short() {
		t.Skip("builds test binaries")
	}
	w := newWorkshop(t)
	chosen := chosenMutants(t)
	if *table == "" {
		w.unmutated(t, chosen)
		each(chosen, func(m mutant) { w.find(t, m) })
		return
	}
	results := newTable(t)
	w.unmutated(t, chosen)
	each(chosen, func(m mutant) { results.add(t, m, w.unit(t, m), finding{}) })
	each(chosen, func(m mutant) {
		if m.unseen == "" && *seeds > 0 {
			results.add(t, m, results.tested(m), w.simulate(t, m, min(m.within, *seeds)))
		}
	})
	for _, m := range chosen {
		if !results.found[m.name] {
			t.Errorf("%s: not found", m.name)
		}
	}
}

// each calls do for all, on all processors.
func each(chosen []mutant, do func(mutant)) {
	work := make(chan mutant)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for m := range work {
				do(m)
			}
		})
	}
	for _, m := range chosen {
		work <- m
	}
	close(work)
	workers.Wait()
}

// chosenMutants are those to be looked for.
func chosenMutants(t *testing.T) (chosen []mutant) {
	t.Helper()
	pattern := regexp.MustCompile(*only)
	var rows map[string]string
	if *missing {
		content, err := os.ReadFile(*table)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		rows = rowsOf(string(content))
	}
	for _, m := range mutants {
		if pattern.MatchString(m.group+"/"+m.name) && rows[m.rule] == "" && (*table != "" || m.quick || *only != "") {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

// unmutated runs what finds the chosen mutants without any: it must pass.
func (w *workshop) unmutated(t *testing.T, chosen []mutant) {
	t.Helper()
	patterns, simulated := map[string][]string{}, 0
	for _, m := range chosen {
		if m.unseen == "" && *seeds > 0 {
			if simulated = profiles; *table == "" {
				simulated = 2 // without the copy, TestSeeds itself runs many
				continue
			}
		}
		for _, u := range m.tests {
			if !slices.Contains(patterns[u.in], u.pattern()) {
				patterns[u.in] = append(patterns[u.in], u.pattern())
			}
		}
	}
	for in, tests := range patterns {
		if output, failed, _ := w.run(t, in, nil, "-test.run", strings.Join(tests, "|")); failed {
			t.Errorf("%s without a mistake:\n%s", in, output)
		}
	}
	if simulated == 0 {
		return
	}
	if output, failed, _ := w.run(t, simulation, nil, "-test.run", "^TestSeeds$", "-sim.seeds", strconv.Itoa(simulated)); failed {
		t.Errorf("the simulation without a mistake:\n%s", output)
	}
}

// find looks for a mutant where it is found soonest.
func (w *workshop) find(t *testing.T, m mutant) {
	t.Helper()
	var f finding
	if m.profile != "" {
		f = w.simulate(t, m, m.within)
	} else {
		f = w.unit(t, m)
	}
	if !f.found() {
		t.Errorf("%s: not found (too long: %v)", m.name, f.cutOff)
		return
	}
	t.Logf("%s: %d %s %v", m.name, f.ran, f.check, f.tests)
}

// row tells what finds a mutant.
func row(m mutant, tested, simulated finding) string {
	cells := "– | " + m.unseen
	switch {
	case m.unseen != "":
	case simulated.cutOff:
		cells = fmt.Sprintf("cut off after %v | ", *patience)
	case simulated.check != "":
		cells = fmt.Sprintf("%d of %s | %s", simulated.ran, m.profile, simulated.check)
	case simulated.ran > 0:
		cells = fmt.Sprintf("none of %d of %s | ", simulated.ran, m.profile)
	default:
		cells = "not searched | "
	}
	return fmt.Sprintf("| %s | %s | %s |", m.rule, strings.ReplaceAll(cells, "\n", " "), strings.Join(tested.tests, "; "))
}

// results is the table on its way.
type results struct {
	mu   sync.Mutex
	rows map[string]string
	// tests are what unit tests found, by name.
	tests map[string]finding
	found map[string]bool
}

// newTable begins with the rows that the file has, so that an interrupted search goes on.
func newTable(t *testing.T) *results {
	t.Helper()
	content, err := os.ReadFile(*table)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return &results{rows: rowsOf(string(content)), tests: map[string]finding{}, found: map[string]bool{}}
}

func (r *results) tested(m mutant) finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tests[m.name]
}

// add writes the table with what is known of a mutant. Tests that were named and found nothing are a mistake of the list.
func (r *results) add(t *testing.T, m mutant, tested, simulated finding) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := r.tests[m.name]; !again && len(tested.tests) < len(m.tests) {
		t.Errorf("%s: found by %v only (too long: %v), not by each of %v", m.name, tested.tests, tested.cutOff, m.tests)
	}
	r.tests[m.name], r.rows[m.rule] = tested, row(m, tested, simulated)
	r.found[m.name] = r.found[m.name] || tested.found() || simulated.found()
	t.Logf("%s: %s", m.name, r.rows[m.rule])
	var all strings.Builder
	group := ""
	for _, m := range mutants {
		if r.rows[m.rule] == "" {
			continue
		}
		if m.group != group {
			group = m.group
			fmt.Fprintf(&all, "\n## %s\n\n%s", group, tableHead)
		}
		all.WriteString(r.rows[m.rule] + "\n")
	}
	if err := os.WriteFile(*table, []byte(fmt.Sprintf(document, len(mutants), all.String())), 0o600); err != nil {
		t.Error(err)
	}
}

// rowsOf returns the rows of a table by their first cell.
func rowsOf(content string) map[string]string {
	rows := map[string]string{}
	for line := range strings.Lines(content) {
		line = strings.TrimSuffix(line, "\n")
		if cells := strings.Split(line, " | "); len(cells) == 4 && strings.HasPrefix(line, "| ") && cells[0] != "| Mistake" {
			rows[strings.TrimPrefix(cells[0], "| ")] = line
		}
	}
	return rows
}

const tableHead = `| Mistake | Seeds | First check of the simulation | Tests |
|---|---|---|---|
`

const document = `# Mistakes that the suite finds

Made by "make mutants": do not edit. Each of %d mistakes outside of the log service's consensus is made in a patched copy of
the sources (test/mutation), one at a time. Seeds of the [simulation](verification.md) are run, of the profile that reaches the
mistake best, from its first on, until a check fails; "2 of sessions" says that the second one found it. "–" stands for
mistakes that the simulation cannot show, with the reason. "Tests" are those of the packages that are named to find it, and
failed. The log service's own mistakes are in [logservice/MUTANTS.md](../logservice/MUTANTS.md). "make test" looks for a few of
them as well.
%s`
