package chaos

import (
	"context"
	"sync"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/test/check"
)

// watcher follows a span of keys from the first revision on, through whatever frontends it reaches.
type watcher struct {
	name, key, end string
	h              *history
	client         *client.Client

	mu        sync.Mutex
	responses []check.WatchResponse
	bookmark  int64
	err       error
}

func (w *watcher) follow(ctx context.Context) {
	create := &kvv1.WatchRequest_Create{Key: []byte(w.key), RangeEnd: []byte(w.end), StartRevision: 1, Progress: true}
	for answer, err := range w.client.Watch(ctx, create) {
		if err != nil {
			w.mu.Lock()
			if ctx.Err() == nil {
				w.err = err
			}
			w.mu.Unlock()
			return
		}
		w.take(answer)
	}
}

func (w *watcher) take(answer *kvv1.WatchResponse) {
	response := check.WatchResponse{Fragment: answer.GetFragment(), CompactRevision: answer.GetCompactRevision()}
	for _, e := range answer.GetEvents() {
		change := check.Change{Revision: e.GetKv().GetModRevision(), Key: string(e.GetKv().GetKey()), Value: string(e.GetKv().GetValue()),
			Deleted: e.GetType() == kvv1.Event_EVENT_TYPE_DELETE}
		response.Events = append(response.Events, change)
		// What a response tells of lies at or below its last event: its header may be ahead of what was read of history.
		response.Revision = change.Revision
	}
	if answer.GetProgress() {
		response.Revision = answer.GetHeader().GetRevision()
	}
	w.mu.Lock()
	w.responses = append(w.responses, response)
	w.bookmark = max(w.bookmark, response.Revision)
	w.mu.Unlock()
	w.endLeases(response.Events)
}

// endLeases notes which leases are seen to have ended.
func (w *watcher) endLeases(events []check.Change) {
	now := w.h.now()
	for _, e := range events {
		if e.Deleted {
			w.h.note(func() {
				if lease := w.h.leases[e.Key]; lease != nil && (lease.Ended == 0 || now < lease.Ended) {
					lease.Ended = now
				}
			})
		}
	}
}

// reached returns the highest bookmark, and why the watch ended, if it did.
func (w *watcher) reached() (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bookmark, w.err
}

func (w *watcher) seen(through int64) check.Watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return check.Watch{Name: w.name, Key: w.key, End: w.end, Legs: []check.WatchLeg{{Start: 1, Responses: w.responses}}, Through: through}
}

// changes are all events that came, in their order.
func (w *watcher) changes() (changes []check.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.responses {
		changes = append(changes, r.Events...)
	}
	return changes
}

// leaseAllowance is how far the clocks and the scheduling of a busy machine may bring the end of a lease forward: none,
// but that a renewal is counted from when it was asked for.
const leaseAllowance = 0.01
