// Package processors lets a process that does little at a time keep to part of the machine. Go's scheduler wakes another thread
// whenever there is work and a processor without any; where a message is passed from a connection to a loop, to a disk and to another
// connection, that is a thread woken, and memory moved to another processor's cache, for every few microseconds of work.
package processors

import (
	"os"
	"runtime"
)

// UseHalf lets the process use half of the processors that it may use, at least one, from now on. GOMAXPROCS in the environment
// wins: then UseHalf does nothing. A limit of its control group that changes later is no longer followed.
func UseHalf() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0)/2, 1))
	}
}
