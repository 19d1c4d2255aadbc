package serving

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/protoadapt"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
)

// elsewhereMax bounds how many frontends of other regions a refusal names.
const elsewhereMax = 8

// RefusedError is a write that was refused because of the state of the frontend's region. It was not applied:
// it matches mirror.ErrNotApplied.
type RefusedError struct {
	Region string
	State  statemachine.RegionState
	// Elsewhere are frontends of open regions with an open session, by region and name; not all, where there are many.
	Elsewhere []statemachine.SessionInfo
}

// Error says where to go instead.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "region %s is %s and takes no writes: ", e.Region, e.State)
	if len(e.Elsewhere) == 0 {
		b.WriteString("no frontend of an open region is in session")
		return b.String()
	}
	b.WriteString("go to ")
	for i, s := range e.Elsewhere {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s in %s (%s)", s.Name, s.Region, strings.Join(s.ClientURLs, " "))
	}
	return b.String()
}

// Unwrap returns mirror.ErrNotApplied.
func (e *RefusedError) Unwrap() error { return mirror.ErrNotApplied }

// detail is the refusal for programs.
func (e *RefusedError) detail() protoadapt.MessageV1 {
	refusal := &kvv1.RegionRefusal{Region: e.Region, State: RegionStateOf(e.State)}
	for _, s := range e.Elsewhere {
		refusal.Elsewhere = append(refusal.Elsewhere, FrontendStatus(s))
	}
	return protoadapt.MessageV1Of(refusal)
}

// RegionStateOf returns a region's state as the native API has it.
func RegionStateOf(state statemachine.RegionState) kvv1.RegionState {
	switch state {
	case statemachine.RegionOpen:
		return kvv1.RegionState_REGION_STATE_OPEN
	case statemachine.RegionDrained:
		return kvv1.RegionState_REGION_STATE_DRAINED
	case statemachine.RegionFenced:
		return kvv1.RegionState_REGION_STATE_FENCED
	default:
		return kvv1.RegionState_REGION_STATE_UNSPECIFIED
	}
}

// FrontendStatus returns the frontend of a session as the native API has it.
func FrontendStatus(s statemachine.SessionInfo) *kvv1.FrontendStatus {
	return &kvv1.FrontendStatus{
		Name: s.Name, Region: s.Region, Incarnation: s.Incarnation, ClientUrls: s.ClientURLs, Session: s.ID,
	}
}

// State returns the state of this frontend's region as far as it has applied the log.
func (r *Region) State() statemachine.RegionState {
	return r.mirror.Machine().Region(r.mirror.Identity().Region)
}

// StateReason says for people what the state of this frontend's region keeps it from; empty for an open region.
func (r *Region) StateReason() string {
	switch name := r.mirror.Identity().Region; r.mirror.Machine().Region(name) {
	case statemachine.RegionDrained:
		return fmt.Sprintf("region %s is drained: new writes of clients are refused", name)
	case statemachine.RegionFenced:
		return fmt.Sprintf("region %s is fenced: writes are refused and no renewal of a lease is confirmed", name)
	default:
		return ""
	}
}

// refusal returns why the region's state forbids a command now; nil if it does not.
func (r *Region) refusal(command *commandv1.Command) error {
	state := r.State()
	switch {
	case state == statemachine.RegionFenced, state == statemachine.RegionDrained && ofClient(command):
		return r.refused(state)
	default:
		return nil
	}
}

// fencedMeanwhile says of a command that was refused as not applied whether a fence is the reason, which ends the session
// that it was waiting for.
func (r *Region) fencedMeanwhile(err error) error {
	notTaken := errors.Is(err, mirror.ErrNotApplied) && errors.Is(err, mirror.ErrUnavailable) && !errors.Is(err, mirror.ErrUnknown)
	if notTaken && r.State() == statemachine.RegionFenced {
		return r.refused(statemachine.RegionFenced)
	}
	return err
}

func (r *Region) refused(state statemachine.RegionState) *RefusedError {
	machine := r.mirror.Machine()
	refused := &RefusedError{Region: r.mirror.Identity().Region, State: state}
	closed := machine.Regions()
	for _, s := range machine.Sessions() {
		if _, notOpen := closed[s.Region]; !notOpen && s.Region != refused.Region {
			refused.Elsewhere = append(refused.Elsewhere, s)
		}
	}
	SortSessions(refused.Elsewhere)
	if len(refused.Elsewhere) > elsewhereMax {
		refused.Elsewhere = refused.Elsewhere[:elsewhereMax]
	}
	return refused
}

// SortSessions sorts sessions by the region and name of their frontends.
func SortSessions(sessions []statemachine.SessionInfo) {
	slices.SortFunc(sessions, func(a, b statemachine.SessionInfo) int {
		if byRegion := strings.Compare(a.Region, b.Region); byRegion != 0 {
			return byRegion
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// ofClient tells the commands of clients, which a drain refuses, from those of operators, by which a drain is also ended.
func ofClient(command *commandv1.Command) bool {
	switch command.GetOperation().(type) {
	case *commandv1.Command_ChangeSettings, *commandv1.Command_SetRegionState, *commandv1.Command_RaiseApplyVersion,
		*commandv1.Command_SetAlarm:
		return false
	default:
		return true
	}
}
