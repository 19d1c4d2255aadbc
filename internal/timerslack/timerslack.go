// Package timerslack lets the kernel wake a process for its timers a little later than asked, together with whatever else
// wakes it. Go's runtime watches its threads from one that sleeps 20 µs at a time while there is work; with the kernel's
// usual slack of 50 µs those wake-ups are a tenth to a fifth of the processor time of a process that does little at a time
// and often, as every server here does.
//
// What a wider slack costs: any timer may be up to Slack late; and a goroutine that stands behind another's long system call
// is moved to another thread up to that much later, unless an idle processor takes it before. Where there is one processor
// only, none can, and each sync of the disk would hold up everything: there the slack stays.
//
// A slack belongs to a thread and is inherited by the threads and programs that it starts, and the runtime has its thread
// before the program's first line. So Widen sets the slack and begins the program anew in the same process.
package timerslack

import (
	"os"
	"runtime"
	"syscall"
	"time"
)

// Slack is what Widen sets: as much as the shortest waits of this project, which are for company (3 ms), can bear.
const Slack = 4 * time.Millisecond

// kernelDefault is the slack of a process that nobody has set one for.
const kernelDefault = 50 * time.Microsecond

// Widen widens the timer slack of the process from the kernel's default. A slack that somebody else has chosen, by
// TimerSlackNSec of systemd for one, stays; so does that of a process with one processor. Where anything fails the process goes on as it is: it works, and costs more.
//
// It is called from an init function of package main: those run on the process's first thread, to which a death signal that
// a parent asked for belongs, before anything was begun that would be lost.
func Widen() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	present, err := Present()
	if err != nil || present != kernelDefault || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	if err := set(Slack); err != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, os.Environ()) // returns only where it failed
}
