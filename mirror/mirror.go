package mirror

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/observe/tracing"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/image"
)

// applyVersionMin is the lowest apply version that this build understands; the highest is the state machine's to say.
const applyVersionMin = 1

// Mirror is one frontend's copy of the state. See the package comment.
type Mirror struct {
	config    Config
	directory *dataDirectory
	client    *logclient.Client
	machine   *statemachine.Machine
	image     *image.Image
	observers []Observer
	metrics   *metrics
	session   *sessions
	proposals proposalPool
	writes    writes
	// checkpoints belongs to the goroutine that applies.
	checkpoints *checkpoints
	rounds      *rounds
	ticks       *ticks
	syncs       *syncs
	digests     *digests

	ctx        context.Context
	cancel     context.CancelCauseFunc
	goroutines sync.WaitGroup
	// done is closed when everything has ended.
	done chan struct{}

	indexes   waiters
	revisions waiters
	ready     chan struct{}
	// published is the highest published index that a member told with its tail.
	published atomic.Uint64
	killed    atomic.Bool
}

// Start opens the data directory and begins to tail. It returns an error for what waiting cannot heal: a data directory
// of another frontend, one in use, an invalid Config. It does not wait for the log.
func Start(config Config) (*Mirror, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	metrics, err := newMetrics(config.Registerer)
	if err != nil {
		return nil, err
	}
	directory, err := openDataDirectory(config.DataDir, config.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m := &Mirror{
		config:    config,
		directory: directory,
		metrics:   metrics,
		ctx:       ctx,
		cancel:    cancel,
		done:      make(chan struct{}),
		ready:     make(chan struct{}),
	}
	m.indexes.max, m.revisions.max = config.Waiters, config.Waiters
	if err := m.openImage(); err != nil {
		cancel(err)
		directory.close()
		return nil, err
	}
	// The image may know the log that the frontend has met before it opened its first session there.
	if m.client, err = logclient.Open(logConfig(&config, directory, m.image.Identity())); err != nil {
		cancel(err)
		m.image.Close(false)
		directory.close()
		return nil, err
	}
	m.session = newSessions(m)
	m.writes.mirror = m
	m.checkpoints = newCheckpoints(m)
	m.rounds = newRounds(m)
	m.ticks = newTicks(m)
	m.syncs, m.digests = newSyncs(m), newDigests(m)
	if config.NewObservers != nil {
		m.observers = config.NewObservers(m.machine, m)
	}
	if err := metrics.observe(m, config.Registerer); err != nil {
		cancel(err)
		m.image.Close(false)
		m.client.Close()
		directory.close()
		return nil, err
	}
	m.startImage()
	m.session.start()
	m.syncs.start()
	m.goroutines.Go(m.run)
	m.goroutines.Go(m.session.persistLoop)
	m.goroutines.Go(m.rounds.run)
	m.goroutines.Go(m.digests.scrubLoop)
	m.goroutines.Go(m.watchClient)
	go m.end()
	return m, nil
}

// logConfig says how this frontend reaches its log: the one that its identity names, else that of its image.
func logConfig(config *Config, directory *dataDirectory, known image.Identity) logclient.Config {
	c, record := config.Log, &directory.record
	c.Name, c.Region, c.FrontendID = config.Name, config.Region, record.FrontendID
	c.ClusterID, c.Epoch = record.ClusterID, record.Epoch
	if c.ClusterID == 0 {
		c.ClusterID, c.Epoch = known.ClusterID, known.Epoch
	}
	if c.MembersFile == "" {
		c.MembersFile = filepath.Join(config.DataDir, membersFile)
	}
	if c.Logger == nil {
		c.Logger = config.Logger
	}
	return c
}

// Stop ends the mirror, commits what was applied to the image, and waits for its goroutines. Calls that wait get ErrStopped, as ErrNotApplied or ErrUnknown where
// they are proposals. The session is left to end by itself, or with the next start.
func (m *Mirror) Stop() {
	m.fail(ErrStopped)
	<-m.done
}

// Kill ends the mirror like a crash of the process would, for tests: the image stays at its last commit.
func (m *Mirror) Kill() {
	m.killed.Store(true)
	m.Stop()
}

// Done is closed when the mirror has ended.
func (m *Mirror) Done() <-chan struct{} { return m.done }

// Err says why the mirror ends or has ended; nil while it works, ErrStopped after Stop.
func (m *Mirror) Err() error { return context.Cause(m.ctx) }

func (m *Mirror) fail(err error) {
	if m.ctx.Err() == nil && !errors.Is(err, ErrStopped) {
		m.config.Logger.Error("the mirror stops", "reason", err)
	}
	m.cancel(err)
}

// end takes everything down once the context has ended.
func (m *Mirror) end() {
	<-m.ctx.Done()
	reason := context.Cause(m.ctx)
	if !errors.Is(reason, ErrStopped) {
		reason = fmt.Errorf("%w: %w", ErrStopped, reason)
	}
	m.session.stop(reason)
	m.ticks.stop()
	m.syncs.stop()
	m.client.Close()
	m.goroutines.Wait()
	quarantined := (*QuarantineError)(nil)
	m.image.Close(!m.killed.Load() && !errors.As(reason, &quarantined))
	m.directory.close()
	close(m.done)
}

// watchClient ends the mirror when the log client can never work again.
func (m *Mirror) watchClient() {
	select {
	case <-m.client.Done():
		m.fail(m.client.Err())
	case <-m.ctx.Done():
	}
}

// ProposeOptions say how a command is proposed.
type ProposeOptions struct {
	// WaitForLog lets the command wait for a log that is away until its context ends.
	WaitForLog bool
}

// Propose hands a command to the log and waits until this mirror has applied it. The result says what apply decided.
// The error, if there is one, matches ErrNotApplied or ErrUnknown, and beside it what the reason was: ErrUnavailable,
// ErrOverloaded, ErrTooLarge, ErrStopped or the error of ctx. The command may be reused once Propose returns.
func (m *Mirror) Propose(ctx context.Context, command *commandv1.Command, o ProposeOptions) (statemachine.Result, error) {
	outcome, err := m.proposeAndWait(ctx, command, o)
	return outcome.result, err
}

func (m *Mirror) proposeAndWait(ctx context.Context, command *commandv1.Command, o ProposeOptions) (proposalOutcome, error) {
	if err := ctx.Err(); err != nil {
		return proposalOutcome{}, fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	p := m.proposals.get()
	if err := m.config.prepare(p, command, o); err != nil {
		return proposalOutcome{}, err
	}
	span := tracing.Propose(ctx, m.config.Tracer)
	p.trace = span.Context()
	m.await(ctx, p)
	outcome := p.outcome
	span.End(outcome.err)
	m.writes.ended(ctx, p, outcome.err)
	m.proposals.put(p)
	return outcome, outcome.err
}

// await hands a proposal over and waits for its outcome.
func (m *Mirror) await(ctx context.Context, p *proposal) {
	m.session.propose(p)
	select {
	case <-p.done:
		return
	case <-ctx.Done():
	}
	// Either its outcome has come meanwhile, or leaving gives it one.
	m.session.leave(p)
	<-p.done
	if err := &p.outcome.err; *err != nil {
		*err = fmt.Errorf("%w: %w", *err, context.Cause(ctx))
	}
}

// Linearize returns when this mirror has applied every write that was acknowledged anywhere before the call, with an
// index at or below which they all lie. The error matches ErrUnavailable where the log did not answer.
func (m *Mirror) Linearize(ctx context.Context) (index uint64, err error) {
	index, err = m.rounds.join(ctx)
	if err != nil {
		return 0, err
	}
	return index, m.WaitApplied(ctx, index)
}

// WaitApplied returns when the entry at index has been applied. The error is ctx's, ErrOverloaded or ErrStopped.
func (m *Mirror) WaitApplied(ctx context.Context, index uint64) error {
	return m.indexes.wait(ctx, index, m.ctx.Done())
}

// WaitRevision returns when the key space has reached revision. The error is ctx's, ErrOverloaded or ErrStopped.
func (m *Mirror) WaitRevision(ctx context.Context, revision int64) error {
	return m.revisions.wait(ctx, uint64(max(revision, 0)), m.ctx.Done())
}

// Age bounds how old the state is: it held every write acknowledged anywhere up to that long ago. False while no read
// round has been applied.
func (m *Mirror) Age() (time.Duration, bool) { return m.rounds.age() }

// AppliedIndex returns the index of the last entry that was applied.
func (m *Mirror) AppliedIndex() uint64 { return m.indexes.reached.Load() }

// Machine returns the state machine, for reading.
func (m *Mirror) Machine() *statemachine.Machine { return m.machine }

// Ready is closed when the first read round has been applied.
func (m *Mirror) Ready() <-chan struct{} { return m.ready }

// Identity tells who this frontend is at this moment.
func (m *Mirror) Identity() Identity {
	id := m.session.identity()
	clusterID, epoch := m.client.Identity()
	id.Name, id.Region, id.FrontendID = m.config.Name, m.config.Region, m.client.FrontendID()
	id.Epoch, id.ClusterID = epoch, clusterID
	if id.ClusterID == 0 {
		id.ClusterID = m.machine.ClusterID()
	}
	return id
}

// SessionHolder returns the session that this process may act as the holder of, and until when on Config.Clock. False
// where there is none; a time that has passed means that the session may have ended.
func (m *Mirror) SessionHolder() (session uint64, until time.Duration, ok bool) {
	return m.session.holder()
}

// LogStatus asks every member of the log for its status.
func (m *Mirror) LogStatus(ctx context.Context) []logclient.MemberStatus { return m.client.Status(ctx) }

// Health tells what keeps the mirror from full service, for people; empty for nothing.
func (m *Mirror) Health() []string {
	var degraded []string
	if err := m.Err(); err != nil {
		return append(degraded, "stopped: "+err.Error())
	}
	if since, unreachable := m.client.Unreachable(); unreachable {
		degraded = append(degraded, fmt.Sprintf("log unreachable for %s", time.Since(since).Round(time.Second)))
	}
	select {
	case <-m.ready:
	default:
		degraded = append(degraded, "not caught up since the start: "+m.progress())
		return degraded
	}
	if age, ok := m.Age(); ok && age > 5*m.config.AgeInterval {
		degraded = append(degraded, fmt.Sprintf("state may be %s old: %s", age.Round(100*time.Millisecond), m.progress()))
	}
	if reason := m.session.trouble(); reason != "" {
		degraded = append(degraded, reason)
	}
	return degraded
}

func (m *Mirror) progress() string {
	return fmt.Sprintf("applied %d of %d published", m.AppliedIndex(), m.published.Load())
}

func (m *Mirror) openPayload(incarnation uint64) []byte {
	payload, err := m.config.openPayload(m.client.FrontendID(), incarnation, m.machine.Understands())
	if err != nil {
		m.fail(err)
	}
	return payload
}

// openPayload asks for a session. The error is for a name, region or URL that is not UTF-8.
func (c *Config) openPayload(frontendID, incarnation uint64, applyVersionMax uint32) ([]byte, error) {
	payload, err := proto.Marshal(&logv1.OpenSession{
		FrontendId:      frontendID,
		Incarnation:     incarnation,
		FrontendName:    c.Name,
		Region:          c.Region,
		ClientUrls:      c.ClientURLs,
		ApplyVersionMin: applyVersionMin,
		ApplyVersionMax: applyVersionMax,
	})
	if err != nil {
		return nil, fmt.Errorf("encode the opening of a session: %w", err)
	}
	return payload, nil
}
