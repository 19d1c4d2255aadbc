package peer

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
	"github.com/logmirror/logmirror/internal/wan"
)

const (
	us, eu, ap = 1, 2, 3
	roundTrip  = 80 * time.Millisecond
)

var regions = map[uint64]string{us: "us", eu: "eu", ap: "ap"}

// node is one member as its transport sees it.
type node struct {
	*Transport
	id       uint64
	server   *directstream.Combined
	check    func(h *logv1.PeerHandshake) error
	hold     chan struct{} // while not nil, Receive waits for it
	mu       sync.Mutex
	received map[uint64][]*logv1.PeerFrame
	unsent   []*logv1.PeerFrame
	lost     int
	refused  error
}

func (n *node) Handshake() *logv1.PeerHandshake { return &logv1.PeerHandshake{MemberId: n.id} }

func (n *node) Check(h *logv1.PeerHandshake) error {
	if n.check != nil {
		return n.check(h)
	}
	return nil
}

func (n *node) Receive(ctx context.Context, from uint64, frames []*logv1.PeerFrame) {
	n.mu.Lock()
	hold := n.hold
	n.received[from] = append(n.received[from], frames...)
	n.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	}
}

func (n *node) Unsent(_ context.Context, _ uint64, frames []*logv1.PeerFrame) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unsent = append(n.unsent, frames...)
}

func (n *node) Unreachable(context.Context, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost++
}

func (n *node) Refused(_ uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refused = err
}

func (n *node) got(from uint64) []*logv1.PeerFrame {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.received[from]
}

type peers struct {
	t       *testing.T
	network *wan.Network
	nodes   map[uint64]*node
	config  Config
}

func bubble(t *testing.T, config Config, test func(t *testing.T, p *peers)) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{t: t, nodes: map[uint64]*node{}, config: config, network: wan.New(wan.Options{InMemory: true,
			RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: roundTrip, {A: "us", B: "ap"}: roundTrip, {A: "eu", B: "ap"}: roundTrip}})}
		for _, id := range []uint64{us, eu, ap} {
			p.start(id)
		}
		time.Sleep(time.Second)
		test(t, p)
		for _, n := range p.nodes {
			n.stop()
		}
		p.network.Close()
	})
}

func (p *peers) start(id uint64) *node { return p.startChecking(id, nil) }

func (p *peers) startChecking(id uint64, check func(h *logv1.PeerHandshake) error) *node {
	p.t.Helper()
	n := &node{id: id, check: check, received: map[uint64][]*logv1.PeerFrame{}}
	config := p.config
	config.ID, config.Handler, config.Dial = id, n, p.network.Region(regions[id]).Dial
	n.Transport = New(config)
	n.server = directstream.NewCombined(directstream.ServerConfig{}, nil, grpc.WaitForHandlers(true))
	n.Register(n.server)
	listener, err := p.network.Region(regions[id]).Listen(regions[id] + ":1")
	if err != nil {
		p.t.Fatal(err)
	}
	go func(s *directstream.Combined, l net.Listener) { _ = s.Serve(l) }(n.server, listener)
	if err := n.SetMembers(map[uint64]string{us: "us:1", eu: "eu:1", ap: "ap:1"}); err != nil {
		p.t.Fatal(err)
	}
	p.nodes[id] = n
	return n
}

func (n *node) stop() {
	n.server.Stop()
	n.Close()
}

func question(id uint64) *logv1.PeerFrame {
	return &logv1.PeerFrame{Frame: &logv1.PeerFrame_Question{Question: &logv1.RoundQuestion{Id: id}}}
}

func proposal(seq uint64, bytes int) *logv1.PeerFrame {
	return &logv1.PeerFrame{Frame: &logv1.PeerFrame_Proposal{Proposal: &logv1.ForwardedProposal{
		Proposal: &logv1.Proposal{Seq: seq, Payload: make([]byte, bytes)}}}}
}

func raftMessage(bytes int) *logv1.PeerFrame {
	return &logv1.PeerFrame{Frame: &logv1.PeerFrame_RaftMessage{RaftMessage: make([]byte, bytes)}}
}

func TestFramesArriveInOrderAfterHalfARoundTrip(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, p *peers) {
		for id := range uint64(1000) {
			if unsent := p.nodes[us].Send(eu, []*logv1.PeerFrame{question(2 * id), question(2*id + 1)}); unsent != nil {
				t.Fatal("unsent", unsent)
			}
		}
		time.Sleep(roundTrip/2 + time.Microsecond)
		got := p.nodes[eu].got(us)
		if len(got) != 2000 {
			t.Fatalf("%d frames", len(got))
		}
		for i, f := range got {
			if f.GetQuestion().GetId() != uint64(i) {
				t.Fatalf("frame %d is %v", i, f)
			}
		}
		for _, other := range []uint64{eu, ap} {
			if h := p.nodes[us].Health(other); h.RoundTrip != roundTrip || !h.Connected || time.Since(h.LastHeard) > 2*time.Second {
				t.Errorf("health of %d: %+v", other, h)
			}
		}
		if h := p.nodes[us].Health(99); h.RoundTrip >= 0 || h.Connected {
			t.Errorf("health of nobody: %+v", h)
		}
	})
}

// A target that takes nothing costs a bounded queue: old raft frames make room, and proposals come back.
func TestStalledTarget(t *testing.T) {
	bubble(t, Config{QueueBytes: 1 << 20, QueueFrames: 1000}, func(t *testing.T, p *peers) {
		sender, hold := p.nodes[us], make(chan struct{})
		p.nodes[eu].mu.Lock()
		p.nodes[eu].hold = hold
		p.nodes[eu].mu.Unlock()
		for range 400 { // fills the connection, then the queue
			sender.Send(eu, []*logv1.PeerFrame{raftMessage(100 << 10)})
			time.Sleep(time.Millisecond)
		}
		if h := sender.Health(eu); h.QueuedBytes > 1<<20 || h.QueuedBytes == 0 {
			t.Errorf("%d bytes are queued", h.QueuedBytes)
		}
		var unsent []*logv1.PeerFrame
		for seq := range uint64(30) {
			unsent = append(unsent, sender.Send(eu, []*logv1.PeerFrame{proposal(seq, 100<<10)})...)
		}
		if len(unsent) == 0 || len(unsent) == 30 {
			t.Errorf("%d of 30 proposals came back", len(unsent))
		}
		// The others notice nothing.
		sender.Send(ap, []*logv1.PeerFrame{question(7)})
		time.Sleep(roundTrip)
		if got := p.nodes[ap].got(us); len(got) != 1 {
			t.Errorf("%d frames at ap", len(got))
		}
		close(hold)
		time.Sleep(10 * time.Second)
		arrived := 0
		for _, f := range p.nodes[eu].got(us) {
			if f.GetProposal() != nil {
				arrived++
			}
		}
		if arrived+len(unsent) != 30 {
			t.Errorf("%d proposals arrived and %d came back, of 30", arrived, len(unsent))
		}
		sender.mu.Lock()
		defer sender.mu.Unlock()
		if sender.lost == 0 {
			t.Error("nobody was told of the loss")
		}
	})
}

// A round trip that was long once, as the first one is whose answer waits for a stream, is forgotten with the next one that is not.
func TestALongRoundTripIsForgotten(t *testing.T) {
	l := &link{}
	for id, sample := range []time.Duration{2 * time.Second, 80 * time.Millisecond} {
		l.pingID, l.pingAt = uint64(id), time.Now().Add(-sample)
		l.heard(&logv1.Ping{Id: uint64(id)})
	}
	if got := l.health().RoundTrip; got < 80*time.Millisecond || got > time.Second {
		t.Errorf("round trip %v", got)
	}
}

// A target that is down gives proposals back at once, and is found again when it comes back.
func TestTargetThatIsDown(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, p *peers) {
		p.nodes[eu].stop()
		time.Sleep(time.Second)
		if unsent := p.nodes[us].Send(eu, []*logv1.PeerFrame{question(1), proposal(1, 1)}); len(unsent) != 1 {
			t.Errorf("unsent %v", unsent)
		}
		time.Sleep(20 * time.Second)
		back := p.start(eu)
		time.Sleep(2 * time.Second)
		if unsent := p.nodes[us].Send(eu, []*logv1.PeerFrame{question(2), proposal(2, 1)}); len(unsent) != 0 {
			t.Errorf("unsent %v", unsent)
		}
		time.Sleep(roundTrip)
		if got := back.got(us); len(got) != 2 || got[0].GetQuestion().GetId() != 2 {
			t.Errorf("got %v", got)
		}
	})
}

// However long a cut was, the stream is there again a few round trips after the heal.
func TestStreamComesBackSoonAfterALongCut(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, p *peers) {
		connected := func() bool { return p.nodes[us].Health(ap).Connected }
		for attempt := range 20 {
			p.network.Isolate("ap")
			time.Sleep(time.Minute + time.Duration(attempt)*317*time.Millisecond) // to heal at any moment of an attempt
			if connected() {
				t.Fatal("the stream outlives a cut of a minute")
			}
			p.network.Rejoin("ap")
			healed := time.Now()
			for !connected() && time.Since(healed) < time.Minute {
				time.Sleep(time.Millisecond)
			}
			// Three round trips, after an attempt that ended just before its answer came, and the rest after that.
			if took := time.Since(healed); took > 6*roundTrip+150*time.Millisecond {
				t.Errorf("after %v", took)
			}
		}
	})
}

// What waits for a stream that breaks comes back as far as it is proposals.
func TestBrokenStreamGivesProposalsBack(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, p *peers) {
		hold := make(chan struct{})
		p.nodes[eu].mu.Lock()
		p.nodes[eu].hold = hold
		p.nodes[eu].mu.Unlock()
		for p.nodes[us].Health(eu).QueuedBytes < 10<<20 { // once the connection takes no more
			p.nodes[us].Send(eu, []*logv1.PeerFrame{raftMessage(100 << 10)})
			time.Sleep(time.Millisecond)
		}
		p.nodes[us].Send(eu, []*logv1.PeerFrame{proposal(1, 1)})
		p.network.Isolate("eu")
		time.Sleep(directstream.SilenceMax + directstream.AliveInterval)
		close(hold)
		p.nodes[us].mu.Lock()
		defer p.nodes[us].mu.Unlock()
		if len(p.nodes[us].unsent) != 1 {
			t.Errorf("unsent %v", p.nodes[us].unsent)
		}
	})
}

func TestRefusals(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, p *peers) {
		p.nodes[eu].stop()
		time.Sleep(2 * time.Second)
		// eu comes back and will have nothing of us, in either direction.
		refusal := errors.New("another log")
		back := p.startChecking(eu, func(h *logv1.PeerHandshake) error {
			if h.GetMemberId() == us {
				return refusal
			}
			return nil
		})
		time.Sleep(5 * time.Second)
		p.nodes[us].mu.Lock()
		err := p.nodes[us].refused
		p.nodes[us].mu.Unlock()
		if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != refusal.Error() {
			t.Errorf("us was told %v", err)
		}
		back.mu.Lock()
		if back.refused != nil {
			t.Errorf("eu took its own refusal for another's: %v", back.refused)
		}
		back.mu.Unlock()
		if h := back.Health(us); h.Connected {
			t.Error("eu is connected to us")
		}
		if h := back.Health(ap); !h.Connected {
			t.Error("eu is not connected to ap")
		}
	})
}

// A member that is addressed by the wrong id says so.
func TestWrongAddress(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, p *peers) {
		if err := p.nodes[us].SetMembers(map[uint64]string{eu: "ap:1", ap: "ap:1"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if p.nodes[us].Health(eu).Connected || !p.nodes[us].Health(ap).Connected {
			t.Errorf("eu at ap's address: %+v", p.nodes[us].Health(eu))
		}
		p.nodes[us].mu.Lock()
		defer p.nodes[us].mu.Unlock()
		if status.Code(p.nodes[us].refused) != codes.FailedPrecondition {
			t.Errorf("told %v", p.nodes[us].refused)
		}
	})
}
