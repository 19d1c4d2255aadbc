package keeper

import (
	"slices"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// Stepper is a Keeper without its goroutines, for a simulation that brings time and the log itself: what it decides is the
// Keeper's code. Config.Mirror is asked for the holder of the session only. One goroutine uses it.
type Stepper struct {
	*Keeper
	proposals []Proposal
	renewals  []*Renewal
}

// Proposal is a command that the keeper wants proposed. Decided must follow, once.
type Proposal struct {
	Command *commandv1.Command
	// Decided takes what became of it: apply's decision where known, else nothing is known.
	Decided func(decision error, known bool)
}

// Renewal is one client's renewal of one lease.
type Renewal struct {
	id    int64
	waits effects
	left  int
	// Done: TTL is set where it was confirmed, else Err is ErrLeaseNotFound or ErrUnavailable.
	Done bool
	TTL  time.Duration
	Err  error
}

// NewStepper makes a keeper that looks at the time when Tick is called.
func NewStepper(config Config) *Stepper {
	s := &Stepper{Keeper: newKeeper(config)}
	s.propose = s.proposeLater
	return s
}

func (s *Stepper) proposeLater(adopt []int64, expire []expiry) {
	for _, id := range adopt {
		s.proposals = append(s.proposals, Proposal{adoption(id), func(decision error, known bool) {
			s.adoptionDecided(id, outcomeKnown(decision, known))
		}})
	}
	for _, x := range expire {
		s.proposals = append(s.proposals, Proposal{x.command(), func(decision error, known bool) {
			s.expiryDecided(x, outcomeKnown(decision, known))
		}})
	}
}

func outcomeKnown(decision error, known bool) outcome {
	if !known {
		return outcomeUnknown
	}
	return outcomeOf(decision)
}

// Proposals returns what the keeper wants proposed since it was asked last.
func (s *Stepper) Proposals() []Proposal {
	proposals := s.proposals
	s.proposals = nil
	return proposals
}

// Tick does what is due and returns how long until there may be more, at most a second.
func (s *Stepper) Tick() time.Duration {
	if s.strange() {
		s.Resume()
	}
	return s.tick()
}

// Renew begins a renewal. A lease that this mirror does not know counts as unavailable: the log is not asked.
func (s *Stepper) Renew(id int64) *Renewal {
	r := &Renewal{id: id, left: renewRounds, waits: s.lockedStep(event{kind: eventRenew, id: id})}
	if s.goOn(r); !r.Done {
		s.renewals = append(s.renewals, r)
	}
	return r
}

// Settle ends the renewals whose decision has come, and those that wait for nothing any more.
func (s *Stepper) Settle() {
	s.renewals = slices.DeleteFunc(s.renewals, func(r *Renewal) bool {
		s.goOn(r)
		return r.Done
	})
}

// goOn is the Keeper's renewSlowly, without the waiting.
func (s *Stepper) goOn(r *Renewal) {
	for ; !r.Done; r.left-- {
		if r.left == 0 {
			r.Done, r.Err = true, ErrUnavailable
			return
		}
		switch r.waits.verdict {
		case verdictConfirmed:
			r.Done, r.TTL = true, r.waits.ttl
		case verdictUnavailable:
			r.Done, r.Err = true, ErrUnavailable
		case verdictElsewhere:
			if _, ok := s.config.Leases.Lease(r.id); !ok {
				r.Done, r.Err = true, ErrUnavailable
				return
			}
			r.waits = s.lockedStep(event{kind: eventAdopt, id: r.id})
		case verdictWait:
			select {
			case <-r.waits.wait.done:
			default:
				return
			}
			switch r.waits.wait.outcome {
			case outcomeNotFound:
				r.Done, r.Err = true, ErrLeaseNotFound
			case outcomeUnknown, outcomeVoid:
				r.Done, r.Err = true, ErrUnavailable
			default:
				r.waits = s.lockedStep(event{kind: eventRenew, id: r.id})
			}
		}
	}
}
