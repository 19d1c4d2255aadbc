package main

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/logmirror/logmirror/test/processes"
)

// calm is how long things go well before and after harm is done; harm how long it lasts.
const (
	calm = 3 * time.Second
	harm = 8 * time.Second
)

// withLoad runs a drill on a cluster under load.
func withLoad(ctx context.Context, e *environment, r *result, memberFlags []string,
	do func(w *world, o *watching) error) (err error) {
	w, err := newWorld(ctx, e, memberFlags...)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			processes.Show(e.log, w.All())
		}
		w.close()
	}()
	o, err := w.observe(ctx)
	if err != nil {
		return err
	}
	defer func() {
		o.stop()
		o.running.Wait()
	}()
	began := time.Now()
	if err := pause(ctx, calm); err != nil {
		return err
	}
	for _, at := range o.regions {
		at.usualLag = o.lag(at.region, began, time.Now())
	}
	if err := do(w, o); err != nil {
		return err
	}
	return o.end(ctx, r)
}

// noticed records what the clients of some regions noticed of what began at an instant, after writes have come back there.
func (o *watching) noticed(ctx context.Context, r *result, of string, began time.Time, among []*clients) error {
	return o.noticedBeside(ctx, r, of, "", began, among)
}

// noticedBeside is noticed where the member of one region is ill but answers: its frontend has to find out before it reads
// the log from another member, and its watches may be away for as long as its writes.
func (o *watching) noticedBeside(ctx context.Context, r *result, of, ill string, began time.Time, among []*clients) error {
	if err := o.written(ctx, began, among); err != nil {
		return err
	}
	if err := pause(ctx, calm); err != nil {
		return err
	}
	o.record(r, of, ill, began, time.Now(), among)
	return nil
}

// record records what the clients of some regions noticed from one instant to another.
func (o *watching) record(r *result, of, ill string, began, until time.Time, among []*clients) {
	for _, c := range among {
		r.within(of+": longest wait of a writer in "+c.region, o.of(c.region).writesAway(began, until), writesBackWithin)
	}
	for _, c := range among {
		// What is acknowledged at the very end may still be on its way to a watch.
		behind := o.watchesBehind(c.region, among, began, until.Add(-calm/2))
		goal := watchesBehindAtMost
		if c.region == ill {
			goal = writesBackWithin
		}
		r.within(of+": longest wait of a watch in "+c.region, behind, goal)
	}
	o.uninterrupted(r, of, began, among)
}

// uninterrupted records reads that failed and watches that ended in some regions since an instant: there must be none.
func (o *watching) uninterrupted(r *result, of string, began time.Time, among []*clients) {
	now, failed, ended := time.Now(), 0, 0
	for _, c := range among {
		at := o.of(c.region)
		failed += at.readsFailed(began, now)
		ended += at.watchesEnded(began, now)
	}
	r.none(of+": reads that failed there", failed)
	r.none(of+": watches that ended there", ended)
}

func lostMember(ctx context.Context, e *environment, r *result) error {
	return withLoad(ctx, e, r, nil, func(w *world, o *watching) error {
		for _, i := range []int{1, 2} {
			lost := w.Members[i]
			w.note("kill %s", lost.Name)
			began := time.Now()
			lost.Kill()
			if err := o.noticed(ctx, r, lost.Name+" killed", began, w.clients); err != nil {
				return err
			}
			w.note("start %s", lost.Name)
			again := time.Now()
			if err := lost.Start(); err != nil {
				return err
			}
			if err := w.caughtUp(ctx, i); err != nil {
				return err
			}
			r.took(lost.Name+" started again: until it has the whole log", time.Since(again))
			o.uninterrupted(r, lost.Name+" killed and back", began, w.clients)
		}
		return nil
	})
}

// caughtUp waits until a member holds what the others held when it was asked.
func (w *world) caughtUp(ctx context.Context, i int) error {
	leader, err := processes.Leader(ctx, w.Members)
	if err != nil {
		return err
	}
	there, err := processes.MemberStatus(ctx, leader.Address)
	if err != nil {
		return err
	}
	return until(ctx, w.Members[i].Name+" has caught up", func(ctx context.Context) error {
		here, err := processes.MemberStatus(ctx, w.Members[i].Address)
		if err == nil && here.GetPublishedIndex() < there.GetPublishedIndex() {
			err = fmt.Errorf("it has %d of %d", here.GetPublishedIndex(), there.GetPublishedIndex())
		}
		return err
	})
}

func lostLeader(ctx context.Context, e *environment, r *result) error {
	return withLoad(ctx, e, r, nil, func(w *world, o *watching) error {
		for _, way := range []struct {
			name       string
			lose, back func(*processes.Process) error
		}{
			{"leader killed", kill, (*processes.Process).Start},
			{"leader paused",
				func(p *processes.Process) error { return p.Signal(syscall.SIGSTOP) },
				func(p *processes.Process) error { return p.Signal(syscall.SIGCONT) }},
		} {
			leader, err := processes.Leader(ctx, w.Members)
			if err != nil {
				return err
			}
			w.note("%s: %s", way.name, leader.Name)
			began := time.Now()
			if err := way.lose(leader); err != nil {
				return err
			}
			if err := o.noticed(ctx, r, way.name, began, w.clients); err != nil {
				return err
			}
			w.note("%s comes back", leader.Name)
			if err := way.back(leader); err != nil {
				return err
			}
			if err := w.settle(ctx); err != nil {
				return err
			}
			o.uninterrupted(r, way.name+" and back", began, w.clients)
		}
		return nil
	})
}

func kill(p *processes.Process) error {
	p.Kill()
	return nil
}

func lostRegion(ctx context.Context, e *environment, r *result) error {
	return withLoad(ctx, e, r, nil, func(w *world, o *watching) error {
		for i, region := range regions {
			if err := w.cutOff(ctx, o, r, i, harm, region+" cut off"); err != nil {
				return err
			}
		}
		// So long that every connection between regions is given up.
		const last = 2
		if err := w.cutOff(ctx, o, r, last, 25*time.Second, regions[last]+" cut off for long"); err != nil {
			return err
		}
		for i, region := range regions {
			if err := w.killRegion(ctx, o, r, i, region); err != nil {
				return err
			}
		}
		return nil
	})
}

// cutOff cuts a region off, for others to go on without it, and heals it.
func (w *world) cutOff(ctx context.Context, o *watching, r *result, i int, lasts time.Duration, name string) error {
	region := regions[i]
	w.note("%s", name)
	began := time.Now()
	w.links.Network.Isolate(region)
	others := w.others(region)
	if err := o.noticed(ctx, r, name, began, others); err != nil {
		return err
	}
	if err := pause(ctx, time.Until(began.Add(lasts))); err != nil {
		return err
	}
	here := o.of(region)
	r.none(name+": reads that failed in it", here.readsFailed(began, time.Now()))
	r.none(name+": watches that ended in it", here.watchesEnded(began, time.Now()))
	w.note("heal %s", region)
	healed := time.Now()
	w.links.Network.Rejoin(region)
	if err := w.healed(ctx, o, r, name+", healed", i, healed, equalWithin); err != nil {
		return err
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	o.uninterrupted(r, name+" and back", began, others)
	r.count(name+", healed: reads that failed in it", here.readsFailed(healed, time.Now()))
	r.count(name+", healed: watches that ended in it, and went on", here.watchesEnded(healed, time.Now()))
	return nil
}

// killRegion kills all processes of a region, and starts them again.
func (w *world) killRegion(ctx context.Context, o *watching, r *result, i int, region string) error {
	w.note("kill all of %s", region)
	began := time.Now()
	lost := []*processes.Process{w.Members[i], w.Frontends[i]}
	processes.KillAll(lost)
	if err := o.noticed(ctx, r, region+" killed", began, w.others(region)); err != nil {
		return err
	}
	w.note("start %s again", region)
	again := time.Now()
	for _, p := range lost {
		if err := p.Start(); err != nil {
			return err
		}
	}
	if err := w.healed(ctx, o, r, region+" started again", i, again, 0); err != nil {
		return err
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	o.uninterrupted(r, region+" killed and back", began, w.others(region))
	return nil
}

// healed records how long a region takes to have the others' state again, and to take writes. The goal, zero
// for none, is beside its usual lag.
func (w *world) healed(ctx context.Context, o *watching, r *result, of string, i int, healed time.Time, goal time.Duration) error {
	here, there := w.clients[i], w.clients[(i+1)%len(w.clients)]
	at, err := equal(ctx, here, there, o.acknowledgedBy(healed))
	if err != nil {
		return err
	}
	name := of + ": until it has all that others had acknowledged, digests equal"
	if goal > 0 {
		r.within(name, at.Sub(healed), goal+o.of(here.region).usualLag)
	} else {
		r.took(name, at.Sub(healed))
	}
	if err := o.written(ctx, healed, w.clients[i:i+1]); err != nil {
		return err
	}
	region := o.of(here.region)
	region.mu.Lock()
	defer region.mu.Unlock()
	var first time.Time
	for w := range region.writers {
		n, _ := slices.BinarySearchFunc(region.writers[w].succeeded, healed, time.Time.Compare)
		if n < len(region.writers[w].succeeded) {
			if at := region.writers[w].succeeded[n]; first.IsZero() || at.After(first) {
				first = at
			}
		}
	}
	r.took(of+": until each writer there is answered", first.Sub(healed))
	return nil
}

func oneWayCut(ctx context.Context, e *environment, r *result) error {
	return withLoad(ctx, e, r, nil, func(w *world, o *watching) error {
		for _, way := range []struct {
			name string
			cut  func(other string)
		}{
			{"nobody hears the leader", func(other string) { w.links.Network.CutOneWay(home, other) }},
			{"the leader hears nobody", func(other string) { w.links.Network.CutOneWay(other, home) }},
		} {
			w.note("%s", way.name)
			began := time.Now()
			for _, c := range w.others(home) {
				way.cut(c.region)
			}
			if err := o.noticed(ctx, r, way.name, began, w.others(home)); err != nil {
				return err
			}
			if err := pause(ctx, time.Until(began.Add(harm))); err != nil {
				return err
			}
			healed := time.Now()
			w.note("heal")
			w.links.Network.HealAll()
			if err := w.healed(ctx, o, r, way.name+", healed", 0, healed, equalWithin); err != nil {
				return err
			}
			if err := w.settle(ctx); err != nil {
				return err
			}
			o.uninterrupted(r, way.name+" and back", began, w.others(home))
		}
		// One link of three: both ends still reach the third region.
		w.note("eu is not heard in ap")
		began := time.Now()
		w.links.Network.CutOneWay("eu", "ap")
		if err := o.noticed(ctx, r, "eu not heard in ap", began, w.clients); err != nil {
			return err
		}
		w.links.Network.HealAll()
		return nil
	})
}

func rollingRestart(ctx context.Context, e *environment, r *result) error {
	return withLoad(ctx, e, r, nil, func(w *world, o *watching) error {
		restart := func(p *processes.Process) error {
			w.note("restart %s", p.Name)
			if err := p.Stop(); err != nil {
				return fmt.Errorf("%s ended with %w", p.Name, err)
			}
			return p.Start()
		}
		began := time.Now()
		for i, p := range w.Members {
			if err := restart(p); err != nil {
				return err
			}
			if err := until(ctx, p.Name+" runs again", func(ctx context.Context) error { return w.caughtUp(ctx, i) }); err != nil {
				return err
			}
			if err := w.settle(ctx); err != nil {
				return err
			}
		}
		if err := o.noticed(ctx, r, "members restarted", began, w.clients); err != nil {
			return err
		}
		for i, p := range w.Frontends {
			region := regions[i]
			one := time.Now()
			if err := restart(p); err != nil {
				return err
			}
			if err := o.written(ctx, one, w.clients[i:i+1]); err != nil {
				return err
			}
			own := o.of(region)
			r.within(p.Name+" restarted: longest wait of a writer in "+region, own.writesAway(one, time.Now()), writesBackWithin)
			if err := o.noticed(ctx, r, p.Name+" restarted", one, w.others(region)); err != nil {
				return err
			}
		}
		return nil
	})
}
