package watch

import "time"

const minProgressInterval = 100 * time.Millisecond

// progressSlots is how many parts of the interval there are in which streams get their progress notifications.
// A stream belongs to the slot in which it first asked, so that the load spreads as the clients came.
const progressSlots = 16

// progressRing holds the streams with watches that asked for progress, in the slot of the interval that is
// theirs.
type progressRing struct {
	slots [progressSlots][]*Stream
	// at is the slot whose turn came last.
	at int
}

func (p *progressRing) add(s *Stream) {
	if s.slot != 0 {
		return
	}
	s.slot, s.slotAt = p.at+1, len(p.slots[p.at])
	p.slots[p.at] = append(p.slots[p.at], s)
}

func (p *progressRing) remove(s *Stream) {
	if s.slot == 0 {
		return
	}
	slot := p.slots[s.slot-1]
	last := len(slot) - 1
	slot[s.slotAt] = slot[last]
	slot[s.slotAt].slotAt = s.slotAt
	slot[last] = nil
	p.slots[s.slot-1] = slot[:last]
	s.slot = 0
}

// sendProgress is the goroutine that notifies idle watches.
func (h *Hub) sendProgress() {
	defer h.stopped.Done()
	ticker := time.NewTicker(h.config.ProgressInterval / progressSlots)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			h.progressTick()
		case <-h.stop:
			return
		}
	}
}

// progressTick notifies the watches of the next slot's streams that asked for it, are synced, and got nothing
// since the slot's last turn.
func (h *Hub) progressTick() {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	h.progress.at = (h.progress.at + 1) % progressSlots
	slot := h.progress.slots[h.progress.at]
	for i := len(slot) - 1; i >= 0; i-- {
		s := slot[i]
		if s.progressWatches == 0 {
			h.progress.remove(s)
			continue
		}
		for _, w := range s.watches {
			if w.options&progress == 0 {
				continue
			}
			if !w.active && w.synced() && s.pushProgress(w.id, h.revision) {
				h.metrics.progress.Inc()
			}
			w.active = false
		}
	}
}

// RequestProgress asks for one Progress response with watch id -1 and the present revision, as soon as all
// watches of the stream are synced: none lags, and none waits for a future revision. Requests that are
// unanswered at the same moment get one answer. A stream without watches gives none.
func (s *Stream) RequestProgress() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.wakeTouched()
	if s.ended {
		return
	}
	s.asking, s.askingFloor = true, 0
	h.asking[s] = struct{}{}
	h.answerProgress(s)
}

// answerProgress answers a stream's request for progress if it can be answered now.
func (h *Hub) answerProgress(s *Stream) {
	if len(s.watches) == 0 {
		s.asking = false
		delete(h.asking, s)
		return
	}
	if s.lagging > 0 || h.revision < s.askingFloor {
		return
	}
	s.askingFloor = 0
	for _, w := range s.watches {
		s.askingFloor = max(s.askingFloor, w.next-1)
	}
	if h.revision < s.askingFloor || !s.pushProgress(StreamID, h.revision) {
		return
	}
	h.metrics.progress.Inc()
	s.asking = false
	delete(h.asking, s)
}
