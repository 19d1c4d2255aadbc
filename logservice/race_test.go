//go:build race

package logservice

// raceEnabled says that the race detector looks on. What single-threaded or long tests leave out then, `make test` runs in
// full without it: it does so for all packages whose tests have this name.
const raceEnabled = true
