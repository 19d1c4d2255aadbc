package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/durable"
	"github.com/logmirror/logmirror/statemachine"
)

// quarantineFile says why the image in the data directory must not be used. It is there from before a quarantined mirror
// ends until its image has been set aside.
const quarantineFile = "quarantine"

// QuarantineError is why a mirror ends whose state is not, or may not be, the one that the log makes. The next Start sets
// its image aside; the state is then built from a checkpoint or from the log.
type QuarantineError struct{ Reason string }

func (e *QuarantineError) Error() string { return "quarantined: " + e.Reason }

const (
	// digestsKept is how many of its own digests a mirror remembers, so that a verdict can be told from an old one.
	digestsKept = 64
	// scrubStepBytes is checked in one go; scrubShare of the time is spent on it.
	scrubStepBytes = 256 << 10
	scrubShare     = 10
	// A mirror that found itself right in a tie hears of the same tie again until the other is done; it looks again after
	// tieRest, and spends at most one part in tieShare of its time on it.
	tieRest  = time.Minute
	tieShare = 10
)

// digests reports what the mirror's state sums up to, hears how it compares with that of others, and checks on its own
// that memory and image still hold what apply made.
type digests struct {
	mirror *Mirror

	mu   sync.Mutex
	kept []statemachine.Digest // by index
	// verdict is the one that is being looked into.
	verdict *logv1.DigestVerdict
	// tieAgain is when a tie is looked into again.
	tieAgain time.Duration
	wake     chan struct{}
}

func newDigests(m *Mirror) *digests {
	return &digests{mirror: m, wake: make(chan struct{}, 1)}
}

// applied reports the digest of the state after an entry at which it is due. The apply goroutine calls it.
func (d *digests) applied() error {
	m := d.mirror
	digest, err := m.machine.Digest()
	if err != nil {
		return fmt.Errorf("digest at entry %d: %w", m.machine.Index(), err)
	}
	d.mu.Lock()
	if len(d.kept) == digestsKept {
		d.kept = append(d.kept[:0], d.kept[1:]...)
	}
	d.kept = append(d.kept, digest)
	d.mu.Unlock()
	m.syncs.reportDigest(&logv1.DigestReport{
		Index: digest.Index, ApplyVersion: digest.ApplyVersion, DigestVersion: statemachine.DigestVersion, Digest: digest.Bytes(),
	})
	m.metrics.digestIndex.Set(float64(digest.Index))
	return nil
}

// at returns the mirror's own digest at an index.
func (d *digests) at(index uint64) (statemachine.Digest, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, kept := range d.kept {
		if kept.Index == index {
			return kept, true
		}
	}
	return statemachine.Digest{}, false
}

// Judged implements logclient.ReportHandler.
func (d *digests) Judged(verdicts []*logv1.DigestVerdict) {
	m := d.mirror
	for _, verdict := range verdicts {
		if _, known := d.at(verdict.GetIndex()); !known || verdict.GetSession() != m.session.identity().Session {
			continue // of an earlier life
		}
		m.metrics.digestVerdicts.WithLabelValues(labelOf("VERDICT_", verdict.GetVerdict())).Inc()
		m.config.Logger.Error("the state of this mirror is not that of others", "index", verdict.GetIndex(),
			"verdict", verdict.GetVerdict().String(), "mirrors", verdict.GetReports(), "agreeing", verdict.GetAgreeing())
		switch verdict.GetVerdict() {
		case logv1.DigestVerdict_VERDICT_MINORITY:
			m.quarantine(fmt.Sprintf("its digest at index %d is that of %d of %d mirrors, and more agree on another",
				verdict.GetIndex(), verdict.GetAgreeing(), verdict.GetReports()))
		case logv1.DigestVerdict_VERDICT_TIE:
			d.mu.Lock()
			d.verdict = verdict
			d.mu.Unlock()
			select {
			case d.wake <- struct{}{}:
			default:
			}
		}
	}
}

// quarantine ends the mirror and keeps its image from being used again, whatever happens to the process meanwhile.
func (m *Mirror) quarantine(reason string) {
	if m.ctx.Err() != nil {
		return
	}
	m.metrics.quarantines.Inc()
	err := error(&QuarantineError{Reason: reason})
	if writeErr := durable.Write(filepath.Join(m.directory.path, quarantineFile), []byte(reason+"\n")); writeErr != nil {
		err = errors.Join(err, fmt.Errorf("note the quarantine: %w", writeErr))
	}
	m.fail(err)
}

// scrubLoop checks memory and image, once in every ScrubInterval, and at once where others have another state.
func (d *digests) scrubLoop() {
	m := d.mirror
	timer := time.NewTimer(jitter(m.config.ScrubInterval))
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-d.wake:
			d.settleTie()
		case <-timer.C:
			began := m.config.Clock()
			if d.scrub(scrubShare) {
				m.metrics.scrubs.Inc()
				m.metrics.scrubSeconds.Set((m.config.Clock() - began).Seconds())
			}
			timer.Reset(m.config.ScrubInterval)
		}
	}
}

// jitter spreads the first scrubs of mirrors that started together.
func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(uint64(time.Now().UnixNano())%uint64(d/2+1))
}

// scrub goes over memory and image, resting share-1 times as long as it works. It returns false where it ended early: the
// mirror stops, or something is damaged.
func (d *digests) scrub(share int) bool {
	m := d.mirror
	s := m.machine.NewScrubber()
	defer s.Close()
	for {
		began := time.Now()
		done, err := s.Step(scrubStepBytes)
		if err != nil {
			m.quarantine("memory is damaged: " + err.Error())
			return false
		}
		if done {
			break
		}
		if !d.rest(time.Since(began), share) {
			return false
		}
	}
	pending, began := 0, time.Now()
	err := m.image.Scrub(func(bytes int) error {
		if pending += bytes; pending < scrubStepBytes {
			return nil
		}
		worked := time.Since(began)
		if !d.rest(worked, share) {
			return ErrStopped
		}
		pending, began = 0, time.Now()
		return nil
	})
	switch {
	case errors.Is(err, ErrStopped):
		return false
	case err != nil:
		m.quarantine("the image is damaged: " + err.Error())
		return false
	}
	return true
}

// rest pauses after work, so that one part in share of the time is work. It returns false when the mirror stops.
func (d *digests) rest(worked time.Duration, share int) bool {
	if share <= 1 {
		return d.mirror.ctx.Err() == nil
	}
	timer := time.NewTimer(time.Duration(share-1) * worked)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.mirror.ctx.Done():
		return false
	}
}

// settleTie finds out whether this mirror or the other is wrong: a scrub finds damage at rest; what else there is, the
// state that a checkpoint and the log above it make.
func (d *digests) settleTie() {
	m := d.mirror
	d.mu.Lock()
	verdict := d.verdict
	d.verdict = nil
	began := m.config.Clock()
	rests := began < d.tieAgain
	d.mu.Unlock()
	if verdict == nil || rests || !d.scrub(1) {
		return
	}
	err := m.replayCheck(m.ctx, verdict.GetIndex())
	ended := m.config.Clock()
	d.mu.Lock()
	d.tieAgain = ended + max(tieRest, (tieShare-1)*(ended-began))
	d.mu.Unlock()
	var other *differsError
	switch {
	case m.ctx.Err() != nil:
	case errors.As(err, &other):
		m.quarantine(err.Error())
	case err != nil:
		// A later digest asks again.
		m.config.Logger.Warn("this mirror could not be checked against the log", "reason", err)
	default:
		m.config.Logger.Info("this mirror was checked against the log and is right", "index", verdict.GetIndex())
	}
}

// differsError says that the log makes another state than this mirror has.
type differsError struct {
	index         uint64
	mirror, other statemachine.Digest
}

func (e *differsError) Error() string {
	return fmt.Sprintf("the log replayed to index %d gives digest %x, this mirror had %x", e.index, e.other.Bytes(), e.mirror.Bytes())
}

// compare compares the digest of a machine that was built anew with the mirror's own at the same index. known is false
// where the mirror has none.
func (d *digests) compare(machine *statemachine.Machine) (known bool, err error) {
	digest, err := machine.Digest()
	if err != nil {
		return false, err
	}
	own, known := d.at(digest.Index)
	if known && !bytes.Equal(own.Bytes(), digest.Bytes()) {
		return true, &differsError{index: digest.Index, mirror: own, other: digest}
	}
	return known, nil
}
