package frontend

import (
	"bytes"
	"fmt"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// invalid is INVALID_ARGUMENT for one field of the request, named in the text and in a google.rpc.BadRequest.
func invalid(field, format string, arguments ...any) error {
	description := fmt.Sprintf(format, arguments...)
	s := status.New(codes.InvalidArgument, field+" "+description)
	detailed, err := s.WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: field, Description: description},
	}})
	if err != nil {
		return s.Err() // not reached: the detail can always be packed
	}
	return detailed.Err()
}

func checkKey(field string, key []byte) error {
	if len(key) == 0 {
		return invalid(field, "must be at least one byte")
	}
	return nil
}

// nestingMax is how many nested transactions deep a transaction may be.
const nestingMax = 16

// branch collects what one list of operations may write, nested transactions included, to refuse a list that writes a key
// twice. The two lists of a nested transaction exclude each other, so both may write the same keys.
type branch struct {
	puts    []string
	deletes []span
}

// span is [key, end); ended false means that it has no end.
type span struct {
	key, end []byte
	ended    bool
}

func spanOf(key, rangeEnd []byte) span {
	switch {
	case len(rangeEnd) == 0:
		return span{key: key, end: append(slices.Clone(key), 0), ended: true}
	case len(rangeEnd) == 1 && rangeEnd[0] == 0:
		return span{key: key}
	default:
		return span{key: key, end: rangeEnd, ended: true}
	}
}

func (s span) contains(key []byte) bool {
	return bytes.Compare(s.key, key) <= 0 && (!s.ended || bytes.Compare(key, s.end) < 0)
}

// join adds what one operation writes and returns the first key that both wrote. Deletes may overlap deletes.
func (b *branch) join(other branch) (twice string, overlap bool) {
	for _, put := range other.puts {
		if slices.Contains(b.puts, put) || covered(b.deletes, put) {
			return put, true
		}
	}
	for _, put := range b.puts {
		if covered(other.deletes, put) {
			return put, true
		}
	}
	b.puts = append(b.puts, other.puts...)
	b.deletes = append(b.deletes, other.deletes...)
	return "", false
}

func covered(deletes []span, key string) bool {
	return slices.ContainsFunc(deletes, func(s span) bool { return s.contains([]byte(key)) })
}
