package keeper

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine"
)

// fakeMirror is a mirror over a bare lease table: a proposal is applied after a delay.
type fakeMirror struct {
	mu        sync.Mutex
	start     time.Time
	session   uint64
	until     time.Duration
	table     *lease.Table
	index     uint64
	delay     time.Duration
	down      bool
	proposals int
	keeper    *Keeper
}

const fakeSession = 3

func newFakeMirror(t *testing.T, edit func(*Config)) (*fakeMirror, *Keeper) {
	m := &fakeMirror{
		start: time.Now(), session: fakeSession, until: time.Hour, table: lease.NewTable(), index: 10,
		delay: 100 * time.Millisecond,
	}
	c := Config{Mirror: m, Leases: m, Clock: m.clock, Registerer: prometheus.NewRegistry()}
	if edit != nil {
		edit(&c)
	}
	m.keeper = New(c)
	t.Cleanup(m.keeper.Close)
	return m, m.keeper
}

func (m *fakeMirror) clock() time.Duration { return time.Since(m.start) }

func (m *fakeMirror) SessionHolder() (uint64, time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session, m.until, true
}

func (m *fakeMirror) Linearize(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return 0, errors.New("log is unreachable")
	}
	return m.index, nil
}

func (m *fakeMirror) Lease(id int64) (lease.Info, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Info(id)
}

func (m *fakeMirror) LeasesFrom(first int64, limit int) []lease.Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Page(first, limit)
}

func (m *fakeMirror) Propose(ctx context.Context, c *commandv1.Command) (statemachine.Result, error) {
	m.mu.Lock()
	delay := m.delay
	m.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return statemachine.Result{}, ctx.Err()
	}
	m.mu.Lock()
	if m.down {
		m.mu.Unlock()
		return statemachine.Result{}, errors.New("log is unreachable")
	}
	m.proposals++
	m.index++
	var change lease.Change
	var ok bool
	err := statemachine.ErrLeaseNotFound
	switch x := c.Operation.(type) {
	case *commandv1.Command_LeaseAdopt:
		change, ok = m.table.Adopt(x.LeaseAdopt.Id, fakeSession, m.index, 10*time.Second)
	case *commandv1.Command_LeaseExpire:
		if in, found := m.table.Info(x.LeaseExpire.Id); found {
			if err = statemachine.ErrNotLeaseOwner; in.OwnerIndex == x.LeaseExpire.OwnerIndex {
				change, ok = m.table.Remove(x.LeaseExpire.Id, lease.Expired)
			}
		}
	}
	m.mu.Unlock()
	if !ok {
		return statemachine.Result{Err: err}, nil
	}
	m.keeper.Applied(&statemachine.Applied{LeaseChanges: []lease.Change{change}})
	return statemachine.Result{}, nil
}

func (m *fakeMirror) grant(id, ttlSeconds int64, session uint64) {
	m.mu.Lock()
	m.index++
	change, _ := m.table.Grant(id, ttlSeconds, session, m.index)
	m.mu.Unlock()
	m.keeper.Applied(&statemachine.Applied{LeaseChanges: []lease.Change{change}})
}

func wantRenewed(t *testing.T, k *Keeper, id, ttl int64, want error) {
	t.Helper()
	if got, err := k.Renew(t.Context(), id); !errors.Is(err, want) || err == nil && got != ttl {
		t.Fatalf("Renew(%d) = %d, %v; want %d, %v", id, got, err, ttl, want)
	}
}

func TestLeaseEndsAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		m.grant(1, 5, fakeSession)
		time.Sleep(3 * time.Second)
		wantRenewed(t, k, 1, 5, nil)
		time.Sleep(5*time.Second - time.Millisecond)
		synctest.Wait()
		if _, ok := m.Lease(1); !ok || k.Stats().Expirations != 0 {
			t.Fatal("its end was proposed too early")
		}
		// From the proposal on, a renewal waits for the outcome, and finds the lease gone.
		time.Sleep(10 * time.Millisecond)
		wantRenewed(t, k, 1, 0, ErrLeaseNotFound)
		if at := m.clock(); at != 8*time.Second+100*time.Millisecond {
			t.Fatalf("decided at %v", at)
		}
		if st := k.Stats(); st.Leases != 0 || st.Undecided != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

// What entries say of the time moves no deadline: a keeper counts by its own clock.
func TestLogTimeMovesNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		k.Applied(&statemachine.Applied{LogTime: int64(time.Second)})
		m.grant(1, 5, fakeSession)
		k.Applied(&statemachine.Applied{LogTime: int64(time.Hour)})
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if _, ok := m.Lease(1); !ok || k.Stats().Expirations != 0 {
			t.Fatal("its end was proposed too early")
		}
		k.Applied(&statemachine.Applied{LogTime: int64(time.Hour)})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, ok := m.Lease(1); ok {
			t.Fatal("it did not end")
		}
	})
}

func TestConcurrentRenewalsShareOneAdoption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		m.grant(1, 5, 99)
		var renewals sync.WaitGroup
		for range 50 {
			renewals.Go(func() {
				if ttl, err := k.Renew(t.Context(), 1); ttl != 5 || err != nil {
					t.Errorf("Renew = %d, %v", ttl, err)
				}
			})
		}
		renewals.Wait()
		if m.proposals != 1 || m.clock() != 100*time.Millisecond {
			t.Fatalf("%d proposals in %v", m.proposals, m.clock())
		}
		// It began at TTL + S; then it ends like any other.
		if left, granted, err := k.TimeToLive(t.Context(), 1); left != 15*time.Second || granted != 5*time.Second || err != nil {
			t.Fatalf("TimeToLive = %v, %v, %v", left, granted, err)
		}
		time.Sleep(16 * time.Second)
		wantRenewed(t, k, 1, 0, ErrLeaseNotFound)
	})
}

func TestUndecidedEndConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		m.grant(1, 5, fakeSession)
		m.mu.Lock()
		m.down = true
		m.mu.Unlock()
		// The first proposal has come to nothing, as far as is known, and the next one is not made yet. Whether it will be
		// applied is open.
		time.Sleep(5*time.Second + 200*time.Millisecond)
		wantRenewed(t, k, 1, 0, ErrUnavailable)
		time.Sleep(6 * time.Second)
		wantRenewed(t, k, 1, 0, ErrUnavailable)
		m.mu.Lock()
		m.down = false
		m.mu.Unlock()
		time.Sleep(6 * time.Second)
		wantRenewed(t, k, 1, 0, ErrLeaseNotFound)
	})
}

func TestKeeperCannotVouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := errors.New("no answer")
		m, k := newFakeMirror(t, func(c *Config) {
			c.AskOwner = func(_ context.Context, session uint64, id int64) (time.Duration, time.Duration, error) {
				if session == 99 && id == 2 {
					return 7 * time.Second, 60 * time.Second, nil
				}
				return 0, 0, asked
			}
		})
		m.grant(1, 60, fakeSession)
		m.grant(2, 60, 99)
		m.grant(3, 60, 98)
		if left, granted, err := k.TimeToLive(t.Context(), 2); left != 7*time.Second || granted != time.Minute || err != nil {
			t.Fatalf("TimeToLive = %v, %v, %v", left, granted, err)
		}
		if _, _, err := k.TimeToLive(t.Context(), 3); !errors.Is(err, ErrUnavailable) || !errors.Is(err, asked) {
			t.Fatalf("TimeToLive = %v", err)
		}
		if _, _, err := k.Owned(2); !errors.Is(err, ErrNotOwner) {
			t.Fatalf("Owned = %v", err)
		}
		m.mu.Lock()
		m.until, m.down = m.clock(), true
		m.mu.Unlock()
		wantRenewed(t, k, 1, 0, ErrUnavailable) // the hold lapsed
		m.mu.Lock()
		m.until = time.Hour
		m.mu.Unlock()
		wantRenewed(t, k, 1, 60, nil)
		wantRenewed(t, k, 2, 0, ErrUnavailable) // cannot be adopted
		wantRenewed(t, k, 4, 0, ErrUnavailable) // unknown here, and nobody to ask
		k.Close()
		wantRenewed(t, k, 1, 0, ErrUnavailable)
	})
}

// TestManyLeasesEndInBoundedBatches lets more leases end at once than proposals may be in flight.
func TestManyLeasesEndInBoundedBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, func(c *Config) { c.MaxExpirations = 10 })
		for id := range int64(100) {
			m.grant(id+1, 5, fakeSession)
		}
		time.Sleep(5*time.Second + 50*time.Millisecond)
		if st := k.Stats(); st.Undecided != 10 {
			t.Fatalf("%+v", st)
		}
		time.Sleep(time.Second)
		if st := k.Stats(); st.Leases != 0 || m.proposals != 100 {
			t.Fatalf("%+v after %d proposals", st, m.proposals)
		}
	})
}

func TestResumeTakesUpWhatTheTableSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		m.grant(1, 5, fakeSession)
		m.mu.Lock()
		m.table.Grant(2, 5, fakeSession, 20) // nobody told the keeper
		m.table.Remove(1, lease.Revoked)
		m.mu.Unlock()
		k.Resume()
		if st := k.Stats(); st.Leases != 1 {
			t.Fatalf("%+v", st)
		}
		wantRenewed(t, k, 2, 5, nil)
	})
}

// BenchmarkRenew renews 100,000 leases in turn, each three times within its TTL.
func BenchmarkRenew(b *testing.B) {
	const leases = 100_000
	now := time.Duration(0)
	c := newCore(limits{expirations: 1})
	m := moment{session: 1, held: true, until: 1 << 62}
	for id := range int64(leases) {
		c.step(event{kind: eventChanged, change: change{
			kind: changeGranted, id: id, ttl: 10 * time.Second, owner: 1, ownerIndex: 1,
		}}, m)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now += 3 * time.Second / leases
		m.now = now
		if c.step(event{kind: eventRenew, id: int64(i % leases)}, m).verdict != verdictConfirmed {
			b.Fatal("not confirmed")
		}
		if at, _ := c.next(); at <= now && len(c.step(event{kind: eventTick}, m).expire) > 0 {
			b.Fatal("a lease ended")
		}
	}
}

// TestNextIncarnationTakesLeasesOver tells the keeper of an entry that opens this frontend's next session
// before the mirror holds it: the leases that the entry moved are kept, and nothing is confirmed on the old
// hold.
func TestNextIncarnationTakesLeasesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, func(c *Config) { c.FrontendID = 42 })
		m.grant(1, 5, fakeSession)
		opened := []statemachine.SessionChange{
			{SessionInfo: statemachine.SessionInfo{ID: 20, FrontendID: 42}},
			{SessionInfo: statemachine.SessionInfo{ID: 21, FrontendID: 43}},
		}
		m.mu.Lock()
		moved := m.table.Move(fakeSession, 20, 20, 10*time.Second)
		m.mu.Unlock()
		k.Applied(&statemachine.Applied{SessionsOpened: opened, LeaseChanges: moved})
		wantRenewed(t, k, 1, 0, ErrUnavailable)
		m.mu.Lock()
		m.session = 20
		m.mu.Unlock()
		wantRenewed(t, k, 1, 5, nil)
		if left, _, err := k.Owned(1); left != 15*time.Second || err != nil {
			t.Fatalf("Owned = %v, %v", left, err)
		}
	})
}

// TestLeasesOfANewSessionEndUnrenewed holds a session that the keeper was not told of. Its leases end all the same.
func TestLeasesOfANewSessionEndUnrenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, func(c *Config) { c.Mirror.(*fakeMirror).session = 2 })
		m.grant(1, 5, fakeSession) // told before the mirror holds the session
		m.mu.Lock()
		m.session = fakeSession
		m.mu.Unlock()
		time.Sleep(time.Second)
		k.Applied(&statemachine.Applied{})
		time.Sleep(6 * time.Second)
		if _, ok := m.Lease(1); ok {
			t.Fatal("the lease lives on")
		}
	})
}

func TestOrphanEndsByLogTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		m.grant(1, 5, 99)
		stamp := int64(100 * time.Second)
		m.mu.Lock()
		orphaned := m.table.Orphan(99, stamp+int64(time.Second), 10*time.Second)
		m.mu.Unlock()
		k.Applied(&statemachine.Applied{LogTime: stamp, LeaseChanges: orphaned})
		time.Sleep(2 * time.Second)
		if left, granted, err := k.TimeToLive(t.Context(), 1); left != 4*time.Second || granted != 5*time.Second || err != nil {
			t.Fatalf("TimeToLive = %v, %v, %v", left, granted, err)
		}
	})
}

// A table of several pages: what the session owns is taken up wherever it stands, and given up where it lost it.
func TestResumeReadsATableOfManyPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := newFakeMirror(t, nil)
		const count = 3*resumePageSize + 7
		m.mu.Lock()
		for id := int64(1); id <= count; id++ {
			m.table.Grant(id, 60, fakeSession+uint64(id%2), uint64(id))
		}
		m.mu.Unlock()
		k.Resume()
		if got := k.Stats().Leases; got != count/2 {
			t.Fatalf("%d leases taken up, want %d", got, count/2)
		}
		m.mu.Lock()
		for id := int64(2); id <= count; id += 4 {
			m.table.Adopt(id, fakeSession+1, count+1, time.Second)
		}
		m.mu.Unlock()
		k.Resume()
		if got := k.Stats().Leases; got != count/4 {
			t.Fatalf("%d leases left, want %d", got, count/4)
		}
	})
}
