package mirror

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/logmirror/logmirror/internal/boottime"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/image"
)

// Config says whose mirror this is and how it works. Zero durations and counts mean the defaults named beside them.
type Config struct {
	// Name names the frontend within the cluster; Region is where it is. Both are told to the log.
	Name   string
	Region string
	// Advertise is where other frontends reach this one.
	Advertise string
	// ClientURLs is where clients reach it.
	ClientURLs []string
	// DataDir holds the frontend's identity, the list of log members and the image. It belongs to one process at a time.
	DataDir string
	// Log says how to reach the log. Name, region, ids and the members file are filled in by Start.
	Log logclient.Config
	// StateMachine is handed to the state machine.
	StateMachine statemachine.Options
	// Image says how the durable copy of the state is written. Path, identity and machine are filled in by Start.
	Image image.Config
	// NewObservers returns who is told of each applied entry. It is called once, by Start, before anything is applied.
	NewObservers func(*statemachine.Machine, *Mirror) []Observer
	// Clock counts the time since some start and goes on while the machine sleeps; nil reads CLOCK_BOOTTIME.
	Clock func() time.Duration

	// BatchBytesMax is how many bytes of commands are packed into one batch; a larger command travels alone. 512 KiB.
	BatchBytesMax int
	// CommandBytesMax bounds one command. A little below the 4 MiB that the log takes by default.
	CommandBytesMax int
	// BatchesInFlight and BytesInFlight bound what was handed over and is not yet seen applied. 16, and 16 MiB.
	BatchesInFlight int
	BytesInFlight   int
	// BatchHold is how long a command may wait for company while another batch with commands is in flight. 3 ms.
	BatchHold time.Duration
	// QueueCommands and QueueBytes bound what waits to be handed over. 65,536, and 64 MiB.
	QueueCommands int
	QueueBytes    int
	// FailFastAfter is how long the log may be away before commands that do not want to wait for it fail. 3 s: an
	// election at the distances between regions takes up to 2 s, and is no reason to fail.
	FailFastAfter time.Duration
	// UnknownAfter is when such a command that was handed over is given up as unknown. 10 s.
	UnknownAfter time.Duration
	// SlowWriteAfter is how long a write may take before operators are told. Zero for never.
	SlowWriteAfter time.Duration
	// StallAfter is how long a batch may be in flight before the log counts as away. 3 s.
	StallAfter time.Duration
	// ResendAfterMin and ResendAfterMax bound the wait before what is in flight is handed over again; within them it
	// follows the measured times. 1 s and 10 s.
	ResendAfterMin time.Duration
	ResendAfterMax time.Duration

	// ReadRounds bounds the shared read rounds under way. 32.
	ReadRounds int
	// ReadRoundSpacing is the least time between the starts of two of them while one is under way. 2 ms.
	ReadRoundSpacing time.Duration
	// ReadRoundTimeout bounds one round with its retries. 5 s.
	ReadRoundTimeout time.Duration
	// AgeInterval is how often a round is made when no reader asks for one, so that the age is known. 1 s.
	AgeInterval time.Duration
	// ScrubInterval is how often memory and image are checked against their checksums. 10 min.
	ScrubInterval time.Duration
	// Waiters bounds the calls that wait for an index, a revision or a read round. 65,536.
	Waiters int
	// ReadyAgeMax is how old the state may be at most when the mirror first says that it is ready. 10 s.
	ReadyAgeMax time.Duration
	// CheckpointBytesPerSecond bounds how fast a checkpoint is made, and uploaded: it is background work. 32 MiB.
	CheckpointBytesPerSecond int
	// BootstrapBytesPerSecond bounds how fast a checkpoint is downloaded: the member serves others too. 64 MiB.
	BootstrapBytesPerSecond int
	// CheckpointTimeout bounds the making and uploading of one. 30 min.
	CheckpointTimeout time.Duration
	// TickSpread is the span over which frontends spread the entries that carry nothing but time. 500 ms.
	TickSpread time.Duration

	// Logger takes what operators may want to know; nil discards it.
	Logger *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// Tracer makes the spans of writes that are traced; nil for none.
	Tracer trace.Tracer
}

// Observer is told of every applied entry.
type Observer interface {
	// Applied is called on the apply goroutine, in the order of the log, after the entry's effects can be read and
	// before any caller learns of them. It must not block. What it is given may be kept, and must not be changed.
	Applied(*statemachine.Applied)
}

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		return c, errors.New("mirror: no name is configured")
	}
	if c.Clock == nil {
		c.Clock = boottime.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.BatchBytesMax, 512<<10)
	setDefault(&c.CommandBytesMax, 4<<20-64<<10)
	setDefault(&c.BatchesInFlight, 16)
	setDefault(&c.BytesInFlight, 16<<20)
	setDefault(&c.BatchHold, 3*time.Millisecond)
	setDefault(&c.QueueCommands, 65536)
	setDefault(&c.QueueBytes, 64<<20)
	setDefault(&c.FailFastAfter, 3*time.Second)
	setDefault(&c.UnknownAfter, 10*time.Second)
	setDefault(&c.StallAfter, 3*time.Second)
	setDefault(&c.ResendAfterMin, time.Second)
	setDefault(&c.ResendAfterMax, 10*time.Second)
	setDefault(&c.ReadRounds, 32)
	setDefault(&c.ReadRoundSpacing, 2*time.Millisecond)
	setDefault(&c.ReadRoundTimeout, 5*time.Second)
	setDefault(&c.AgeInterval, time.Second)
	setDefault(&c.ScrubInterval, 10*time.Minute)
	setDefault(&c.Waiters, 65536)
	setDefault(&c.ReadyAgeMax, 10*time.Second)
	setDefault(&c.CheckpointBytesPerSecond, 32<<20)
	setDefault(&c.BootstrapBytesPerSecond, 64<<20)
	setDefault(&c.CheckpointTimeout, 30*time.Minute)
	setDefault(&c.TickSpread, 500*time.Millisecond)
	return c, nil
}

func setDefault[T comparable](value *T, standard T) {
	var zero T
	if *value == zero {
		*value = standard
	}
}
