package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/internal/wanlink"
)

// serving are the flags of serve.
type serving struct {
	regions, parts, doors, roundTrips []string
	control                           string
	insecure                          bool
	logLevel                          string
	tls                               tlsfiles.Files
}

const serveHelp = `Carry connections between the networks of regions until interrupted.

The process has a host in each region's network. There it listens at the port of every --part of the other regions, so a
part's name must lead to that host in every region but its own, and no two parts may have the same port.`

func newServe() *cobra.Command {
	var s serving
	c := &cobra.Command{
		Use:   "serve --region R=HOST … --part R=HOST:PORT … --rtt R-R=DURATION,…",
		Short: "Carry connections between the networks of regions",
		Long:  serveHelp,
		Example: "  wanlink serve --region us=10.1.0.9 --region eu=10.2.0.9 --rtt us-eu=80ms \\\n" +
			"    --part us=10.1.0.2:2380 --part eu=10.2.0.2:2480",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return s.run(c.Context()) },
	}
	flags := c.Flags()
	flags.StringArrayVar(&s.regions, "region", nil, "a region, as `REGION=HOST`: this process's host in its network; repeatable")
	flags.StringArrayVar(&s.parts, "part", nil, "a process that others reach through this one, as `REGION=HOST:PORT`; repeatable")
	flags.StringArrayVar(&s.doors, "door", nil,
		"an own `address` outside of the regions, at which the part of that port is reached without a delay; repeatable")
	flags.StringSliceVar(&s.roundTrips, "rtt", nil, "round trips, as `REGION-REGION=DURATION,...`; none where not given")
	flags.StringVar(&s.control, "control", controlDefault, "`address` to serve the control on")
	flags.BoolVar(&s.insecure, "insecure", false, "serve the control without encryption on an address that other machines reach")
	flags.StringVar(&s.logLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error")
	s.tls.AddServerFlags(flags)
	return c
}

func (s serving) run(ctx context.Context) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := errors.Join(s.tls.Validate(""), tlsfiles.RequireForListener(s.control, s.tls, s.insecure)); err != nil {
		return fmt.Errorf("--control: %w", err)
	}
	tlsConfig, err := s.tls.ServerConfig(logger, "h2", "http/1.1")
	if err != nil {
		return err
	}
	config := wanlink.Config{Doors: s.doors, Logger: logger}
	if config.Hosts, err = parseRegions(s.regions); err != nil {
		return err
	}
	if config.Parts, err = parseParts(s.parts); err != nil {
		return err
	}
	roundTrips, err := parseRoundTrips(s.roundTrips, config.Hosts)
	if err != nil {
		return err
	}
	network := wan.New(wan.Options{RoundTrips: roundTrips, Seed: uint64(time.Now().UnixNano())})
	defer network.Close()
	for region := range config.Hosts {
		network.Region(region)
	}
	config.Network = network
	relay, err := wanlink.Start(config)
	if err != nil {
		return err
	}
	defer relay.Stop()
	listener, err := net.Listen("tcp", s.control)
	if err != nil {
		return fmt.Errorf("--control %s: %w", s.control, err)
	}
	server := &http.Server{
		Handler: wanlink.Handler(network, logger), TLSConfig: tlsConfig,
		ErrorLog:    slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	logger.Info("carrying", "regions", len(config.Hosts), "parts", len(config.Parts), "control", listener.Addr().String())
	return serveUntil(ctx, server, listener)
}

// serveUntil serves the control until ctx ends or the server fails.
func serveUntil(ctx context.Context, server *http.Server, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // a request under way is of no use any more
	defer stop()
	serve := server.Serve
	if server.TLSConfig != nil {
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func parseRoundTrips(pairs []string, hosts map[string]string) (map[wan.Pair]time.Duration, error) {
	roundTrips := make(map[wan.Pair]time.Duration)
	for _, pair := range pairs {
		link, value, _ := strings.Cut(pair, "=")
		a, b, err := splitLink(link, hosts)
		if err != nil {
			return nil, fmt.Errorf("--rtt %q: %w", pair, err)
		}
		roundTrip, err := time.ParseDuration(value)
		if err != nil || roundTrip < 0 || roundTrip > wanlink.RoundTripMax {
			return nil, fmt.Errorf("--rtt %q: want a time from 0 to %v, as us-eu=80ms", pair, wanlink.RoundTripMax)
		}
		roundTrips[wan.Pair{A: a, B: b}] = roundTrip
	}
	return roundTrips, nil
}
