package wan

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// errCrossed ends the flow of a link.cross.
var errCrossed = errors.New("wan: crossed")

// flow is one direction of a connection: a queue of segments, each with the instant at which it arrives.
//
// Invariant: due times never decrease along the queue.
// Invariant: inFlightBytes is the sum of the data in the queue.
// Invariant: nothing follows an end segment.
type flow struct {
	link     *link
	maxBytes int

	// All below is guarded by link.mu.
	readable, writable sync.Cond
	segments           []segment
	inFlightBytes      int
	lastDue            time.Time
	readerGone         bool
	writerGone         bool
	wake               *time.Timer // wakes the reader when the first segment arrives
	readDeadline       deadline
	writeDeadline      deadline
}

// segment is what one write sent, or the end of the stream.
type segment struct {
	data []byte // the part not read yet; owned by the flow
	due  time.Time
	end  error // not nil: the end of the stream; read returns it
	lost bool  // sent over a cut link
}

func newFlow(l *link, maxBytes int) *flow {
	f := &flow{link: l, maxBytes: maxBytes}
	f.readable.L, f.writable.L = &l.mu, &l.mu
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.flows[f] = struct{}{}
	}
	return f
}

// read blocks until a segment has arrived and copies as much as has arrived into b.
func (f *flow) read(b []byte) (int, error) {
	f.link.mu.Lock()
	defer f.link.mu.Unlock()
	for {
		switch {
		case f.readerGone || f.link.closed:
			return 0, net.ErrClosed
		case f.readDeadline.passed:
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		}
		if n, end := f.takeArrived(b); n > 0 || end != nil {
			return n, end
		}
		if f.scheduleWake() {
			f.readable.Wait()
		}
	}
}

// takeArrived moves arrived bytes into b. The end stays in the queue, to be read again.
func (f *flow) takeArrived(b []byte) (n int, end error) {
	now := time.Now()
	for n < len(b) && len(f.segments) > 0 && f.arrived(&f.segments[0], now) {
		head := &f.segments[0]
		if head.end != nil {
			end = head.end
			break
		}
		copied := copy(b[n:], head.data)
		n += copied
		head.data = head.data[copied:]
		if len(head.data) == 0 {
			f.segments[0] = segment{}
			f.segments = f.segments[1:]
		}
	}
	if n > 0 {
		f.inFlightBytes -= n
		f.writable.Broadcast()
		end = nil
	}
	return n, end
}

func (f *flow) arrived(s *segment, now time.Time) bool {
	if s.due.After(now) {
		return false
	}
	return !f.link.cut || !s.stalledSince(f.link.cutAt)
}

// stalledSince tells whether a cut at that instant stalls the segment.
func (s *segment) stalledSince(cutAt time.Time) bool { return s.lost || s.due.After(cutAt) }

// scheduleWake arranges for the reader to look again when the first segment is due. It reports false if the reader
// must look again at once, because the segment arrived since it last did: nothing else would wake it. A segment that is
// overdue over a cut link waits for the link to be healed, which wakes the reader too.
func (f *flow) scheduleWake() (wait bool) {
	if len(f.segments) == 0 {
		return true
	}
	now := time.Now()
	if f.arrived(&f.segments[0], now) {
		return false
	}
	left := f.segments[0].due.Sub(now)
	if left <= 0 {
		return true
	}
	if f.wake == nil {
		f.wake = time.AfterFunc(left, func() {
			f.link.mu.Lock()
			defer f.link.mu.Unlock()
			f.readable.Broadcast()
		})
		return true
	}
	f.wake.Reset(left)
	return true
}

// write sends a copy of b, waiting for room where there is none. It returns how many bytes it sent.
func (f *flow) write(b []byte) (n int, err error) {
	f.link.mu.Lock()
	defer f.link.mu.Unlock()
	for {
		switch {
		case f.writerGone || f.link.closed:
			return n, net.ErrClosed
		case f.writeDeadline.passed:
			return n, os.ErrDeadlineExceeded
		case len(b) == 0:
			return n, nil
		case f.readerGone: // the bytes are lost with the reader
			f.link.sentBytes += uint64(len(b))
			return n + len(b), nil
		}
		if room := f.maxBytes - f.inFlightBytes; room > 0 {
			sent := min(room, len(b))
			f.enqueue(segment{data: append([]byte(nil), b[:sent]...)})
			f.inFlightBytes += sent
			f.link.sentBytes += uint64(sent)
			n, b = n+sent, b[sent:]
			continue
		}
		f.writable.Wait()
	}
}

// enqueue gives the segment its due time and appends it.
func (f *flow) enqueue(s segment) {
	s.due = time.Now().Add(f.link.delay + f.link.lossDelay(len(s.data)))
	if s.due.Before(f.lastDue) {
		s.due = f.lastDue
	}
	f.lastDue = s.due
	s.lost = f.link.cut
	f.segments = append(f.segments, s)
	f.readable.Broadcast()
}

// resend puts off what was to arrive after the cut until earliest, as retransmissions would.
func (f *flow) resend(cutAt, earliest time.Time) {
	for i := range f.segments {
		if s := &f.segments[i]; s.stalledSince(cutAt) {
			s.lost = false
			if s.due.Before(earliest) {
				s.due = earliest
			}
		}
	}
	if len(f.segments) > 0 {
		f.lastDue = f.segments[len(f.segments)-1].due
	}
	f.readable.Broadcast()
}

// closeWrite ends the stream after all that was written; the reader then reads end. Only the first call counts.
func (f *flow) closeWrite(end error) {
	f.link.mu.Lock()
	defer f.link.mu.Unlock()
	if f.writerGone {
		return
	}
	f.writerGone = true
	f.writeDeadline.stop()
	f.writable.Broadcast()
	if f.readerGone {
		f.forget()
		return
	}
	f.enqueue(segment{end: end})
}

// closeRead drops what has not been read; later writes are lost. Blocked reads return net.ErrClosed.
func (f *flow) closeRead() {
	f.link.mu.Lock()
	defer f.link.mu.Unlock()
	if f.readerGone {
		return
	}
	f.readerGone = true
	// The end is kept: it tells the writer of the other direction that this connection is over.
	if n := len(f.segments); n > 0 && f.segments[n-1].end != nil {
		f.segments = f.segments[n-1:]
	} else {
		f.segments = nil
	}
	f.inFlightBytes = 0
	f.readDeadline.stop()
	f.readable.Broadcast()
	f.writable.Broadcast()
	if f.writerGone {
		f.forget()
	}
}

// ended tells whether the end of the stream has arrived.
func (f *flow) ended() bool {
	f.link.mu.Lock()
	defer f.link.mu.Unlock()
	n := len(f.segments)
	return n > 0 && f.segments[n-1].end != nil && f.arrived(&f.segments[n-1], time.Now())
}

// forget takes the flow off its link once nobody uses it.
func (f *flow) forget() {
	f.stop()
	delete(f.link.flows, f)
}

// stop ends its timers and wakes everyone. The caller holds link.mu.
func (f *flow) stop() {
	if f.wake != nil {
		f.wake.Stop()
	}
	f.readDeadline.stop()
	f.writeDeadline.stop()
	f.readable.Broadcast()
	f.writable.Broadcast()
}

// deadline is one deadline of a flow; guarded by link.mu.
type deadline struct {
	passed bool
	timer  *time.Timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// set arms the deadline; the zero time disarms it. waiters is woken when it passes; its lock is link.mu, which
// the caller does not hold.
func (d *deadline) set(at time.Time, waiters *sync.Cond) {
	waiters.L.Lock()
	defer waiters.L.Unlock()
	d.stop()
	d.passed = false
	if at.IsZero() {
		return
	}
	wait := time.Until(at)
	if wait <= 0 {
		d.passed = true
		waiters.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		waiters.L.Lock()
		defer waiters.L.Unlock()
		if d.timer != timer { // set again meanwhile
			return
		}
		d.passed = true
		waiters.Broadcast()
	})
	d.timer = timer
}
