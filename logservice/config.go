package logservice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"

	"github.com/logmirror/logmirror/internal/disk"
)

// Config is a Server's. Name, DataDir and Listener are required.
type Config struct {
	// Name is this member's, as in InitialCluster or as it was added.
	Name string
	// Region is where this member is.
	Region string
	// Advertise is where others reach this member, for status; empty for its address in InitialCluster.
	Advertise string
	// DataDir is this member's alone.
	DataDir string
	// Listener is served from Start on and closed at the end.
	Listener net.Listener
	// Dial connects to other members; nil for TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// ServerCredentials are the listener's, PeerCredentials those for dialing other members; nil for plain connections.
	ServerCredentials, PeerCredentials credentials.TransportCredentials
	// FS holds DataDir; nil for the operating system's.
	FS disk.FS
	// InitialCluster is the first membership of the log, the same names at every member that begins it. Only the first start
	// of these members needs it; later ones take the addresses of these members from here where it is given, and those of
	// all others, and the membership itself, from what the member has learned. A member that is added later has Join
	// instead.
	InitialCluster []InitialMember
	joined         *beginning

	// Publication must be the same at every member.
	Publication  Publication
	LeaderPolicy LeaderPolicy

	// TickInterval is the unit of all timing between members, the same at every member; zero for 50 ms.
	TickInterval time.Duration
	// HeartbeatTicks and ElectionTicks are zero for 2 and 15: a new leader within 2 s of the loss of one, at round trips
	// of up to 200 ms.
	HeartbeatTicks, ElectionTicks int

	// Now is what log time is counted by, while this member leads; nil for time.Now, which is monotonic.
	Now func() time.Time

	// SegmentBytes is the size of a file of the log; zero for 64 MiB.
	SegmentBytes int64
	// MaxPayloadBytes bounds one proposal; zero for 4 MiB.
	MaxPayloadBytes int
	// MaxStreamBytes and MaxForwardBytes bound the proposals whose fate is not known yet, of one frontend's stream and of
	// all streams of this member; zero for 16 MiB and 64 MiB.
	MaxStreamBytes, MaxForwardBytes int
	// MaxUncommittedBytes bounds what a leader has appended and not committed; zero for 64 MiB.
	MaxUncommittedBytes int
	// TailMemoryBytes bounds the published entries that are kept in memory for tails; zero for 32 MiB.
	TailMemoryBytes int
	// TailHeartbeat is the longest time between two messages of a tail; zero for 500 ms.
	TailHeartbeat time.Duration

	// SlowBatchAfter is how long a batch of a frontend may take to be published before operators are told; zero for never.
	SlowBatchAfter time.Duration

	// CheckpointLogBytes is how much log there may be above the newest checkpoint before another one is asked for, and
	// CheckpointAge how much time; zero for 256 MiB and 24 h. A negative age stands for none.
	CheckpointLogBytes int64
	CheckpointAge      time.Duration
	// CheckpointTimeout is the time to make and copy a checkpoint; zero for 10 minutes.
	CheckpointTimeout time.Duration
	// MaxCheckpointBytes bounds one checkpoint; zero for 16 GiB.
	MaxCheckpointBytes int64
	// TailBytes is how much log is kept, as far as checkpoints let it be trimmed; zero for 1 GiB. What is older than
	// TailAge is not kept even where there is room; zero for no such bound.
	TailBytes int64
	TailAge   time.Duration

	// Version is told in status.
	Version    string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Tracer makes the spans of writes that are traced, while this member leads; nil for none.
	Tracer trace.Tracer
}

var (
	// ErrOtherMember says that a data directory belongs to another member or another log.
	ErrOtherMember = errors.New("logservice: the data directory belongs to another member")
	// ErrDamaged says that a file of the data directory is not what was written.
	ErrDamaged = errors.New("logservice: the data directory is damaged")
	// ErrLostData says that others knew this member with another data directory: without it, it has lost its votes and
	// its log.
	ErrLostData = errors.New("logservice: this member has lost its data directory")
	// ErrRemoved says that this member is none of the log's any more.
	ErrRemoved = errors.New("logservice: this member was removed from the log")
	// ErrStopped is returned for what a server was asked after its end.
	ErrStopped = errors.New("logservice: the member has stopped")
)

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Name == "":
		return c, errors.New("logservice: a member needs a name")
	case c.DataDir == "":
		return c, errors.New("logservice: a member needs a data directory")
	case c.ElectionTicks < 0 || c.HeartbeatTicks < 0 || c.TickInterval < 0:
		return c, errors.New("logservice: timing must not be negative")
	}
	if c.FS == nil {
		c.FS = disk.OS()
	}
	if c.Dial == nil {
		dialer := &net.Dialer{}
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.TickInterval == 0 {
		c.TickInterval = 50 * time.Millisecond
	}
	if c.CheckpointLogBytes < 0 || c.CheckpointTimeout < 0 || c.MaxCheckpointBytes < 0 || c.TailBytes < 0 || c.TailAge < 0 {
		return c, errors.New("logservice: bounds of checkpoints and of the tail must not be negative")
	}
	if c.CheckpointAge == 0 {
		c.CheckpointAge = 24 * time.Hour
	}
	if c.CheckpointTimeout == 0 {
		c.CheckpointTimeout = 10 * time.Minute
	}
	if c.TailMemoryBytes == 0 {
		c.TailMemoryBytes = 32 << 20
	}
	if c.TailHeartbeat == 0 {
		c.TailHeartbeat = 500 * time.Millisecond
	}
	if c.MaxPayloadBytes == 0 {
		c.MaxPayloadBytes = 4 << 20
	}
	if c.MaxPayloadBytes > maxMessageBytes/2 {
		return c, fmt.Errorf("logservice: a payload of %d bytes fits into no message, at most %d", c.MaxPayloadBytes, maxMessageBytes/2)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// initialCluster checks the first membership, which is empty where none is given.
func (c Config) initialCluster() (initialCluster, error) {
	if len(c.InitialCluster) == 0 {
		return initialCluster{}, nil
	}
	cluster, err := newInitialCluster(c.InitialCluster)
	if err == nil && !slices.ContainsFunc(c.InitialCluster, func(m InitialMember) bool { return m.Name == c.Name }) {
		err = fmt.Errorf("%w: it does not hold this member, %q", errInitialCluster, c.Name)
	}
	return cluster, err
}

// beginning is what the first start of this member begins with.
func (c Config) beginning() (*beginning, error) {
	cluster, err := c.initialCluster()
	switch {
	case err != nil:
		return nil, err
	case c.joined != nil:
		return c.joined, nil
	case len(cluster.members) == 0:
		return nil, fmt.Errorf("%w: %s holds no member's data, and the first start of a member needs the initial cluster, or to join "+
			"a log that has it added", errInitialCluster, c.DataDir)
	}
	return &beginning{clusterHash: cluster.hash, memberID: cluster.id(c.Name), record: cluster.record()}, nil
}

// maxMessageBytes bounds one gRPC message in either direction.
const maxMessageBytes = 16 << 20
