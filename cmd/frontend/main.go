// Command frontend runs one frontend: a mirror of the log's state that serves the clients of its region.
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
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/internal/flagfile"
	"github.com/logmirror/logmirror/internal/heap"
	"github.com/logmirror/logmirror/internal/observe"
	"github.com/logmirror/logmirror/internal/observe/tracing/export"
	"github.com/logmirror/logmirror/internal/timerslack"
	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/version"
)

func init() { timerslack.Widen() }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "frontend:", err)
		stop()
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	name, region, listen, advertise, dataDir string
	log                                      []string
	metricsListen                            string
	watchProgressInterval                    time.Duration
	maxRequestBytes, maxTxnOperations        int
	readyMaxAge                              time.Duration
	checkpointRate, bootstrapRate            int
	scrubInterval, slowWriteAfter            time.Duration
	insecure                                 bool
	pprofListen                              string
	logging                                  observe.Logging
	tls, peerTLS                             tlsfiles.Files
	traces                                   export.Flags
}

func newCommand() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:   "frontend --name N --region R --listen ADDR --data-dir DIR --log ADDR1,ADDR2,…",
		Short: "One region's server: a mirror of the log's state with the native API and etcd's",
		Long: "One region's server: a mirror of the log's state with the native API and etcd's, on one port.\n\n" +
			"Exit codes: 0 ended by a signal; 1 failed.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unexpected %q: everything is given by flags (see frontend --help)", args[0])
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
			if err := flagfile.Require(command.Flags(), "name", "region", "data-dir", "log"); err != nil {
				return fmt.Errorf("%w; see frontend --help", err)
			}
			return run(command.Context(), o)
		},
	}
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w (see frontend --help)", err) })
	flags := command.Flags()
	flags.StringVar(&o.name, "name", "", "name of this frontend; unique in the cluster")
	flags.StringVar(&o.region, "region", "", "region that this frontend serves")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:2379", "`address` to serve clients on")
	flags.StringVar(&o.advertise, "advertise", "", "`address` where clients and other frontends reach this one (default: --listen)")
	flags.StringVar(&o.dataDir, "data-dir", "", "`directory` of this frontend's identity and state")
	flags.StringSliceVar(&o.log, "log", nil, "`addresses` of log members; one that answers is enough, the others are learned")
	flags.StringVar(&o.metricsListen, "metrics-listen", "", "`address` to serve /metrics, /livez, /readyz, and etcd's /health and /version on (default: none)")
	flags.DurationVar(&o.watchProgressInterval, "watch-progress-interval", 10*time.Minute,
		"how often idle watches that asked for it are told of the revision; at least 100ms")
	flagfile.BytesVar(flags, &o.maxRequestBytes, "max-request-bytes", 3<<19, "largest request that is taken, in `bytes`")
	flags.IntVar(&o.maxTxnOperations, "max-txn-ops", 128, "most operations in each list of a transaction")
	flags.DurationVar(&o.readyMaxAge, "ready-max-age", 10*time.Second,
		"how old the state may be at most when this frontend begins to serve after a start or a bootstrap")
	flagfile.BytesVar(flags, &o.checkpointRate, "checkpoint-rate", 32<<20, "how fast a checkpoint is made and uploaded at most, in `bytes` per second")
	flags.DurationVar(&o.scrubInterval, "scrub-interval", 10*time.Minute,
		"how often memory and image are checked for damage; a tenth of a processor at most")
	flags.DurationVar(&o.slowWriteAfter, "slow-write-after", time.Second,
		"how long a write may take before it is logged as slow, one a second at most, with where the time went; 0 for never")
	flagfile.BytesVar(flags, &o.bootstrapRate, "bootstrap-rate", 64<<20, "how fast a checkpoint is downloaded at most, in `bytes` per second")
	flags.BoolVar(&o.insecure, "insecure", false, "serve addresses that other machines reach without encryption")
	flags.StringVar(&o.pprofListen, "pprof-listen", "", "`address` to serve profiles on under /debug/pprof/, on loopback unless --insecure (default: none)")
	o.logging.AddFlags(flags)
	o.traces.AddFlags(flags)
	o.tls.AddServerFlags(flags)
	o.peerTLS.AddPeerFlags(flags)
	flagfile.AddConfigFlag(flags)
	return command
}

// run runs a frontend until ctx ends or its mirror can't go on.
func run(ctx context.Context, o options) error {
	logger, err := o.logging.New(os.Stderr)
	if err != nil {
		return err
	}
	config, err := o.config(logger)
	if err != nil {
		return err
	}
	traces, err := o.traces.Start("frontend", o.name, o.region, logger)
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
	config.Registerer = registry
	if config.Listener, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	server, err := frontend.Start(config)
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
func (o options) config(logger *slog.Logger) (c frontend.Config, err error) {
	c = frontend.Config{
		Name: o.name, Region: o.region, Advertise: o.advertise, DataDir: o.dataDir, Log: o.log,
		WatchProgressInterval: o.watchProgressInterval,
		MaxRequestBytes:       o.maxRequestBytes,
		MaxTxnOperations:      o.maxTxnOperations,
		Logger:                logger,
	}
	for _, address := range o.log {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return c, fmt.Errorf("--log: %w", err)
		}
	}
	if o.maxRequestBytes <= 0 || o.maxTxnOperations <= 0 {
		return c, errors.New("--max-request-bytes and --max-txn-ops must be above zero")
	}
	if o.readyMaxAge <= 0 || o.checkpointRate <= 0 || o.bootstrapRate <= 0 || o.scrubInterval <= 0 {
		return c, errors.New("--ready-max-age, --scrub-interval, --checkpoint-rate and --bootstrap-rate must be above zero")
	}
	if o.slowWriteAfter < 0 {
		return c, errors.New("--slow-write-after must not be below zero")
	}
	c.Mirror.ReadyAgeMax, c.Mirror.SlowWriteAfter = o.readyMaxAge, o.slowWriteAfter
	c.Mirror.ScrubInterval = o.scrubInterval
	c.Mirror.CheckpointBytesPerSecond, c.Mirror.BootstrapBytesPerSecond = o.checkpointRate, o.bootstrapRate
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
	if c.LogCredentials, err = o.peerTLS.Client(logger); err != nil {
		return c, err
	}
	return c, nil
}

// health says that a frontend is ready once it serves, and while nothing keeps it from serving everything.
func health(server *frontend.Server) observe.Health {
	return observe.Health{
		Live: func() error {
			select {
			case <-server.Done():
				return errors.Join(errors.New("the frontend has ended"), server.Err())
			default:
				return nil
			}
		},
		Ready: server.Checks,
		Etcd:  &observe.EtcdHealth{Version: server.EtcdVersion(), Unhealthy: server.EtcdUnhealthy},
	}
}
