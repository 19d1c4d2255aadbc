package playground

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/internal/version"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/logservice"
)

const (
	// tickInterval is the log members' unit of time.
	tickInterval = 50 * time.Millisecond
	// segmentBytes is the size of the files of the log, of which each member reserves two: smaller than in production,
	// so that the first start is quick.
	segmentBytes = 16 << 20
)

// Cluster is a running cluster. All methods may be called from any goroutine.
type Cluster struct {
	config  Config
	network *wan.Network
	dir     *dataDir

	// Fixed before Start returns; the parts guard themselves.
	frontends []*part[*frontend.Server]

	ready    chan struct{}
	done     chan struct{}
	stopping context.Context
	stop     context.CancelFunc
	waiter   sync.WaitGroup // of the goroutine that closes ready

	mu      sync.Mutex
	members []*part[*logservice.Server]
	err     error // why done is closed
}

// Start starts a cluster and returns as soon as its parts run; Ready tells when they serve. After an error nothing is
// left running.
func Start(config Config) (_ *Cluster, err error) {
	config, err = config.withDefaults()
	if err != nil {
		return nil, err
	}
	dir, err := openDataDir(config.DataDir, config.Regions)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		config: config, dir: dir,
		network: wan.New(wan.Options{RoundTrips: config.RoundTrips, InMemory: config.InMemory, Seed: config.Seed}),
		ready:   make(chan struct{}), done: make(chan struct{}),
	}
	c.stopping, c.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			c.shut((*logservice.Server).Kill, (*frontend.Server).Kill)
		}
	}()
	if err := c.startMembers(); err != nil {
		return nil, err
	}
	if err := c.startFrontends(); err != nil {
		return nil, err
	}
	c.waiter.Go(c.awaitReady)
	return c, nil
}

// startMembers opens all their listeners first, because each member is told where the others are.
func (c *Cluster) startMembers() error {
	listeners := make([]*reserved, len(c.dir.layout.Log))
	defer func() {
		for _, l := range listeners {
			l.release()
		}
	}()
	initial := make([]logservice.InitialMember, len(c.dir.layout.Log))
	for i := range c.dir.layout.Log {
		m := &c.dir.layout.Log[i]
		listener, err := c.listenMember(*m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		listeners[i] = &reserved{listener: listener}
		if m.Address != "" {
			// Whoever remembers the old address finds the member all the same.
			c.network.Alias(m.Address, listener.Addr().String())
		}
		m.Address = listener.Addr().String()
		initial[i] = logservice.InitialMember{Name: m.Name, Region: m.Region, Address: m.Address}
	}
	if c.dir.layout.Changed {
		initial = nil // all have begun, some of them later
	}
	if err := c.dir.save(); err != nil {
		return err
	}
	for i, m := range c.dir.layout.Log {
		p := c.addPart(m, listeners[i], func(config *logservice.Config) error {
			config.InitialCluster = initial
			return nil
		})
		if err := p.begin(); err != nil {
			return err
		}
	}
	return nil
}

// addPart makes a log member a part of the cluster. begin completes its configuration before each start.
func (c *Cluster) addPart(m layoutMember, listener *reserved, begin func(*logservice.Config) error) *part[*logservice.Server] {
	p := &part[*logservice.Server]{name: m.Name, region: m.Region, address: m.Address, ended: c.memberEnded}
	p.start = func() (*logservice.Server, error) { return c.startMember(p, listener, begin) }
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = append(c.members, p)
	return p
}

// memberParts are the log members there are now.
func (c *Cluster) memberParts() []*part[*logservice.Server] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

// listenMember prefers the address of the last time, which others may know; a port that is taken meanwhile is no
// reason not to start.
func (c *Cluster) listenMember(m layoutMember) (net.Listener, error) {
	region := c.network.Region(m.Region)
	if c.config.InMemory {
		return region.Listen(m.Name + ":1")
	}
	host, _, err := splitListen(c.config.Listen, 1)
	if err != nil {
		return nil, err
	}
	if m.Address != "" {
		listener, err := region.Listen(m.Address)
		if err == nil {
			return listener, nil
		}
		c.config.Logger.Warn("a log member cannot have its old address back and takes another",
			"member", m.Name, "address", m.Address, "error", err)
	}
	return region.Listen(net.JoinHostPort(host, "0"))
}

// reserved is a listener that was opened before its part is started for the first time.
type reserved struct{ listener net.Listener }

// take returns the listener, once.
func (r *reserved) take() (net.Listener, bool) {
	listener := r.listener
	r.listener = nil
	return listener, listener != nil
}

func (r *reserved) release() {
	if r == nil {
		return
	}
	if listener, ok := r.take(); ok {
		_ = listener.Close() // its part never started
	}
}

func (c *Cluster) listenAgain(first *reserved, region, address string) (net.Listener, error) {
	if listener, ok := first.take(); ok {
		return listener, nil
	}
	return c.network.Region(region).Listen(address)
}

func (c *Cluster) startMember(p *part[*logservice.Server], first *reserved,
	begin func(*logservice.Config) error) (*logservice.Server, error) {
	listener, err := c.listenAgain(first, p.region, p.address)
	if err != nil {
		return nil, err
	}
	config := logservice.Config{
		Name: p.name, Region: p.region, Advertise: p.address,
		DataDir:       c.dir.member(p.name),
		FS:            c.config.FS,
		Listener:      listener,
		Dial:          c.network.Region(p.region).Dial,
		Publication:   c.config.Publication,
		LeaderPolicy:  logservice.LeaderPolicy{Region: c.config.LeaderRegion},
		TickInterval:  tickInterval,
		Now:           c.memberNow(p.name),
		ElectionTicks: c.electionTicks(),
		SegmentBytes:  segmentBytes,
		Version:       version.String(),
		Logger:        c.config.Logger.With("process", p.name),
	}
	if c.config.Member != nil {
		c.config.Member(&config)
	}
	if err := begin(&config); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	server, err := logservice.Start(config)
	if err != nil {
		_ = listener.Close() // may be closed already
		return nil, err
	}
	return server, nil
}

func (c *Cluster) clockOf(name string) func() time.Duration {
	if c.config.ProcessClock == nil {
		return c.config.Clock
	}
	return c.config.ProcessClock(name)
}

// memberNow is the clock of a log member, which counts from some time of day.
func (c *Cluster) memberNow(name string) func() time.Time {
	if c.config.ProcessClock == nil {
		return nil
	}
	began, clock := time.Now(), c.config.ProcessClock(name)
	return func() time.Time { return began.Add(clock()) }
}

// electionTicks leaves the log's default in place unless the round trips are longer than it is made for.
func (c *Cluster) electionTicks() int {
	const patience = 4 // round trips
	var longest time.Duration
	for _, roundTrip := range c.config.RoundTrips {
		longest = max(longest, roundTrip)
	}
	if longest <= 200*time.Millisecond {
		return 0
	}
	return int(patience * longest / tickInterval)
}

func (c *Cluster) startFrontends() error {
	// As an operator's flags do, this names the members there are now; the frontends learn of others.
	var log []string
	for _, m := range c.memberParts() {
		log = append(log, m.address)
	}
	for i, region := range c.config.Regions {
		address, err := c.frontendAddress(i)
		if err != nil {
			return err
		}
		listener, err := c.network.Region(region).Listen(address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("the frontend of %s cannot listen on %s, which is in use: "+
				"choose another first port, or port 0 for any free ones", region, address)
		} else if err != nil {
			return fmt.Errorf("the frontend of %s: %w", region, err)
		}
		first := &reserved{listener: listener}
		p := &part[*frontend.Server]{
			name: "frontend-" + region, region: region, address: listener.Addr().String(), ended: c.fail,
		}
		p.start = func() (*frontend.Server, error) { return c.startFrontend(p, first, log) }
		c.frontends = append(c.frontends, p)
		err = p.begin()
		first.release()
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) frontendAddress(i int) (string, error) {
	if c.config.InMemory {
		return "frontend-" + c.config.Regions[i] + ":1", nil
	}
	host, port, err := splitListen(c.config.Listen, len(c.config.Regions))
	if err != nil {
		return "", err
	}
	if port != 0 {
		port += i
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

func (c *Cluster) startFrontend(p *part[*frontend.Server], first *reserved, log []string) (*frontend.Server, error) {
	listener, err := c.listenAgain(first, p.region, p.address)
	if err != nil {
		return nil, err
	}
	config := frontend.Config{
		Name: p.name, Region: p.region, Advertise: p.address,
		DataDir:               c.dir.frontend(p.name),
		Listener:              listener,
		Log:                   log,
		Dial:                  c.network.Region(p.region).Dial,
		WatchProgressInterval: c.config.WatchProgressInterval,
		Clock:                 c.clockOf(p.name),
		Logger:                c.config.Logger.With("process", p.name),
	}
	if c.config.Frontend != nil {
		c.config.Frontend(&config)
	}
	server, err := frontend.Start(config)
	if err != nil {
		_ = listener.Close() // may be closed already
		return nil, err
	}
	return server, nil
}

// awaitReady closes ready once every frontend that was started serves.
func (c *Cluster) awaitReady() {
	for _, p := range c.frontends {
		server, ok := p.current()
		if !ok {
			continue // ended by someone meanwhile
		}
		select {
		case <-server.Ready():
		case <-server.Done():
		case <-c.stopping.Done():
			return
		}
	}
	select {
	case <-c.done:
	default:
		close(c.ready)
	}
}

// fail records that a part ended by itself.
func (c *Cluster) fail(name string, err error) {
	if err == nil {
		err = errors.New("ended without being asked to")
	}
	c.config.Logger.Error("a part of the cluster has ended", "process", name, "error", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("%s: %w", name, err)
		close(c.done)
	}
}

// Ready is closed when every region serves.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// Done is closed when a part has ended without being asked to; Err tells which and why. The others still run.
func (c *Cluster) Done() <-chan struct{} { return c.done }

// Err returns why Done is closed, nil while it is not.
func (c *Cluster) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Network is the network between the regions.
func (c *Cluster) Network() *wan.Network { return c.network }

// DataDir returns where the data is, as an absolute path where that can be found.
func (c *Cluster) DataDir() string {
	if path, err := filepath.Abs(c.config.DataDir); err == nil {
		return path
	}
	return c.config.DataDir
}

// Info says where the parts are. It changes only with the log's members.
func (c *Cluster) Info() Info {
	var info Info
	for _, p := range c.frontends {
		info.Regions = append(info.Regions, RegionInfo{Name: p.region, Frontend: p.address})
	}
	for _, p := range c.memberParts() {
		info.Log = append(info.Log, MemberInfo{Name: p.name, Region: p.region, Address: p.address})
	}
	return info
}

// Stop ends the cluster: frontends in order, then the log members, which have nobody to hand leadership to and nothing
// that is not on disk. When ctx ends before that is done, it cuts all connections, waits for the rest and returns the
// context's error. It is called once.
func (c *Cluster) Stop(ctx context.Context) error {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		c.shut((*logservice.Server).Kill, (*frontend.Server).Stop)
	}()
	select {
	case <-finished:
		return nil
	case <-ctx.Done():
	}
	c.network.Close() // nobody waits for an answer any more
	<-finished
	return ctx.Err()
}

// Kill ends the cluster as a power cut would, as far as that can be had inside one process. It is called instead of
// Stop.
func (c *Cluster) Kill() { c.shut((*logservice.Server).Kill, (*frontend.Server).Kill) }

func (c *Cluster) shut(endMember func(*logservice.Server), endFrontend func(*frontend.Server)) {
	c.stop()
	c.waiter.Wait()
	endAll(c.frontends, endFrontend)
	endAll(c.memberParts(), endMember)
	c.network.Close()
	_ = c.dir.close() // the lock ends with the process in any case
}

// endAll ends all parts that run, at the same time.
func endAll[P process](parts []*part[P], how func(P)) {
	var ending sync.WaitGroup
	for _, p := range parts {
		ending.Go(func() { _ = p.end(how) }) // not running is as good
	}
	ending.Wait()
}
