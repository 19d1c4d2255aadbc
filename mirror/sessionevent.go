package mirror

import (
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// sessionEvent is one thing that happened. Which fields count depends on the kind.
type sessionEvent struct {
	kind     sessionEventKind
	proposal *proposal
	// number is an incarnation, a term or a session.
	number      uint64
	session     uint64
	seq         uint64
	sessionTime time.Duration
	rejections  []*logv1.AppendRejection
	results     []statemachine.Result
	// seenAt is when the entry of results came to be applied.
	seenAt time.Duration
	// sync gathers the reports of other mirrors on the batch; nil where none are asked for.
	sync *syncEntry
	// reason is for people.
	reason string
	err    error
}

type sessionEventKind uint8

const (
	// eventTimer: the time that effects.wake named has come.
	eventTimer sessionEventKind = iota
	// eventCaughtUp: the mirror has applied all that was published when it looked; number is the last incarnation that
	// is durable.
	eventCaughtUp
	// eventPersisted: the incarnation in number is durable.
	eventPersisted
	// eventFenced, eventUnfenced: as of the entry that was applied last, this frontend's region is fenced, or is not.
	eventFenced
	eventUnfenced
	// eventUp, eventDown: as in logclient.AppendHandler.
	eventUp
	eventDown
	eventRejected
	// eventTerm: an entry of the term in number was seen.
	eventTerm
	// eventOpened: the Open of the incarnation in number was applied and made the session in session.
	eventOpened
	// eventOpenRefused: the Open of the incarnation in number was skipped. With err it never will be taken.
	eventOpenRefused
	// eventApplied: the batch (session, seq) was applied, with results.
	eventApplied
	// eventGap: the batch (session, seq) was skipped because an earlier one is missing.
	eventGap
	// eventEnded: the session in session has ended.
	eventEnded
	// eventPropose and eventLeave: a caller comes, and does not wait any longer.
	eventPropose
	eventLeave
	// eventStop: err is given to all that wait.
	eventStop
)

// sessionEffects is what is to be done after a step. Slices are valid until the next step.
type sessionEffects struct {
	// send is to be handed over, in order.
	send []*logv1.Proposal
	// persist, if not zero, is an incarnation that is to be made durable; eventPersisted tells when it is.
	persist uint64
	// finished are proposals that came to an end without being applied.
	finished []finishedProposal
	// applied are proposals that were applied, with their results.
	applied []appliedProposal
	// committed, if not zero, is how long the batch of applied took from its hand-over.
	committed time.Duration
	// committedBytes is the size of that batch.
	committedBytes int
	// wake, if not zero, is when eventTimer is to come at the latest.
	wake time.Duration
	// resent says why what is in flight was handed over again, for metrics; empty for nothing.
	resent string
	// fatal ends the mirror.
	fatal error
}

type finishedProposal struct {
	proposal *proposal
	err      error
}

type appliedProposal struct {
	proposal *proposal
	result   statemachine.Result
	sync     *syncEntry
}

// proposalOutcome is what a caller of Propose is given.
type proposalOutcome struct {
	// applied: there is a result, and the core is done with the proposal.
	applied bool
	result  statemachine.Result
	sync    *syncEntry
	err     error
}
