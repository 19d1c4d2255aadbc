package timerslack

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// helperVariable makes the test's program one that widens its slack, and says who it is.
const helperVariable = "TIMERSLACK_TEST_HELPER"

func init() {
	if os.Getenv(helperVariable) == "" {
		return
	}
	before, err := Present()
	fmt.Println("began", os.Getpid(), before, err)
	Widen()
	after, err := Present()
	fmt.Println("runs", os.Getpid(), after, err, strings.Join(os.Args[1:], " "))
	os.Exit(0)
}

// start runs the helper with a slack of its own and returns what it said.
func start(t *testing.T, slackNanoseconds uintptr, processors int) (lines []string, pid int) {
	t.Helper()
	type outcome struct {
		output []byte
		pid    int
		err    error
	}
	done := make(chan outcome)
	go func() {
		// A thread of its own, which ends with this goroutine: the slack of the others stays as it is.
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, slackNanoseconds, 0, 0, 0); err != nil {
			done <- outcome{err: err}
			return
		}
		command := exec.Command(os.Args[0], "an argument", "another")
		command.Env = append(os.Environ(), helperVariable+"=1", fmt.Sprintf("GOMAXPROCS=%d", processors))
		output, err := command.CombinedOutput()
		done <- outcome{output, command.Process.Pid, err}
	}()
	o := <-done
	if o.err != nil {
		t.Fatalf("%v\n%s", o.err, o.output)
	}
	return strings.Split(strings.TrimSpace(string(o.output)), "\n"), o.pid
}

func TestWidenBeginsTheProcessAnewOnce(t *testing.T) {
	lines, pid := start(t, uintptr(kernelDefault), 2)
	want := []string{
		fmt.Sprintf("began %d 50µs <nil>", pid),
		fmt.Sprintf("began %d 4ms <nil>", pid),
		fmt.Sprintf("runs %d 4ms <nil> an argument another", pid),
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("the helper said\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestWidenLeavesAnothersChoice(t *testing.T) {
	for _, nanoseconds := range []uintptr{1, 200_000, 5_000_000} {
		if lines, _ := start(t, nanoseconds, 2); len(lines) != 2 {
			t.Errorf("a slack of %d ns was changed:\n%s", nanoseconds, strings.Join(lines, "\n"))
		}
	}
}

func TestWidenLeavesASingleProcessor(t *testing.T) {
	if lines, _ := start(t, uintptr(kernelDefault), 1); len(lines) != 2 {
		t.Errorf("the slack was changed:\n%s", strings.Join(lines, "\n"))
	}
}
