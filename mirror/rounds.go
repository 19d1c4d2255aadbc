package mirror

import "time"

// roundsCore decides when a read round is made and who shares it. It is passive.
//
// Guarantee: a reader is given the answer of a round whose question was asked after the reader came.
type roundsCore struct {
	max     int
	spacing time.Duration
	// idleAfter is when a round is made although nobody waits.
	idleAfter time.Duration

	waiting   []*reader
	underWay  int
	started   bool
	startedAt time.Duration
}

// reader waits for a round; done takes one answer.
type reader struct {
	done chan roundAnswer
	// left: nobody waits any more.
	left bool
}

type roundAnswer struct {
	index uint64
	err   error
}

// start returns the readers of the round that is to be made now, which may be none: ok tells whether one is to be made.
// wake tells when to ask again, if nothing happens before.
func (r *roundsCore) start(now time.Duration) (readers []*reader, ok bool, wake time.Duration) {
	due := r.startedAt + r.idleAfter
	if len(r.waiting) > 0 {
		due = now
		if r.underWay > 0 {
			due = r.startedAt + r.spacing
		}
	}
	if !r.started {
		due = now
	}
	if r.underWay >= r.max {
		// The end of a round asks again.
		return nil, false, 0
	}
	if len(r.waiting) == 0 && r.underWay > 0 {
		return nil, false, 0
	}
	if now < due {
		return nil, false, due
	}
	readers, r.waiting = r.waiting, nil
	r.underWay++
	r.started, r.startedAt = true, now
	return readers, true, now + r.idleAfter
}

func (r *roundsCore) join(reader *reader) { r.waiting = append(r.waiting, reader) }

// leave takes a reader out that does not wait any more; false if its round is under way.
func (r *roundsCore) leave(reader *reader) bool {
	for i, w := range r.waiting {
		if w == reader {
			r.waiting = append(r.waiting[:i], r.waiting[i+1:]...)
			return true
		}
	}
	return false
}

func (r *roundsCore) ended() { r.underWay-- }
