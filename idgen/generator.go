package idgen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// Errors of a Generator. Beside them, those of the state machine that refuse a grant, and the error of the caller's context.
var (
	// ErrUnavailable: the log grants nothing now. Asking again is safe.
	ErrUnavailable = errors.New("idgen: no ids can be had from the log")
	// ErrClosed: the generator was closed.
	ErrClosed = errors.New("idgen: closed")
	// ErrTooManyRanges: blocks of as many ranges as Config.MaxRanges are held already.
	ErrTooManyRanges = errors.New("idgen: too many ranges")
	// ErrTooManyWaiting: as many calls as Config.MaxWaiting wait for numbers of sequences.
	ErrTooManyWaiting = errors.New("idgen: too many calls wait for numbers of sequences")
)

// AheadError says that ids already run as far ahead of the clock as they may: more were asked for than the layout has for
// the time, or the clock is behind the times granted.
type AheadError struct {
	// Wait is how long until the next id can be given.
	Wait time.Duration
}

// Error says how long.
func (e *AheadError) Error() string {
	return fmt.Sprintf("idgen: ids run ahead of the clock; the next can be given in %v", e.Wait.Round(time.Millisecond))
}

// Log is what a Generator needs of the frontend's mirror.
type Log interface {
	// Propose returns when the command was applied here, or with an error when nothing is known of it.
	Propose(ctx context.Context, command *commandv1.Command) (statemachine.Result, error)
}

// Config of a Generator. Zero values mean the defaults named beside them.
type Config struct {
	Log Log
	// ProposeSequence is for the commands of sequences, which are writes of clients; Log.Propose.
	ProposeSequence func(ctx context.Context, command *commandv1.Command) (statemachine.Result, error)
	// Wall is the wall clock; time.Now.
	Wall func() time.Time
	// Clock is CLOCK_BOOTTIME since any fixed point: it must never step, and go on while the machine sleeps.
	Clock func() time.Duration

	// SnowflakeAhead and RaindropAhead are how far ids may run ahead of the clock: 1 s, 4,096,000 ids; 10 s, 163,840 ids.
	SnowflakeAhead, RaindropAhead time.Duration
	// Window is for how much more time a node number is granted at once; 60 s. It is extended when half is used up.
	Window time.Duration
	// BlockSize is how many numbers of a range are asked for at once, at least; 1,000.
	BlockSize int64
	// MaxRanges bounds the ranges of which blocks are held; 8,192.
	MaxRanges int
	// MaxWaiting bounds the calls for numbers of sequences that wait; 16,384.
	MaxWaiting int
	// WaitMax bounds how long one wait for the clock may be; 10 s.
	WaitMax time.Duration
	// ProposalTimeout bounds how long a proposal is waited for; 10 s.
	ProposalTimeout time.Duration
	// RetryPause is the least time between a proposal that failed and the next; 250 ms.
	RetryPause time.Duration

	// Logger takes what operators may want to know; nil discards it.
	Logger *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	setDefault(&c.SnowflakeAhead, time.Second)
	setDefault(&c.RaindropAhead, 10*time.Second)
	setDefault(&c.Window, time.Minute)
	setDefault(&c.BlockSize, 1000)
	setDefault(&c.MaxRanges, 8192)
	setDefault(&c.MaxWaiting, 16384)
	setDefault(&c.WaitMax, 10*time.Second)
	setDefault(&c.ProposalTimeout, 10*time.Second)
	setDefault(&c.RetryPause, 250*time.Millisecond)
	if c.ProposeSequence == nil && c.Log != nil {
		c.ProposeSequence = c.Log.Propose
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](value *T, standard T) {
	var zero T
	if *value == zero {
		*value = standard
	}
}

// Generator gives ids of every kind.
type Generator struct {
	config  Config
	metrics *metrics
	nodes   map[statemachine.IDKind]*source

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	ranges map[rangeKey]*source
	// maxima are those that the log has granted by, for callers who do not name one.
	maxima map[string]int64

	sequencesMu sync.Mutex
	// sequences are those that are asked for at this moment, and sequenceCalls how many calls that are.
	sequences     map[string]*sequence
	sequenceCalls int
}

// rangeKey tells callers apart that ask for the same range with another maximum: which of them is right is for the log to
// say.
type rangeKey struct {
	name string
	max  int64
}

// New returns a generator. It proposes nothing before ids are asked for. Close ends it.
func New(config Config) *Generator {
	g := &Generator{
		config: config.withDefaults(), ranges: make(map[rangeKey]*source), maxima: make(map[string]int64),
		sequences: make(map[string]*sequence),
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.metrics = newMetrics()
	g.nodes = map[statemachine.IDKind]*source{
		statemachine.IDSnowflake: g.newSource("snowflake",
			newNodeCore(statemachine.IDSnowflake, g.config.SnowflakeAhead, g.config.Window)),
		statemachine.IDRaindrop: g.newSource("raindrop",
			newNodeCore(statemachine.IDRaindrop, g.config.RaindropAhead, g.config.Window)),
	}
	for _, kind := range []statemachine.IDKind{statemachine.IDSnowflake, statemachine.IDRaindrop} {
		s := g.nodes[kind]
		g.metrics.observeNode(kind.String(), func() (number int64, left time.Duration, held bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.core.(*nodeCore).holding(s.generator.now())
		})
	}
	g.metrics.register(g.config.Registerer, g.config.Logger)
	return g
}

// now reads both clocks. A core must see readings in order: the lock of its source is held.
func (g *Generator) now() reading {
	return reading{wall: g.config.Wall().UnixNano(), elapsed: g.config.Clock()}
}

// Close ends the proposals under way and waits for them. Calls that wait get ErrClosed.
func (g *Generator) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.running.Wait()
	g.metrics.unregister(g.config.Registerer)
}

// Next returns count new ids of a kind, in ascending order. The slice is the caller's.
func (g *Generator) Next(ctx context.Context, kind statemachine.IDKind, count int64) ([]Block, error) {
	s, ok := g.nodes[kind]
	if !ok || count <= 0 {
		return nil, fmt.Errorf("idgen: %d ids of kind %d: %w", count, kind, statemachine.ErrInvalidCommand)
	}
	return s.next(ctx, count)
}

// Segment returns the next count numbers of a range. highest is the range's highest number, zero for whatever it is. The
// slice is the caller's.
func (g *Generator) Segment(ctx context.Context, name string, highest, count int64) ([]Block, error) {
	if count <= 0 {
		return nil, fmt.Errorf("idgen: %d numbers: %w", count, statemachine.ErrInvalidCommand)
	}
	g.mu.Lock()
	if highest == 0 {
		highest = g.maxima[name]
	}
	key := rangeKey{name, highest}
	s, ok := g.ranges[key]
	if !ok {
		if len(g.ranges) >= g.config.MaxRanges {
			g.mu.Unlock()
			return nil, ErrTooManyRanges
		}
		s = g.newSource("segment", &segmentCore{name: name, max: highest, blockSize: g.config.BlockSize})
		g.ranges[key] = s
	}
	g.mu.Unlock()
	blocks, err := s.next(ctx, count)
	idle := s.idle() // before the lock: a source takes it under its own
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil && highest != 0:
		g.maxima[name] = highest
	case err != nil && g.ranges[key] == s && idle:
		delete(g.ranges, key)
	}
	return blocks, err
}

// core is what a source runs.
type core interface {
	take(now reading, count int64, blocks []Block) (taken []Block, left int64, wait time.Duration)
	propose() (*commandv1.Command, bool)
	decided(command *commandv1.Command, result *statemachine.IDResult, err error) error
	giveBack(blocks []Block)
	want(count int64)
}

// source is one core, its proposal under way and those who wait for it.
type source struct {
	generator *Generator
	generated prometheus.Counter

	mu   sync.Mutex
	core core
	// given is whether anything was ever granted, for idle.
	given bool
	// proposing: a proposal is under way. changed is closed, and made anew, when it is decided.
	proposing bool
	changed   chan struct{}
	// failure is why the last proposal failed, nil where it did not; none is made before retryAt on Config.Clock.
	failure error
	retryAt time.Duration
}

func (g *Generator) newSource(kind string, c core) *source {
	return &source{generator: g, generated: g.metrics.generated.WithLabelValues(kind), core: c, changed: make(chan struct{})}
}

// idle reports that nothing is held and nothing is under way.
func (s *source) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.given && !s.proposing
}

func (s *source) next(ctx context.Context, count int64) ([]Block, error) {
	var blocks []Block
	left := count
	for {
		step := s.step(blocks, left)
		blocks, left = step.blocks, step.left
		err := step.err
		if left == 0 {
			s.generated.Add(float64(count))
			return blocks, nil
		}
		if err == nil {
			err = s.pause(ctx, step)
		}
		s.mu.Lock()
		s.core.want(-left)
		if err != nil {
			s.core.giveBack(blocks)
		}
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// step is what is known after a look at the core: what was taken, and what to wait for where more is wanted.
type step struct {
	blocks  []Block
	left    int64
	wait    time.Duration
	changed <-chan struct{}
	err     error
}

// step takes what can be had, and proposes what is due.
func (s *source) step(blocks []Block, left int64) step {
	s.mu.Lock()
	defer s.mu.Unlock()
	config := &s.generator.config
	now := s.generator.now()
	result := step{changed: s.changed}
	result.blocks, result.left, result.wait = s.core.take(now, left, blocks)
	s.core.want(result.left)
	if !s.proposing && (s.failure == nil || now.elapsed >= s.retryAt) {
		if command, due := s.core.propose(); due {
			if s.proposing = s.generator.start(func() { s.decide(command) }); !s.proposing {
				result.err = ErrClosed
				return result
			}
		}
	}
	switch {
	case result.left == 0 || s.proposing:
	case result.wait == 0 && s.failure != nil:
		result.err = s.failure
	case result.wait == 0:
		result.err = fmt.Errorf("%w: the time of this kind of id is used up", ErrUnavailable)
	case result.wait > config.WaitMax:
		result.err = &AheadError{Wait: result.wait}
	}
	return result
}

// start runs a proposal, unless the generator is closed.
func (g *Generator) start(run func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.running.Go(run)
	return true
}

// pause waits until the core can be asked again.
func (s *source) pause(ctx context.Context, step step) error {
	var due <-chan time.Time
	if step.wait > 0 && step.wait <= s.generator.config.WaitMax {
		timer := time.NewTimer(step.wait)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-step.changed: // where it failed, the next step says so
		return nil
	case <-due:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.generator.ctx.Done():
		return ErrClosed
	}
}

// decide carries a proposal to the log and tells the core what became of it.
func (s *source) decide(command *commandv1.Command) {
	g := s.generator
	ctx, cancel := context.WithTimeout(g.ctx, g.config.ProposalTimeout)
	defer cancel()
	result, err := g.config.Log.Propose(ctx, command)
	switch {
	case err != nil:
		// What became of the proposal is nothing to the caller: a grant that nobody learns of is only a gap.
		err = fmt.Errorf("%w: %v", ErrUnavailable, err)
	case result.Err != nil:
		err = result.Err
	case result.ID == nil:
		err = fmt.Errorf("%w: the decision says nothing of ids", ErrUnavailable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = s.core.decided(command, result.ID, err)
	g.metrics.proposed(err)
	if s.failure != nil {
		s.retryAt = g.config.Clock() + g.config.RetryPause
		if errors.Is(s.failure, statemachine.ErrIDTime) {
			// The clock of this machine is far off, which no request is to blame for.
			s.failure = fmt.Errorf("%w: the clock of this frontend is too far ahead: %v", ErrUnavailable, s.failure)
			g.config.Logger.Error("the clock is too far ahead of the log's for ids", "error", err)
		}
	} else {
		s.given = true
	}
	s.proposing = false
	close(s.changed)
	s.changed = make(chan struct{})
}
