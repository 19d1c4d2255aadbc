package wan

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// link is one direction between two regions. Every flow over it shares its mutex, which is never held while
// waiting for anything but a condition variable.
type link struct {
	from, to string
	local    bool // within one region: no delay, no loss, never cut

	mu              sync.Mutex
	delay           time.Duration // of one direction
	lossProbability float64       // of one packet
	retransmitAfter time.Duration // a lost packet arrives this much later than it would have
	random          *rand.Rand
	cut             bool
	cutAt           time.Time // meaningful while cut: what was due later has not arrived
	closed          bool      // the network was closed
	sentBytes       uint64
	flows           map[*flow]struct{}
}

// packetBytes is the payload of one packet, the unit that is lost.
const packetBytes = 1460

// maxRetransmissions bounds how often the same bytes are lost in a row.
const maxRetransmissions = 6

// lossDelay draws by how much the loss of packets holds up size bytes. The caller holds l.mu.
func (l *link) lossDelay(size int) time.Duration {
	if l.lossProbability <= 0 {
		return 0
	}
	var slowest time.Duration
	for packets := (size + packetBytes - 1) / packetBytes; packets > 0; packets-- {
		var held time.Duration
		timeout := l.retransmitAfter + 2*l.delay
		for tries := 0; tries < maxRetransmissions && l.random.Float64() < l.lossProbability; tries++ {
			held += timeout
			timeout *= 2
		}
		slowest = max(slowest, held)
	}
	return slowest
}

func (l *link) setDelay(delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
}

func (l *link) setLoss(probability float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lossProbability = probability
}

// sever stalls all that has not arrived yet and all that will be sent.
func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut || l.local {
		return
	}
	l.cut, l.cutAt = true, time.Now()
}

// heal sends all that was stalled again: it arrives after one delay.
func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		return
	}
	l.cut = false
	earliest := time.Now().Add(l.delay)
	for f := range l.flows {
		f.resend(l.cutAt, earliest)
	}
}

// close ends every flow at once; nothing more arrives.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for f := range l.flows {
		f.stop()
	}
	clear(l.flows)
}

func (l *link) state() LinkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LinkState{
		From: l.from, To: l.to, Delay: l.delay, LossProbability: l.lossProbability, Cut: l.cut, SentBytes: l.sentBytes,
	}
}

func (l *link) traffic() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sentBytes
}

func (l *link) count(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sentBytes += uint64(bytes)
}

// cross waits as long as one packet without payload takes over the link: a step of opening a connection.
func (l *link) cross(ctx context.Context) error {
	f := newFlow(l, 1)
	defer f.closeRead()
	f.closeWrite(errCrossed)
	stop := context.AfterFunc(ctx, f.closeRead)
	defer stop()
	_, err := f.read(make([]byte, 1))
	if errors.Is(err, errCrossed) {
		return nil
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	return err
}
