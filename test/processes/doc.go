// Package processes runs clusters of real logsvc and frontend processes on this machine, for tests and drills that do them
// harm: kill, pause, cut off, fill their disks.
//
// Without links all processes reach each other over loopback. With links each process belongs to a region, and what goes
// from one region to another takes the round trip between them, or nothing goes where a link is cut (see Links).
//
// The kernel kills the processes when the one that started them ends, however it ends. A Process is used by one goroutine
// at a time.
package processes
