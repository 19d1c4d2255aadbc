package keeper

import (
	"time"
)

// moment is what the keeper knows of time when it decides something.
type moment struct {
	// now is on the keeper's clock.
	now time.Duration
	// session is this frontend's; zero while there is none.
	session uint64
	// until is how long the session is held for certain, on the keeper's clock; only with held.
	until time.Duration
	held  bool
}

// holder tells whether the keeper may act as the holder of its session now.
func (m moment) holder() bool { return m.held && m.session != 0 && m.now < m.until }

// change is what an entry did to a lease, in the keeper's units.
type change struct {
	kind       changeKind
	id         int64
	ttl        time.Duration
	owner      uint64
	ownerIndex uint64
	// previousSessionTime is the session time of the old owner; with changeAdopted.
	previousSessionTime time.Duration
}

type changeKind uint8

const (
	changeGranted changeKind = iota
	changeAdopted
	// changeLost: the lease ended or has no owner any more.
	changeLost
)

type eventKind uint8

const (
	// eventChanged: an applied entry changed a lease.
	eventChanged eventKind = iota
	// eventRenew: a client renews a lease.
	eventRenew
	// eventAdopt: a client renews a lease that the log knows and that is not ours.
	eventAdopt
	// eventAdoptDecided and eventExpireDecided: a proposal came back.
	eventAdoptDecided
	eventExpireDecided
	// eventTick: time went on.
	eventTick
)

type event struct {
	kind       eventKind
	id         int64
	ownerIndex uint64
	change     change
	outcome    outcome
}

// outcome of a proposal.
type outcome uint8

const (
	// outcomeApplied: applied with the effect that was wanted.
	outcomeApplied outcome = iota
	// outcomeNotFound: applied, and there is no such lease.
	outcomeNotFound
	// outcomeVoid: applied without effect.
	outcomeVoid
	// outcomeUnknown: whether it was or will be applied is not known.
	outcomeUnknown
)

type verdict uint8

const (
	_ verdict = iota
	// verdictConfirmed: renewed; effects.ttl is the lease's.
	verdictConfirmed
	// verdictUnavailable: the keeper cannot vouch for it.
	verdictUnavailable
	// verdictWait: ask again when effects.wait is closed.
	verdictWait
	// verdictElsewhere: the lease is not ours, or does not exist.
	verdictElsewhere
)

// effects are what the shell does after a step, in any order.
type effects struct {
	verdict verdict
	ttl     time.Duration
	wait    *decision
	// adopt and expire are proposals to make.
	adopt  []int64
	expire []expiry
}

type expiry struct {
	id         int64
	ownerIndex uint64
}

// decision is something that renewals wait for. outcome may be read once done is closed.
type decision struct {
	done    chan struct{}
	outcome outcome
}

func newDecision() *decision { return &decision{done: make(chan struct{})} }

func (d *decision) decide(o outcome) {
	d.outcome = o
	close(d.done)
}

// record is one lease that this frontend's session owns.
type record struct {
	id         int64
	ttl        time.Duration
	owner      uint64
	ownerIndex uint64
	// deadline is when the lease's end may be proposed.
	deadline time.Duration
	// due is the record's key in the heap. Invariant: due <= deadline while no end is proposed. A renewal moves
	// only the deadline; the heap learns of it when the record comes to its top.
	due time.Duration
	// at is the place in the heap, -1 while a proposal is in flight.
	at int
	// undecided is set from the first proposal of the lease's end until its outcome: nothing is confirmed.
	undecided bool
	// attempts counts those proposals.
	attempts int
	// decided is made by the first renewal that has to wait for the outcome.
	decided *decision
}

// core decides. It is not safe for concurrent use.
type core struct {
	limits limits

	records map[int64]*record
	// heap holds the records by due, but for those with a proposal in flight.
	heap     []*record
	expiring int
	// adoptions are the proposals to make this session the owner of a lease; all renewals of the lease share
	// one.
	adoptions map[int64]*decision
	// waiting adoptions are not proposed yet, oldest first.
	waiting  []int64
	adopting int

	counts counts
}

type limits struct {
	expirations, adoptions, waitingAdoptions int
	retryMinimum, retryMaximum               time.Duration
}

type counts struct {
	renewals, refusals, adoptions, expirations uint64
}

func newCore(l limits) *core {
	return &core{limits: l, records: make(map[int64]*record), adoptions: make(map[int64]*decision)}
}

// step is the one door: it takes an event at a moment and says what is to be done.
func (c *core) step(e event, m moment) effects {
	switch e.kind {
	case eventChanged:
		c.changed(e.change, m)
		return effects{}
	case eventRenew:
		return c.renew(e.id, m)
	case eventAdopt:
		return c.adopt(e.id, m)
	case eventAdoptDecided:
		return c.adoptDecided(e.id, e.outcome)
	case eventExpireDecided:
		c.expireDecided(e, m)
	case eventTick:
	}
	return effects{expire: c.expire(m)}
}

// changed takes note of what an entry did to a lease.
func (c *core) changed(ch change, m moment) {
	own := ch.owner != 0 && ch.owner == m.session
	switch {
	case ch.kind == changeGranted && own:
		c.own(ch, m.now+ch.ttl)
	case ch.kind == changeAdopted && own:
		c.own(ch, m.now+ch.ttl+ch.previousSessionTime)
	default:
		c.drop(ch.id)
	}
}

// own begins or goes on with a record whose owner is this session by the entry that the change is of.
func (c *core) own(ch change, deadline time.Duration) {
	r := c.records[ch.id]
	if r != nil && r.owner == ch.owner {
		deadline = max(deadline, r.deadline)
	}
	c.drop(ch.id)
	r = &record{
		id: ch.id, ttl: ch.ttl, owner: ch.owner, ownerIndex: ch.ownerIndex, deadline: deadline, due: deadline, at: -1,
	}
	c.records[ch.id] = r
	c.push(r)
}

// drop forgets a lease that this session does not own any more. A proposal in flight is void.
func (c *core) drop(id int64) {
	r := c.records[id]
	if r == nil {
		return
	}
	delete(c.records, id)
	if r.at >= 0 {
		c.remove(r)
	}
	if r.decided != nil {
		r.decided.decide(outcomeApplied)
	}
}

func (c *core) renew(id int64, m moment) effects {
	r := c.records[id]
	switch {
	case !m.holder():
		c.counts.refusals++
		return effects{verdict: verdictUnavailable}
	case r == nil || r.owner != m.session:
		return effects{verdict: verdictElsewhere}
	case r.undecided:
		if r.decided == nil {
			r.decided = newDecision()
		}
		return effects{verdict: verdictWait, wait: r.decided}
	}
	r.deadline = max(r.deadline, m.now+r.ttl)
	c.counts.renewals++
	return effects{verdict: verdictConfirmed, ttl: r.ttl}
}

// adopt joins the adoption of a lease or begins one.
func (c *core) adopt(id int64, m moment) effects {
	if !m.holder() {
		c.counts.refusals++
		return effects{verdict: verdictUnavailable}
	}
	if r := c.records[id]; r != nil && r.owner == m.session {
		return c.renew(id, m)
	}
	a := c.adoptions[id]
	if a == nil {
		if len(c.waiting) >= c.limits.waitingAdoptions {
			c.counts.refusals++
			return effects{verdict: verdictUnavailable}
		}
		a = newDecision()
		c.adoptions[id] = a
		c.waiting = append(c.waiting, id)
		c.counts.adoptions++
	}
	return effects{verdict: verdictWait, wait: a, adopt: c.nextAdoptions()}
}

func (c *core) nextAdoptions() (ids []int64) {
	n := min(c.limits.adoptions-c.adopting, len(c.waiting))
	if n <= 0 {
		return nil
	}
	ids = append(ids, c.waiting[:n]...)
	c.waiting = c.waiting[n:]
	if len(c.waiting) == 0 {
		c.waiting = nil
	}
	c.adopting += n
	return ids
}

func (c *core) adoptDecided(id int64, o outcome) effects {
	c.adopting--
	if d := c.adoptions[id]; d != nil {
		delete(c.adoptions, id)
		d.decide(o)
	}
	return effects{adopt: c.nextAdoptions()}
}

// expire takes the leases whose time has come off the heap and proposes their end, as far as the bound on
// proposals in flight allows.
func (c *core) expire(m moment) (due []expiry) {
	for len(c.heap) > 0 && c.expiring < c.limits.expirations {
		r := c.heap[0]
		switch {
		case r.due > m.now:
			return due
		case !r.undecided && r.deadline > m.now:
			// It was renewed since it was put here.
			r.due = r.deadline
			c.down(0)
		case !m.holder() || r.owner != m.session:
			r.due = m.now + c.limits.retryMinimum
			c.down(0)
		default:
			c.remove(r)
			r.undecided = true
			r.attempts++
			c.expiring++
			c.counts.expirations++
			due = append(due, expiry{id: r.id, ownerIndex: r.ownerIndex})
		}
	}
	return due
}

func (c *core) expireDecided(e event, m moment) {
	c.expiring--
	r := c.records[e.id]
	if r == nil || r.ownerIndex != e.ownerIndex {
		return
	}
	if e.outcome == outcomeApplied || e.outcome == outcomeNotFound {
		c.drop(e.id)
		return
	}
	// Unknown, or void though no entry took the lease away that was applied here: nothing may be confirmed
	// until another proposal is decided.
	r.due = m.now + min(c.limits.retryMinimum<<min(r.attempts-1, 16), c.limits.retryMaximum)
	c.push(r)
}

// next returns when a tick is due, as far as ticks bring anything.
func (c *core) next() (at time.Duration, ok bool) {
	if len(c.heap) == 0 || c.expiring >= c.limits.expirations {
		return 0, false
	}
	return c.heap[0].due, true
}

// The heap is written out so that a record knows its place and a renewal allocates nothing.

func (c *core) push(r *record) {
	r.at = len(c.heap)
	c.heap = append(c.heap, r)
	c.up(r.at)
}

func (c *core) remove(r *record) {
	last := len(c.heap) - 1
	at := r.at
	c.swap(at, last)
	c.heap[last] = nil
	c.heap = c.heap[:last]
	r.at = -1
	if at < last {
		c.up(at)
		c.down(at)
	}
}

func (c *core) swap(i, j int) {
	h := c.heap
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (c *core) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if c.heap[parent].due <= c.heap[i].due {
			return
		}
		c.swap(i, parent)
		i = parent
	}
}

func (c *core) down(i int) {
	for {
		least := 2*i + 1
		if least >= len(c.heap) {
			return
		}
		if right := least + 1; right < len(c.heap) && c.heap[right].due < c.heap[least].due {
			least = right
		}
		if c.heap[i].due <= c.heap[least].due {
			return
		}
		c.swap(i, least)
		i = least
	}
}
