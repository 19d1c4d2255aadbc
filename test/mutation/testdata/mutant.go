// Package mutant says which planted mistakes this process makes. It is there only in the overlay of test/mutation.
package mutant

import (
	"os"
	"strings"
)

var active = func() map[string]bool {
	names := map[string]bool{}
	for _, name := range strings.Split(os.Getenv("LOGMIRROR_MUTANTS"), ",") {
		if name != "" {
			names[name] = true
		}
	}
	return names
}()

// On tells whether a mistake is made.
func On(name string) bool { return len(active) > 0 && active[name] }

// Pick returns what is right, or what is wrong where the mistake is made.
func Pick[T any](name string, right, wrong T) T {
	if On(name) {
		return wrong
	}
	return right
}
