// Command logsvc runs one member of the log service.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/internal/flagfile"
	"github.com/logmirror/logmirror/internal/heap"
	"github.com/logmirror/logmirror/internal/observe"
	"github.com/logmirror/logmirror/internal/observe/tracing/export"
	"github.com/logmirror/logmirror/internal/timerslack"
	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/version"
	"github.com/logmirror/logmirror/logservice"
)

func init() { timerslack.Widen() }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "logsvc:", err)
		stop()
		if errors.Is(err, logservice.ErrRemoved) {
			os.Exit(exitRemoved)
		}
		os.Exit(1)
	}
}

// exitRemoved is the exit code of a member that was removed from the log: to start it again is no use.
const exitRemoved = 3

// Bounds of --segment-bytes: smaller files cost more syncs than they are worth, and larger ones are trimmed too seldom.
const (
	segmentBytesMin     = 64 << 10
	segmentBytesDefault = 64 << 20
	segmentBytesMax     = 1 << 30
)

// options are the flags.
type options struct {
	name, region, listen, advertise, dataDir     string
	initialCluster                               string
	join                                         []string
	leaderPolicy, publication                    string
	checkpointLogBytes, logTailBytes             int64
	segmentBytes                                 int64
	checkpointAge, checkpointTimeout, logTailAge time.Duration
	metricsListen                                string
	insecure                                     bool
	pprofListen                                  string
	slowBatchAfter                               time.Duration
	logging                                      observe.Logging
	tls, peerTLS                                 tlsfiles.Files
	traces                                       export.Flags
}

func newCommand() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:   "logsvc --name N --region R --listen ADDR --data-dir DIR {--initial-cluster N1=ADDR1,N2=ADDR2,…|--join ADDR}",
		Short: "One member of the log service",
		Long: "One member of the log service. Its first start needs --initial-cluster, where it is one of those that begin the log,\n" +
			"or --join, where it was added by kvctl log member add. Later starts need neither.\n\n" +
			"Exit codes: 0 ended by a signal; 1 failed; 3 this member was removed from the log.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unexpected %q: everything is given by flags (see logsvc --help)", args[0])
			}
			return nil
		},
		Version:       version.Long(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := flagfile.Load(command.Flags(), os.LookupEnv); err != nil {
				return err
			}
			if err := flagfile.Require(command.Flags(), "name", "region", "data-dir"); err != nil {
				return fmt.Errorf("%w; see logsvc --help", err)
			}
			return run(command.Context(), o)
		},
	}
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w (see logsvc --help)", err) })
	flags := command.Flags()
	flags.StringVar(&o.name, "name", "", "name of this member, as in --initial-cluster or as it was added")
	flags.StringVar(&o.region, "region", "", "region that this member is in")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:2380", "`address` to serve frontends, operators and other members on")
	flags.StringVar(&o.advertise, "advertise", "", "`address` where others reach this member (default: the one in --initial-cluster or with which it was added)")
	flags.StringVar(&o.dataDir, "data-dir", "", "`directory` of this member's log")
	flags.StringVar(&o.initialCluster, "initial-cluster", "",
		"members that begin the log, as `NAME=ADDRESS,...`: the same names at all of them, once for the first start; addresses\n"+
			"given later win over what the member has learned")
	flags.StringSliceVar(&o.join, "join", nil, "`address` of a live member, for the first start of a member that was added")
	flags.StringVar(&o.leaderPolicy, "leader-policy", "none", "`where` leadership is moved to: none, fixed=REGION, or traffic (where writes come from)")
	flags.StringVar(&o.publication, "publication", "quorum",
		"`how` members learn that an entry is committed, the same at all of them: quorum (one round trip) or leader (stock Raft)")
	flagfile.BytesVar(flags, &o.checkpointLogBytes, "checkpoint-log-bytes", 256<<20, "how much log, in `bytes`, above the newest checkpoint after which another one is asked for")
	flags.DurationVar(&o.checkpointAge, "checkpoint-age", 24*time.Hour, "log time after which another checkpoint is asked for, however small the log; 0 for never")
	flags.DurationVar(&o.checkpointTimeout, "checkpoint-timeout", 10*time.Minute, "time to make and copy a checkpoint before others are asked for one")
	flagfile.BytesVar(flags, &o.logTailBytes, "log-tail-bytes", 1<<30, "how much log to keep, in `bytes`, below checkpoints for those who come late; the log is trimmed beyond")
	flags.DurationVar(&o.logTailAge, "log-tail-age", 0, "age beyond which entries below a checkpoint are not kept even within --log-tail-bytes; 0 for any")
	flagfile.BytesVar(flags, &o.segmentBytes, "segment-bytes", segmentBytesDefault,
		"size of a file of the log in `bytes`, of which two are reserved; the log is trimmed by whole files")
	flags.DurationVar(&o.slowBatchAfter, "slow-batch-after", time.Second,
		"how long a frontend's batch may take to be published before it is logged as slow, one a second at most; 0 for never")
	flags.StringVar(&o.metricsListen, "metrics-listen", "", "`address` to serve /metrics, /livez and /readyz on (default: none)")
	flags.BoolVar(&o.insecure, "insecure", false, "serve addresses that other machines reach without encryption")
	flags.StringVar(&o.pprofListen, "pprof-listen", "", "`address` to serve profiles on under /debug/pprof/, on loopback unless --insecure (default: none)")
	o.logging.AddFlags(flags)
	o.traces.AddFlags(flags)
	o.tls.AddServerFlags(flags)
	o.peerTLS.AddPeerFlags(flags)
	flagfile.AddConfigFlag(flags)
	return command
}

// run runs a member until ctx ends or the member can't go on.
func run(ctx context.Context, o options) error {
	logger, err := o.logging.New(os.Stderr)
	if err != nil {
		return err
	}
	config, err := o.config(logger)
	if err != nil {
		return err
	}
	traces, err := o.traces.Start("logsvc", o.name, o.region, logger)
	if err != nil {
		return err
	}
	defer traces.Stop()
	config.Tracer = traces.Tracer()
	heap.Pace()
	if o.pprofListen == "" {
		runtime.MemProfileRate = 0 // nobody can ask what is in memory: Go need not sample it
	}
	registry := observe.NewRegistry()
	if err := traces.Register(registry); err != nil {
		return err
	}
	config.Registerer = prometheus.Registerer(registry)
	if config.Listener, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	if len(o.join) > 0 {
		config, err = logservice.Join(ctx, config, o.join)
		if ctx.Err() != nil {
			logger.Info("stopping before the log has this member")
			return config.Listener.Close()
		}
		if err != nil {
			return errors.Join(err, config.Listener.Close())
		}
	}
	server, err := logservice.Start(config)
	if err != nil {
		return err
	}
	defer server.Stop()
	if o.metricsListen != "" {
		metrics, err := observe.Start(o.metricsListen, observe.Security{Files: o.tls, Insecure: o.insecure}, registry, health(server), logger)
		if err != nil {
			return err
		}
		defer metrics.Stop()
	}
	if o.pprofListen != "" {
		profiles, err := observe.StartPprof(o.pprofListen, o.insecure, logger)
		if err != nil {
			return err
		}
		defer profiles.Stop()
	}
	select {
	case <-ctx.Done():
		logger.Info("stopping")
		return nil
	case <-server.Done():
		return server.Err()
	}
}

// config checks the flags and makes everything but the listener of them.
func (o options) config(logger *slog.Logger) (c logservice.Config, err error) {
	c = logservice.Config{Name: o.name, Region: o.region, Advertise: o.advertise, DataDir: o.dataDir,
		Version: version.String(), Logger: logger,
		CheckpointLogBytes: o.checkpointLogBytes, CheckpointAge: o.checkpointAge, CheckpointTimeout: o.checkpointTimeout,
		TailBytes: o.logTailBytes, TailAge: o.logTailAge, SegmentBytes: o.segmentBytes, SlowBatchAfter: o.slowBatchAfter}
	if o.segmentBytes < segmentBytesMin || o.segmentBytes > segmentBytesMax {
		return c, fmt.Errorf("--segment-bytes %d: must be between %d and %d (%s and %s)", o.segmentBytes, segmentBytesMin, segmentBytesMax,
			flagfile.FormatBytes(segmentBytesMin), flagfile.FormatBytes(segmentBytesMax))
	}
	for _, bound := range []struct {
		flag  string
		value int64
	}{
		{"checkpoint-log-bytes", o.checkpointLogBytes - 1}, {"log-tail-bytes", o.logTailBytes - 1}, {"checkpoint-age", int64(o.checkpointAge)},
		{"checkpoint-timeout", int64(o.checkpointTimeout) - 1}, {"log-tail-age", int64(o.logTailAge)},
		{"slow-batch-after", int64(o.slowBatchAfter)},
	} {
		if bound.value < 0 {
			return c, fmt.Errorf("--%s is too small", bound.flag)
		}
	}
	if o.checkpointAge == 0 {
		c.CheckpointAge = -1 // for never
	}
	if o.initialCluster != "" && len(o.join) > 0 {
		return c, errors.New("--initial-cluster and --join: a member either begins the log or joins it")
	}
	if o.initialCluster != "" {
		if c.InitialCluster, err = logservice.ParseInitialCluster(o.initialCluster); err != nil {
			return c, fmt.Errorf("--initial-cluster: %w", err)
		}
	}
	for _, address := range o.join {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return c, fmt.Errorf("--join: %w", err)
		}
	}
	if c.LeaderPolicy, err = logservice.ParseLeaderPolicy(o.leaderPolicy); err != nil {
		return c, fmt.Errorf("--leader-policy: %w", err)
	}
	if c.Publication, err = logservice.ParsePublication(o.publication); err != nil {
		return c, fmt.Errorf("--publication: %w", err)
	}
	if err := errors.Join(o.tls.Validate(""), o.peerTLS.Validate("peer-"), o.traces.Validate()); err != nil {
		return c, err
	}
	if err := tlsfiles.RequireForListener(o.listen, o.tls, o.insecure); err != nil {
		return c, fmt.Errorf("--listen: %w", err)
	}
	if o.metricsListen != "" {
		if err := tlsfiles.RequireForListener(o.metricsListen, o.tls, o.insecure); err != nil {
			return c, fmt.Errorf("--metrics-listen: %w", err)
		}
	}
	if c.ServerCredentials, err = o.tls.Server(logger); err != nil {
		return c, err
	}
	if c.PeerCredentials, err = o.peerTLS.Client(logger); err != nil {
		return c, err
	}
	return c, nil
}

// health says a member is ready when it knows a leader and nothing keeps it from taking appends.
func health(server *logservice.Server) observe.Health {
	return observe.Health{
		Live: func() error {
			select {
			case <-server.Done():
				return errors.Join(errors.New("the member has ended"), server.Err())
			default:
				return nil
			}
		},
		Ready: func() []observe.Check {
			status := server.Status()
			checks := []observe.Check{{Name: "alarms", Reason: strings.Join(status.GetAlarms(), "; ")}, {Name: "leader"}}
			if status.GetLeaderId() == 0 {
				checks[1].Reason = "no leader is known"
			}
			return checks
		},
	}
}
