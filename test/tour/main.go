// Command tour walks through the running demo of three regions, explains each step, and checks each answer: its output is a
// text to read, and its exit code says whether the demo did what the text says.
//
// It stands on what a user has: the commands of bin/, docker, and etcd's own client.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "tour:", err)
		os.Exit(1)
	}
}

// patience is how long the tour waits for what must happen: far longer than it takes, on a busy machine too.
const patience = 60 * time.Second

// demo is where the parts of the running demo are found.
type demo struct {
	top       string            // of the repository, where commands are run
	endpoints map[string]string // region -> host:port
	control   string
}

// newDemo finds the repository from the working directory upwards, and the ports as deploy/compose/demo does.
func newDemo() (demo, error) {
	top, err := os.Getwd()
	if err != nil {
		return demo{}, err
	}
	for {
		if _, err := os.Stat(filepath.Join(top, "deploy", "compose", "compose.yaml")); err == nil {
			break
		}
		if filepath.Dir(top) == top {
			return demo{}, errors.New("run me within a checkout of logmirror")
		}
		top = filepath.Dir(top)
	}
	at := func(part, port string) string {
		if moved := os.Getenv("LOGMIRROR_DEMO_" + part + "_PORT"); moved != "" {
			port = moved
		}
		return net.JoinHostPort("127.0.0.1", port)
	}
	return demo{
		top:       top,
		endpoints: map[string]string{"us": at("US", "2379"), "eu": at("EU", "2479"), "ap": at("AP", "2579")},
		control:   at("WAN", "2300"),
	}, nil
}

// resolve is the value of kvctl's --resolve: where this machine reaches the addresses that the frontends advertise.
func (d demo) resolve() string {
	var places []string
	for region, port := range map[string]string{"us": "2379", "eu": "2479", "ap": "2579"} {
		places = append(places, "frontend-"+region+":"+port+"="+d.endpoints[region])
	}
	slices.Sort(places)
	return strings.Join(places, ",")
}

// file is one of the certificates and keys, as seen from the top.
func (d demo) file(name string) string { return filepath.Join("deploy", "compose", "certs", name) }

// identity are the flags of kvctl and wanlink by which somebody shows a certificate.
func (d demo) identity(name string) []string {
	return []string{"--cacert", d.file("authority.pem"), "--cert", d.file(name + ".pem"), "--key", d.file(name + "-key.pem")}
}

// command returns what a line of the tour stands for: us, eu and ap are kvctl at that region's frontend as an application,
// wan is wanlink as an operator, and anything else is itself.
func (d demo) command(ctx context.Context, line []string) *exec.Cmd {
	words := line
	switch name := line[0]; name {
	case "us", "eu", "ap":
		words = slices.Concat([]string{kvctl, "--endpoints", d.endpoints[name], "--resolve", d.resolve()}, d.identity("app"), line[1:])
	case "wan":
		words = slices.Concat([]string{wanlink}, line[1:], []string{"--control", d.control}, d.identity("admin"))
	}
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Dir = d.top
	for _, variable := range os.Environ() { // a certificate there would be shown where the tour shows none
		if !strings.HasPrefix(variable, "LOGMIRROR_") {
			command.Env = append(command.Env, variable)
		}
	}
	return command
}

const (
	kvctl   = "./bin/kvctl"
	wanlink = "./bin/wanlink"
)

// tour prints and checks. Its first failure is kept, and makes all that follows do nothing, so that steps read straight on.
type tour struct {
	demo
	ctx context.Context
	out io.Writer
	err error
	// excused counts the answers of exit code 5 where nothing was broken on purpose; see excuse.
	excused int
}

func (t *tour) fail(format string, arguments ...any) {
	if t.err == nil {
		t.err = fmt.Errorf(format, arguments...)
	}
}

func (t *tour) say(text string) {
	if t.err == nil {
		fmt.Fprintf(t.out, "%s\n\n", text)
	}
}

// answer is what a command printed, and how it ended.
type answer struct {
	text string
	code int
	took time.Duration
}

// do runs a command without showing it.
func (t *tour) do(line ...string) (a answer) {
	if t.err != nil {
		return answer{}
	}
	command := t.command(t.ctx, line)
	// Answers first, then what went wrong, whatever order they came in.
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	start := time.Now()
	err := command.Run()
	a.took = time.Since(start)
	a.text = out.String() + problems.String()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		a.code = exit.ExitCode()
	} else if err != nil {
		t.fail("%s: %w", strings.Join(line, " "), err)
	}
	if t.ctx.Err() != nil {
		t.fail("interrupted")
	}
	return a
}

var bare = regexp.MustCompile(`^[-\w./:=%*,@{}]+$`)

// print shows a command with its answer, as on a terminal.
func (t *tour) print(line []string, a answer) {
	if t.err != nil {
		return
	}
	words := make([]string, len(line))
	for i, word := range line {
		if words[i] = word; !bare.MatchString(word) {
			words[i] = "'" + word + "'"
		}
	}
	text := strings.TrimRight(a.text, "\n")
	if text != "" {
		text += "\n"
	}
	if a.code != 0 {
		text += fmt.Sprintf("(exit code %d)\n", a.code)
	}
	fmt.Fprintf(t.out, "    $ %s\n%s    (%.2f s)\n\n", strings.Join(words, " "), indent(text), a.took.Seconds())
}

func indent(text string) string {
	var indented strings.Builder
	for line := range strings.Lines(text) {
		indented.WriteString(strings.TrimRight("    "+line, " \n") + "\n")
	}
	return indented.String()
}

// shows runs and prints a command, and checks its exit code and that its answer holds part.
func (t *tour) shows(code int, part string, line ...string) answer {
	for {
		a := t.do(line...)
		t.print(line, a)
		if code == 0 && t.excuse(a) {
			continue
		}
		t.check(a, code, part, line)
		return a
	}
}

const (
	exitUnavailable = 5 // of kvctl: nothing was done
	excusesMax      = 3
)

// excuse says whether a command may be repeated that was not done although nothing was broken on purpose. A machine that
// stops for a second loses the leader as a broken network would, and that the log then elects another is no failure; a log
// that is away often is one, so it is excused a few times in a tour and never in silence.
func (t *tour) excuse(a answer) bool {
	if t.err != nil || a.code != exitUnavailable || t.excused == excusesMax {
		return false
	}
	t.excused++
	t.say("(That was not asked for: is this machine too busy for the log to keep its leader? Once more.)")
	return true
}

func (t *tour) check(a answer, code int, part string, line []string) {
	if t.err == nil && (a.code != code || !strings.Contains(a.text, part)) {
		t.fail("%s: exit code %d and %q; want %d and %q", strings.Join(line, " "), a.code, a.text, code, part)
	}
}

// atOnce runs commands at the same moment and prints them in order.
func (t *tour) atOnce(lines ...[]string) []answer {
	answers := make([]answer, len(lines))
	each := make([]tour, len(lines))
	var running sync.WaitGroup
	for i, line := range lines {
		each[i] = *t
		running.Go(func() { answers[i] = each[i].do(line...) })
	}
	running.Wait()
	for i, line := range lines {
		if t.err == nil {
			t.err = each[i].err
		}
		t.print(line, answers[i])
	}
	return answers
}

// times are how long the same command took, again and again.
type times struct{ fastest, median, slowest time.Duration }

// again runs a command so many times, one after another, wants each to end well with an answer that holds part, and prints how
// long they took.
func (t *tour) again(count int, part string, line ...string) times {
	var took []time.Duration
	var sum time.Duration
	for range count {
		a := t.do(line...)
		for t.excuse(a) {
			a = t.do(line...)
		}
		t.check(a, 0, part, line)
		took = append(took, a.took)
		sum += a.took
	}
	slices.Sort(took)
	all := times{took[0], took[count/2], took[count-1]}
	t.print(line, answer{
		text: fmt.Sprintf("(%d times, each answered %s: fastest %.2f s, median %.2f s, slowest %.2f s)", count, part,
			all.fastest.Seconds(), all.median.Seconds(), all.slowest.Seconds()),
		took: sum,
	})
	return all
}

// until runs a command again and again until it ends with the code and its answer holds part, prints that last answer, and
// returns how long it took.
func (t *tour) until(code int, part string, line ...string) time.Duration {
	start := time.Now()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for t.err == nil {
		a := t.do(line...)
		if a.code == code && strings.Contains(a.text, part) {
			t.print(line, a)
			break
		}
		if time.Since(start) > patience {
			t.fail("not within %v:", patience)
			t.err = fmt.Errorf("%w %s: exit code %d and %q; want %d and %q", t.err, strings.Join(line, " "), a.code, a.text, code, part)
			break
		}
		select {
		case <-again.C:
		case <-t.ctx.Done():
		}
	}
	return time.Since(start)
}

// background starts a command, and returns what waits for its end and prints it.
func (t *tour) background(line ...string) (wait func(code int, part string) answer) {
	if t.err != nil {
		return func(int, string) answer { return answer{} }
	}
	ctx, cancel := context.WithTimeout(t.ctx, 3*patience)
	beside := *t
	beside.ctx = ctx
	done := make(chan answer, 1)
	go func() {
		defer cancel()
		done <- beside.do(line...)
	}()
	return func(code int, part string) answer {
		if t.err != nil {
			cancel()
		}
		a := <-done
		if t.err == nil {
			t.err = beside.err
		}
		t.print(line, a)
		t.check(a, code, part, line)
		return a
	}
}

// atLeast checks a bound that no machine can be too slow for.
func (t *tour) atLeast(a answer, bound time.Duration, what string) {
	if t.err == nil && a.took < bound {
		t.fail("%s took %v, less than the %v that light would need on these links", what, a.took, bound)
	}
}

// mend ends every cut and every loss, without a word.
func (t *tour) mend() answer {
	for _, link := range []string{"us-eu", "us-ap", "eu-ap"} {
		t.do("wan", "loss", link, "0")
	}
	return t.do("wan", "heal")
}

// run walks through all steps, and leaves the demo whole and its links healed.
func run(ctx context.Context, out io.Writer) error {
	d, err := newDemo()
	if err != nil {
		return err
	}
	t := &tour{demo: d, ctx: ctx, out: out}
	if a := t.mend(); t.err == nil && a.code != 0 {
		return fmt.Errorf("no demo is running here (make demo): %s", a.text)
	}
	start := time.Now()
	t.say(introduction)
	for i, s := range steps {
		t.say(fmt.Sprintf("## %d. %s", i+1, s.title))
		s.walk(t)
	}
	if t.err != nil {
		restored := &tour{demo: d, ctx: context.WithoutCancel(ctx), out: io.Discard}
		restored.mend()
		restored.do("docker", "start", "logmirror-log-us")
		return errors.Join(t.err, restored.err)
	}
	if t.excused > 0 {
		t.say(fmt.Sprintf("%d commands had to be repeated, as told above.", t.excused))
	}
	t.say(fmt.Sprintf("The tour took %v. All answers were as they should be.", time.Since(start).Round(time.Second)))
	return t.err
}
