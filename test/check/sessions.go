package check

import "time"

// Step is one answered call of one client, in the order of its calls.
type Step struct {
	Client   int
	Frontend uint64
	Call     time.Duration
	// Carried: the client gave the token of all that it had seen before.
	Carried bool
	// Index and Revision are those of the state that the answer is of.
	Index    uint64
	Revision int64
}

// Sessions checks that a client which carries its token sees, through whatever frontend, its own writes and all that it has
// read: no answer is of a state before one that it has seen.
func Sessions(steps []Step) error {
	var v violations
	seen := map[int]Step{}
	for _, s := range steps {
		before := seen[s.Client]
		if s.Carried && (s.Index < before.Index || s.Revision < before.Revision) {
			v.addf("client %d at frontend %d at %v: answered of index %d, revision %d; it had seen index %d, revision %d at frontend %d",
				s.Client, s.Frontend, s.Call, s.Index, s.Revision, before.Index, before.Revision, before.Frontend)
		}
		if s.Index > before.Index {
			seen[s.Client] = s
		}
	}
	return v.err()
}
