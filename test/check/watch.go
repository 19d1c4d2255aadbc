package check

import "sort"

// WatchResponse is one message of a watch.
type WatchResponse struct {
	// Revision is the bookmark: unless Fragment is set, everything at or below it has come.
	Revision int64
	Events   []Change
	// Fragment: more of this response follows in the next one.
	Fragment bool
	// CompactRevision is set where the watch was canceled because what it had to read next was compacted.
	CompactRevision int64
}

// WatchLeg is one watch from its creation to its end or its loss. A leg that is lost in the middle of fragments does not
// have those: nobody may use them.
type WatchLeg struct {
	// Start is the first revision wanted. Of a watch of what comes from now on, one above the revision of its creation.
	Start     int64
	Responses []WatchResponse
}

// Watch is what one watcher saw, on one leg after another, each begun one above the bookmark of the one before, through any
// frontend; or, where that was compacted, at the compact revision it was told.
type Watch struct {
	Name string
	// Key and End span what is watched: an empty End means the one key, "\0" everything from Key on.
	Key, End string
	Legs     []WatchLeg
	// Through is up to where events must have come in the end; zero for no such claim.
	Through int64
}

func (w *Watch) wants(key string) bool {
	switch w.End {
	case "":
		return key == w.Key
	case "\x00":
		return key >= w.Key
	}
	return key >= w.Key && key < w.End
}

// Watches checks what watchers saw against the log: each event of the span exactly once, in order, all of one revision in
// one response (or its fragments), none missing at a bookmark or in the end, and legs that go on where the one before ended.
func (l *Log) Watches(watches []Watch) error {
	var v violations
	for i := range watches {
		c := watchCheck{w: &watches[i], v: &v}
		for _, change := range l.changes {
			if c.w.wants(change.Key) {
				c.want = append(c.want, change)
			}
		}
		for n := range c.w.Legs {
			if !c.leg(n) {
				break
			}
		}
		if at := c.at; c.w.Through > 0 && !c.failed && at < len(c.want) && c.want[at].Revision <= c.w.Through {
			v.addf("watch %s: %+v has not come, it was waited for up to revision %d", c.w.Name, c.want[at], c.w.Through)
		}
	}
	return v.err()
}

type watchCheck struct {
	w    *Watch
	v    *violations
	want []Change
	// at is the next change that is to come, resume where the next leg is to begin.
	at     int
	resume int64
	failed bool
}

func (c *watchCheck) fail(format string, args ...any) bool {
	c.failed = true
	c.v.addf("watch %s: "+format, append([]any{c.w.Name}, args...)...)
	return false
}

func (c *watchCheck) leg(n int) bool {
	leg := &c.w.Legs[n]
	if n > 0 && leg.Start != c.resume {
		return c.fail("leg %d begins at revision %d, the one before ended below %d", n, leg.Start, c.resume)
	}
	c.resume = max(leg.Start, 1)
	c.at = sort.Search(len(c.want), func(i int) bool { return c.want[i].Revision >= c.resume })
	fragments := false
	for i := range leg.Responses {
		r := &leg.Responses[i]
		for _, e := range r.Events {
			if c.at >= len(c.want) {
				return c.fail("leg %d: %+v came, the log has no more", n, e)
			}
			next := c.want[c.at]
			if next != e {
				return c.fail("leg %d: %+v came, %+v was to come", n, e, next)
			}
			c.at++
		}
		if r.CompactRevision > 0 {
			if r.CompactRevision < c.resume {
				return c.fail("leg %d was canceled for a compaction at %d, it wanted %d next", n, r.CompactRevision, c.resume)
			}
			c.resume = r.CompactRevision
			return true
		}
		if fragments = r.Fragment; fragments {
			continue
		}
		if k := len(r.Events); k > 0 && r.Events[k-1].Revision > r.Revision {
			return c.fail("leg %d: a response of revision %d has an event of %d", n, r.Revision, r.Events[k-1].Revision)
		}
		if c.at < len(c.want) && c.want[c.at].Revision <= r.Revision {
			return c.fail("leg %d: the bookmark is at %d, %+v has not come", n, r.Revision, c.want[c.at])
		}
		if c.at > 0 && c.at < len(c.want) && len(r.Events) > 0 && c.want[c.at].Revision == c.want[c.at-1].Revision {
			return c.fail("leg %d: revision %d came in parts", n, c.want[c.at].Revision)
		}
		c.resume = max(c.resume, r.Revision+1)
	}
	if fragments {
		return c.fail("leg %d ends with fragments, which nobody may use", n)
	}
	return true
}
