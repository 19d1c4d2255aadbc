package sim

import (
	"errors"
	"fmt"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/lease/keeper"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/test/check"
)

func (c *client) grant(f *frontend, ttlSeconds int64, done func(id int64, a answerOf)) {
	c.s.load.nextLease++
	id := c.s.load.nextLease
	c.command(f, &commandv1.Command{Operation: &commandv1.Command_LeaseGrant{LeaseGrant: &commandv1.LeaseGrant{Id: id, TtlSeconds: ttlSeconds}}},
		func(a answerOf) { done(id, a) })
}

// keepAlive renews a lease once through a frontend. What is confirmed is noted when the keeper decides it.
func (c *client) keepAlive(f *frontend, id int64, done func(err error)) {
	s := c.s
	confirmed := func() {
		s.counts.add("renewal confirmed")
		if l := s.truth.leases[id]; l != nil {
			l.Confirmed = append(l.Confirmed, s.now)
		}
	}
	c.ask(f, func(answer func(answerOf)) {
		r := f.keeper.Renew(id)
		if r.Done {
			if r.Err == nil {
				confirmed()
			}
			answer(answerOf{outcome: check.Done, err: r.Err})
			return
		}
		f.renewals = append(f.renewals, renewal{r, func(_ time.Duration, err error) {
			if err == nil {
				confirmed()
			}
			answer(answerOf{outcome: check.Done, err: err})
		}})
	}, func(a answerOf) {
		if a.outcome != check.Done && a.err == nil {
			a.err = keeper.ErrUnavailable
		}
		done(a.err)
	})
}

// renew grants a lease with a key, keeps it for a while, here and there, and lets it end.
func (c *client) renew() {
	s := c.s
	ttl := int64(2 + s.random.IntN(3))
	c.grant(c.frontend(), ttl, func(id int64, a answerOf) {
		if a.outcome != check.Done {
			return
		}
		s.counts.add("lease granted")
		// Half of them stay with one frontend, for long, whatever becomes of it.
		rounds, loyal := 2+s.random.IntN(12), (*frontend)(nil)
		if s.one(2) {
			rounds, loyal = 40, s.frontends[c.home]
		}
		var next func()
		next = func() {
			if rounds--; rounds <= 0 || s.stopped {
				c.busy = false
				return
			}
			f := loyal
			if f == nil {
				f = c.frontend()
			}
			c.keepAlive(f, id, func(err error) {
				if errors.Is(err, keeper.ErrLeaseNotFound) {
					return
				}
				c.busy = true
				s.after(s.between(time.Duration(ttl)*time.Second/8, time.Duration(ttl)*time.Second/2), next)
			})
		}
		c.command(c.frontend(), &commandv1.Command{Operation: &commandv1.Command_Put{Put: &commandv1.Put{
			Key: fmt.Appendf(nil, "l/%d", id), Value: []byte(c.value()), Lease: id}}}, func(answerOf) {
			c.busy = true
			next()
		})
	})
}

// lock takes a lock, writes under it, and gives it back, lets it lapse, or goes on writing when it should not.
func (c *client) lock() {
	s := c.s
	const ttl = 2
	f := c.frontend()
	name := fmt.Sprintf("lock%d", s.random.IntN(2))
	c.grant(f, ttl, func(id int64, a answerOf) {
		if a.outcome != check.Done {
			return
		}
		c.command(f, txn(compareValue(name, ""), putOperation(name, c.value(), id)), func(a answerOf) {
			if a.outcome != check.Done || !a.result.Txn.Succeeded {
				c.revoke(f, id)
				return
			}
			s.counts.add("lock taken")
			c.holdLock(name, id, a.revision, 1+s.random.IntN(6))
		})
	})
}

func (c *client) revoke(f *frontend, id int64) {
	c.command(f, &commandv1.Command{Operation: &commandv1.Command_LeaseRevoke{LeaseRevoke: &commandv1.LeaseRevoke{Id: id}}}, func(answerOf) {})
}

// holdLock writes under a lock, on the condition that it is still the one that was taken.
func (c *client) holdLock(name string, id, fence int64, writes int) {
	s := c.s
	c.busy = true
	s.after(s.between(50*time.Millisecond, 900*time.Millisecond), func() {
		if c.busy = false; s.stopped {
			return
		}
		if writes == 0 {
			if s.one(3) {
				s.counts.add("lock left to lapse")
				return
			}
			c.revoke(c.frontend(), id)
			return
		}
		if s.one(8) {
			// The holder is away for longer than its lease lasts, and does not know.
			s.counts.add("lock holder away")
			c.busy = true
			s.after(s.between(2*time.Second, 20*time.Second), func() { c.busy = false; c.writeUnder(name, id, fence, writes) })
			return
		}
		c.keepAlive(c.frontend(), id, func(error) { c.writeUnder(name, id, fence, writes) })
	})
}

func (c *client) writeUnder(name string, id, fence int64, writes int) {
	s := c.s
	if s.stopped {
		return
	}
	held := &commandv1.Compare{Result: commandv1.Compare_RESULT_EQUAL, Key: []byte(name), Target: &commandv1.Compare_CreateRevision{CreateRevision: fence}}
	c.command(c.frontend(), txn(held, putOperation("under/"+name, c.value(), 0)), func(a answerOf) {
		switch {
		case a.outcome != check.Done:
		case !a.result.Txn.Succeeded:
			s.counts.add("write fenced off")
			return
		default:
			s.counts.add("write under a lock")
			s.load.guarded = append(s.load.guarded, check.Guarded{Client: c.index, Lock: name, Fence: fence, Revision: a.revision})
		}
		c.holdLock(name, id, fence, writes-1)
	})
}

var idSpaces = [...]string{"snowflake", "raindrop", "orders"}

// takeIDs asks for some ids of some kind.
func (c *client) takeIDs() {
	s, f := c.s, c.frontend()
	count, call := int64(1+s.random.IntN(5)), s.now
	note := func(space, generator string, global bool, first, count int64) {
		s.counts.add("ids of " + space)
		s.load.ids = append(s.load.ids, check.IDs{Space: space, Generator: generator, Global: global, First: first, Count: count, Call: call, Return: s.now})
	}
	kind := s.random.IntN(4)
	if kind == 3 {
		c.command(f, &commandv1.Command{Operation: &commandv1.Command_IdSequenceNext{IdSequenceNext: &commandv1.IdSequenceNext{Name: "invoice", Count: count}}},
			func(a answerOf) {
				if a.outcome == check.Done {
					note("sequence", "", true, a.result.ID.First, a.result.ID.Count)
				}
			})
		return
	}
	c.ask(f, func(answer func(answerOf)) {
		source := f.ids[kind]
		blocks, command := source.Take(f.wall(), f.boot(), count)
		generator := fmt.Sprintf("%s.%d", f.name, f.life)
		if kind == 2 {
			generator = "" // blocks of a range may come in any order
		}
		for _, b := range blocks {
			note(idSpaces[kind], generator, false, b.First, b.Count)
		}
		if command != nil {
			f.propose(command, true, func(r statemachine.Result, err error) { source.Decided(r, err) })
		}
		answer(answerOf{outcome: check.Done})
	}, func(answerOf) {})
}
