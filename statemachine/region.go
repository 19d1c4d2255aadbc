package statemachine

import (
	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// maxRegions bounds how many regions are drained or fenced.
const maxRegions = 1024

// RegionState says what a region's frontends may do.
type RegionState uint8

const (
	// RegionOpen: everything. A region that was never named is open.
	RegionOpen RegionState = iota
	// RegionDrained: its frontends refuse new writes of clients and tell them where to go. That is the frontends' part;
	// apply takes what they propose.
	RegionDrained
	// RegionFenced: its sessions have been ended, and no new one is opened.
	RegionFenced
)

// String returns the state as kvctl and transcripts show it.
func (s RegionState) String() string {
	switch s {
	case RegionOpen:
		return "open"
	case RegionDrained:
		return "drained"
	case RegionFenced:
		return "fenced"
	default:
		return "unknown"
	}
}

var regionStates = map[commandv1.SetRegionState_State]RegionState{
	commandv1.SetRegionState_STATE_OPEN:    RegionOpen,
	commandv1.SetRegionState_STATE_DRAINED: RegionDrained,
	commandv1.SetRegionState_STATE_FENCED:  RegionFenced,
}

func validateRegionState(c *commandv1.SetRegionState) error {
	if c.GetRegion() == "" {
		return &InvalidError{Field: "set_region_state.region", Err: ErrInvalidCommand}
	}
	if len(c.Region) > maxRegionBytes {
		return &InvalidError{
			Field: "set_region_state.region", Limit: maxRegionBytes, Value: int64(len(c.Region)), Err: ErrTooLarge,
		}
	}
	if _, ok := regionStates[c.State]; !ok {
		return &InvalidError{Field: "set_region_state.state", Err: ErrInvalidCommand}
	}
	return nil
}

// executeRegionState drains, fences or opens a region. A fence ends the region's sessions in the same step.
func (m *Machine) executeRegionState(e *entry, c *commandv1.SetRegionState) error {
	if err := validateRegionState(c); err != nil {
		return err
	}
	before := m.regions[c.Region]
	state := regionStates[c.State]
	if before == state {
		return nil
	}
	if before == RegionOpen && len(m.regions) >= maxRegions {
		return ErrTooManyRegions
	}
	if state == RegionOpen {
		delete(m.regions, c.Region)
	} else {
		m.regions[c.Region] = state
	}
	m.sealSmall()
	e.applied.RegionsChanged = true
	if state != RegionFenced {
		return nil
	}
	for _, id := range m.sessions.ids() {
		if s := m.sessions.open[id]; s.Region == c.Region {
			m.endSession(e, s, EndFenced)
		}
	}
	return nil
}

// Alarm is a condition of the whole cluster.
type Alarm uint8

// AlarmNoSpace: the quota was used up. Puts and new leases are refused until the alarm is cleared by command.
const AlarmNoSpace Alarm = 1

// String returns the alarm as etcd names it.
func (a Alarm) String() string {
	if a == AlarmNoSpace {
		return "NOSPACE"
	}
	return "unknown"
}

func validateAlarm(c *commandv1.SetAlarm) error {
	if c.GetAlarm() != commandv1.SetAlarm_ALARM_NO_SPACE {
		return &InvalidError{Field: "set_alarm.alarm", Err: ErrInvalidCommand}
	}
	return nil
}

func (m *Machine) executeAlarm(e *entry, c *commandv1.SetAlarm) error {
	if err := validateAlarm(c); err != nil {
		return err
	}
	if m.noSpace != c.Active {
		m.noSpace = c.Active
		e.applied.AlarmsChanged = true
	}
	return nil
}
