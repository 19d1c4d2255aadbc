package command

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/playground"
)

// playgroundStopTime bounds a clean end.
const playgroundStopTime = 3 * time.Second

func newPlayground(o *options) *cobra.Command {
	var regions, roundTrips, leader, listen, dataDir, readyFile, logLevel string
	var progress time.Duration
	c := &cobra.Command{
		Use:   "playground",
		Short: "Run a whole multi-region cluster in this process, until interrupted",
		Long: "Run a whole multi-region cluster in this process: a log member and a frontend in each region, every link between\n" +
			"two regions held back by half its round trip each way. Everything is durable: run it again and all is there.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config := playground.Config{LeaderRegion: leader, Listen: listen, DataDir: dataDir, WatchProgressInterval: progress}
			var err error
			if config.Regions, err = playground.ParseRegions(regions); err != nil {
				return exitError{exitUsage, fmt.Errorf("--regions: %w", err)}
			}
			if config.RoundTrips, err = playground.ParseRoundTrips(roundTrips, config.Regions); err != nil {
				return exitError{exitUsage, fmt.Errorf("--rtt: %w", err)}
			}
			if !c.Flags().Changed("leader") {
				config.LeaderRegion = config.Regions[0]
			}
			if config.DataDir == "" {
				if config.DataDir, err = defaultDataDir(config.Regions); err != nil {
					return err
				}
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(logLevel)); err != nil {
				return exitError{exitUsage, fmt.Errorf("--log-level %q: want debug, info, warn or error", logLevel)}
			}
			config.Logger = slog.New(slog.NewTextHandler(o.err, &slog.HandlerOptions{Level: level}))
			return o.runPlayground(c.Context(), config, readyFile)
		},
	}
	flags := c.Flags()
	flags.StringVar(&regions, "regions", strings.Join(playground.DefaultRegions(), ","), "the `regions`")
	flags.StringVar(&roundTrips, "rtt", "us-eu=80ms,us-ap=150ms,eu-ap=100ms", "round trips between regions; pairs not named keep their default")
	flags.StringVar(&leader, "leader", "", "`region` to which leadership of the log is moved and kept while it can be (default the first)")
	flags.StringVar(&listen, "listen", "127.0.0.1:2379", "`address` of the first region's frontend; the others take the following ports; port 0 takes any free ones")
	flags.StringVar(&dataDir, "data-dir", "", "`directory` for all data (default in the user's state directory)")
	flags.StringVar(&readyFile, "ready-file", "", "`file` to write, as JSON, when every region serves")
	flags.DurationVar(&progress, "watch-progress-interval", 0, "how often an idle watch is told of progress; 0 for the frontends' default")
	flags.StringVar(&logLevel, "log-level", "warn", "debug, info, warn or error")
	return c
}

// defaultDataDir follows the XDG base directories: state that must survive, but is no configuration.
func defaultDataDir(regions []string) (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no place for the data: %w; give --data-dir", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "logmirror", "playground-"+strings.Join(regions, "-")), nil
}

func (o *options) runPlayground(ctx context.Context, config playground.Config, readyFile string) error {
	started := time.Now()
	cluster, err := playground.Start(config)
	if err != nil {
		return err
	}
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), playgroundStopTime)
		defer cancel()
		return cluster.Stop(ctx)
	}
	select {
	case <-cluster.Ready():
	case <-cluster.Done():
		return cluster.Err()
	case <-ctx.Done():
		return stop()
	}
	info := cluster.Info()
	if readyFile != "" {
		if err := playground.WriteReadyFile(readyFile, info); err != nil {
			return fmt.Errorf("%w (and the cluster was stopped: %v)", err, stop())
		}
	}
	if err := o.printPlayground(info, config, time.Since(started)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return stop()
	case <-cluster.Done():
		return cluster.Err()
	}
}

func (o *options) printPlayground(info playground.Info, config playground.Config, took time.Duration) error {
	return o.print(info, func() {
		o.line("%s serves after %s, to kvctl, to logmirror clients and to etcd v3 clients:",
			clusterOf(len(info.Regions)), took.Round(time.Millisecond))
		for _, region := range info.Regions {
			o.line("  %-8s %s", region.Name, region.Frontend)
		}
		for pair, roundTrip := range sortedRoundTrips(config) {
			o.line("  %s apart: %v", pair, roundTrip)
		}
		first, last := info.Regions[0].Frontend, info.Regions[len(info.Regions)-1].Frontend
		o.line("Data: %s", config.DataDir)
		o.line("Try, in another terminal:")
		o.line("  bin/kvctl --endpoints %s put greeting hello", first)
		o.line("  bin/kvctl --endpoints %s get greeting", last)
		o.line("Ctrl-C ends it; the data stays.")
	})
}

func clusterOf(regions int) string {
	if regions == 1 {
		return "A cluster of one region"
	}
	return fmt.Sprintf("Each region of a cluster of %d", regions)
}

// sortedRoundTrips yields the round trips in the order of the regions.
func sortedRoundTrips(config playground.Config) func(yield func(string, time.Duration) bool) {
	return func(yield func(string, time.Duration) bool) {
		for i, a := range config.Regions {
			for _, b := range config.Regions[i+1:] {
				for pair, roundTrip := range config.RoundTrips {
					if (pair.A == a && pair.B == b || pair.A == b && pair.B == a) && !yield(a+" and "+b, roundTrip) {
						return
					}
				}
			}
		}
	}
}
