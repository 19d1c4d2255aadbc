package keeper

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine"
)

// Errors of Renew and TimeToLive.
var (
	// ErrLeaseNotFound: the log says that there is no such lease.
	ErrLeaseNotFound = errors.New("keeper: lease not found")
	// ErrUnavailable: this frontend cannot vouch for an answer now. The lease may well live.
	ErrUnavailable = errors.New("keeper: cannot vouch for the lease")
	// ErrNotOwner: the lease is not owned by this frontend's session; of Owned only.
	ErrNotOwner = errors.New("keeper: lease is owned elsewhere")
)

// Mirror is what the keeper needs of the frontend's mirror.
type Mirror interface {
	// Propose returns when the command was applied here, or with an error when nothing is known of it. The
	// result says what apply decided; its Err wraps statemachine.ErrLeaseNotFound where there is no such lease.
	Propose(ctx context.Context, command *commandv1.Command) (statemachine.Result, error)
	// SessionHolder returns this frontend's session, and until when, on Config.Clock, it may act as its holder.
	// It is called under the keeper's lock: it must not wait.
	SessionHolder() (session uint64, until time.Duration, ok bool)
	// Linearize returns once everything that was acknowledged anywhere before the call is applied here.
	Linearize(ctx context.Context) (index uint64, err error)
}

// Leases is the replicated table as applied here. Both methods are called under the keeper's lock: applying an
// entry must not wait for the keeper while it makes them wait.
type Leases interface {
	Lease(id int64) (lease.Info, bool)
	// LeasesFrom returns the leases whose ids are at or above first, by id, and at most limit of them.
	LeasesFrom(first int64, limit int) []lease.Info
}

// Config of a keeper.
type Config struct {
	Mirror Mirror
	Leases Leases
	// FrontendID tells the keeper which sessions are this frontend's from the entry on that opens them, so that
	// the leases which that entry moves from the incarnation before start to count at once. Zero: they start when
	// the mirror holds the session.
	FrontendID uint64
	// Clock is CLOCK_BOOTTIME since any fixed point: it must go on while the process or the machine sleeps.
	Clock func() time.Duration
	// AskOwner asks the frontend whose session owns a lease how long it has left (its Owned). Nil: nobody can
	// be asked.
	AskOwner func(ctx context.Context, session uint64, id int64) (remaining, granted time.Duration, err error)

	// MaxExpirations and MaxAdoptions bound the proposals in flight; 8,192 and 1,024 by default.
	// MaxWaitingAdoptions bounds those that wait for their turn, 100,000 by default; past it renewals of leases
	// owned elsewhere get ErrUnavailable.
	MaxExpirations, MaxAdoptions, MaxWaitingAdoptions int
	// ProposalTimeout bounds how long a proposal is waited for; 10 s by default. Past it the outcome counts as
	// unknown.
	ProposalTimeout time.Duration
	// DecisionTimeout bounds how long a renewal waits for a proposal; 5 s by default.
	DecisionTimeout time.Duration
	// RetryMinimum and RetryMaximum bound the pause before the end of a lease is proposed again; 250 ms and 5 s.
	RetryMinimum, RetryMaximum time.Duration

	// Logger defaults to slog.Default().
	Logger *slog.Logger
	// Registerer takes the keeper's metrics; nil for none.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	for _, f := range []struct {
		field *int
		value int
	}{{&c.MaxExpirations, 8192}, {&c.MaxAdoptions, 1024}, {&c.MaxWaitingAdoptions, 100_000}} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.ProposalTimeout, 10 * time.Second}, {&c.DecisionTimeout, 5 * time.Second},
		{&c.RetryMinimum, 250 * time.Millisecond}, {&c.RetryMaximum, 5 * time.Second},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Keeper keeps the leases that this frontend's session owns. See the package comment.
type Keeper struct {
	config  Config
	metrics *metrics

	// context ends with Close; proposals run under it.
	context context.Context
	cancel  context.CancelFunc
	// running are the keeper's goroutines.
	running sync.WaitGroup
	// sooner wakes the goroutine that keeps the time when a deadline may have come nearer.
	sooner chan struct{}
	// propose begins proposals, whose outcomes adoptionDecided and expiryDecided take. It is called under mu and must not wait.
	propose func(adopt []int64, expire []expiry)

	mu     sync.Mutex
	core   *core
	closed bool
	// session is the one that this frontend opened last, as far as entries applied here tell.
	session uint64
	// resumed is the session whose leases were taken from the table.
	resumed uint64
	// alarm is when the goroutine that keeps the time will look next; only with alarmSet.
	alarm    time.Duration
	alarmSet bool
	// logTime and logTimeAt are the last stamp applied and when that was, on Config.Clock.
	logTime   int64
	logTimeAt time.Duration
}

// New starts a keeper. It is called before the first entry that it is to tell of is applied. The caller closes
// it.
func New(config Config) *Keeper {
	k := newKeeper(config)
	k.propose = k.proposeAll
	k.running.Add(1)
	go k.keepTime()
	return k
}

// newKeeper makes a keeper without goroutines.
func newKeeper(config Config) *Keeper {
	config = config.withDefaults()
	k := &Keeper{
		config: config,
		sooner: make(chan struct{}, 1),
		core: newCore(limits{
			expirations: config.MaxExpirations, adoptions: config.MaxAdoptions, waitingAdoptions: config.MaxWaitingAdoptions,
			retryMinimum: config.RetryMinimum, retryMaximum: config.RetryMaximum,
		}),
	}
	k.context, k.cancel = context.WithCancel(context.Background())
	k.metrics = newMetrics(k)
	return k
}

// Close ends the keeper's goroutines and waits for them. Renewals afterwards get ErrUnavailable.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.running.Wait()
	k.metrics.unregister(k.config.Registerer)
}

// moment is read under mu, just before a decision: first the hold on the session, then the clock, so that a
// pause between the two can only make the hold look shorter.
func (k *Keeper) moment() moment {
	session, until, ok := k.config.Mirror.SessionHolder()
	m := moment{session: max(session, k.session), until: until, now: k.config.Clock()}
	// The hold on a session that was succeeded is worth nothing.
	m.held = ok && session == m.session
	return m
}

// step hands an event to the core and begins what it wants done. The caller holds mu.
func (k *Keeper) step(e event) effects {
	done := k.core.step(e, k.moment())
	if !k.closed {
		k.propose(done.adopt, done.expire)
	}
	if at, ok := k.core.next(); ok && (!k.alarmSet || at < k.alarm) {
		k.alarm, k.alarmSet = at, true
		k.wake()
	}
	return done
}

// Applied tells the keeper what an entry did. It does not wait for any proposal.
func (k *Keeper) Applied(a *statemachine.Applied) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logTime, k.logTimeAt = a.LogTime, k.config.Clock()
	for i := range a.SessionsOpened {
		if s := &a.SessionsOpened[i]; s.FrontendID == k.config.FrontendID && s.FrontendID != 0 {
			k.session = max(k.session, s.ID)
		}
	}
	for i := range a.LeaseChanges {
		k.step(event{kind: eventChanged, change: changeOf(&a.LeaseChanges[i])})
	}
	if k.strange() {
		k.wake()
	}
}

// wake makes the goroutine that keeps the time look.
func (k *Keeper) wake() {
	select {
	case k.sooner <- struct{}{}:
	default:
	}
}

func changeOf(c *lease.Change) change {
	ch := change{id: c.ID, ttl: c.TTL, owner: c.Owner, ownerIndex: c.OwnerIndex}
	switch c.Kind {
	case lease.Granted:
		ch.kind = changeGranted
	case lease.Adopted:
		ch.kind, ch.previousSessionTime = changeAdopted, c.PreviousOwnerSessionTime
	default:
		ch.kind = changeLost
	}
	return ch
}

// Resume takes up the leases that the table says this frontend's session owns and that the keeper does not know.
// Each starts anew at TTL + S. Those that the keeper knows and the session does not own any more are given up. The
// keeper does this by itself when the mirror holds another session than before; the caller does it after the state
// was replaced by a checkpoint.
//
// The table is read a page at a time. What an entry changes behind the page that was read is told by Applied, as ever,
// and what it changes before it is read.
func (k *Keeper) Resume() {
	session, first, more := k.resumePage(math.MinInt64)
	for more {
		_, first, more = k.resumePage(first)
	}
	k.giveUpOthers()
	k.mu.Lock()
	defer k.mu.Unlock()
	// If there is another session by now, its leases are taken up next.
	k.resumed = max(k.resumed, session)
}

// resumePageSize bounds how many leases are looked at while Applied waits.
const resumePageSize = 1024

// resumePage takes up the leases of one page, and tells the session that it did so for and where the next page begins.
func (k *Keeper) resumePage(first int64) (session uint64, next int64, more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	session = k.moment().session
	page := k.config.Leases.LeasesFrom(first, resumePageSize)
	for _, in := range page {
		if in.Owner != 0 && in.Owner == session {
			k.takeUp(in)
		}
	}
	if len(page) < resumePageSize || page[len(page)-1].ID == math.MaxInt64 {
		return session, 0, false
	}
	return session, page[len(page)-1].ID + 1, true
}

// giveUpOthers gives up the leases that the session does not own according to the table, letting Applied in between
// times.
func (k *Keeper) giveUpOthers() {
	k.mu.Lock()
	defer k.mu.Unlock()
	session, looked := k.moment().session, 0
	for _, id := range slices.Sorted(maps.Keys(k.core.records)) {
		if in, ok := k.config.Leases.Lease(id); !ok || in.Owner != session {
			k.step(event{kind: eventChanged, change: change{kind: changeLost, id: id}})
		}
		if looked++; looked%resumePageSize == 0 {
			// A record that comes meanwhile is right already, and one that has gone is gone.
			k.mu.Unlock()
			k.mu.Lock()
			session = k.moment().session
		}
	}
}

// strange tells whether the mirror holds a session that the keeper has not taken the leases of.
func (k *Keeper) strange() bool {
	session, _, ok := k.config.Mirror.SessionHolder()
	return ok && session > k.resumed
}

// takeUp makes sure that there is a record of a lease that the session owns according to the table. The caller
// holds mu and has read the table under it: the table is never behind the entries that Applied told of, and an
// entry that takes the lease away after this will be told.
func (k *Keeper) takeUp(in lease.Info) {
	if r := k.core.records[in.ID]; r != nil && r.ownerIndex == in.OwnerIndex {
		return
	}
	k.step(event{kind: eventChanged, change: change{
		kind: changeAdopted, id: in.ID, ttl: in.TTL(), owner: in.Owner, ownerIndex: in.OwnerIndex,
		previousSessionTime: in.PreviousOwnerSessionTime,
	}})
}

// Renew renews a lease and returns its TTL in seconds. ErrLeaseNotFound: there is none. ErrUnavailable: nothing
// is known, the caller ends the client's keep-alive stream. A lease of another owner, or of none, is adopted
// first.
func (k *Keeper) Renew(ctx context.Context, id int64) (ttlSeconds int64, err error) {
	ttlSeconds, wait := k.BeginRenewal(id)
	if wait == nil {
		return ttlSeconds, nil
	}
	return wait(ctx)
}

// BeginRenewal is Renew for a caller that has other things to do: a renewal that is confirmed at once has its TTL
// and no wait; of any other, wait gives what Renew would have returned.
func (k *Keeper) BeginRenewal(id int64) (ttlSeconds int64, wait func(context.Context) (int64, error)) {
	done := k.lockedStep(event{kind: eventRenew, id: id})
	if done.verdict == verdictConfirmed {
		return int64(done.ttl / time.Second), nil
	}
	return 0, func(ctx context.Context) (int64, error) { return k.renewSlowly(ctx, id, done) }
}

// renewRounds bounds how often one renewal begins again because the lease changed while it waited.
const renewRounds = 8

// renewSlowly goes on with a renewal that could not be decided at once.
func (k *Keeper) renewSlowly(ctx context.Context, id int64, done effects) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, k.config.DecisionTimeout)
	defer cancel()
	for range renewRounds {
		switch done.verdict {
		case verdictConfirmed:
			return int64(done.ttl / time.Second), nil
		case verdictUnavailable:
			return 0, ErrUnavailable
		case verdictWait:
			select {
			case <-done.wait.done:
			case <-ctx.Done():
				return 0, ErrUnavailable
			case <-k.context.Done():
				return 0, ErrUnavailable
			}
			switch done.wait.outcome {
			case outcomeNotFound:
				return 0, ErrLeaseNotFound
			case outcomeUnknown, outcomeVoid:
				return 0, ErrUnavailable
			}
			done = k.lockedStep(event{kind: eventRenew, id: id})
		case verdictElsewhere:
			if _, err := k.known(ctx, id); err != nil {
				return 0, err
			}
			done = k.lockedStep(event{kind: eventAdopt, id: id})
		}
	}
	return 0, ErrUnavailable
}

func (k *Keeper) lockedStep(e event) effects {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return effects{verdict: verdictUnavailable}
	}
	return k.step(e)
}

// known looks a lease up in the table. That it is missing here says nothing until this mirror has caught up
// with what was acknowledged elsewhere.
func (k *Keeper) known(ctx context.Context, id int64) (lease.Info, error) {
	if in, ok := k.config.Leases.Lease(id); ok {
		return in, nil
	}
	if _, err := k.config.Mirror.Linearize(ctx); err != nil {
		return lease.Info{}, ErrUnavailable
	}
	in, ok := k.config.Leases.Lease(id)
	if !ok {
		return lease.Info{}, ErrLeaseNotFound
	}
	return in, nil
}

// Owned returns how long a lease of this frontend's own session has left. ErrNotOwner where it is not owned
// here; ErrUnavailable where the hold on the session has lapsed.
func (k *Keeper) Owned(id int64) (remaining, granted time.Duration, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.moment()
	r := k.core.records[id]
	switch {
	case k.closed || !m.holder():
		return 0, 0, ErrUnavailable
	case r == nil || r.owner != m.session:
		return 0, 0, ErrNotOwner
	}
	return max(0, r.deadline-m.now), r.ttl, nil
}

// TimeToLive returns how long a lease has left before its end may be proposed, and its TTL, as its owner knows
// it. A lease without an owner ends by log time, which nobody renews.
func (k *Keeper) TimeToLive(ctx context.Context, id int64) (remaining, granted time.Duration, err error) {
	if remaining, granted, err = k.Owned(id); err == nil {
		return remaining, granted, nil
	}
	in, err := k.known(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	ttl := in.TTL()
	if in.Orphaned {
		k.mu.Lock()
		logTime := k.logTime + int64(k.config.Clock()-k.logTimeAt)
		k.mu.Unlock()
		return min(max(0, ttl+time.Duration(in.OrphanStamp-logTime)), 2*ttl), ttl, nil
	}
	if k.config.AskOwner == nil || k.owns(in) {
		return 0, 0, ErrUnavailable
	}
	remaining, granted, err = k.config.AskOwner(ctx, in.Owner, id)
	if err != nil {
		return 0, 0, errors.Join(ErrUnavailable, err)
	}
	return remaining, granted, nil
}

// owns tells whether the table names this frontend's session as the owner.
func (k *Keeper) owns(in lease.Info) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return in.Owner != 0 && in.Owner == k.moment().session
}

// proposeAll makes proposals, each on a goroutine of its own.
func (k *Keeper) proposeAll(adopt []int64, expire []expiry) {
	k.running.Add(len(adopt) + len(expire))
	for _, id := range adopt {
		go func() {
			defer k.running.Done()
			k.adoptionDecided(id, k.ask(adoption(id)))
		}()
	}
	for _, x := range expire {
		go func() {
			defer k.running.Done()
			o := k.ask(x.command())
			if o == outcomeUnknown {
				k.config.Logger.Debug("the end of a lease is not decided yet", "lease", x.id)
			}
			k.expiryDecided(x, o)
		}()
	}
}

func adoption(id int64) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_LeaseAdopt{LeaseAdopt: &commandv1.LeaseAdopt{Id: id}}}
}

func (x expiry) command() *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_LeaseExpire{
		LeaseExpire: &commandv1.LeaseExpire{Id: x.id, OwnerIndex: x.ownerIndex},
	}}
}

func (k *Keeper) adoptionDecided(id int64, o outcome) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if in, ok := k.config.Leases.Lease(id); ok && o == outcomeApplied {
		k.takeUp(in)
	}
	k.step(event{kind: eventAdoptDecided, id: id, outcome: o})
}

func (k *Keeper) expiryDecided(x expiry, o outcome) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.step(event{kind: eventExpireDecided, id: x.id, ownerIndex: x.ownerIndex, outcome: o})
}

// ask makes one proposal and waits for what became of it.
func (k *Keeper) ask(c *commandv1.Command) outcome {
	ctx, cancel := context.WithTimeout(k.context, k.config.ProposalTimeout)
	defer cancel()
	r, err := k.config.Mirror.Propose(ctx, c)
	if err != nil {
		return outcomeUnknown
	}
	return outcomeOf(r.Err)
}

// outcomeOf says what apply's decision means to the keeper.
func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return outcomeApplied
	case errors.Is(err, statemachine.ErrLeaseNotFound):
		return outcomeNotFound
	default:
		return outcomeVoid
	}
}

// longestSleep bounds the timer: it may stand still while the machine sleeps, Config.Clock does not.
const longestSleep = time.Second

// keepTime is the goroutine that ticks when a lease is due.
func (k *Keeper) keepTime() {
	defer k.running.Done()
	timer := time.NewTimer(longestSleep)
	defer timer.Stop()
	for {
		k.mu.Lock()
		strange := k.strange()
		k.mu.Unlock()
		if strange {
			k.Resume()
		}
		timer.Reset(k.tick())
		select {
		case <-timer.C:
		case <-k.sooner:
		case <-k.context.Done():
			return
		}
	}
}

// tick lets the core propose what is due and returns how long to sleep.
func (k *Keeper) tick() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.config.Clock(); !k.alarmSet || now >= k.alarm {
		k.alarmSet = false
		k.step(event{kind: eventTick})
	}
	sleep := time.Hour
	if k.alarmSet {
		sleep = min(max(k.alarm-k.config.Clock(), 0), longestSleep)
	}
	return sleep
}
