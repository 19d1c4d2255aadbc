package statemachine

import (
	"errors"
	"math"
	"time"
	"unicode/utf8"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// What commands about ids can be refused with.
var (
	// ErrIDNodesUsedUp: every node number of the kind is held by an open session, or was granted before for times up to
	// the one asked for.
	ErrIDNodesUsedUp = errors.New("no node number is free for this kind of id")
	// ErrIDNodeNotHeld: an IdNodeExtend of a session that does not hold the number, or no longer up to the time it names.
	ErrIDNodeNotHeld = errors.New("node number is not held")
	// ErrIDTime: a time that is not above zero, beyond what the kind can hold, or too far ahead of log time.
	ErrIDTime = errors.New("time of ids is out of range")
	// ErrIDRangeUsedUp: the range has no number left.
	ErrIDRangeUsedUp = errors.New("range of ids is used up")
	// ErrIDRangeMaximum: the range was made with another maximum.
	ErrIDRangeMaximum = errors.New("range of ids has another maximum")
	// ErrIDSequenceUsedUp: the sequence has fewer numbers left than asked for.
	ErrIDSequenceUsedUp = errors.New("sequence of ids is used up")
	// ErrIDNames: a new range or sequence where the table holds all that it can.
	ErrIDNames = errors.New("too many ranges or sequences of ids")
	// ErrIDName: a name of a range or sequence that is empty, too long or not UTF-8.
	ErrIDName = errors.New("name of ids is not valid")
	// ErrIDCount: a count that is not above zero or too large.
	ErrIDCount = errors.New("count of ids is out of range")
)

// Bounds on the tables of ids. Part of what every mirror must agree on.
const (
	// maxIDNames bounds the ranges, and the sequences.
	maxIDNames     = 4096
	maxIDNameBytes = 128
	// maxIDNumber is the highest number of a range: one more can be counted to.
	maxIDNumber = math.MaxInt64 - 1
	// MaxIDsPerCommand bounds the numbers that one command takes of a range or a sequence.
	MaxIDsPerCommand = 1 << 24
	// maxIDTimeAhead is how far ahead of log time a node number is granted: a clock that is years fast must not use up
	// the future of the numbers. Log time itself falls behind by the time in which the log took no entries.
	maxIDTimeAhead = 366 * 24 * time.Hour
)

// IDEpoch is when the time of ids begins: 2025-01-01 UTC, in nanoseconds since 1970.
const IDEpoch = 1_735_689_600 * int64(time.Second)

// IDKind is a kind of id that is made of a time, a node number and a sequence.
type IDKind uint8

// The kinds.
const (
	// IDSnowflake: 41 bits of milliseconds, 10 of node, 12 of sequence.
	IDSnowflake IDKind = 1
	// IDRaindrop: 32 bits of seconds, 7 of node, 14 of sequence; 53 bits are exact in a double.
	IDRaindrop IDKind = 2
)

// String returns the kind's name.
func (k IDKind) String() string {
	switch k {
	case IDSnowflake:
		return "snowflake"
	case IDRaindrop:
		return "raindrop"
	default:
		return "unknown"
	}
}

// IDLayout says what an id of a kind is made of, highest bits first.
type IDLayout struct {
	TimeBits, NodeBits, SequenceBits uint
	// Unit is the unit of its time.
	Unit time.Duration
}

// Layout returns the kind's layout; the zero value for a kind that does not exist.
func (k IDKind) Layout() IDLayout {
	switch k {
	case IDSnowflake:
		return IDLayout{TimeBits: 41, NodeBits: 10, SequenceBits: 12, Unit: time.Millisecond}
	case IDRaindrop:
		return IDLayout{TimeBits: 32, NodeBits: 7, SequenceBits: 14, Unit: time.Second}
	default:
		return IDLayout{}
	}
}

// Nodes returns how many node numbers there are.
func (l IDLayout) Nodes() int { return 1 << l.NodeBits }

// PerUnit returns how many ids a node number gives in one unit of time.
func (l IDLayout) PerUnit() int64 { return 1 << l.SequenceBits }

// MaxTime returns the highest time that fits.
func (l IDLayout) MaxTime() int64 { return 1<<l.TimeBits - 1 }

// idKindOf returns zero for a kind that does not exist.
func idKindOf(k commandv1.IdKind) IDKind {
	switch k {
	case commandv1.IdKind_ID_KIND_SNOWFLAKE:
		return IDSnowflake
	case commandv1.IdKind_ID_KIND_RAINDROP:
		return IDRaindrop
	default:
		return 0
	}
}

// IDResult is the outcome of a command about ids.
type IDResult struct {
	// Node is the number that was granted or extended. Its holder may use the times above After up to Until, and none
	// but the holder ever uses them.
	Node         int64
	After, Until int64
	// First and Count are the numbers first … first + count - 1 of a range or a sequence.
	First, Count int64
}

// idNode is one node number.
type idNode struct {
	// holder is the session that it was granted to last. It holds the number as long as it is open.
	holder uint64
	// until is the highest time that was ever granted; it only grows. Zero: never granted.
	until int64
}

// idRange is one range of numbers.
type idRange struct {
	// next is the first number that was never granted; above max when there is none.
	next, max int64
}

// idTables are what is given out of ids.
type idTables struct {
	nodes     map[IDKind][]idNode // as long as the highest number ever granted
	ranges    map[string]idRange
	sequences map[string]int64 // the last number taken
	sum       uint64           // see seal
}

func newIDTables() idTables {
	return idTables{
		nodes: make(map[IDKind][]idNode), ranges: make(map[string]idRange), sequences: make(map[string]int64),
	}
}

func validateIDName(field, name string) error {
	switch {
	case name == "" || !utf8.ValidString(name):
		return &InvalidError{Field: field, Err: ErrIDName}
	case len(name) > maxIDNameBytes:
		return &InvalidError{Field: field, Limit: maxIDNameBytes, Value: int64(len(name)), Err: ErrIDName}
	}
	return nil
}

func validateIDCount(field string, count int64) error {
	if count <= 0 || count > MaxIDsPerCommand {
		return &InvalidError{Field: field, Limit: MaxIDsPerCommand, Value: count, Err: ErrIDCount}
	}
	return nil
}

func validateIDTime(field string, kind commandv1.IdKind, until int64) error {
	k := idKindOf(kind)
	if k == 0 {
		return &InvalidError{Field: field + ".kind", Err: ErrInvalidCommand}
	}
	if highest := k.Layout().MaxTime(); until <= 0 || until > highest {
		return &InvalidError{Field: field + ".until", Limit: highest, Value: until, Err: ErrIDTime}
	}
	return nil
}

func validateIDSegmentGrant(g *commandv1.IdSegmentGrant) error {
	if err := validateIDName("id_segment_grant.range", g.GetRange()); err != nil {
		return err
	}
	if g.GetMax() < 0 || g.GetMax() > maxIDNumber {
		return &InvalidError{Field: "id_segment_grant.max", Limit: maxIDNumber, Value: g.GetMax(), Err: ErrIDCount}
	}
	return validateIDCount("id_segment_grant.size", g.GetSize())
}

func validateIDSequenceNext(n *commandv1.IdSequenceNext) error {
	if err := validateIDName("id_sequence_next.name", n.GetName()); err != nil {
		return err
	}
	return validateIDCount("id_sequence_next.count", n.GetCount())
}

// checkIDTimeAhead refuses a time too far ahead of log time. Before the epoch the bound counts from there.
func (m *Machine) checkIDTimeAhead(kind IDKind, until int64) error {
	bound := (max(m.logTime, IDEpoch) - IDEpoch + int64(maxIDTimeAhead)) / int64(kind.Layout().Unit)
	if until > bound {
		return &InvalidError{Field: "until", Limit: bound, Value: until, Err: ErrIDTime}
	}
	return nil
}

// executeIDNodeGrant grants the number, of those that nobody holds, whose times are used up least far: numbers that were
// never granted first, then the one that its new holder can use soonest. What the session itself held counts as free.
func (m *Machine) executeIDNodeGrant(e *entry, g *commandv1.IdNodeGrant) (*IDResult, error) {
	if err := validateIDTime("id_node_grant", g.GetKind(), g.GetUntil()); err != nil {
		return nil, err
	}
	kind := idKindOf(g.Kind)
	if err := m.checkIDTimeAhead(kind, g.Until); err != nil {
		return nil, err
	}
	nodes := m.ids.nodes[kind]
	free, held := -1, -1
	for number := range nodes {
		holder := nodes[number].holder
		if holder == e.session.ID {
			held = number
		} else if _, open := m.sessions.open[holder]; open {
			continue
		}
		if free < 0 || nodes[number].until < nodes[free].until {
			free = number
		}
	}
	if len(nodes) < kind.Layout().Nodes() {
		free = len(nodes)
		nodes = append(nodes, idNode{})
		m.ids.nodes[kind] = nodes
		m.ids.sum += idNode{}.seal(kind, free)
	} else if free < 0 || nodes[free].until >= g.Until {
		return nil, ErrIDNodesUsedUp
	}
	if held >= 0 {
		m.ids.setNode(kind, held, idNode{until: nodes[held].until})
	}
	result := &IDResult{Node: int64(free), After: nodes[free].until, Until: g.Until}
	m.ids.setNode(kind, free, idNode{holder: e.session.ID, until: g.Until})
	return result, nil
}

// executeIDNodeExtend lets the holder go on, if it is the one that the number was granted to last: a holder that lost the
// number and got it back by another grant must not take up its old times again.
func (m *Machine) executeIDNodeExtend(e *entry, x *commandv1.IdNodeExtend) (*IDResult, error) {
	if err := validateIDTime("id_node_extend", x.GetKind(), x.GetUntil()); err != nil {
		return nil, err
	}
	kind := idKindOf(x.Kind)
	if err := m.checkIDTimeAhead(kind, x.Until); err != nil {
		return nil, err
	}
	nodes := m.ids.nodes[kind]
	if int64(x.Node) >= int64(len(nodes)) {
		return nil, ErrIDNodeNotHeld
	}
	node := nodes[x.Node]
	if node.holder != e.session.ID || node.until != x.From {
		return nil, ErrIDNodeNotHeld
	}
	node.until = max(node.until, x.Until)
	m.ids.setNode(kind, int(x.Node), node)
	return &IDResult{Node: int64(x.Node), After: x.From, Until: node.until}, nil
}

func (m *Machine) executeIDSegmentGrant(g *commandv1.IdSegmentGrant) (*IDResult, error) {
	if err := validateIDSegmentGrant(g); err != nil {
		return nil, err
	}
	r, known := m.ids.ranges[g.Range]
	switch {
	case known && g.Max != 0 && g.Max != r.max:
		return nil, ErrIDRangeMaximum
	case !known && len(m.ids.ranges) >= maxIDNames:
		return nil, ErrIDNames
	case !known:
		r = idRange{next: 1, max: g.Max}
		if r.max == 0 {
			r.max = maxIDNumber
		}
	case r.next > r.max:
		return nil, ErrIDRangeUsedUp
	}
	result := &IDResult{First: r.next, Count: min(g.Size, r.max-r.next+1)}
	r.next += result.Count
	m.ids.setRange(g.Range, r)
	return result, nil
}

func (m *Machine) executeIDSequenceNext(n *commandv1.IdSequenceNext) (*IDResult, error) {
	if err := validateIDSequenceNext(n); err != nil {
		return nil, err
	}
	last, known := m.ids.sequences[n.Name]
	switch {
	case !known && len(m.ids.sequences) >= maxIDNames:
		return nil, ErrIDNames
	case last > math.MaxInt64-n.Count:
		return nil, ErrIDSequenceUsedUp
	}
	m.ids.setSequence(n.Name, last+n.Count)
	return &IDResult{First: last + 1, Count: n.Count}, nil
}

// IDNodeInfo is what is known of one node number.
type IDNodeInfo struct {
	Number int64
	// Holder is the open session that holds it; zero for none.
	Holder uint64
	// Until is the highest time that it was ever granted for, in units of the kind since IDEpoch.
	Until int64
}

// IDNodes returns the node numbers of a kind that were ever granted, in order.
func (m *Machine) IDNodes(kind IDKind) []IDNodeInfo {
	m.mu.RLock()
	defer m.mu.RUnlock()
	infos := make([]IDNodeInfo, len(m.ids.nodes[kind]))
	for number, node := range m.ids.nodes[kind] {
		infos[number] = IDNodeInfo{Number: int64(number), Until: node.until}
		if _, open := m.sessions.open[node.holder]; open {
			infos[number].Holder = node.holder
		}
	}
	return infos
}
