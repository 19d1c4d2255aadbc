package cluster

import (
	"context"
	"sync"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
)

// referee reads the log beside the frontends, from the nearest member in each region, and applies it to a state machine of
// its own: what the log decided, and when each region could see it.
type referee struct {
	mu      sync.Mutex
	machine *statemachine.Machine
	// entries holds the entry of index i at i-1.
	entries []*decided
	err     error
}

// decided is one entry of the log and what it did.
type decided struct {
	*statemachine.Applied
	kind logv1.EntryKind
	// seen is when each region's member had published the entry.
	seen map[string]time.Time
}

// first returns when the entry was first published anywhere.
func (d *decided) first() (first time.Time) {
	for _, at := range d.seen {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

func (d *decided) stamp() time.Duration { return time.Duration(d.LogTime) }

// newReferee begins to read the log in every region.
func (c *virtual) newReferee() *referee {
	r := &referee{machine: statemachine.New(statemachine.Options{})}
	var members []string
	for _, m := range c.Info().Log {
		members = append(members, m.Address)
	}
	for i, region := range c.Info().Regions {
		client, err := logclient.Open(logclient.Config{
			Members: members, Dial: c.Network().Region(region.Name).Dial,
			Name: "referee-" + region.Name, Region: region.Name, FrontendID: uint64(1000 + i),
		})
		if err != nil {
			c.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(c.t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.read(ctx, client.Tail(1, 0), region.Name)
		}()
		c.t.Cleanup(func() {
			cancel()
			client.Close()
			<-done
			if r.err != nil {
				c.t.Error(r.err)
			}
		})
	}
	return r
}

func (r *referee) read(ctx context.Context, tail *logclient.Tail, region string) {
	for {
		batch, err := tail.Next(ctx)
		if err != nil {
			return // the end of the test
		}
		for i := range batch.Entries {
			r.take(&batch.Entries[i], region)
		}
	}
}

func (r *referee) take(e *logclient.Entry, region string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Index == uint64(len(r.entries))+1 && r.err == nil {
		applied, err := r.machine.Apply(e.Index, e.Term, e.Kind, e.Envelope, false)
		if err != nil {
			r.err = err
			return
		}
		r.entries = append(r.entries, &decided{Applied: applied, kind: e.Kind, seen: make(map[string]time.Time)})
	}
	if e.Index <= uint64(len(r.entries)) {
		r.entries[e.Index-1].seen[region] = time.Now()
	}
}

// find returns the first entry from index from on for which want holds; nil for none yet.
func (r *referee) find(from uint64, want func(*decided) bool) *decided {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := max(from, 1); i <= uint64(len(r.entries)); i++ {
		if want(r.entries[i-1]) {
			return r.entries[i-1]
		}
	}
	return nil
}

// index returns the index of the last entry.
func (r *referee) index() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.entries))
}

// change returns what an entry did to a lease.
func (d *decided) change(id int64, kinds ...lease.ChangeKind) (lease.Change, bool) {
	for _, c := range d.LeaseChanges {
		for _, kind := range kinds {
			if c.ID == id && c.Kind == kind {
				return c, true
			}
		}
	}
	return lease.Change{}, false
}

// changed returns the first entry from index from on that did one of these to a lease; nil for none yet.
func (r *referee) changed(from uint64, id int64, kinds ...lease.ChangeKind) *decided {
	return r.find(from, func(d *decided) bool {
		_, ok := d.change(id, kinds...)
		return ok
	})
}

// at returns the first entry from index from on whose log time is at or after stamp; nil for none yet.
func (r *referee) at(from uint64, stamp time.Duration) *decided {
	return r.find(from, func(d *decided) bool { return d.stamp() >= stamp && d.kind != logv1.EntryKind_ENTRY_KIND_UNSPECIFIED })
}

// lastOf returns the last applied entry of a session before index; nil for none.
func (r *referee) lastOf(session, before uint64) (last *decided) {
	r.find(1, func(d *decided) bool {
		if d.Index < before && d.Session == session && d.Skipped == statemachine.SkipNone {
			last = d
		}
		return d.Index >= before
	})
	return last
}

// longestSilence returns the longest time between two entries after index, as far as a region saw them.
func (r *referee) longestSilence(from uint64) (longest time.Duration) {
	var previous time.Time
	r.find(from, func(d *decided) bool {
		if !previous.IsZero() {
			longest = max(longest, d.first().Sub(previous))
		}
		previous = d.first()
		return false
	})
	return longest
}

// leases returns how many leases there are.
func (r *referee) leases() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine.LeaseCount()
}
