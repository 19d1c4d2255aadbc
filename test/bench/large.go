package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// largeRow is the name of the row about a server that holds many keys; it has servers of its own and a table of its own.
const largeRow = "large"

// holding is what one server that holds many keys takes: a member of etcd, or a frontend. What is read at once of several
// servers is of the one that takes most.
type holding struct {
	System      string  `json:"system"`
	LoadSeconds float64 `json:"load_seconds"`
	// Megabytes of one server at rest after the load; anonymous leaves mapped files out.
	ResidentMegabytes  float64 `json:"resident_megabytes"`
	AnonymousMegabytes float64 `json:"anonymous_megabytes"`
	// RestartSeconds is from the start of the process until it answers a linearizable get of a loaded key, the files in
	// the page cache, in the quickest of some restarts.
	RestartSeconds              float64 `json:"restart_seconds"`
	RestartedResidentMegabytes  float64 `json:"restarted_resident_megabytes"`
	RestartedAnonymousMegabytes float64 `json:"restarted_anonymous_megabytes"`
}

const (
	loaders = 8
	// restarts are made one after the other, and the quickest counts: what else runs on the machine only adds to it.
	restarts       = 3
	restartTimeout = 2 * time.Minute
)

// runLarge loads keys into fresh servers of each system and restarts one of them.
func runLarge(ctx context.Context, o options, directory string) (found []holding, err error) {
	for _, name := range []string{"etcd", "logmirror"} {
		s, err := startSystem(name, o.binaries, filepath.Join(directory, "large-"+name), nil)
		if err != nil {
			return found, err
		}
		one, err := hold(ctx, s, o.largeKeys)
		if err != nil {
			err = fmt.Errorf("%d keys in %s: %w\n%s", o.largeKeys, name, err, s.lastOutput())
		}
		s.stop()
		if err := errors.Join(err, ctx.Err()); err != nil {
			return found, err
		}
		found = append(found, one)
	}
	return found, nil
}

func hold(ctx context.Context, s *system, keys int) (h holding, err error) {
	h.System = s.name
	if err := s.awaitReady(ctx); err != nil {
		return h, err
	}
	began := time.Now()
	if err := preload(ctx, s, keys); err != nil {
		return h, err
	}
	h.LoadSeconds = time.Since(began).Seconds()
	if err := s.settle(ctx); err != nil {
		return h, err
	}
	if h.ResidentMegabytes, h.AnonymousMegabytes, err = s.largest(); err != nil {
		return h, err
	}
	// The last process serves clients in both systems, and the last endpoint is its own.
	p := s.processes[len(s.processes)-1]
	for n := range restarts {
		if err := p.restart(); err != nil {
			return h, err
		}
		began = time.Now()
		if err := awaitAnswer(ctx, s.endpoints[len(s.endpoints)-1]); err != nil {
			return h, fmt.Errorf("restart %s: %w", p.name, err)
		}
		if took := time.Since(began).Seconds(); n == 0 || took < h.RestartSeconds {
			h.RestartSeconds = took
		}
	}
	if err := s.settle(ctx); err != nil {
		return h, err
	}
	used, err := p.usage()
	h.RestartedResidentMegabytes, h.RestartedAnonymousMegabytes = float64(used.resident)/1e6, float64(used.anonymous)/1e6
	return h, err
}

// largest returns the memory of the process that takes most.
func (s *system) largest() (resident, anonymous float64, err error) {
	for _, p := range s.processes {
		used, err := p.usage()
		if err != nil {
			return 0, 0, err
		}
		if megabytes := float64(used.resident) / 1e6; megabytes > resident {
			resident, anonymous = megabytes, float64(used.anonymous)/1e6
		}
	}
	return resident, anonymous, nil
}

// restart ends the process in order and starts it again.
func (p *process) restart() error {
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	killed := time.AfterFunc(restartTimeout, func() { _ = p.command.Process.Kill() }) // it may have ended at last
	_ = p.command.Wait()                                                              // some end with an error when they are told to
	killed.Stop()
	return p.start()
}

func awaitAnswer(ctx context.Context, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	// The client would wait for a second after a first connection that is refused.
	for {
		connection, err := net.Dial("tcp", endpoint)
		if err == nil {
			_ = connection.Close() // nothing was said on it
			break
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	client, err := dial(endpoint)
	if err != nil {
		return err
	}
	for {
		attempt, cancelAttempt := context.WithTimeout(ctx, operationTimeout)
		var response *clientv3.GetResponse
		response, err = client.Get(attempt, key(0))
		cancelAttempt()
		if err == nil && len(response.Kvs) != 1 {
			err = errors.New("a loaded key is gone")
		}
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, client.Close())
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return errors.Join(err, client.Close())
		}
	}
}

func largeMarkdown(w io.Writer, keys int, found []holding) error {
	if len(found) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n| %d keys of %d bytes, one server | loaded in s | RSS MB (anonymous) | restart to first answer s "+
		"| RSS MB then (anonymous) |\n|---|---|---|---|---|\n", keys, valueBytes)
	for _, h := range found {
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "| %s | %.1f | %.0f (%.0f) | %.2f | %.0f (%.0f) |\n", h.System, h.LoadSeconds, h.ResidentMegabytes,
			h.AnonymousMegabytes, h.RestartSeconds, h.RestartedResidentMegabytes, h.RestartedAnonymousMegabytes)
	}
	if err != nil || len(found) < 2 {
		return err
	}
	base, h := found[0], found[1]
	_, err = fmt.Fprintf(w, "| %s / %s | %.2f | %.2f (%.2f) | %.2f | %.2f (%.2f) |\n", h.System, base.System,
		h.LoadSeconds/base.LoadSeconds, h.ResidentMegabytes/base.ResidentMegabytes, h.AnonymousMegabytes/base.AnonymousMegabytes,
		h.RestartSeconds/base.RestartSeconds, h.RestartedResidentMegabytes/base.RestartedResidentMegabytes,
		h.RestartedAnonymousMegabytes/base.RestartedAnonymousMegabytes)
	return err
}
