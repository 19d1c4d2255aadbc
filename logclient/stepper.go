package logclient

import (
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Stepper is what a Client decides, as a value that starts nothing and reads no clock: for a simulation that brings time
// and network itself. Which member is used, when which is probed, and whether what a tail brings continues what came before
// are the Client's own code; streams are the caller's. One goroutine uses it.
type Stepper struct {
	tracker *tracker
	cursor  cursor
}

// NewStepper begins to look for the log's members, for a tail that begins with index from after an entry of previousTerm.
// Jitter spreads a pause.
func NewStepper(config Config, from, previousTerm uint64, jitter func(time.Duration) time.Duration, now time.Time) (*Stepper, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Stepper{cursor: cursor{next: max(from, 1), previousTerm: previousTerm},
		tracker: newTracker(config.tracker(jitter), config.Members, nil, now)}
	s.tracker.advanced(s.cursor.next-1, now)
	return s, nil
}

// Probes returns the members to ask for their status now, and when to come again. Each is answered by Answered or Unanswered.
func (s *Stepper) Probes(now time.Time) (due []string, next time.Time) { return s.tracker.probes(now) }

// Answered takes the answer to a probe.
func (s *Stepper) Answered(address string, roundTrip time.Duration, published, leaderID uint64, now time.Time) {
	s.tracker.answered(address, roundTrip, published, leaderID, now)
}

// Unanswered notes that a probe failed.
func (s *Stepper) Unanswered(address string, now time.Time) { s.tracker.unanswered(address, now) }

// Failed notes that a stream to a member broke; Lived that one has worked for a while.
func (s *Stepper) Failed(address string, now time.Time) { s.tracker.failed(address, now) }

// Lived forgets the failures of a member.
func (s *Stepper) Lived(address string) { s.tracker.lived(address) }

// Learn takes a membership that a member told.
func (s *Stepper) Learn(m *logv1.Membership, now time.Time) { s.tracker.learn(m, now) }

// Current returns the member that streams are to be held to now; false for none at present.
func (s *Stepper) Current(now time.Time) (address string, ok bool) {
	m, _ := s.tracker.usable(now)
	if m == nil {
		return "", false
	}
	return m.address, true
}

// Nearest returns the best member but for some; false for none.
func (s *Stepper) Nearest(now time.Time, except ...string) (address string, ok bool) {
	m := s.tracker.best(now, except...)
	if m == nil {
		return "", false
	}
	return m.address, true
}

// Next returns where a tail goes on: the index wanted, and the term of the entry before it.
func (s *Stepper) Next() (index, previousTerm uint64) { return s.cursor.next, s.cursor.previousTerm }

// Take decodes what one answer of a tail brought, as far as it continues what came before; the error says why the rest does
// not, and that the member is to be left.
func (s *Stepper) Take(sent []*logv1.Entry, now time.Time) (entries []Entry, err error) {
	for _, e := range sent {
		entry, err := decode(e)
		if err == nil {
			err = s.cursor.accept(e.GetIndex(), e.GetTerm())
		}
		if err != nil {
			return entries, err
		}
		entries = append(entries, entry)
	}
	s.tracker.advanced(s.cursor.next-1, now)
	return entries, nil
}
