package watch

import (
	"container/heap"
	"errors"

	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// sweep orders the lagging watches so that one pass over history, from old to new, serves all of them: whoever
// waits behind the pass's place waits for the next one. A pass ends at the revision that was the present one
// when it began, so that a crowd of watches which are nearly there cannot hold up those behind.
type sweep struct {
	ahead, behind watchHeap
	// cursor is the lowest revision that this pass still reads; end is where it ends.
	cursor, end int64
}

func (s *sweep) empty() bool { return len(s.ahead.watches)+len(s.behind.watches) == 0 }

func (s *sweep) add(w *watch) {
	if w.next < s.cursor {
		w.behind = true
		heap.Push(&s.behind, w)
		return
	}
	w.behind = false
	heap.Push(&s.ahead, w)
}

func (s *sweep) remove(w *watch) {
	if w.behind {
		heap.Remove(&s.behind, int(w.at))
		return
	}
	heap.Remove(&s.ahead, int(w.at))
}

// turn begins another pass where this one has come to its end.
func (s *sweep) turn(revision int64) {
	if len(s.ahead.watches) > 0 && (s.ahead.watches[0].next <= s.end || len(s.behind.watches) == 0) {
		return
	}
	for _, w := range s.behind.watches {
		w.behind = false
		s.ahead.Push(w)
	}
	s.behind.watches = nil
	heap.Init(&s.ahead)
	s.cursor, s.end = 0, revision
}

// take removes the watches that a slice of history from the lowest next on concerns: at most limit, and none
// whose next lies revisions or more above the lowest, or above the highest revision.
func (s *sweep) take(revisions int64, highest int64, limit int) (cohort []*watch, from, to int64) {
	from = s.ahead.watches[0].next
	to = min(from+revisions-1, highest)
	for len(s.ahead.watches) > 0 && len(cohort) < limit && s.ahead.watches[0].next <= to {
		cohort = append(cohort, heap.Pop(&s.ahead).(*watch))
	}
	s.cursor = max(s.cursor, from)
	return cohort, from, to
}

// watchHeap is a heap by next. Each watch knows its place.
type watchHeap struct{ watches []*watch }

func (h *watchHeap) Len() int           { return len(h.watches) }
func (h *watchHeap) Less(i, j int) bool { return h.watches[i].next < h.watches[j].next }
func (h *watchHeap) Swap(i, j int) {
	h.watches[i], h.watches[j] = h.watches[j], h.watches[i]
	h.watches[i].at, h.watches[j].at = int32(i), int32(j)
}

func (h *watchHeap) Push(x any) {
	w := x.(*watch)
	w.at = int32(len(h.watches))
	h.watches = append(h.watches, w)
}

func (h *watchHeap) Pop() any {
	last := len(h.watches) - 1
	w := h.watches[last]
	h.watches[last] = nil
	h.watches = h.watches[:last]
	if last == 0 {
		h.watches = nil
	}
	return w
}

// readHistory is the goroutine that lets lagging watches catch up.
func (h *Hub) readHistory() {
	defer h.stopped.Done()
	for {
		select {
		case <-h.work:
		case <-h.stop:
			return
		}
		for h.catchUp() {
			select {
			case <-h.stop:
				return
			default:
			}
		}
	}
}

// catchUp reads one slice of history and hands it to the watches that it concerns. It returns whether there is
// more to do at once. Only one goroutine calls it.
func (h *Hub) catchUp() (more bool) {
	sl, more := h.beginSlice()
	if sl == nil {
		return more
	}
	sl.read(h)
	sl.view.Release()
	return h.endSlice(sl)
}

// slice is a piece of history that is being read for a cohort of watches.
type slice struct {
	view   view
	cohort []*watch
	// from and to are the first and last revision; read brings to nearer where a bound ended it.
	from, to int64
	// deliveries are what was read, worked out before the hub's lock is taken again.
	deliveries []delivery
	err        error
}

type delivery struct {
	watch  *watch
	bundle bundle
}

// beginSlice takes the watches whose turn it is. Where there are none, more says whether others may have one at
// once.
func (h *Hub) beginSlice() (sl *slice, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	// Taken under the lock, the view reaches at least to h.revision.
	v := h.history.acquire()
	cohort, from, to := h.takeCohort(v)
	if len(cohort) == 0 {
		v.Release()
		return nil, !h.sweep.empty() && from <= to
	}
	return &slice{view: v, cohort: cohort, from: from, to: to}, true
}

// endSlice hands out what was read.
func (h *Hub) endSlice(sl *slice) (more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	if sl.err != nil {
		h.historyFailed(sl)
	} else {
		h.deliverSlice(sl)
	}
	return !h.sweep.empty()
}

// takeCohort takes the watches whose turn it is and cancels those whose revision is compacted. An empty cohort
// with from > to says that history does not reach far enough yet; Applied comes back to it.
func (h *Hub) takeCohort(v view) (cohort []*watch, from, to int64) {
	if h.sweep.empty() {
		return nil, 1, 0
	}
	h.sweep.turn(h.revision)
	taken, from, to := h.sweep.take(int64(h.config.CatchUpRevisions), v.Revision(), h.config.CatchUpWatches)
	lowest := lowestRevision(v)
	for _, w := range taken {
		w.state = stateReading
		if w.next < lowest {
			h.cancelCompacted(w, lowest)
			continue
		}
		if len(cohort) == 0 {
			from = w.next
		}
		cohort = append(cohort, w)
	}
	return cohort, from, to
}

// read reads the history without the hub's lock: nobody else changes a watch that is reading, but for its state.
func (sl *slice) read(h *Hub) {
	ix := newIndex()
	previousWanted := false
	for _, w := range sl.cohort {
		g := ix.group(w.group.span, nil)
		g.watches = append(g.watches, w)
		previousWanted = previousWanted || w.options&previousKV != 0
	}
	f := fanout{previous: previousIn(sl.view)}
	var visited, bytes int
	last := sl.from - 1
	stopped := false
	// latest has the encoded version of each key met, so that only its first event needs a lookup for the one
	// before.
	latest := make(map[string][]byte)
	sl.err = sl.view.History(sl.from, sl.to, func(kv keyspace.Version) bool {
		if kv.ModRevision != last && (visited >= h.config.CatchUpEvents || bytes >= h.config.CatchUpBytes) {
			stopped = true
			return false
		}
		last = kv.ModRevision
		visited++
		e := historyEvent(&kv)
		if previous, ok := latest[string(kv.Key)]; ok {
			e.previous, e.previousKnown = previous, true
		}
		if !f.add(ix, e) {
			return true
		}
		bytes += len(kv.Encoded)
		switch {
		case !previousWanted:
		case kv.Tombstone:
			latest[string(kv.Key)] = nil
		default:
			latest[string(kv.Key)] = kv.Encoded
		}
		return true
	})
	if stopped {
		sl.to = last
	}
	if sl.err == nil {
		f.each(func(w *watch, b bundle) { sl.deliveries = append(sl.deliveries, delivery{w, b}) })
	}
	h.metrics.historyEvents.Add(float64(visited))
}

func historyEvent(kv *keyspace.Version) event {
	return event{
		revision: kv.ModRevision, put: !kv.Tombstone, key: kv.Key, kv: kv.Encoded,
		// The first version of a key has none before it.
		previousKnown: !kv.Tombstone && kv.Version == 1,
	}
}

// previousIn looks up the version before an event in a view; nil where there was none or it is compacted.
// Within a revision a key changes at most once, so that the version before an event is the key's at the
// revision before.
func previousIn(v view) func(*event) []byte {
	return func(e *event) []byte {
		if e.revision <= 1 {
			return nil
		}
		previous, ok, err := v.Get(e.key, e.revision-1)
		if err != nil || !ok {
			return nil
		}
		return previous.Encoded
	}
}

// deliverSlice queues what was read and sends each watch where it belongs next.
func (h *Hub) deliverSlice(sl *slice) {
	for _, d := range sl.deliveries {
		w := d.watch
		if w.state == stateReading && !w.stream.pushEvents(w, d.bundle, sl.to) {
			h.metrics.fallbacks.Inc()
			w.next = d.bundle.first
			w.stream.park(w)
		}
	}
	h.sweep.cursor = max(h.sweep.cursor, sl.to+1)
	for _, w := range sl.cohort {
		if w.state != stateReading {
			continue
		}
		w.next = max(w.next, sl.to+1)
		if w.next > h.revision {
			h.joinLive(w)
			h.caughtUp(w)
		} else {
			w.state = stateQueued
			h.sweep.add(w)
		}
	}
}

// historyFailed decides what becomes of watches whose slice could not be read.
func (h *Hub) historyFailed(sl *slice) {
	_, lowest := h.history.revisions()
	for _, w := range sl.cohort {
		switch {
		case w.state != stateReading:
		case errors.Is(sl.err, keyspace.ErrCompacted) && w.next < lowest:
			h.cancelCompacted(w, lowest)
		default:
			h.config.Logger.Error("watch canceled: history cannot be read", "revision", w.next, "error", sl.err)
			h.cancel(w, ErrHistory, 0)
		}
	}
}
