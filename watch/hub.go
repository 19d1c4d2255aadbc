package watch

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/logmirror/logmirror/statemachine"
)

// Errors of this package. A watch that is refused or canceled carries one of them in Response.Err.
var (
	// ErrClosed: the stream or the hub is closed.
	ErrClosed = errors.New("watch: stream is closed")
	// ErrDuplicateID: the id that the client chose is in use on this stream.
	ErrDuplicateID = errors.New("watch: duplicate watch ID on the stream")
	// ErrInvalidID: the id that the client chose is the one that means the whole stream.
	ErrInvalidID = errors.New("watch: watch ID -1 cannot be chosen")
	// ErrEmptyRange: the end of the range is not above its key.
	ErrEmptyRange = errors.New("watch: range is empty")
	// ErrCompacted: the revision wanted, or one that a slow watch had still to read, is compacted.
	ErrCompacted = errors.New("watch: required revision has been compacted")
	// ErrTooManyWatches: the hub holds Config.MaxWatches.
	ErrTooManyWatches = errors.New("watch: too many watches")
	// ErrOverloaded: the reader has left too many answers to requests unread. See Stream.Admit.
	ErrOverloaded = errors.New("watch: too many unread answers on the stream")
	// ErrHistory: history could not be read.
	ErrHistory = errors.New("watch: history cannot be read")
)

// Config of a hub. The zero value of each field stands for its default.
type Config struct {
	// ProgressInterval is the longest time that a watch which asked for progress and is idle goes without a
	// notification; 10 minutes by default, at least 100 ms.
	ProgressInterval time.Duration
	// StreamBufferBytes and StreamBufferResponses bound what one stream buffers for its reader, 1 MiB and 1024
	// by default. Encoded events that consecutive responses share count once. A stream may hold two more
	// responses for each of its watches, so that one apply which concerns all of them fits. One response always
	// fits into an empty buffer, however large.
	StreamBufferBytes     int
	StreamBufferResponses int
	// MaxUnreadAnswers bounds the answers to requests (created, canceled) in a stream's buffer; 256 by default.
	MaxUnreadAnswers int
	// MaxWatches bounds the watches of the hub; 1,000,000 by default.
	MaxWatches int
	// MaxResponseBytes is the size of the events of one response past which it ends at the next revision; 1 MiB
	// by default. The events of one revision are never parted by it.
	MaxResponseBytes int
	// CatchUpRevisions, CatchUpEvents, CatchUpBytes and CatchUpWatches bound one slice of history: the
	// revisions it spans, the events visited, the encoded bytes of those wanted, and the watches served by it;
	// 4096, 16384, 512 KiB and 4096 by default. A slice ends with a whole revision, so one large revision may
	// exceed them.
	CatchUpRevisions, CatchUpEvents, CatchUpBytes, CatchUpWatches int
	// Logger defaults to slog.Default().
	Logger *slog.Logger
	// Registerer takes the hub's metrics; nil for none.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	if c.ProgressInterval == 0 {
		c.ProgressInterval = 10 * time.Minute
	}
	c.ProgressInterval = max(c.ProgressInterval, minProgressInterval)
	for _, f := range []struct {
		field *int
		value int
	}{
		{&c.StreamBufferBytes, 1 << 20},
		{&c.StreamBufferResponses, 1024},
		{&c.MaxUnreadAnswers, 256},
		{&c.MaxWatches, 1_000_000},
		{&c.MaxResponseBytes, 1 << 20},
		{&c.CatchUpRevisions, 4096},
		{&c.CatchUpEvents, 16384},
		{&c.CatchUpBytes, 512 << 10},
		{&c.CatchUpWatches, 4096},
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

// Hub connects the events of one mirror with the watches of its clients. See the package comment.
type Hub struct {
	config  Config
	history history
	metrics *metrics

	// work wakes the goroutine that reads history.
	work    chan struct{}
	stop    chan struct{}
	stopped sync.WaitGroup

	// mu is held for bounded, short times: never over a read of history or a wait. It is taken before Stream.mu.
	mu sync.Mutex
	// revision is that of the last entry that went through Applied. It never goes back.
	revision int64
	live     *index
	fanout   fanout
	sweep    sweep
	progress progressRing
	streams  map[*Stream]struct{}
	watches  int
	lagging  int
	// asking holds the streams with an unanswered request for progress.
	asking map[*Stream]struct{}
	// touched collects the streams to wake at the end of a step.
	touched []*Stream
	closed  bool
}

// state of a watch; guarded by Hub.mu, as is everything in a watch.
type state uint8

const (
	// stateLive: in the index; watch.at is the place in its group.
	stateLive state = iota
	// stateQueued: in the sweep, waiting for its turn to read history; watch.at is the place in a heap.
	stateQueued
	// stateReading: history is being read for it at this moment.
	stateReading
	// stateParked: lags, and the stream's buffer is full; watch.at is the place in Stream.parked.
	stateParked
	// stateEnded: canceled or closed.
	stateEnded
)

// options of a watch; they never change.
type options uint8

const (
	previousKV options = 1 << iota
	noPut
	noDelete
	progress
	fragments

	// The first three decide which events a watch gets and how they are encoded.
	classes = 1 << 3
)

func (o options) class() int { return int(o & (classes - 1)) }

// watch is one client's interest in one span. It is kept small: there may be hundreds of thousands, most of
// them idle.
type watch struct {
	stream *Stream
	group  *group
	id     int64
	// next is what the invariant in the package comment is about.
	next int64
	at   int32
	// takenAt belongs to Stream.mu: the place among the responses taken together of the one that later events may join.
	takenAt int32
	state   state
	options options
	// behind tells in which heap of the sweep a queued watch is.
	behind bool
	// active: something was sent since the last progress tick.
	active bool
}

// synced tells whether everything up to the hub's revision that the watch wants is in its stream's queue.
func (w *watch) synced() bool { return w.state == stateLive && w.next <= w.stream.hub.revision+1 }

// newHub makes a hub without its goroutines; tests step it by hand.
func newHub(from history, config Config) *Hub {
	config = config.withDefaults()
	h := &Hub{
		config:  config,
		history: from,
		work:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		live:    newIndex(),
		streams: make(map[*Stream]struct{}),
		asking:  make(map[*Stream]struct{}),
	}
	h.revision, _ = from.revisions()
	h.metrics = newMetrics(h)
	return h
}

func (h *Hub) start() {
	h.stopped.Add(2)
	go h.readHistory()
	go h.sendProgress()
}

// Close ends all streams and the hub's goroutines, and waits for these. Applied may still be called.
func (h *Hub) Close() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	for s := range h.streams {
		h.endStream(s)
	}
	h.mu.Unlock()
	close(h.stop)
	h.stopped.Wait()
	h.metrics.unregister(h.config.Registerer)
}

// Done is closed when the hub is being closed and its streams have ended.
func (h *Hub) Done() <-chan struct{} { return h.stop }

// apply is Applied's step: it hands the events of one entry to the live watches.
func (h *Hub) apply(events []statemachine.Event, revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(events) > 0 && !h.live.empty() {
		n := h.responseLength(events)
		for i := range events[:n] {
			h.fanout.add(h.live, liveEvent(&events[i]))
		}
		through := revision
		if n < len(events) {
			through = events[n-1].KV.ModRevision
		}
		if len(h.fanout.hits) > 0 {
			h.fanout.each(func(w *watch, b bundle) { h.deliverLive(w, b, through) })
		}
		events = events[n:]
	}
	h.revision = max(h.revision, revision)
	if len(h.asking) > 0 {
		for s := range h.asking {
			h.answerProgress(s)
		}
	}
	if !h.sweep.empty() {
		h.kick()
	}
	h.wakeTouched()
}

// responseLength returns how many of the events go into one response: whole revisions, up to MaxResponseBytes.
func (h *Hub) responseLength(events []statemachine.Event) int {
	bytes := 0
	for i := range events {
		if bytes > h.config.MaxResponseBytes && events[i].KV.ModRevision != events[i-1].KV.ModRevision {
			return i
		}
		bytes += len(events[i].KV.Encoded) + len(events[i].Previous.Encoded)
	}
	return len(events)
}

func liveEvent(e *statemachine.Event) event {
	live := event{revision: e.KV.ModRevision, put: e.Put, key: e.KV.Key, kv: e.KV.Encoded, previousKnown: true}
	if e.HasPrevious {
		live.previous = e.Previous.Encoded
	}
	return live
}

// deliverLive queues a bundle for a live watch, or lets the watch fall back to history.
func (h *Hub) deliverLive(w *watch, b bundle, through int64) {
	if w.stream.pushEvents(w, b, through) {
		return
	}
	h.metrics.fallbacks.Inc()
	h.leaveLive(w)
	w.next = b.first
	h.lag(w)
	w.stream.park(w)
}

// joinLive makes a watch live. The caller has made sure of the invariant: w.next > h.revision.
func (h *Hub) joinLive(w *watch) {
	w.group = h.live.group(w.group.span, w.group)
	w.state, w.at = stateLive, int32(len(w.group.watches))
	w.group.watches = append(w.group.watches, w)
}

func (h *Hub) leaveLive(w *watch) {
	g := w.group
	last := len(g.watches) - 1
	g.watches[w.at] = g.watches[last]
	g.watches[w.at].at = w.at
	g.watches[last] = nil
	g.watches = g.watches[:last]
	if last == 0 {
		g.watches = nil
		h.live.remove(g)
		// The watch may come back with its group; by then another group may be in the index under this span.
		w.group = &group{span: g.span}
	}
}

// lag counts a watch as lagging. What it waits for, a turn or room, is the caller's to say.
func (h *Hub) lag(w *watch) {
	h.lagging++
	w.stream.lagging++
}

func (h *Hub) caughtUp(w *watch) {
	h.lagging--
	w.stream.lagging--
	if w.stream.asking {
		h.answerProgress(w.stream)
	}
}

// queue gives a lagging watch a place in the sweep.
func (h *Hub) queue(w *watch) {
	w.state = stateQueued
	h.sweep.add(w)
	h.kick()
}

// kick makes sure that the goroutine that reads history looks for work.
func (h *Hub) kick() {
	select {
	case h.work <- struct{}{}:
	default:
	}
}

// end takes a watch out of everything but its stream's list.
func (h *Hub) end(w *watch) {
	before := w.state
	switch before {
	case stateLive:
		h.leaveLive(w)
	case stateQueued:
		h.sweep.remove(w)
	case stateParked:
		w.stream.unpark(w)
	case stateReading:
		// The reading goroutine drops it.
	case stateEnded:
		return
	}
	w.state = stateEnded
	h.watches--
	if w.options&progress != 0 {
		w.stream.progressWatches--
	}
	if before != stateLive {
		h.lagging--
		w.stream.lagging--
	}
}

// cancelCompacted ends a watch whose next revision is compacted and says so.
func (h *Hub) cancelCompacted(w *watch, lowest int64) {
	h.metrics.compacted.Inc()
	h.cancel(w, ErrCompacted, lowest)
}

// cancel ends a watch for a reason of the hub's own.
func (h *Hub) cancel(w *watch, reason error, compactRevision int64) {
	h.end(w)
	w.stream.forget(w)
	w.stream.pushAnswer(Response{
		WatchID: w.id, Revision: h.revision, Canceled: true,
		Err: reason, Reason: reason.Error(), CompactRevision: compactRevision,
	})
	if w.stream.asking {
		h.answerProgress(w.stream)
	}
}

// touch notes that a stream is to be woken at the end of the step.
func (h *Hub) touch(s *Stream) {
	if !s.touched {
		s.touched = true
		h.touched = append(h.touched, s)
	}
}

func (h *Hub) wakeTouched() {
	for i, s := range h.touched {
		s.touched = false
		s.ready()
		h.touched[i] = nil
	}
	h.touched = h.touched[:0]
}

// Stats is a count of what the hub holds.
type Stats struct {
	Streams, Watches int
	// Lagging watches read history: new ones from an old revision, and those of slow readers.
	Lagging int
	// Slow watches are lagging ones that wait for their stream's reader.
	Slow int
	// Revision is that of the last entry applied.
	Revision int64
}

// Stats may be called by anyone.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := Stats{Streams: len(h.streams), Watches: h.watches, Lagging: h.lagging, Revision: h.revision}
	for s := range h.streams {
		st.Slow += len(s.parked)
	}
	return st
}
