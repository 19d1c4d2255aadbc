package sim

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/test/check"
	"github.com/logmirror/logmirror/watch"
)

// watcher watches a span through one frontend after the other, and notes all that comes.
type watcher struct {
	s        *Simulation
	w        check.Watch
	fragment bool
	f        *frontend
	life     int
	stream   *watch.Stream
	created  bool
	// resume is the first revision that has not come; partial holds the fragments of a response that is not whole yet.
	resume  int64
	partial []check.WatchResponse
	// slowUntil is when the reader goes on that has stopped to read.
	slowUntil time.Duration
}

func (s *Simulation) startWatcher(index int) {
	spans := [][2]string{{"\x00", "\x00"}, {"p/", "p0"}, {"k", "l"}, {"k1", ""}, {"n", "\x00"}}
	span := spans[index%len(spans)]
	w := &watcher{s: s, w: check.Watch{Name: fmt.Sprintf("w%d", index), Key: span[0], End: span[1]}, fragment: s.one(2), resume: 1}
	s.load.watchers = append(s.load.watchers, w)
	s.every(5*time.Millisecond, 150*time.Millisecond, w.act)
}

func (w *watcher) act() {
	s := w.s
	if w.stream != nil && (!w.f.up || w.f.life != w.life || !s.stopped && s.one(150)) {
		w.leave()
	}
	switch {
	case w.stream == nil:
		w.begin(s.frontends[s.random.IntN(len(s.frontends))])
	case w.slowUntil > s.now || !w.f.running():
	default:
		if !s.quiet && s.one(60) {
			s.counts.add("slow watcher")
			w.slowUntil = s.now + s.between(500*time.Millisecond, 4*time.Second)
			return
		}
		w.read()
	}
}

func (w *watcher) leave() {
	if w.f.up && w.f.life == w.life {
		w.stream.Close()
	}
	w.stream, w.partial = nil, nil
}

// begin watches from where the last leg ended.
func (w *watcher) begin(f *frontend) {
	if !f.running() || !f.mirror.Ready() {
		return
	}
	w.f, w.life = f, f.life
	w.stream = f.hub.NewStream(watch.StreamOptions{FragmentBytes: 100})
	w.created = false
	if _, err := w.stream.Watch(watch.Request{ID: 1, Key: []byte(w.w.Key), End: []byte(w.w.End), StartRevision: w.resume,
		Progress: true, Fragment: w.fragment}); err != nil {
		w.s.fail("watch %s: %v", w.w.Name, err)
		return
	}
	w.w.Legs = append(w.w.Legs, check.WatchLeg{Start: w.resume})
	w.s.counts.add("watch begun")
	f.readHistory()
}

// read takes what has come.
func (w *watcher) read() {
	responses, err := w.stream.TakeAll(nil)
	if errors.Is(err, watch.ErrClosed) {
		w.leave()
		return
	}
	leg := &w.w.Legs[len(w.w.Legs)-1]
	for i := range responses {
		r := &responses[i]
		if r.Created {
			w.created = true
			if !r.Canceled {
				continue
			}
		}
		next := check.WatchResponse{Revision: r.Revision, Fragment: r.Fragment}
		for _, encoded := range r.Events {
			e := &kvv1.Event{}
			if err := proto.Unmarshal(encoded, e); err != nil {
				w.s.fail("watch %s: %v", w.w.Name, err)
				return
			}
			next.Events = append(next.Events, check.Change{Revision: e.GetKv().GetModRevision(), Key: string(e.GetKv().GetKey()),
				Value: string(e.GetKv().GetValue()), Deleted: e.GetType() == kvv1.Event_EVENT_TYPE_DELETE})
			w.s.counts.add("event seen")
		}
		if r.Canceled {
			if !errors.Is(r.Err, watch.ErrCompacted) {
				w.s.fail("watch %s was canceled: %v", w.w.Name, r.Err)
				return
			}
			w.s.counts.add("watch compacted")
			w.resume = r.CompactRevision
			leg.Responses = append(leg.Responses, check.WatchResponse{CompactRevision: r.CompactRevision})
			w.leave()
			return
		}
		w.partial = append(w.partial, next)
		if r.Fragment {
			w.s.counts.add("fragment seen")
			continue
		}
		leg.Responses = append(leg.Responses, w.partial...)
		w.partial = nil
		w.resume = max(w.resume, r.Revision+1)
	}
	w.f.readHistory()
}
