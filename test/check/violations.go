package check

import (
	"errors"
	"fmt"
)

// ErrInconclusive says that a check ran out of its time without an answer.
var ErrInconclusive = errors.New("check: no answer within the time")

// violations collects what must not be, as many as a person reads.
type violations struct {
	found []error
	more  int
}

// violationsMax is how many are told; the rest are counted.
const violationsMax = 5

func (v *violations) addf(format string, args ...any) {
	if len(v.found) >= violationsMax {
		v.more++
		return
	}
	v.found = append(v.found, fmt.Errorf(format, args...))
}

func (v *violations) err() error {
	if v.more > 0 {
		return errors.Join(append(v.found, fmt.Errorf("and %d more", v.more))...)
	}
	return errors.Join(v.found...)
}
