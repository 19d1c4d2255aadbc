// Package serving is what both client APIs of a frontend stand on: how a read gets a state that is fresh enough, how a
// write is proposed and what its failure means, and which facts describe the state that answered.
//
// # What is promised
//
// Read returns one state of the key space, whole and pinned: everything that is answered from a View is of one log index.
// For a linearizable read it contains every write that was acknowledged anywhere before Read was called; for a token or a
// revision, everything up to there. A View must be released, and keeps versions from being removed until then.
//
// Write returns when the command was applied here, so that any later Read in this region sees it. Its error says which
// of two a failure is: mirror.ErrNotApplied, ErrUnavailable and ErrOverloaded and every error that is found before
// proposing say that the command was not applied and never will be; mirror.ErrUnknown and the errors of a context say
// that nobody knows. The error of a command that apply refused is that of the state machine. In a drained region new
// commands of clients are refused with a RefusedError, in a fenced one all commands are; both were not applied.
//
// All methods may be called from any goroutine, until the mirror is stopped.
package serving

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// Mirror is what serving needs of the region's mirror; *mirror.Mirror has it all.
type Mirror interface {
	// Propose returns once the command was applied here, or an error that says whether it can still be.
	Propose(ctx context.Context, command *commandv1.Command, options mirror.ProposeOptions) (statemachine.Result, error)
	// ProposeSynced then waits for the mirrors of the regions, nil for all, and says who has not reported.
	ProposeSynced(ctx context.Context, command *commandv1.Command, options mirror.ProposeOptions, regions []string,
		timeout time.Duration) (statemachine.Result, mirror.SyncOutcome, error)
	// Linearize returns an index at or above everything acknowledged before the call; it is applied here on return.
	Linearize(ctx context.Context) (uint64, error)
	WaitApplied(ctx context.Context, index uint64) error
	WaitRevision(ctx context.Context, revision int64) error
	// Age is how long ago the state held every write acknowledged anywhere; false while that is not known.
	Age() (time.Duration, bool)
	Machine() *statemachine.Machine
	Identity() mirror.Identity
	// Ready is closed once the first read round of this incarnation has been applied.
	Ready() <-chan struct{}
}

// RequestOverheadBytes is what a received message may be larger than the largest command: a message above both is refused
// unread, one between them with the limit named.
const RequestOverheadBytes = 512 << 10

// ErrNotReady is the answer of a frontend whose state may be older than what it served in an earlier life.
var ErrNotReady = errors.New("this frontend is not serving yet: it has not caught up with the log since its start")

// ErrOtherLog is returned for a token of another cluster or epoch.
var ErrOtherLog = errors.New("the token is of another cluster or epoch")

// StaleError is returned where the state may be older than the request allows.
type StaleError struct {
	Age   time.Duration
	Known bool // false: no read round has succeeded yet, Age means nothing
	Bound time.Duration
}

func (e *StaleError) Error() string {
	if !e.Known {
		return fmt.Sprintf("the age of this region's state is not known; the request allows %v", e.Bound)
	}
	return fmt.Sprintf("this region's state may be %v old; the request allows %v", e.Age, e.Bound)
}

// BehindError is returned where the caller's time ran out before this region had reached what the request waits for.
type BehindError struct {
	What       string // "log index" or "revision"
	Want, Have uint64
}

func (e *BehindError) Error() string {
	return fmt.Sprintf("this region has reached %s %d; the request waits for %d", e.What, e.Have, e.Want)
}

// Region serves one region's state. It also observes what is applied: give it to the mirror as an observer.
type Region struct {
	mirror Mirror
	limits statemachine.Limits
	term   atomic.Uint64

	stop     sync.Once
	stopping chan struct{}
}

// New returns a Region over a mirror. Limits that are zero are those of etcd.
func New(m Mirror, limits statemachine.Limits) *Region {
	return &Region{mirror: m, limits: DefaultLimits(limits), stopping: make(chan struct{})}
}

// DefaultLimits returns the limits with those of etcd in the place of zeros.
func DefaultLimits(limits statemachine.Limits) statemachine.Limits {
	if limits.MaxRequestBytes == 0 {
		limits.MaxRequestBytes = statemachine.DefaultMaxRequestBytes
	}
	if limits.MaxTxnOperations == 0 {
		limits.MaxTxnOperations = statemachine.DefaultMaxTxnOperations
	}
	return limits
}

// Applied notes the term of an applied entry. Called by the mirror on its apply goroutine.
func (r *Region) Applied(a *statemachine.Applied) {
	if r.term.Load() != a.Term {
		r.term.Store(a.Term)
	}
}

// ErrStopping ends streams when the frontend stops.
var ErrStopping = errors.New("this frontend is stopping")

// Stop ends streams: see Serve. Reads and writes under way go on.
func (r *Region) Stop() { r.stop.Do(func() { close(r.stopping) }) }

// Serve runs the handler of a stream that waits for its client, and returns early, with ErrStopping, when the frontend
// stops. The handler then finds its stream ended.
func (r *Region) Serve(handle func() error) error {
	served := make(chan error, 1)
	go func() { served <- handle() }()
	select {
	case err := <-served:
		return err
	case <-r.stopping:
		return ErrStopping
	}
}

// Limits returns the limits in force.
func (r *Region) Limits() statemachine.Limits { return r.limits }

// Machine returns the state machine, for what is not in the key space.
func (r *Region) Machine() *statemachine.Machine { return r.mirror.Machine() }

// Identity returns who this frontend is in its present incarnation.
func (r *Region) Identity() mirror.Identity { return r.mirror.Identity() }

// Term returns the log's term at the last applied entry.
func (r *Region) Term() uint64 { return r.term.Load() }

// Facts describe the state that an answer is from.
type Facts struct {
	Identity mirror.Identity
	Term     uint64
	LogIndex uint64
	Revision int64
	// Age is negative while unknown.
	Age time.Duration
}

// FactsAt returns the facts of an answer from the state at an index and revision.
func (r *Region) FactsAt(index uint64, revision int64) Facts {
	facts := Facts{Identity: r.mirror.Identity(), Term: r.term.Load(), LogIndex: index, Revision: revision, Age: -1}
	if age, known := r.mirror.Age(); known {
		facts.Age = age
	}
	return facts
}

// HeaderOf returns the native API's header for an answer from the state that the facts describe.
func HeaderOf(facts Facts) *kvv1.ResponseHeader {
	age := int64(-1)
	if facts.Age >= 0 {
		age = facts.Age.Microseconds()
	}
	return &kvv1.ResponseHeader{
		ClusterId:       facts.Identity.ClusterID,
		Epoch:           facts.Identity.Epoch,
		Region:          facts.Identity.Region,
		Frontend:        facts.Identity.Name,
		Incarnation:     facts.Identity.Incarnation,
		LogIndex:        facts.LogIndex,
		Revision:        facts.Revision,
		AgeMicroseconds: age,
	}
}

// Facts returns the facts of the present state.
func (r *Region) Facts() Facts {
	snapshot := r.mirror.Machine().Space().Acquire()
	defer snapshot.Release()
	return r.FactsAt(snapshot.Index(), snapshot.Revision())
}

// Consistency says how fresh the state of a read must be. The zero value is a serializable read.
type Consistency struct {
	Linearizable bool
	// AtLeast is waited for unless it is the zero value.
	AtLeast Token
	// MinRevision is waited for unless it is zero.
	MinRevision int64
	// MaxStaleness bounds the age of the state unless it is zero. A linearizable read has no age.
	MaxStaleness time.Duration
}

// View is one state of the key space, pinned until Release.
type View struct {
	*keyspace.Snapshot
	region *Region
}

// Facts returns the facts of this state.
func (v View) Facts() Facts { return v.region.FactsAt(v.Index(), v.Revision()) }

// Read waits until this region's state is as fresh as asked for, and pins it.
func (r *Region) Read(ctx context.Context, c Consistency) (View, error) {
	if err := r.CheckReady(); err != nil {
		return View{}, err
	}
	if err := r.wait(ctx, c); err != nil {
		return View{}, err
	}
	return View{Snapshot: r.mirror.Machine().Space().Acquire(), region: r}, nil
}

// CheckReady returns ErrNotReady until this frontend may serve.
func (r *Region) CheckReady() error {
	select {
	case <-r.mirror.Ready():
		return nil
	default:
		return ErrNotReady
	}
}

func (r *Region) wait(ctx context.Context, c Consistency) error {
	if c.AtLeast != (Token{}) {
		identity := r.mirror.Identity()
		if c.AtLeast.ClusterID != identity.ClusterID || c.AtLeast.Epoch != identity.Epoch {
			return ErrOtherLog
		}
		if err := r.mirror.WaitApplied(ctx, c.AtLeast.LogIndex); err != nil {
			return r.behind(err, "log index", c.AtLeast.LogIndex)
		}
	}
	if c.MinRevision > 0 {
		if err := r.mirror.WaitRevision(ctx, c.MinRevision); err != nil {
			return r.behind(err, "revision", uint64(c.MinRevision))
		}
	}
	if c.Linearizable {
		_, err := r.mirror.Linearize(ctx)
		return err
	}
	if c.MaxStaleness > 0 {
		if age, known := r.mirror.Age(); !known || age > c.MaxStaleness {
			return &StaleError{Age: age, Known: known, Bound: c.MaxStaleness}
		}
	}
	return nil
}

// behind turns the end of the caller's time into what it was waiting for.
func (r *Region) behind(err error, what string, want uint64) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	facts := r.Facts()
	have := facts.LogIndex
	if what == "revision" {
		have = uint64(facts.Revision)
	}
	return &BehindError{What: what, Want: want, Have: have}
}

// WriteOptions are the client's.
type WriteOptions struct {
	// RequestID makes a repeated write safe; empty for none.
	RequestID string
	// WaitForLog waits up to the caller's deadline while the log cannot be reached.
	WaitForLog bool
	// Sync waits for the mirrors of other regions; nil for none.
	Sync *Sync
}

// Write checks a command, proposes it and returns what apply decided. It fills in the command's request id.
func (r *Region) Write(ctx context.Context, command *commandv1.Command, o WriteOptions) (statemachine.Result, error) {
	command.RequestId = o.RequestID
	if err := statemachine.ValidateCommand(command, r.limits); err != nil {
		return statemachine.Result{}, err
	}
	if err := r.CheckReady(); err != nil {
		return statemachine.Result{}, fmt.Errorf("%w: %w", mirror.ErrNotApplied, err)
	}
	if err := r.refusal(command); err != nil {
		return statemachine.Result{}, err
	}
	if o.Sync != nil {
		return r.writeSynced(ctx, command, o)
	}
	result, err := r.mirror.Propose(ctx, command, mirror.ProposeOptions{WaitForLog: o.WaitForLog})
	if err != nil {
		return statemachine.Result{}, r.fencedMeanwhile(err)
	}
	return result, result.Err
}
