package watch

import "github.com/logmirror/logmirror/statemachine/keyspace"

// Stepper is a Hub without its goroutines, for a simulation that brings time itself: Applied and the methods of streams are
// the Hub's, and what its goroutines would do is done where the caller says so. One goroutine uses it.
type Stepper struct{ *Hub }

// NewStepper makes a hub that reads history and sends progress only when it is told to. The caller closes it.
func NewStepper(space *keyspace.Space, config Config) Stepper {
	return Stepper{newHub(spaceHistory{space}, config)}
}

// CatchUp reads one slice of history for the watches that lag and returns whether there is more to do at once.
func (s Stepper) CatchUp() (more bool) { return s.catchUp() }

// ProgressTick notifies idle watches: those whose turn it is, of the parts into which Config.ProgressInterval is divided.
func (s Stepper) ProgressTick() { s.progressTick() }
