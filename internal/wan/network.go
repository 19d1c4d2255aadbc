package wan

import (
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Pair names two regions, in any order.
type Pair struct{ A, B string }

// canonical is the pair with its names in order.
func (p Pair) canonical() Pair {
	if p.A > p.B {
		p.A, p.B = p.B, p.A
	}
	return p
}

// Options of a Network. The zero value is a TCP network without delays.
type Options struct {
	RoundTrips map[Pair]time.Duration // pairs not named have none
	InMemory   bool                   // connections in memory rather than TCP on loopback
	Seed       uint64                 // of the draws that decide which packets are lost

	// MaxBytesInFlight bounds what one direction of one connection holds, under way or unread. Default 4 MiB:
	// twenty megabytes a second over a round trip of 400 ms.
	MaxBytesInFlight int
	// RetransmissionTimeout is what a lost packet costs on top of one more round trip; it doubles when the same
	// packet is lost again. Default 200 ms, the least that Linux waits.
	RetransmissionTimeout time.Duration
	// AcceptBacklog bounds the connections of one listener in memory that nobody has accepted; dials beyond it
	// wait. Default 128.
	AcceptBacklog int
}

// Network is a set of regions and the links between them. Create it with New and end it with Close.
type Network struct {
	options Options
	pumps   sync.WaitGroup // goroutines that move bytes between TCP sockets and flows

	mu         sync.Mutex
	regions    map[string]*Region
	roundTrips map[Pair]time.Duration // canonical pairs
	links      map[direction]*link
	isolated   map[string]bool
	owners     map[string]string          // address -> region, kept when its listener closes
	aliases    map[string]string          // address -> the address that is dialed instead
	listeners  map[string]*memoryListener // in memory only
	lastPort   int                        // in memory only: given last for port 0
	sockets    map[net.Conn]struct{}      // TCP only: dialed
	closed     bool
}

type direction struct{ from, to string }

// New returns a network without listeners. Regions come into being when they are first named.
func New(o Options) *Network {
	if o.MaxBytesInFlight <= 0 {
		o.MaxBytesInFlight = 4 << 20
	}
	if o.RetransmissionTimeout <= 0 {
		o.RetransmissionTimeout = 200 * time.Millisecond
	}
	if o.AcceptBacklog <= 0 {
		o.AcceptBacklog = 128
	}
	n := &Network{
		options:    o,
		regions:    make(map[string]*Region),
		roundTrips: make(map[Pair]time.Duration),
		links:      make(map[direction]*link),
		isolated:   make(map[string]bool),
		owners:     make(map[string]string),
		aliases:    make(map[string]string),
		listeners:  make(map[string]*memoryListener),
		sockets:    make(map[net.Conn]struct{}),
		lastPort:   49151,
	}
	for pair, roundTrip := range o.RoundTrips {
		n.roundTrips[pair.canonical()] = roundTrip
	}
	for pair := range n.roundTrips {
		n.Region(pair.A)
		n.Region(pair.B)
	}
	return n
}

// Region returns the region of that name, the same one at every call.
func (n *Network) Region(name string) *Region {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.region(name)
}

func (n *Network) region(name string) *Region {
	r := n.regions[name]
	if r == nil {
		r = &Region{name: name, network: n}
		n.regions[name] = r
	}
	return r
}

// link returns the link of one direction.
func (n *Network) link(from, to string) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.linkLocked(from, to)
}

func (n *Network) linkLocked(from, to string) *link {
	key := direction{from, to}
	l := n.links[key]
	if l != nil {
		return l
	}
	n.region(from)
	n.region(to)
	l = &link{
		from: from, to: to, local: from == to,
		retransmitAfter: n.options.RetransmissionTimeout,
		random:          rand.New(rand.NewPCG(n.options.Seed, hashNames(from, to))),
		closed:          n.closed,
		flows:           make(map[*flow]struct{}),
	}
	if !l.local {
		l.delay = n.oneWay(from, to)
		if n.isolated[from] || n.isolated[to] {
			l.sever()
		}
	}
	n.links[key] = l
	return l
}

// hashNames gives each link a random stream of its own (FNV-1a over both names).
func hashNames(names ...string) uint64 {
	hash := uint64(14695981039346656037)
	for _, name := range names {
		for _, b := range append([]byte(name), 0) {
			hash = (hash ^ uint64(b)) * 1099511628211
		}
	}
	return hash
}

// oneWay is half the round trip; of an odd number of nanoseconds the way up the alphabet takes the rest.
func (n *Network) oneWay(from, to string) time.Duration {
	roundTrip := n.roundTrips[Pair{from, to}.canonical()]
	if from < to {
		return roundTrip - roundTrip/2
	}
	return roundTrip / 2
}

// RoundTrip returns the round trip between two regions; 0 within one.
func (n *Network) RoundTrip(a, b string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a == b {
		return 0
	}
	return n.roundTrips[Pair{a, b}.canonical()]
}

// SetRoundTrip changes the round trip between two regions for all that is sent from now on. Bytes already under
// way keep their time, and later ones do not overtake them. Within one region it has no effect.
func (n *Network) SetRoundTrip(a, b string, roundTrip time.Duration) {
	if a == b {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.roundTrips[Pair{a, b}.canonical()] = roundTrip
	n.linkLocked(a, b).setDelay(n.oneWay(a, b))
	n.linkLocked(b, a).setDelay(n.oneWay(b, a))
}

// SetLoss sets the probability, 0 to 1, with which a packet between two regions is lost and sent again. Within
// one region it has no effect.
func (n *Network) SetLoss(a, b string, probability float64) {
	if a == b {
		return
	}
	n.link(a, b).setLoss(probability)
	n.link(b, a).setLoss(probability)
}

// Cut silences the links between two regions, both ways. Within one region it has no effect.
func (n *Network) Cut(a, b string) {
	n.link(a, b).sever()
	n.link(b, a).sever()
}

// CutOneWay silences the link from one region to another and leaves the way back.
func (n *Network) CutOneWay(from, to string) { n.link(from, to).sever() }

// Heal ends every cut between two regions.
func (n *Network) Heal(a, b string) {
	n.link(a, b).heal()
	n.link(b, a).heal()
}

// HealAll ends every cut and isolation.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.isolated)
	for _, l := range n.links {
		l.heal()
	}
}

// Isolate cuts a region off from all others, also from those that are named later.
func (n *Network) Isolate(region string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isolated[region] = true
	for _, l := range n.linksOf(region) {
		l.sever()
	}
}

// Rejoin ends the isolation of a region and every cut between it and another region that is not isolated.
func (n *Network) Rejoin(region string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.isolated, region)
	for _, l := range n.linksOf(region) {
		if !n.isolated[l.from] && !n.isolated[l.to] {
			l.heal()
		}
	}
}

func (n *Network) linksOf(region string) []*link {
	var links []*link
	for key, l := range n.links {
		if (key.from == region) != (key.to == region) {
			links = append(links, l)
		}
	}
	return links
}

// Traffic returns how many bytes have been sent from one region to another, or within one, since the start.
func (n *Network) Traffic(from, to string) (bytes uint64) { return n.link(from, to).traffic() }

// LinkState is the state of one direction between two regions.
type LinkState struct {
	From, To        string
	Delay           time.Duration // of this direction
	LossProbability float64       // of one packet
	Cut             bool
	SentBytes       uint64 // since the start, also what a cut holds back
}

// Links returns the state of every direction between two regions, sorted by names.
func (n *Network) Links() []LinkState {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := slices.Sorted(maps.Keys(n.regions))
	var states []LinkState
	for _, from := range names {
		for _, to := range names {
			if from != to {
				states = append(states, n.linkLocked(from, to).state())
			}
		}
	}
	return states
}

// Regions returns the names of all regions named so far, sorted.
func (n *Network) Regions() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.regions))
}

// Alias makes dials to one address go to another: for a part that is known by an address which it could not get
// again. An empty target removes it.
func (n *Network) Alias(address, target string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if target == "" || target == address {
		delete(n.aliases, address)
		return
	}
	n.aliases[address] = target
}

// Close ends every connection and listener in memory and every dialed TCP connection, at once and without a
// farewell, and returns when all goroutines of the network have ended. TCP listeners belong to their callers.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	links := slices.Collect(maps.Values(n.links))
	listeners := slices.Collect(maps.Values(n.listeners))
	sockets := slices.Collect(maps.Keys(n.sockets))
	n.mu.Unlock()
	for _, ln := range listeners {
		_ = ln.Close() // never fails
	}
	for _, l := range links {
		l.close()
	}
	for _, s := range sockets {
		_ = s.Close() // there is nobody left to tell
	}
	n.pumps.Wait()
}
