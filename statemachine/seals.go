package statemachine

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// The rows of the small tables carry sums that are made with each change, so that a scrub finds what has changed without
// one. They are no part of the state: nothing is decided by them, and they are made anew where a state is restored.

// sealedTable tells rows of different tables apart.
type sealedTable byte

const (
	sealedFrontends sealedTable = iota + 1
	sealedSessions
	sealedSettings
	sealedRegions
	sealedNodes
	sealedRanges
	sealedSequences
)

// sealOf is the sum of a row: names and numbers.
func sealOf(table sealedTable, names []string, numbers ...uint64) uint64 {
	room := make([]byte, 0, 256)
	room = append(room, byte(table))
	for _, n := range numbers {
		room = binary.LittleEndian.AppendUint64(room, n)
	}
	for _, name := range names {
		room = binary.LittleEndian.AppendUint32(room, uint32(len(name)))
		room = append(room, name...)
	}
	return xxhash.Sum64(room)
}

func (s *session) seal() uint64 {
	names := make([]string, 0, 8)
	return sealOf(sealedSessions, append(append(names, s.Name, s.Region), s.ClientURLs...),
		s.ID, s.FrontendID, s.Incarnation, uint64(s.SessionTime), uint64(s.OpenedAt), uint64(s.LastEntryAt), s.LastSeq,
		uint64(s.ApplyVersionMin), uint64(s.ApplyVersionMax))
}

func (f *frontend) seal(id uint64) uint64 {
	return sealOf(sealedFrontends, nil, id, f.incarnation, f.lastSession)
}

func (s *Settings) seal() uint64 { return sealOf(sealedSettings, []string{fmt.Sprintf("%d", *s)}) }

func sealOfRegions(regions map[string]RegionState) (sum uint64) {
	for region, state := range regions {
		sum += sealOf(sealedRegions, []string{region}, uint64(state))
	}
	return sum
}

func (n idNode) seal(kind IDKind, number int) uint64 {
	return sealOf(sealedNodes, nil, uint64(kind), uint64(number), n.holder, uint64(n.until))
}

func (r idRange) seal(name string) uint64 {
	return sealOf(sealedRanges, []string{name}, uint64(r.next), uint64(r.max))
}

func sealOfSequence(name string, last int64) uint64 {
	return sealOf(sealedSequences, []string{name}, uint64(last))
}

// seal is the sum over all rows.
func (t *idTables) seal() (sum uint64) {
	for kind, nodes := range t.nodes {
		for number := range nodes {
			sum += nodes[number].seal(kind, number)
		}
	}
	for name, r := range t.ranges {
		sum += r.seal(name)
	}
	for name, last := range t.sequences {
		sum += sealOfSequence(name, last)
	}
	return sum
}

// setNode changes a row, as the next two do.
func (t *idTables) setNode(kind IDKind, number int, n idNode) {
	node := &t.nodes[kind][number]
	t.sum += n.seal(kind, number) - node.seal(kind, number)
	*node = n
}

func (t *idTables) setRange(name string, r idRange) {
	if old, ok := t.ranges[name]; ok {
		t.sum -= old.seal(name)
	}
	t.sum += r.seal(name)
	t.ranges[name] = r
}

func (t *idTables) setSequence(name string, last int64) {
	if old, ok := t.sequences[name]; ok {
		t.sum -= sealOfSequence(name, old)
	}
	t.sum += sealOfSequence(name, last)
	t.sequences[name] = last
}

// sealSmall seals what changes rarely.
func (m *Machine) sealSmall() {
	m.settingsSum, m.regionsSum = m.settings.seal(), sealOfRegions(m.regions)
}

// verifySmall checks the small tables against their sums. The caller holds the lock, shared.
func (m *Machine) verifySmall() error {
	corrupt := func(what string, arguments ...any) error {
		return fmt.Errorf("statemachine: %s corrupt in memory", fmt.Sprintf(what, arguments...))
	}
	open := 0
	for id, f := range m.sessions.frontends {
		if f.sum != f.seal(id) {
			return corrupt("frontend %016x is", id)
		}
		if f.open == nil {
			continue
		}
		open++
		if f.open.sum != f.open.seal() || f.open.FrontendID != id || m.sessions.open[f.open.ID] != f.open {
			return corrupt("the session of frontend %016x is", id)
		}
	}
	switch {
	case open != len(m.sessions.open):
		return corrupt("sessions are")
	case m.settingsSum != m.settings.seal():
		return corrupt("settings are")
	case m.regionsSum != sealOfRegions(m.regions):
		return corrupt("regions are")
	case m.ids.sum != m.ids.seal():
		return corrupt("tables of ids are")
	}
	return nil
}
