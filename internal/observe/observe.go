// Package observe serves what operators look at, over HTTP on a port of its own: Prometheus metrics, health, and the
// paths by which etcd tells its health and version. It makes the processes' loggers, too.
//
//	/metrics   the metrics
//	/livez     200, or 503 with the reason why the process should be restarted
//	/readyz    200 while the process serves, or 503 with the reasons why clients should go elsewhere, a line each
//	/health    as etcd's: {"health":"true","reason":""}, or 503 with "false"; frontends only
//	/version   as etcd's; frontends only
//
// Degraded is not dead: what a process cannot do for want of others is told by /readyz, with status 200, and fails neither
// it nor /livez. With ?verbose, /livez and /readyz list every check: [+] well, [~] degraded, [-] failed.
package observe

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/version"
)

// Check is one thing that was looked at.
type Check struct {
	// Name is a word or two, without white space.
	Name string
	// Reason says what is amiss, for people; empty where nothing is.
	Reason string
	// Degraded: what is amiss keeps the process from doing some of its work, and clients should stay all the same.
	Degraded bool
}

// Health tells the state of a process; its functions may be called from any goroutine at any time.
type Health struct {
	// Live returns why the process should be restarted; nil for no reason.
	Live func() error
	// Ready returns all that was looked at to tell whether the process serves.
	Ready func() []Check
	// Etcd is for processes that speak etcd's API; nil for others.
	Etcd *EtcdHealth
}

// EtcdHealth is what /health and /version tell.
type EtcdHealth struct {
	// Version is that of etcd's API.
	Version string
	// Unhealthy returns why etcd would call itself unhealthy; empty for no reason. Serializable asks for what this process can
	// do by itself; the alarms in excluded do not count.
	Unhealthy func(ctx context.Context, serializable bool, excluded []string) string
}

// NewRegistry returns a registry that already holds the metrics of the Go runtime, of the process and of its build.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "logmirror_build_info", Help: "1, with the version of the process as label.",
		ConstLabels: prometheus.Labels{"version": version.String()},
	})
	build.Set(1)
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build,
	)
	return registry
}

// RegisterHealth adds metrics of a process's health.
func RegisterHealth(registerer prometheus.Registerer, health Health) error {
	count := func(counts func(Check) bool) float64 {
		for _, check := range health.Ready() {
			if check.Reason != "" && counts(check) {
				return 1
			}
		}
		return 0
	}
	return errors.Join(
		registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "logmirror_ready", Help: "1 while the process serves, 0 while /readyz fails.",
		}, func() float64 { return 1 - count(func(c Check) bool { return !c.Degraded }) })),
		registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "logmirror_degraded", Help: "1 while something keeps the process from doing all of its work; /readyz says what.",
		}, func() float64 { return count(func(Check) bool { return true }) })),
	)
}

// Handler returns the handler of all paths.
func Handler(gatherer prometheus.Gatherer, health Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		check := Check{Name: "process"}
		if err := health.Live(); err != nil {
			check.Reason = err.Error()
		}
		tell(w, r, []Check{check})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { tell(w, r, health.Ready()) })
	if health.Etcd != nil {
		mux.HandleFunc("GET /health", health.Etcd.serveHealth)
		mux.HandleFunc("GET /version", health.Etcd.serveVersion)
	}
	return mux
}

// tell answers with what was found.
func tell(w http.ResponseWriter, r *http.Request, checks []Check) {
	status, summary := http.StatusOK, "ok"
	var lines []string
	_, verbose := r.URL.Query()["verbose"]
	for _, check := range checks {
		line := "[+] " + check.Name + " ok"
		switch {
		case check.Reason == "":
		case check.Degraded:
			if status == http.StatusOK {
				summary = "degraded"
			}
			line = "[~] " + check.Name + " degraded: " + check.Reason
		default:
			status, summary = http.StatusServiceUnavailable, "failed"
			line = "[-] " + check.Name + " failed: " + check.Reason
		}
		if verbose {
			lines = append(lines, line)
		} else if check.Reason != "" {
			lines = append(lines, check.Reason)
		}
	}
	if verbose {
		lines = append(lines, summary)
	} else if status == http.StatusOK {
		lines = slices.Insert(lines, 0, summary)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintln(w, strings.Join(lines, "\n"))
}

// etcdHealthTimeout bounds the read that /health makes; etcd's is a little above 5 s too.
const etcdHealthTimeout = 5 * time.Second

func (e *EtcdHealth) serveHealth(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), etcdHealthTimeout)
	defer cancel()
	query := r.URL.Query()
	reason := e.Unhealthy(ctx, query.Get("serializable") == "true", query["exclude"])
	answer := struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{"true", reason}
	status := http.StatusOK
	if reason != "" {
		answer.Health, status = "false", http.StatusServiceUnavailable
	}
	answerJSON(w, status, answer)
}

func (e *EtcdHealth) serveVersion(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, http.StatusOK, struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
		Storage string `json:"storage"`
	}{e.Version, e.Version, e.Version})
}

func answerJSON(w http.ResponseWriter, status int, answer any) {
	encoded, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s\n", encoded)
}

// Server serves a handler on a listener of its own.
type Server struct {
	server *http.Server
	done   chan struct{}
}

// Security says how a listener is served that other machines reach.
type Security struct {
	// Files of TLS; with an authority, whoever asks must show a certificate that it signed.
	Files tlsfiles.Files
	// Insecure: without TLS, although others reach it.
	Insecure bool
}

// Start listens on a TCP address and serves Handler until Stop, with the metrics of the health among the others. A loopback
// address is served without TLS; any other with it, or, where there is no certificate, refused unless security says
// otherwise.
func Start(address string, security Security, registry *prometheus.Registry, health Health, logger *slog.Logger) (*Server, error) {
	config, err := security.config(address, logger)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	if err := RegisterHealth(registry, health); err != nil {
		return nil, err
	}
	return start("--metrics-listen", address, config, Handler(registry, health), 30*time.Second, logger)
}

// config returns the configuration of TLS for a listener; nil for none.
func (s Security) config(address string, logger *slog.Logger) (*tls.Config, error) {
	if err := tlsfiles.RequireForListener(address, s.Files, s.Insecure); err != nil {
		return nil, err
	}
	if loopback, err := tlsfiles.Loopback(address); loopback || s.Insecure || err != nil {
		return nil, err
	}
	return s.Files.ServerConfig(logger, "h2", "http/1.1")
}

// StartPprof serves the profiles of package net/http/pprof under /debug/pprof/ until Stop. They tell what is in memory, so
// an address that other machines reach is refused unless insecure says that this is meant.
func StartPprof(address string, insecure bool, logger *slog.Logger) (*Server, error) {
	loopback, err := tlsfiles.Loopback(address)
	switch {
	case err != nil:
		return nil, fmt.Errorf("--pprof-listen: %w", err)
	case !loopback && !insecure:
		return nil, fmt.Errorf("--pprof-listen %s can be reached from other machines: take a loopback address, or --insecure", address)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	// A profile takes as long as it is asked to.
	return start("--pprof-listen", address, nil, mux, 0, logger)
}

func start(flag, address string, config *tls.Config, handler http.Handler, writeTimeout time.Duration, logger *slog.Logger) (
	*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, address, err)
	}
	s := &Server{
		server: &http.Server{
			Handler:           handler,
			TLSConfig:         config,
			ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug), // of what others do wrong
			ReadHeaderTimeout: 5 * time.Second,                                      // and of the handshake
			WriteTimeout:      writeTimeout,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		serve := s.server.Serve
		if config != nil {
			serve = func(l net.Listener) error { return s.server.ServeTLS(l, "", "") }
		}
		if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("a listener ended", "flag", flag, "error", err)
		}
	}()
	return s, nil
}

// Stop waits up to a second for requests under way.
func (s *Server) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.server.Shutdown(ctx) != nil {
		s.server.Close()
	}
	<-s.done
}
