package watch

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// StreamID is the watch id of responses that concern a whole stream or a request that was refused.
const StreamID int64 = -1

// Request asks for a watch.
type Request struct {
	// ID is chosen by the client, unique on its stream; 0 lets the stream choose, -1 is not allowed.
	ID int64
	// Key and End span what is watched, as etcd's API has it: an empty End means the one key, "\0" everything
	// from Key on, else End is exclusive. An empty Key stands for "\0", the lowest one. They are copied.
	Key, End []byte
	// StartRevision is the first revision wanted. 0 means those after the present one; a future one is waited
	// for.
	StartRevision int64
	// PreviousKV adds the version before to each event, where there was one and it is not compacted.
	PreviousKV bool
	// NoPut and NoDelete leave out puts and deletes.
	NoPut, NoDelete bool
	// Progress asks for notifications while there are no events.
	Progress bool
	// Fragment allows a response larger than StreamOptions.FragmentBytes to be split.
	Fragment bool
}

// Response is one message to the client.
type Response struct {
	WatchID int64
	// Revision is the state that the response speaks for. With events or Progress: no event at or below it will
	// come on this watch any more, once a response that is no Fragment has been received. With Created: a watch
	// that began with start revision 0 gets what is above it.
	Revision int64
	// Created is the answer to Watch; with Canceled as well, the request was refused and Err says why.
	Created bool
	// Canceled is the last response of a watch. Err and Reason say why; both are empty after Cancel.
	Canceled bool
	Progress bool
	// Fragment: more of this response follows in the next one.
	Fragment bool
	Reason   string
	Err      error
	// CompactRevision is set where Err is ErrCompacted: the compact revision, which is the lowest that can be watched.
	CompactRevision int64
	// Events are encoded kv.v1.Event messages in order. They are shared with other streams: not to be modified,
	// valid as long as they are referenced.
	Events [][]byte

	// watch and bytes are those of the events; merged tells that Events is not shared.
	watch  *watch
	bytes  int
	merged bool
}

// StreamOptions of one stream.
type StreamOptions struct {
	// Ready is called whenever there is something to take or the stream has ended, also while it is being closed: from
	// inside the hub's calls, so it must not block nor call the hub or the stream. Nil: nobody is told.
	Ready func()
	// FragmentBytes is the size from which a response of a watch that allows it is split; 1.5 MiB by default.
	FragmentBytes int
}

const defaultFragmentBytes = 3 << 19

// responseOverhead is what a buffered response counts beside its events.
const responseOverhead = 128

// Stream carries the watches of one client stream.
type Stream struct {
	hub           *Hub
	fragmentBytes int
	ready         func()

	// The following belong to Hub.mu.

	// watches are ordered by id.
	watches []*watch
	nextID  int64
	lagging int
	// parked watches lag and wait for the reader to make room.
	parked          []*watch
	progressWatches int
	// slot is 1 + the stream's place in the progress ring, 0 while it is in none.
	slot   int
	slotAt int
	// asking: a request for progress is unanswered. It cannot be before the hub's revision is askingFloor.
	asking      bool
	askingFloor int64
	touched     bool
	ended       bool

	mu      sync.Mutex
	queue   []entry
	head    int
	bytes   int
	answers int
	// maxResponses moves with the number of watches.
	maxResponses int
	// refused: something found no room since the buffer was last half empty.
	refused bool
	closed  bool
	// admit is made by Admit when it has to wait.
	admit chan struct{}
}

// entry is one buffered response and what it counts.
type entry struct {
	Response
	bytes    int
	fragment bool
}

// NewStream opens a stream. The caller closes it.
func (h *Hub) NewStream(o StreamOptions) *Stream {
	if o.FragmentBytes <= 0 {
		o.FragmentBytes = defaultFragmentBytes
	}
	s := &Stream{
		hub: h, fragmentBytes: o.FragmentBytes, ready: o.Ready,
		maxResponses: h.config.StreamBufferResponses,
	}
	if s.ready == nil {
		s.ready = func() {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.ended, s.closed = true, true
		s.ready()
		return s
	}
	h.streams[s] = struct{}{}
	return s
}

// Watch begins a watch and puts its Created response into the stream, ahead of all its events. An error is what
// the Response with Created and Canceled says too, except ErrClosed and ErrOverloaded, after which there is no
// response and the caller does best to end the stream. Authorization is the caller's business; see Refuse.
func (s *Stream) Watch(r Request) (id int64, err error) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	if s.ended {
		return StreamID, ErrClosed
	}
	if !s.roomForAnswer() {
		return StreamID, ErrOverloaded
	}
	// What a client has been told before it asks lies at or below the published revision, which may be ahead of
	// the hub's by the entry that is on its way to it.
	published, lowest := h.history.revisions()
	present := max(h.revision, published)
	w, err := s.newWatch(r)
	if err != nil {
		s.pushAnswer(Response{
			WatchID: StreamID, Revision: present, Created: true, Canceled: true,
			Err: err, Reason: err.Error(), CompactRevision: lowestIf(err, lowest),
		})
		return StreamID, err
	}
	h.watches++
	if w.options&progress != 0 {
		s.progressWatches++
		h.progress.add(s)
	}
	s.pushAnswer(Response{WatchID: w.id, Revision: present, Created: true})
	if w.next == 0 {
		w.next = present + 1
	}
	if w.next > h.revision {
		h.joinLive(w)
	} else {
		h.lag(w)
		h.queue(w)
	}
	return w.id, nil
}

func lowestIf(err error, lowest int64) int64 {
	if errors.Is(err, ErrCompacted) {
		return lowest
	}
	return 0
}

// newWatch checks a request and enters the watch into the stream's list.
func (s *Stream) newWatch(r Request) (*watch, error) {
	sp := spanOf(r.Key, r.End)
	switch {
	case r.StartRevision < 0:
		return nil, ErrCompacted
	case sp.ranged && sp.end != "" && sp.key >= sp.end:
		return nil, ErrEmptyRange
	case s.hub.watches >= s.hub.config.MaxWatches:
		return nil, ErrTooManyWatches
	case r.ID == StreamID:
		return nil, ErrInvalidID
	}
	id := r.ID
	if id == 0 {
		for _, taken := s.find(s.nextID); taken; _, taken = s.find(s.nextID) {
			s.nextID++
		}
		id = s.nextID
		s.nextID++
	}
	at, taken := s.find(id)
	if taken {
		return nil, ErrDuplicateID
	}
	w := &watch{stream: s, group: s.hub.live.groupOf(sp), id: id, next: r.StartRevision}
	for _, o := range [...]struct {
		set bool
		bit options
	}{{r.PreviousKV, previousKV}, {r.NoPut, noPut}, {r.NoDelete, noDelete}, {r.Progress, progress}, {r.Fragment, fragments}} {
		if o.set {
			w.options |= o.bit
		}
	}
	s.watches = slices.Insert(s.watches, at, w)
	s.fitBuffer()
	return w, nil
}

func spanOf(key, end []byte) span {
	sp := span{key: string(key), ranged: len(end) > 0}
	if len(key) == 0 {
		sp.key = "\x00"
	}
	if len(end) != 1 || end[0] != 0 {
		sp.end = string(end)
	}
	return sp
}

func (s *Stream) find(id int64) (at int, found bool) {
	return slices.BinarySearchFunc(s.watches, id, func(w *watch, id int64) int {
		switch {
		case w.id < id:
			return -1
		case w.id > id:
			return 1
		}
		return 0
	})
}

// forget takes a watch out of the stream's list.
func (s *Stream) forget(w *watch) {
	if at, ok := s.find(w.id); ok && s.watches[at] == w {
		s.watches = slices.Delete(s.watches, at, at+1)
		s.fitBuffer()
	}
}

// Cancel ends a watch and puts its Canceled response into the stream, behind what was queued for it. It returns
// false, and there is no response, where the stream has no such watch.
func (s *Stream) Cancel(id int64) bool {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	at, ok := s.find(id)
	if s.ended || !ok {
		return false
	}
	w := s.watches[at]
	h.end(w)
	s.forget(w)
	s.pushAnswer(Response{WatchID: id, Revision: h.revision, Canceled: true})
	if s.asking {
		h.answerProgress(s)
	}
	return true
}

// Refuse puts the answer to a request that the caller itself refuses into the stream, in order with all others.
func (s *Stream) Refuse(reason error) error {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	if s.ended {
		return ErrClosed
	}
	if !s.roomForAnswer() {
		return ErrOverloaded
	}
	s.pushAnswer(Response{
		WatchID: StreamID, Revision: h.revision, Created: true, Canceled: true, Err: reason, Reason: reason.Error(),
	})
	return nil
}

// Admit waits until the stream has room for the answer to another request. A caller that waits here before it
// reads the next request leaves a client that does not read its answers to the flow control of the transport.
func (s *Stream) Admit(ctx context.Context) error {
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return ErrClosed
		case s.answers < s.hub.config.MaxUnreadAnswers:
			s.mu.Unlock()
			return nil
		}
		if s.admit == nil {
			s.admit = make(chan struct{}, 1)
		}
		admit := s.admit
		s.mu.Unlock()
		select {
		case <-admit:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Stream) roomForAnswer() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers < s.hub.config.MaxUnreadAnswers
}

// Close ends the stream and all its watches, and drops what was not read. Further calls do nothing.
func (s *Stream) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.endStream(s)
}

func (h *Hub) endStream(s *Stream) {
	if s.ended {
		return
	}
	s.ended = true
	for _, w := range s.watches {
		h.end(w)
	}
	s.watches, s.parked = nil, nil
	h.progress.remove(s)
	delete(h.asking, s)
	delete(h.streams, s)
	s.mu.Lock()
	s.closed = true
	s.queue, s.head, s.bytes, s.answers = nil, 0, 0, 0
	admit := s.admit
	s.mu.Unlock()
	s.ready()
	if admit != nil {
		select {
		case admit <- struct{}{}:
		default:
		}
	}
}

// TakeAll appends all responses there are to the buffer. ErrClosed: the stream or the hub was closed.
//
// What a reader left to wait costs it less: events of one watch come in one response as long as they fit into
// Config.MaxResponseBytes, so that a reader which fell behind gets few large responses instead of many small ones.
func (s *Stream) TakeAll(buffer []Response) ([]Response, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return buffer, ErrClosed
	}
	first := len(buffer) // of those that later events may be put into
	for s.head < len(s.queue) {
		e := &s.queue[s.head]
		switch {
		case e.watch == nil:
			buffer = append(buffer, s.take())
			first = len(buffer) // nothing overtakes an answer or a notification
		case s.merge(buffer, first, e):
			s.drop(e)
		default:
			buffer = append(buffer, s.take())
		}
	}
	s.finishTake()
	return buffer, nil
}

// merge puts the events of an entry into the response of the same watch that was taken last, if there is one from first
// on. The caller holds mu.
func (s *Stream) merge(taken []Response, first int, e *entry) bool {
	w := e.watch
	at := int(w.takenAt)
	if e.fragment || at < first || at >= len(taken) || taken[at].watch != w ||
		taken[at].bytes+e.Response.bytes > s.hub.config.MaxResponseBytes {
		w.takenAt = int32(len(taken))
		return false
	}
	r := &taken[at]
	if !r.merged {
		r.Events, r.merged = slices.Clip(r.Events), true
	}
	r.Events = append(r.Events, e.Events...)
	r.bytes += e.Response.bytes
	r.Revision = e.Revision
	return true
}

// take removes the first response, or its first fragment. The caller holds mu and knows that there is one.
func (s *Stream) take() Response {
	e := &s.queue[s.head]
	r := e.Response
	if e.fragment {
		if n := s.fragmentLength(r.Events); n < len(r.Events) {
			r.Events, r.Fragment = r.Events[:n:n], true
			e.Events = e.Events[n:]
			return r
		}
	}
	if r.Created || r.Canceled {
		s.answers--
	}
	s.drop(e)
	return r
}

// drop takes the first entry out of the queue.
func (s *Stream) drop(e *entry) {
	s.bytes -= e.bytes
	*e = entry{}
	s.head++
}

// fragmentLength returns how many events go into one fragment: at least one.
func (s *Stream) fragmentLength(events [][]byte) int {
	bytes := responseOverhead
	for i, e := range events {
		// One byte of tag and at most five of length.
		bytes += len(e) + 6
		if i > 0 && bytes >= s.fragmentBytes {
			return i
		}
	}
	return len(events)
}

// keptResponses bounds the memory that an empty queue keeps, beside room for two responses for each watch.
const keptResponses = 64

// finishTake settles the buffer after responses were taken, releases mu, and lets those go on who waited for
// room.
func (s *Stream) finishTake() {
	if s.head == len(s.queue) {
		s.head = 0
		if cap(s.queue) > keptResponses+s.maxResponses-s.hub.config.StreamBufferResponses {
			s.queue = nil
		}
		s.queue = s.queue[:0]
	}
	roomy := s.refused && s.bytes <= s.hub.config.StreamBufferBytes/2 && len(s.queue)-s.head <= s.maxResponses/2
	if roomy {
		s.refused = false
	}
	if s.admit != nil && s.answers < s.hub.config.MaxUnreadAnswers {
		select {
		case s.admit <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
	if roomy {
		s.hub.roomAgain(s)
	}
}

// roomAgain goes on with what had found no room in a stream's buffer.
func (h *Hub) roomAgain(s *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range s.parked {
		h.queue(w)
	}
	s.parked = nil
	if s.asking {
		h.answerProgress(s)
		h.wakeTouched()
	}
}

// park makes a lagging watch wait for room. The caller has just been refused room for it.
func (s *Stream) park(w *watch) {
	w.state, w.at = stateParked, int32(len(s.parked))
	s.parked = append(s.parked, w)
}

func (s *Stream) unpark(w *watch) {
	last := len(s.parked) - 1
	s.parked[w.at] = s.parked[last]
	s.parked[w.at].at = w.at
	s.parked[last] = nil
	s.parked = s.parked[:last]
}

// fitBuffer adapts the bound on responses to the number of watches.
func (s *Stream) fitBuffer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxResponses = s.hub.config.StreamBufferResponses + 2*len(s.watches)
}

// pushEvents queues a bundle for a watch. It returns false, and nothing is queued, where the buffer has no
// room; the caller parks the watch in the same hold of Hub.mu. The caller wakes the reader with wakeTouched.
func (s *Stream) pushEvents(w *watch, b bundle, through int64) bool {
	e := entry{
		Response: Response{WatchID: w.id, Revision: through, Events: b.events, watch: w, bytes: b.bytes},
		bytes:    responseOverhead + b.bytes + len(b.events)*8,
		fragment: w.options&fragments != 0,
	}
	s.mu.Lock()
	if n := len(s.queue); n > s.head && sameEvents(s.queue[n-1].Events, b.events) {
		e.bytes = responseOverhead
	}
	ok := s.append(e)
	s.mu.Unlock()
	if ok {
		w.active = true
		s.hub.metrics.events.Add(float64(len(b.events)))
		s.hub.touch(s)
	}
	return ok
}

func sameEvents(a, b [][]byte) bool { return len(a) > 0 && len(a) == len(b) && &a[0] == &b[0] }

// pushProgress queues a progress notification if there is room.
func (s *Stream) pushProgress(id, revision int64) bool {
	s.mu.Lock()
	ok := s.append(entry{Response: Response{WatchID: id, Revision: revision, Progress: true}, bytes: responseOverhead})
	s.mu.Unlock()
	if ok {
		s.hub.touch(s)
	}
	return ok
}

// pushAnswer queues what must not be dropped. Requests are admitted only while there is room for their answers,
// and a watch is canceled once, so its number is bounded.
func (s *Stream) pushAnswer(r Response) {
	s.mu.Lock()
	s.answers++
	s.bytes += responseOverhead
	s.queue = append(s.queue, entry{Response: r, bytes: responseOverhead})
	s.mu.Unlock()
	s.hub.touch(s)
}

// append queues an entry if there is room. The caller holds mu.
func (s *Stream) append(e entry) bool {
	n := len(s.queue) - s.head
	if n > 0 && (s.bytes+e.bytes > s.hub.config.StreamBufferBytes || n >= s.maxResponses) {
		s.refused = true
		return false
	}
	if s.head > 0 && len(s.queue) == cap(s.queue) {
		// Use the room of what was taken before growing.
		kept := copy(s.queue, s.queue[s.head:])
		clear(s.queue[kept:])
		s.queue, s.head = s.queue[:kept], 0
	}
	s.bytes += e.bytes
	s.queue = append(s.queue, e)
	return true
}
