package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// modelWatch is what a client knows of one of its watches.
type modelWatch struct {
	request Request
	id      int64
	// start is the first revision that it is entitled to.
	start int64
	// seen are the events received so far, whole responses only; partial are those of a response under way.
	seen, partial []string
	// through is the highest revision that a response has promised to be complete up to.
	through int64
	ended   bool
}

type modelStream struct {
	stream  *Stream
	watches map[int64]*modelWatch
	// creating are requests whose Created response is still unread, in order.
	creating []*modelWatch
	// canceling counts the canceled watches by id whose responses may still come.
	closed bool
}

// model drives a hub by hand, one step of its inner life at a time, and keeps the books of what clients must
// see.
type model struct {
	t       *rapid.T
	space   *fakeSpace
	hub     *Hub
	streams []*modelStream
	// behind are the entries published and not yet told to the hub.
	behind [][]statemachine.Event
	slice  *slice
}

var modelKeys = []string{"a", "b", "ba", "bb", "c", "d"}

func (m *model) write() {
	var events []statemachine.Event
	for range rapid.IntRange(1, 3).Draw(m.t, "revisions") {
		var changes []change
		for _, k := range modelKeys {
			switch rapid.IntRange(0, 5).Draw(m.t, "change") {
			case 0:
				changes = append(changes, change{key: k, value: make([]byte, rapid.IntRange(0, 60).Draw(m.t, "size"))})
			case 1:
				changes = append(changes, change{key: k})
			}
		}
		events = append(events, m.space.write(changes...)...)
	}
	m.behind = append(m.behind, events)
}

func (m *model) apply() {
	if len(m.behind) == 0 {
		return
	}
	events := m.behind[0]
	m.behind = m.behind[1:]
	revision := m.hub.revision
	if len(events) > 0 {
		revision = events[len(events)-1].KV.ModRevision
	}
	m.hub.apply(events, revision)
}

func (m *model) create(s *modelStream) {
	spans := [][2]string{{"a", ""}, {"b", ""}, {"b", "c"}, {"b", "\x00"}, {"", "\x00"}, {"a", "bb"}, {"c", "d"}, {"d", ""}}
	sp := rapid.SampledFrom(spans).Draw(m.t, "span")
	w := &modelWatch{request: Request{
		Key: []byte(sp[0]), End: []byte(sp[1]),
		StartRevision: rapid.Int64Range(0, m.space.revision+3).Draw(m.t, "start"),
		PreviousKV:    rapid.Bool().Draw(m.t, "previous"),
		NoPut:         rapid.IntRange(0, 4).Draw(m.t, "noPut") == 0,
		NoDelete:      rapid.IntRange(0, 4).Draw(m.t, "noDelete") == 0,
		Progress:      rapid.Bool().Draw(m.t, "progress"),
		Fragment:      rapid.Bool().Draw(m.t, "fragment"),
	}}
	id, err := s.stream.Watch(w.request)
	if err != nil {
		m.t.Fatalf("Watch: %v", err)
	}
	w.id = id
	s.creating = append(s.creating, w)
}

// read takes one response, if there is one, and checks it.
func (m *model) read(s *modelStream) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.stream.mu.Lock()
	empty := s.stream.head == len(s.stream.queue)
	s.stream.mu.Unlock()
	if empty || s.closed {
		return false
	}
	r, err := s.stream.Next(ctx)
	if err != nil {
		m.t.Fatalf("Next: %v", err)
	}
	m.check(s, r)
	return true
}

func (m *model) check(s *modelStream, r Response) {
	if r.Created {
		if len(s.creating) == 0 || r.WatchID != s.creating[0].id || r.Canceled {
			m.t.Fatalf("unexpected %+v", r)
		}
		w := s.creating[0]
		s.creating = s.creating[1:]
		w.start = w.request.StartRevision
		if w.start == 0 {
			w.start = r.Revision + 1
		}
		s.watches[w.id] = w
		return
	}
	if r.WatchID == StreamID {
		for _, w := range s.watches {
			if w.start-1 > r.Revision {
				m.t.Fatalf("progress of the stream at %d, before watch %d begins at %d", r.Revision, w.id, w.start)
			}
			m.complete(w, r.Revision)
		}
		return
	}
	w := s.watches[r.WatchID]
	if w == nil {
		m.t.Fatalf("response for an unknown watch: %+v", r)
	}
	for _, e := range r.Events {
		w.partial = append(w.partial, string(e))
	}
	switch {
	case r.Canceled:
		if r.Err != nil {
			if !errors.Is(r.Err, ErrCompacted) || max(w.start, w.through+1) >= r.CompactRevision {
				m.t.Fatalf("watch from %d, complete up to %d, canceled with %+v", w.start, w.through, r)
			}
		}
		delete(s.watches, r.WatchID)
		w.ended = true
	case r.Fragment:
		if !w.request.Fragment {
			m.t.Fatal("a fragment that nobody asked for")
		}
	default:
		w.seen = append(w.seen, w.partial...)
		w.partial = nil
		if r.Revision < w.through {
			m.t.Fatalf("revision %d after %d", r.Revision, w.through)
		}
		m.complete(w, r.Revision)
	}
}

// complete checks that a watch has seen exactly what it is entitled to up to a revision.
func (m *model) complete(w *modelWatch, revision int64) {
	w.through = max(w.through, revision)
	// A previous version may be missing once it is compacted.
	same := func(seen string, want [2]string) bool { return seen == want[0] || seen == want[1] }
	if want := m.expected(w, revision); !slices.EqualFunc(w.seen, want, same) {
		m.t.Fatalf("watch %d of [%q,%q) from %d at %d:\nseen %q\nwant %q",
			w.id, w.request.Key, w.request.End, w.start, revision, w.seen, want)
	}
}

// expected works out a watch's events from all that was ever written, each in the one or two forms that it may
// have.
func (m *model) expected(w *modelWatch, through int64) (want [][2]string) {
	sp := spanOf(w.request.Key, w.request.End)
	for _, v := range m.space.versions {
		if v.ModRevision < w.start || v.ModRevision > through || !sp.contains(v.Key) ||
			w.request.NoPut && !v.Tombstone || w.request.NoDelete && v.Tombstone {
			continue
		}
		e := &kvv1.Event{Kv: new(kvv1.KeyValue)}
		if v.Tombstone {
			e.Type = kvv1.Event_EVENT_TYPE_DELETE
		}
		if err := proto.Unmarshal(v.Encoded, e.Kv); err != nil {
			m.t.Fatal(err)
		}
		plain := m.marshal(e)
		if previous, ok := m.space.get(v.Key, v.ModRevision-1); ok && w.request.PreviousKV {
			e.PrevKv = new(kvv1.KeyValue)
			if err := proto.Unmarshal(previous.Encoded, e.PrevKv); err != nil {
				m.t.Fatal(err)
			}
		}
		full := m.marshal(e)
		// The version before is read at the revision before.
		if v.ModRevision > m.space.compacted {
			plain = full
		}
		want = append(want, [2]string{full, plain})
	}
	return want
}

func (m *model) marshal(e *kvv1.Event) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// settle lets everything come to rest, and checks that nothing is missing then.
func (m *model) settle() {
	for len(m.behind) > 0 {
		m.apply()
	}
	for range 10_000 {
		busy := m.stepHistory()
		for _, s := range m.streams {
			for m.read(s) {
				busy = true
			}
		}
		if !busy {
			break
		}
	}
	for _, s := range m.streams {
		if s.closed {
			continue
		}
		for _, w := range s.watches {
			if w.partial != nil {
				m.t.Fatal("the last fragment is missing")
			}
			m.complete(w, m.space.revision)
		}
	}
	if st := m.hub.Stats(); st.Lagging != 0 || st.Slow != 0 || st.Revision != m.space.revision {
		m.t.Fatalf("not at rest: %+v", st)
	}
	if m.space.views != 0 {
		m.t.Fatalf("%d views are held", m.space.views)
	}
}

// stepHistory does the next third of a slice of history.
func (m *model) stepHistory() bool {
	if m.slice == nil {
		var more bool
		m.slice, more = m.hub.beginSlice()
		return m.slice != nil || more
	}
	m.slice.read(m.hub)
	m.slice.view.Release()
	m.hub.endSlice(m.slice)
	m.slice = nil
	return true
}

func (m *model) checkInvariants() {
	h := m.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	watches, lagging := 0, 0
	for s := range h.streams {
		streamLagging := 0
		for _, w := range s.watches {
			watches++
			switch w.state {
			case stateLive:
				if w.group.watches[w.at] != w {
					m.t.Fatal("a live watch is not where it says")
				}
			case stateParked:
				if s.parked[w.at] != w {
					m.t.Fatal("a parked watch is not where it says")
				}
				s.mu.Lock()
				if !s.refused {
					m.t.Fatal("a parked watch on a stream that will not call for it")
				}
				s.mu.Unlock()
				streamLagging++
			case stateQueued, stateReading:
				streamLagging++
			case stateEnded:
				m.t.Fatal("an ended watch in its stream's list")
			}
		}
		if streamLagging != s.lagging {
			m.t.Fatalf("stream counts %d lagging watches, has %d", s.lagging, streamLagging)
		}
		lagging += streamLagging
	}
	if watches != h.watches || lagging != h.lagging {
		m.t.Fatalf("hub counts %d watches and %d lagging, has %d and %d", h.watches, h.lagging, watches, lagging)
	}
}

// TestWatchesSeeEverythingOnce interleaves entries, creations, cancels, slow readers, compactions and the
// phases of reading history, and holds every client's view against all that was written.
func TestWatchesSeeEverythingOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, space: newFakeSpace()}
		m.hub = newHub(m.space, Config{
			StreamBufferBytes:     rapid.SampledFrom([]int{300, 2000, 1 << 20}).Draw(t, "buffer"),
			StreamBufferResponses: rapid.SampledFrom([]int{1, 3, 100}).Draw(t, "responses"),
			MaxUnreadAnswers:      1 << 20,
			MaxResponseBytes:      rapid.SampledFrom([]int{1, 100, 1 << 20}).Draw(t, "response"),
			CatchUpRevisions:      rapid.IntRange(1, 8).Draw(t, "sliceRevisions"),
			CatchUpEvents:         rapid.IntRange(1, 8).Draw(t, "sliceEvents"),
			CatchUpWatches:        rapid.IntRange(1, 4).Draw(t, "sliceWatches"),
		})
		for range 2 {
			m.streams = append(m.streams, &modelStream{
				stream: open(m.hub, StreamOptions{FragmentBytes: 150}), watches: make(map[int64]*modelWatch),
			})
		}
		stream := func() *modelStream { return rapid.SampledFrom(m.streams).Draw(t, "stream") }
		t.Repeat(map[string]func(*rapid.T){
			"write": func(*rapid.T) { m.write() },
			"apply": func(*rapid.T) { m.apply() },
			"create": func(*rapid.T) {
				if s := stream(); !s.closed {
					m.create(s)
				}
			},
			"cancel": func(*rapid.T) {
				s := stream()
				ids := make([]int64, 0, len(s.watches))
				for id := range s.watches {
					ids = append(ids, id)
				}
				if slices.Sort(ids); len(ids) > 0 && !s.closed {
					s.stream.Cancel(rapid.SampledFrom(ids).Draw(t, "id"))
				}
			},
			"progress": func(*rapid.T) { stream().stream.RequestProgress() },
			"tick":     func(*rapid.T) { m.hub.progressTick() },
			"compact": func(*rapid.T) {
				m.space.compact(rapid.Int64Range(0, m.space.revision).Draw(t, "compact"))
			},
			"history": func(*rapid.T) { m.stepHistory() },
			"read":    func(*rapid.T) { m.read(stream()) },
			"close": func(*rapid.T) {
				if s := stream(); rapid.IntRange(0, 20).Draw(t, "close") == 0 {
					s.stream.Close()
					s.closed = true
				}
			},
			"": func(*rapid.T) { m.checkInvariants() },
		})
		m.settle()
		if len(m.hub.asking) > 0 {
			for s := range m.hub.asking {
				if s.lagging == 0 && s.askingFloor <= m.hub.revision {
					t.Fatal("a request for progress was forgotten")
				}
			}
		}
	})
}

func ExampleHub() {
	space := newFakeSpace()
	hub := newHub(space, Config{})
	stream := hub.NewStream(StreamOptions{})
	defer stream.Close()
	_, _ = stream.Watch(Request{Key: []byte("k")})
	hub.apply(space.write(change{"k", []byte("v")}), 2)
	responses, _ := stream.TakeAll(nil)
	for _, r := range responses {
		fmt.Println(r.Created, r.Revision, len(r.Events))
	}
	// Output:
	// true 1 0
	// false 2 1
}
