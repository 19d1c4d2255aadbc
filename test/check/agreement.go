package check

import (
	"fmt"
	"time"
)

// Agreement compares what several replicas say of one place: the digest of the state at an index, the bytes of the log at
// an index. It is fed while the history is made. The zero value is ready.
type Agreement[V comparable] struct {
	claims map[uint64]claim[V]
	// Compared counts the claims that had another one to be compared with.
	Compared int
}

type claim[V comparable] struct {
	who   string
	value V
}

// Claim notes what one replica says of a place. The error says that another one has said otherwise.
func (a *Agreement[V]) Claim(who string, place uint64, value V) error {
	if a.claims == nil {
		a.claims = map[uint64]claim[V]{}
	}
	first, known := a.claims[place]
	if !known {
		a.claims[place] = claim[V]{who, value}
		return nil
	}
	a.Compared++
	if first.value != value {
		return fmt.Errorf("at %d %s has %v, %s has %v", place, who, value, first.who, first.value)
	}
	return nil
}

// Retry is one answer to a request that carried an id of the client's.
type Retry struct {
	ID       string
	Outcome  Outcome
	Revision int64
}

// Retries checks that all answers to one request id are the same: applied once, at one revision, or never.
func Retries(retries []Retry) error {
	var v violations
	first := map[string]Retry{}
	for _, r := range retries {
		if r.Outcome == Unknown {
			continue
		}
		before, known := first[r.ID]
		if !known {
			first[r.ID] = r
		} else if before != r {
			v.addf("request %q was answered %v at revision %d and %v at revision %d", r.ID, before.Outcome, before.Revision, r.Outcome, r.Revision)
		}
	}
	return v.err()
}

// Progress is when somebody first did what shows that it works again; Done is false where it never did.
type Progress struct {
	Who  string
	Done bool
	At   time.Duration
}

// Liveness checks that everybody worked within a bound after the last fault was healed.
func Liveness(healed, bound time.Duration, progress []Progress) error {
	var v violations
	for _, p := range progress {
		switch {
		case !p.Done:
			v.addf("%s does not work again after all was healed at %v", p.Who, healed)
		case p.At-healed > bound:
			v.addf("%s works again %v after all was healed, the bound is %v", p.Who, p.At-healed, bound)
		}
	}
	return v.err()
}
