package logclient

import (
	"errors"
	"fmt"
	"slices"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// tracker decides which member is used. It is passive: it is told what was heard and when, and asked what to do; it
// owns no clock, no goroutine and no connection.
//
// Invariants:
//   - current is empty or the address of a known member that was not refused.
//   - members holds each address once, in the order in which they became known, so that decisions do not depend on
//     the order of a map.
type tracker struct {
	config  trackerConfig
	members []*member
	current string
	// since is when current last changed.
	since time.Time
	// membershipIndex is the index of the newest membership learned.
	membershipIndex uint64
	learned         bool

	// Progress of the caller's tail, once there is one, to tell a member that lags from one that has nothing new.
	tailing        bool
	position       uint64
	lagTarget      uint64
	lagSince       time.Time
	leaderless     time.Time
	leaderlessSeen bool
}

type trackerConfig struct {
	probeInterval time.Duration
	stallTimeout  time.Duration
	preferAfter   time.Duration
	retryMin      time.Duration
	retryMax      time.Duration
	// jitter spreads a pause; it is a field so that a test can take the chance out.
	jitter func(time.Duration) time.Duration
}

// member is what is known of one address.
type member struct {
	address string
	// configured: named by the operator. listed: in the newest membership learned. An address that is neither is
	// forgotten.
	configured bool
	listed     bool
	info       *logv1.Member

	// roundTrip is smoothed over probes, once measured.
	roundTrip time.Duration
	measured  bool
	// answeredSince is when the present run of successful probes began; zero while probes fail.
	answeredSince time.Time
	probeFailures int
	probing       bool
	nextProbe     time.Time

	// streamFailures counts failures of streams since the last one that lived; avoidUntil follows from it.
	streamFailures int
	avoidUntil     time.Time

	published uint64
	leaderID  uint64
	// refused is why this address is never used: it belongs to another log.
	refused error
}

func (m *member) reachable() bool { return !m.answeredSince.IsZero() }

func newTracker(config trackerConfig, configured []string, persisted []*logv1.Member, now time.Time) *tracker {
	t := &tracker{config: config}
	for _, info := range persisted {
		m := t.add(info.GetAddress(), now)
		m.info, m.listed = info, true
		t.learned = true
	}
	for _, address := range configured {
		t.add(address, now).configured = true
	}
	return t
}

func (t *tracker) find(address string) *member {
	for _, m := range t.members {
		if m.address == address {
			return m
		}
	}
	return nil
}

func (t *tracker) add(address string, now time.Time) *member {
	if m := t.find(address); m != nil {
		return m
	}
	m := &member{address: address, nextProbe: now}
	t.members = append(t.members, m)
	return m
}

// learn takes a membership that a member told. It returns whether the list changed; an older one is ignored.
func (t *tracker) learn(membership *logv1.Membership, now time.Time) (changed bool) {
	if len(membership.GetMembers()) == 0 || (t.learned && membership.GetIndex() < t.membershipIndex) {
		return false
	}
	first := !t.learned
	t.learned = true
	t.membershipIndex = membership.GetIndex()
	named := make(map[string]bool, len(membership.GetMembers()))
	for _, info := range membership.GetMembers() {
		if info.GetAddress() == "" {
			continue
		}
		named[info.GetAddress()] = true
		m := t.add(info.GetAddress(), now)
		if !m.listed || m.info.GetId() != info.GetId() || m.info.GetRole() != info.GetRole() {
			changed = true
		}
		m.info, m.listed = info, true
	}
	t.members = slices.DeleteFunc(t.members, func(m *member) bool {
		if named[m.address] {
			return false
		}
		changed = changed || m.listed
		m.listed = false
		if m.configured {
			return false
		}
		if t.current == m.address {
			t.setCurrent("", now)
		}
		return true
	})
	return changed || first
}

// probes returns the members that are to be asked now, marks them as being asked, and tells when to come again.
func (t *tracker) probes(now time.Time) (due []string, next time.Time) {
	listedReachable := slices.ContainsFunc(t.members, func(m *member) bool { return m.listed && m.reachable() })
	next = now.Add(t.config.probeInterval)
	for _, m := range t.members {
		// A configured address that is in no membership is a last resort.
		if m.probing || m.refused != nil || (!m.listed && t.learned && listedReachable) {
			continue
		}
		if m.nextProbe.After(now) {
			if m.nextProbe.Before(next) {
				next = m.nextProbe
			}
			continue
		}
		m.probing = true
		due = append(due, m.address)
	}
	return due, next
}

// answered records the answer to a probe.
func (t *tracker) answered(address string, roundTrip time.Duration, published, leaderID uint64, now time.Time) {
	m := t.find(address)
	if m == nil {
		return
	}
	m.probing = false
	m.probeFailures = 0
	m.nextProbe = now.Add(t.config.jitter(t.config.probeInterval))
	if !m.measured || roundTrip < m.roundTrip {
		// Connecting and queueing only ever add: less is nearer the truth.
		m.measured, m.roundTrip = true, roundTrip
	} else {
		m.roundTrip += (roundTrip - m.roundTrip) / 8
	}
	if !m.reachable() {
		m.answeredSince = now
	}
	m.published = max(m.published, published)
	m.leaderID = leaderID
	t.judgeCurrent(m, now)
	t.choose(now)
}

// unanswered records a probe that failed.
func (t *tracker) unanswered(address string, now time.Time) {
	m := t.find(address)
	if m == nil {
		return
	}
	m.probing = false
	m.probeFailures++
	m.answeredSince = time.Time{}
	pause := t.config.retryMin << min(m.probeFailures-1, 10)
	m.nextProbe = now.Add(t.config.jitter(min(pause, t.config.probeInterval)))
	t.choose(now)
}

// failed records that a stream to a member broke, or that the member did not do its work. It is avoided for a pause
// that doubles with each failure.
func (t *tracker) failed(address string, now time.Time) {
	m := t.find(address)
	if m == nil {
		return
	}
	pause := min(t.config.retryMin<<min(m.streamFailures, 10), t.config.retryMax)
	m.streamFailures++
	m.avoidUntil = now.Add(t.config.jitter(pause))
	// What was known of it is in doubt: ask again soon.
	if !m.probing && m.nextProbe.After(now) {
		m.nextProbe = now
	}
	t.choose(now)
}

// lived records that a stream to a member has worked for long enough to forget its failures.
func (t *tracker) lived(address string) {
	if m := t.find(address); m != nil {
		m.streamFailures = 0
	}
}

// refuse records that an address belongs to another log. The error returned is not nil when no address is left that
// could be the wanted log: every one that the operator configured was refused.
func (t *tracker) refuse(address string, reason error, now time.Time) error {
	m := t.find(address)
	if m == nil {
		return nil
	}
	m.probing = false
	m.refused = reason
	m.answeredSince = time.Time{}
	t.choose(now)
	var all error
	for _, m := range t.members {
		if !m.configured {
			continue
		}
		if m.refused == nil {
			return nil
		}
		all = errors.Join(all, fmt.Errorf("%s: %w", m.address, m.refused))
	}
	return all
}

// advanced records how far the caller's tail has come.
func (t *tracker) advanced(position uint64, now time.Time) {
	t.tailing = true
	t.position = position
	if position >= t.lagTarget {
		t.lagTarget = 0
	} else {
		t.lagSince = now
	}
}

// judgeCurrent leaves the current member when another's answer shows that it is cut off from the log: it delivers
// nothing of what others have published, or knows no leader while others do.
func (t *tracker) judgeCurrent(answered *member, now time.Time) {
	current := t.find(t.current)
	if current == nil {
		return
	}
	if answered == current {
		if current.leaderID != 0 {
			t.leaderlessSeen = false
		}
		return
	}
	if t.tailing && answered.published > t.position && t.lagTarget == 0 {
		t.lagTarget, t.lagSince = answered.published, now
	}
	if current.leaderID == 0 && answered.leaderID != 0 && !t.leaderlessSeen {
		t.leaderless, t.leaderlessSeen = now, true
	}
	lags := t.lagTarget != 0 && now.Sub(t.lagSince) >= t.config.stallTimeout
	headless := t.leaderlessSeen && now.Sub(t.leaderless) >= t.config.stallTimeout
	if lags || headless {
		t.failed(current.address, now)
	}
}

// choose keeps the current member while it serves and is near enough, else takes the best there is.
func (t *tracker) choose(now time.Time) {
	best := t.best(now)
	current := t.find(t.current)
	if current == nil || current.refused != nil || current.avoidUntil.After(now) {
		switch {
		case best != nil:
			t.setCurrent(best.address, now)
		case current == nil || current.refused != nil:
			t.setCurrent("", now)
		}
		return
	}
	if best == nil || best == current || !best.reachable() || now.Sub(best.answeredSince) < t.config.preferAfter {
		return
	}
	// A change costs a new set of streams: not for a few per cent.
	nearer := current.roundTrip - best.roundTrip
	if nearer > max(2*time.Millisecond, current.roundTrip/4) && best.published >= t.position {
		t.setCurrent(best.address, now)
	}
}

func (t *tracker) setCurrent(address string, now time.Time) {
	if t.current == address {
		return
	}
	t.current = address
	t.since = now
	t.lagTarget = 0
	t.leaderlessSeen = false
}

// best returns the nearest member that answers and is not avoided, or nil. An address that is in no membership is a last
// resort: it is not probed while a member answers, so that nothing new is known of it.
func (t *tracker) best(now time.Time, except ...string) *member {
	var best *member
	for _, m := range t.members {
		if m.refused != nil || !m.reachable() || m.avoidUntil.After(now) || slices.Contains(except, m.address) {
			continue
		}
		if best == nil || m.listed && !best.listed || m.listed == best.listed && m.roundTrip < best.roundTrip {
			best = m
		}
	}
	return best
}

// anyReachable tells whether a member answers.
func (t *tracker) anyReachable() bool {
	return slices.ContainsFunc(t.members, func(m *member) bool { return m.refused == nil && m.reachable() })
}

// usable returns the current member if a stream to it may be tried now. Otherwise wait tells how long to pause before
// asking again; it is zero where only a probe's answer can help.
func (t *tracker) usable(now time.Time) (m *member, wait time.Duration) {
	t.choose(now)
	current := t.find(t.current)
	if current == nil {
		return nil, 0
	}
	if current.avoidUntil.After(now) {
		return nil, current.avoidUntil.Sub(now)
	}
	return current, 0
}
