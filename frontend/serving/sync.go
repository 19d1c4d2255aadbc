package serving

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/protoadapt"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// SyncTimeoutMax is the longest that a write may wait for other regions.
const SyncTimeoutMax = time.Minute

const (
	syncTimeoutDefault = 10 * time.Second
	syncRegionsMax     = 256
)

// Sync asks that a write is answered only once the live mirrors of regions have applied it.
type Sync struct {
	// Regions are those waited for; nil for all.
	Regions []string
	Timeout time.Duration
}

// NewSync checks what a client asks for: regions by name, or "*" alone for all; none means no wait, nil. A timeout of zero
// is the default.
func NewSync(regions []string, timeout time.Duration) (*Sync, error) {
	switch {
	case len(regions) == 0 && timeout == 0:
		return nil, nil
	case len(regions) == 0:
		return nil, errors.New("must name the regions that the timeout is for")
	case len(regions) > syncRegionsMax:
		return nil, fmt.Errorf("names %d regions, limit %d", len(regions), syncRegionsMax)
	case timeout < 0 || timeout > SyncTimeoutMax:
		return nil, fmt.Errorf("has a timeout of %v, which must be from 0 to %v", timeout, SyncTimeoutMax)
	case slices.Contains(regions, "*") && len(regions) > 1:
		return nil, errors.New(`names "*", all regions, and others beside it`)
	case slices.Contains(regions, ""):
		return nil, errors.New("names a region without a name")
	}
	sync := &Sync{Regions: regions, Timeout: timeout}
	if regions[0] == "*" {
		sync.Regions = nil
	}
	if timeout == 0 {
		sync.Timeout = syncTimeoutDefault
	}
	return sync, nil
}

// NoFrontendError refuses a write that is to wait for a region in which no frontend is in session. Nothing was written.
type NoFrontendError struct{ Region string }

func (e *NoFrontendError) Error() string {
	return fmt.Sprintf("no frontend of region %s is in session: there is none to wait for", e.Region)
}

// Unwrap returns mirror.ErrNotApplied.
func (e *NoFrontendError) Unwrap() error { return mirror.ErrNotApplied }

// SyncIncompleteError says of a write that was applied that some mirror was not seen to have applied it.
type SyncIncompleteError struct {
	// Facts describe the state right after the write.
	Facts   Facts
	Outcome mirror.SyncOutcome
}

func (e *SyncIncompleteError) Error() string {
	names := func(sessions []statemachine.SessionInfo) string {
		var list []string
		for _, s := range sessions {
			list = append(list, s.Name+" in "+s.Region)
		}
		return strings.Join(list, ", ")
	}
	text := fmt.Sprintf("the write is durable and applied here at revision %d, but not known to be applied by %s",
		e.Facts.Revision, names(e.Outcome.Missing))
	if len(e.Outcome.Ended) > 0 {
		text += "; ended before they could tell: " + names(e.Outcome.Ended)
	}
	return text
}

// code tells a wait that was given up from one that is no use any more.
func (e *SyncIncompleteError) code() codes.Code {
	if len(e.Outcome.Ended) == len(e.Outcome.Missing) {
		return codes.Aborted
	}
	return codes.DeadlineExceeded
}

func (e *SyncIncompleteError) detail() protoadapt.MessageV1 {
	incomplete := &kvv1.SyncIncomplete{Header: HeaderOf(e.Facts)}
	for _, s := range e.Outcome.Missing {
		incomplete.Missing = append(incomplete.Missing, FrontendStatus(s))
	}
	for _, s := range e.Outcome.Ended {
		incomplete.Ended = append(incomplete.Ended, s.Name)
	}
	return protoadapt.MessageV1Of(incomplete)
}

// writeSynced proposes a command and waits for the mirrors of other regions.
func (r *Region) writeSynced(ctx context.Context, command *commandv1.Command, o WriteOptions) (statemachine.Result, error) {
	sessions := r.mirror.Machine().Sessions()
	for _, region := range o.Sync.Regions {
		if !slices.ContainsFunc(sessions, func(s statemachine.SessionInfo) bool { return s.Region == region }) {
			return statemachine.Result{}, &NoFrontendError{Region: region}
		}
	}
	timeout := o.Sync.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		// A caller whose own time runs out first would not learn who is missing.
		left := time.Until(deadline)
		timeout = min(timeout, left-min(left/10, 500*time.Millisecond))
	}
	result, outcome, err := r.mirror.ProposeSynced(ctx, command, mirror.ProposeOptions{WaitForLog: o.WaitForLog}, o.Sync.Regions, timeout)
	switch {
	case err != nil:
		return statemachine.Result{}, r.fencedMeanwhile(err)
	case result.Err != nil:
		return result, result.Err
	case len(outcome.Missing) > 0:
		SortSessions(outcome.Missing)
		return result, &SyncIncompleteError{Facts: r.FactsAt(result.Index, result.Revision), Outcome: outcome}
	}
	return result, nil
}
