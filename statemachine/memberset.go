package statemachine

import (
	"bytes"
	"errors"
	"slices"
)

// A set is the value of a key: its members in the order of their bytes, each of at least one byte, one newline between two;
// in a member a backslash is written as two, and a newline as a backslash and an n. So every set has one encoding, that of
// a set of plain words is a list of lines, and the empty value is the empty set.

var errNotCanonicalSet = errors.New("not a set")

// changeSet puts members, which are sorted and each there once, into an encoded set or takes them out of it. It returns the
// encoded outcome, how many members that has, and by how many it differs. Nothing that it is given is kept.
func changeSet(value []byte, members [][]byte, insert bool) (after []byte, count, differing int64, err error) {
	size := len(value)
	if insert {
		for _, member := range members {
			size += 1 + len(member) + bytes.Count(member, escaped)
		}
	}
	out := setWriter{encoded: make([]byte, 0, size)}
	var previous []byte
	for rest, more := value, len(value) > 0; more; {
		var line []byte
		line, rest, more = bytes.Cut(rest, newline)
		member, ok := unescapeMember(line)
		if !ok || bytes.Compare(previous, member) >= 0 { // nothing is below an empty member
			return nil, 0, 0, errNotCanonicalSet
		}
		previous = member
		for len(members) > 0 && bytes.Compare(members[0], member) < 0 {
			if insert {
				out.member(members[0])
				differing++
			}
			members = members[1:]
		}
		if len(members) > 0 && bytes.Equal(members[0], member) {
			members = members[1:]
			if !insert {
				differing++
				continue
			}
		}
		out.line(line)
	}
	if insert {
		for _, member := range members {
			out.member(member)
			differing++
		}
	}
	return out.encoded, out.count, differing, nil
}

// sortMembers returns members in order, each once, in a slice of its own.
func sortMembers(members [][]byte) [][]byte {
	sorted := slices.Clone(members)
	slices.SortFunc(sorted, bytes.Compare)
	return slices.CompactFunc(sorted, bytes.Equal)
}

// setWriter writes the members of a set in order.
type setWriter struct {
	encoded []byte
	count   int64
}

func (w *setWriter) separate() {
	if w.count > 0 {
		w.encoded = append(w.encoded, '\n')
	}
	w.count++
}

// line writes a member that is encoded already.
func (w *setWriter) line(line []byte) {
	w.separate()
	w.encoded = append(w.encoded, line...)
}

func (w *setWriter) member(member []byte) {
	w.separate()
	for _, c := range member {
		switch c {
		case '\\':
			w.encoded = append(w.encoded, '\\', '\\')
		case '\n':
			w.encoded = append(w.encoded, '\\', 'n')
		default:
			w.encoded = append(w.encoded, c)
		}
	}
}

var (
	newline = []byte{'\n'}
	escaped = []byte{'\\'}
)

// unescapeMember returns the member that a line encodes; false where none does. It may return the line itself.
func unescapeMember(line []byte) (member []byte, ok bool) {
	at := bytes.IndexByte(line, '\\')
	if at < 0 {
		return line, true
	}
	member = append(make([]byte, 0, len(line)), line[:at]...)
	for rest := line[at:]; len(rest) > 0; rest = rest[1:] {
		c := rest[0]
		if c == '\\' {
			if len(rest) < 2 || (rest[1] != '\\' && rest[1] != 'n') {
				return nil, false
			}
			if rest = rest[1:]; rest[0] == 'n' {
				c = '\n'
			}
		}
		member = append(member, c)
	}
	return member, true
}
