package logclient

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Config says which log to use and as whom. Zero durations and counts mean the defaults named beside them.
type Config struct {
	// Members are the addresses to begin with: any members of the log. Others are learned from it.
	Members []string
	// Dial opens a connection to a member; nil dials TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Credentials secure the connections; nil sends in the clear.
	Credentials credentials.TransportCredentials
	// Name, Region and FrontendID tell the members who calls.
	Name       string
	Region     string
	FrontendID uint64
	// ClusterID and Epoch name the log that is wanted. Zero: whichever the first member that answers belongs to.
	ClusterID uint64
	Epoch     uint64
	// MembersFile keeps the member list that was learned; empty keeps none.
	MembersFile string

	// ProbeInterval is how often each member is asked for its status, which measures its round trip. 2 s.
	ProbeInterval time.Duration
	// ProbeTimeout bounds one such question. 2 s.
	ProbeTimeout time.Duration
	// SilenceTimeout is how long a member may send nothing on a tail, beyond its round trip, before it is left. Members
	// send at least every 500 ms. 1.5 s.
	SilenceTimeout time.Duration
	// StallTimeout is how long a member may lag behind what others have published without any progress, or know no
	// leader while others do, before it is left. 3 s.
	StallTimeout time.Duration
	// PreferAfter is how long a nearer member must have been well before it is returned to. 5 s.
	PreferAfter time.Duration
	// RetryMin and RetryMax bound the pause, with jitter, before a member that failed is used again. 100 ms and 1 s.
	RetryMin time.Duration
	RetryMax time.Duration

	// TailAnswerBytes bounds the entries of one answer of the tail. 1 MiB.
	TailAnswerBytes uint32
	// TailAnswers bounds the answers that wait to be taken. 8.
	TailAnswers int
	// AppendQueueBytes bounds the proposals that wait to be sent. 64 MiB.
	AppendQueueBytes int
	// Rounds bounds the read rounds under way. 256.
	Rounds int
	// RoundTimeout is how long one member has to answer a read round, beyond its round trip. 1 s.
	RoundTimeout time.Duration
	// TransferTimeout is how long the transfer of a checkpoint may stand still before it is taken up elsewhere. 30 s.
	TransferTimeout time.Duration
	// MessageBytesMax bounds one received message. 32 MiB.
	MessageBytesMax int

	// Logger takes what operators may want to know; nil discards it.
	Logger *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() (Config, error) {
	if len(c.Members) == 0 {
		return c, errors.New("logclient: no address of a log member is configured")
	}
	if c.Dial == nil {
		var dialer net.Dialer
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if c.Credentials == nil {
		c.Credentials = insecure.NewCredentials()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.ProbeInterval, 2*time.Second)
	setDefault(&c.ProbeTimeout, 2*time.Second)
	setDefault(&c.SilenceTimeout, 1500*time.Millisecond)
	setDefault(&c.StallTimeout, 3*time.Second)
	setDefault(&c.PreferAfter, 5*time.Second)
	setDefault(&c.RetryMin, 100*time.Millisecond)
	setDefault(&c.RetryMax, time.Second)
	setDefault(&c.TailAnswerBytes, 1<<20)
	setDefault(&c.TailAnswers, 8)
	setDefault(&c.AppendQueueBytes, 64<<20)
	setDefault(&c.Rounds, 256)
	setDefault(&c.RoundTimeout, time.Second)
	setDefault(&c.TransferTimeout, 30*time.Second)
	setDefault(&c.MessageBytesMax, 32<<20)
	return c, nil
}

func setDefault[T comparable](value *T, standard T) {
	var zero T
	if *value == zero {
		*value = standard
	}
}

// jitter spreads d over [d/2, d], so that many callers that failed together do not come back together.
func jitter(d time.Duration) time.Duration {
	if d <= 1 {
		return d
	}
	return d/2 + time.Duration(rand.Int64N(int64(d/2)+1))
}

// tracker is what the tracker is to know of the configuration.
func (c *Config) tracker(jitter func(time.Duration) time.Duration) trackerConfig {
	return trackerConfig{
		probeInterval: c.ProbeInterval,
		stallTimeout:  c.StallTimeout,
		preferAfter:   c.PreferAfter,
		retryMin:      c.RetryMin,
		retryMax:      c.RetryMax,
		jitter:        jitter,
	}
}
