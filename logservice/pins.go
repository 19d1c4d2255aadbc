package logservice

import (
	"sync"
	"sync/atomic"
	"time"
)

// pins are the places in the log from which somebody reads at this member, so that it is not trimmed under their feet.
// The member bounds what they can hold up. Its methods may be called from any goroutine.
type pins struct {
	mu  sync.Mutex
	all map[*pin]struct{}
}

// pin is one place.
type pin struct {
	pins  *pins
	index atomic.Uint64
	// until is when a released pin ends; zero for one that is held.
	until time.Time
}

func (p *pins) add(index uint64) *pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[*pin]struct{}{}
	}
	added := &pin{pins: p}
	added.index.Store(index)
	p.all[added] = struct{}{}
	return added
}

// move says that what is below index is needed no more.
func (p *pin) move(index uint64) { p.index.Store(index) }

// release gives a place up after some time more.
func (p *pin) release(after time.Duration) {
	p.pins.mu.Lock()
	defer p.pins.mu.Unlock()
	if after == 0 {
		delete(p.pins.all, p)
		return
	}
	p.until = time.Now().Add(after)
}

// lowest is the first index that anybody needs, zero for nothing.
func (p *pins) lowest(now time.Time) (index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pin := range p.all {
		if !pin.until.IsZero() && now.After(pin.until) {
			delete(p.all, pin)
			continue
		}
		if i := pin.index.Load(); index == 0 || i < index {
			index = i
		}
	}
	return index
}
