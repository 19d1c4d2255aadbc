package cluster

import (
	"sync"
	"testing"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine"
)

// What an entry takes from the frontend that proposes it until it is published, us leading: at the proposer itself, and at
// us, eu and ap for a proposer in eu.
const (
	commitUs = 80 * ms
	commitEu = 80 * ms
	commitAp = 150 * ms

	euToLeader   = 40 * ms
	euSeenByUs   = 120 * ms
	euSeenByAp   = 115 * ms
	leaderSeesIt = 80 * ms
)

// variant is how the cluster is while a scenario goes on.
type variant struct {
	name  string
	rates map[string]float64
	// leaderChange: the log's leader is killed at the moment of the fault, and is back 5 s later.
	leaderChange bool
}

var variants = []variant{
	{name: "exact"},
	{name: "slow owner, fast log", rates: map[string]float64{
		"frontend-us": 1.01, "frontend-eu": 0.99, "frontend-ap": 1.01, "log-us": 1.01, "log-eu": 1.01, "log-ap": 1.01}},
	{name: "fast owner, slow log, leader changes", leaderChange: true, rates: map[string]float64{
		"frontend-us": 0.99, "frontend-eu": 1.01, "frontend-ap": 0.99, "log-us": 0.99, "log-eu": 0.99, "log-ap": 0.99}},
}

// scenario is one run with a lease that is owned in eu.
type scenario struct {
	*leaseTest
	variant
	restarting sync.WaitGroup
}

// exact tells whether times are determined: clocks agree and the leader stays.
func (s *scenario) exact() bool { return s.rates == nil && !s.leaderChange }

// hit does the damage, and has the leader changed at the same moment where the variant wants that.
func (s *scenario) hit(damage func()) time.Time {
	s.t.Helper()
	damage()
	at := time.Now()
	if s.leaderChange {
		s.must(s.KillMember("log-us"))
		s.restarting.Go(func() {
			time.Sleep(5 * time.Second)
			s.must(s.RestartMember("log-us"))
		})
	}
	return at
}

func (s *scenario) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Error(err)
	}
}

// equal holds a time against what was computed, where it is determined.
func (s *scenario) equal(what string, got, want time.Time) {
	s.t.Helper()
	if s.exact() && !got.Equal(want) {
		s.t.Errorf("%s %v later than computed", what, got.Sub(want))
	}
}

// pause stops a region's processes as far as anybody can tell: nothing that they send arrives, nothing reaches them, and
// their clocks stand still in their own eyes.
func (s *scenario) pause(region string) {
	s.clocks["frontend-"+region].stop()
	s.Network().Isolate(region)
}

// wake lets them go on: the first that they see is that their clocks went on.
func (s *scenario) wake(region string) {
	s.clocks["frontend-"+region].resume()
	s.Network().Rejoin(region)
}

func (s *scenario) cutFromLog(region string) {
	for _, other := range s.Info().Regions {
		if other.Name != region {
			s.Network().Cut(region, other.Name)
		}
	}
}

// orphaned holds what became of a lease whose owner's session ended against the log: the session ended at the first entry
// that was stamped S after the session's last, and the lease at the first that was stamped TTL after that.
func (s *scenario) orphaned(id int64, ttl time.Duration, end *decided) {
	s.t.Helper()
	orphaned := s.referee.changed(1, id, lease.Orphaned)
	if orphaned == nil {
		s.t.Fatal("the lease was never orphaned")
	}
	change, _ := orphaned.change(id, lease.Orphaned)
	last := s.referee.lastOf(change.PreviousOwner, orphaned.Index)
	due := last.stamp() + sessionTime
	if want := s.referee.at(last.Index+1, due); want.Index != orphaned.Index {
		s.t.Errorf("the session ended at entry %d, not at %d", orphaned.Index, want.Index)
	}
	due = orphaned.stamp() + ttl
	if want := s.referee.at(orphaned.Index+1, due); want.Index != end.Index {
		s.t.Errorf("the orphan ended at entry %d, not at %d", end.Index, want.Index)
	}
	if late := end.stamp() - due; late > tickLateMax {
		s.t.Errorf("the first entry after the orphan's time came %v late", late)
	}
}

// tickLateMax is by how much an entry that only carries time may come late: the span over which frontends spread them, and
// the way to the leader and back to those who wait for it.
const tickLateMax = 500*ms + 2*slowestCommit

const every = time.Second

var leaseScenarios = []struct {
	name string
	run  func(s *scenario)
}{
	{"no failure", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(25*time.Second + 300*ms)
		s.hit(func() {})
		time.Sleep(5 * time.Second)
		r.stop()
		end := s.end(id, ttl, 0, r)
		due := r.last(time.Time{}).at.Add(ttl)
		s.equal("seen in eu", end.seen["eu"], due.Add(commitEu))
		s.equal("seen in us", end.seen["us"], due.Add(euSeenByUs))
		s.equal("seen in ap", end.seen["ap"], due.Add(euSeenByAp))
	}},
	{"never renewed", func(s *scenario) {
		const ttl = 7 * time.Second
		id := s.grant("eu", ttl)
		s.hit(func() {})
		end := s.end(id, ttl, 0)
		// It begins when its owner has applied the grant.
		s.equal("seen in eu", end.seen["eu"], s.referee.changed(1, id, lease.Granted).seen["eu"].Add(ttl+commitEu))
	}},
	{"owner killed", func(s *scenario) {
		const ttl = 5 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.must(s.KillFrontend("eu")) })
		r.stop()
		s.orphaned(id, ttl, s.end(id, ttl, 1, r))
	}},
	{"owner killed and started again", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.must(s.KillFrontend("eu")) })
		r.stop()
		time.Sleep(2 * time.Second)
		s.must(s.RestartFrontend("eu"))
		end := s.end(id, ttl, 1, r)
		moved := s.referee.changed(1, id, lease.Adopted)
		if moved == nil || moved.kind != logv1.EntryKind_ENTRY_KIND_OPEN_SESSION {
			s.t.Fatal("the lease did not move with the entry that opened the session")
		}
		s.equal("seen in eu", end.seen["eu"], moved.seen["eu"].Add(ttl+sessionTime+commitEu))
	}},
	{"owner killed, clients go elsewhere", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu", "ap")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.must(s.KillFrontend("eu")) })
		time.Sleep(40 * time.Second)
		r.stop()
		end := s.end(id, ttl, 1, r)
		s.adopted(id, ttl, "ap", commitAp, r, end)
	}},
	{"paused for less than a session", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.pause("eu") })
		time.Sleep(2 * time.Second)
		s.wake("eu")
		time.Sleep(10*time.Second + 130*ms)
		r.stop()
		end := s.end(id, ttl, 1, r)
		if s.exact() && s.referee.changed(1, id, lease.Orphaned, lease.Adopted) != nil {
			s.t.Error("a short pause cost the owner its lease")
		}
		s.equal("seen in eu", end.seen["eu"], r.last(time.Time{}).at.Add(ttl+commitEu))
	}},
	{"paused until the lease has ended", func(s *scenario) {
		const ttl = 5 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.pause("eu") })
		time.Sleep(2 * time.Minute) // asleep, with renewals in its sockets
		woken := time.Now()
		s.wake("eu")
		time.Sleep(20 * time.Second)
		r.stop()
		if at := r.last(time.Time{}).at; !at.Before(woken) {
			s.t.Errorf("a lease that ended long ago was confirmed %v after its owner woke up", at.Sub(woken))
		}
		if r.wasGone().IsZero() {
			s.t.Error("the client was never told that its lease is gone")
		}
		s.orphaned(id, ttl, s.end(id, ttl, 1, r))
	}},
	{"paused for longer than a session", func(s *scenario) {
		const ttl = 60 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.pause("eu") })
		time.Sleep(20 * time.Second)
		woken := time.Now()
		s.wake("eu")
		time.Sleep(30 * time.Second)
		r.stop()
		end := s.end(id, ttl, 2, r)
		if at := s.referee.changed(1, id, lease.Adopted); at == nil || r.last(time.Time{}).at.Before(woken) {
			s.t.Fatal("the lease was not taken up again by its old owner")
		}
		s.adopted(id, ttl, "eu", commitEu, r, end)
	}},
	{"cut off from the log", func(s *scenario) {
		const ttl = 5 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, 100*ms, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.cutFromLog("eu") })
		end := s.endWhileRenewed(id, ttl, 1, r)
		s.orphaned(id, ttl, end)
		// It confirmed as long as it could vouch for it, and not longer: 0.9 S after it first sent the last batch that it saw
		// applied.
		orphaned := s.referee.changed(1, id, lease.Orphaned)
		change, _ := orphaned.change(id, lease.Orphaned)
		sent := s.referee.lastOf(change.PreviousOwner, orphaned.Index).seen["us"].Add(-leaderSeesIt - euToLeader)
		if held := r.last(time.Time{}).at.Sub(sent); s.exact() && (held >= 9*time.Second || held < 9*time.Second-100*ms) {
			s.t.Errorf("the last renewal was confirmed %v after the session's last batch was sent", held)
		}
	}},
	{"cut off from the log, clients go elsewhere", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu", "ap")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.cutFromLog("eu") })
		time.Sleep(30 * time.Second)
		s.Network().HealAll()
		time.Sleep(10 * time.Second)
		r.stop()
		end := s.end(id, ttl, 1, r)
		s.adopted(id, ttl, "ap", commitAp, r, end)
	}},
	{"cut off from its clients", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.Network().Cut(clientsOf("eu"), "eu") })
		end := s.endWhileRenewed(id, ttl, 0, r)
		s.equal("seen in eu", end.seen["eu"], r.last(time.Time{}).at.Add(ttl+commitEu))
	}},
	{"cut off from its clients, who go elsewhere", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu", "us")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.Network().Cut(clientsOf("eu"), "eu") })
		time.Sleep(20 * time.Second)
		r.stop()
		end := s.end(id, ttl, 0, r)
		s.adopted(id, ttl, "us", commitUs, r, end)
	}},
	{"adopted elsewhere while its owner lives", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		first := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		first.stop()
		asked := s.hit(func() {})
		second := s.renew(id, time.Hour, "us")
		time.Sleep(5 * time.Second)
		second.stop()
		end := s.end(id, ttl, 0, first, second)
		s.equal("confirmed in us", second.last(time.Time{}).at, asked.Add(commitUs))
		s.equal("seen in us", end.seen["us"], asked.Add(commitUs+ttl+sessionTime+commitUs))
	}},
	{"renewed in two regions at once", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		eu, us := s.renew(id, every, "eu"), s.renew(id, every, "us")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() {})
		time.Sleep(20 * time.Second)
		eu.stop()
		us.stop()
		end := s.end(id, ttl, 0, eu, us)
		// The last change of owner decides, or the last renewal.
		last := s.lastAdoption(id)
		owner := s.regionOf(last, id)
		due := last.seen[owner].Add(ttl + sessionTime)
		s.equal("seen by its owner", end.seen[owner], due.Add(commitUs)) // as fast from eu
	}},
	{"owner fenced", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.setRegion("us", "eu", regionFenced) })
		end := s.endWhileRenewed(id, ttl, 1, r)
		orphaned := s.referee.changed(1, id, lease.Orphaned)
		change, _ := orphaned.change(id, lease.Orphaned)
		last := s.referee.lastOf(change.PreviousOwner, orphaned.Index)
		if want := s.referee.at(orphaned.Index, last.stamp()+sessionTime+ttl); want.Index != end.Index {
			s.t.Errorf("the lease ended at entry %d, not at %d", end.Index, want.Index)
		}
		opens := s.referee.find(orphaned.Index, func(d *decided) bool { return d.Skipped == statemachine.SkipRegionFenced })
		if opens != nil {
			s.t.Errorf("entry %d: a fenced region asked for a session", opens.Index)
		}
	}},
	{"leader's clock jumps", func(s *scenario) {
		const ttl = 15 * time.Second
		id := s.grant("eu", ttl)
		r := s.renew(id, every, "eu")
		time.Sleep(12*time.Second + 300*ms)
		s.hit(func() { s.clocks["log-us"].jump(time.Hour) })
		time.Sleep(20 * time.Second)
		r.stop()
		end := s.end(id, ttl, 0, r)
		if ended := s.referee.find(1, func(d *decided) bool { return len(d.SessionsEnded) > 0 }); ended != nil {
			s.t.Errorf("entry %d ended a session", ended.Index)
		}
		s.equal("seen in eu", end.seen["eu"], r.last(time.Time{}).at.Add(ttl+commitEu))
	}},
}

// adopted holds the end of a lease against its last owner's: TTL + S after it took the lease over, or TTL after the last
// renewal.
func (s *scenario) adopted(id int64, ttl time.Duration, region string, commit time.Duration, r *renewer, end *decided) {
	s.t.Helper()
	last := s.lastAdoption(id)
	if got := s.regionOf(last, id); got != region {
		s.t.Errorf("the lease is owned in %q", got)
	}
	due := last.seen[region].Add(ttl + sessionTime)
	if renewed := r.last(time.Time{}).at.Add(ttl); renewed.After(due) {
		due = renewed
	}
	s.equal("seen by its owner", end.seen[region], due.Add(commit))
}

// lastAdoption returns the last entry that gave a lease an owner.
func (s *scenario) lastAdoption(id int64) (last *decided) {
	s.t.Helper()
	s.referee.find(1, func(d *decided) bool {
		if _, ok := d.change(id, lease.Adopted); ok {
			last = d
		}
		return false
	})
	if last == nil {
		s.t.Fatal("the lease was never adopted")
	}
	return last
}

// regionOf returns the region of the owner that an entry gave a lease.
func (s *scenario) regionOf(adoption *decided, id int64) (region string) {
	change, _ := adoption.change(id, lease.Adopted)
	s.referee.find(1, func(d *decided) bool {
		for _, opened := range d.SessionsOpened {
			if opened.ID == change.Owner {
				region = opened.Region
			}
		}
		return region != ""
	})
	return region
}

// endWhileRenewed waits for the end of a lease that its client tries to renew until then.
func (s *scenario) endWhileRenewed(id int64, ttl time.Duration, failures int, r *renewer) *decided {
	s.t.Helper()
	end := s.end(id, ttl, failures, r)
	r.stop()
	if at := r.last(time.Time{}).at; at.After(end.first()) {
		s.t.Errorf("a renewal was confirmed %v after the lease's end", at.Sub(end.first()))
	}
	return end
}

// Whatever befalls a lease's owner, its clients and the log's leader, with clocks that drift by 1 %: the lease never ends
// before its TTL after its last confirmed renewal, and not later than was promised. Where clocks agree and the leader
// stays, when it ends is computed and compared to the nanosecond.
func TestLeaseKeepsItsPromise(t *testing.T) {
	for _, scene := range leaseScenarios {
		t.Run(scene.name, func(t *testing.T) {
			for _, v := range variants {
				t.Run(v.name, func(t *testing.T) {
					leaseBubble(t, v.rates, func(_ *testing.T, l *leaseTest) {
						s := &scenario{leaseTest: l, variant: v}
						l.outages = v.leaderChange
						defer s.restarting.Wait()
						scene.run(s)
					})
				})
			}
		})
	}
}

// A frontend whose clock jumps ahead, which CLOCK_BOOTTIME does when the machine has slept, no longer trusts its hold on
// its session; it confirms again once it has heard from the log. What has run out by its clock, it ends.
func TestOwnersClockJumps(t *testing.T) {
	leaseBubble(t, nil, func(t *testing.T, l *leaseTest) {
		const short, long = 15 * time.Second, 2 * time.Hour
		ends, stays := l.grant("eu", short), l.grant("eu", long)
		r := l.renew(stays, 100*ms, "eu")
		time.Sleep(12 * time.Second)
		l.clocks["frontend-eu"].jump(time.Hour)
		jumped := time.Now()
		time.Sleep(10 * time.Second)
		r.stop()
		var refused, first time.Time
		for _, c := range r.confirmations {
			if c.at.After(jumped) {
				first = c.at
				break
			}
		}
		if r.refusals > 0 {
			refused = jumped
		}
		end := l.referee.changed(1, ends, lease.Expired)
		if refused.IsZero() || first.IsZero() || end == nil {
			t.Fatalf("after the jump: refused %v, confirmed again %v, ended %v", refused, first, end)
		}
		t.Logf("after the jump: confirmed again after %v, the lease that had run out ended after %v", first.Sub(jumped),
			end.seen["eu"].Sub(jumped))
		if gone := l.referee.changed(1, stays, lease.Expired, lease.Orphaned); gone != nil {
			t.Errorf("entry %d: a lease that had not run out was lost", gone.Index)
		}
		// Nothing was confirmed before the log had answered a batch that was sent after the jump.
		if since := first.Sub(jumped); since < commitEu {
			t.Errorf("confirmed %v after the jump", since)
		}
		if _, err := kvv1.NewLeaseServiceClient(l.connections["eu"]).TimeToLive(t.Context(), &kvv1.TimeToLiveRequest{Id: stays}); err != nil {
			t.Error(err)
		}
	})
}
