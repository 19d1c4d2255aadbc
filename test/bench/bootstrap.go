package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// bootstrapRow is the name of the row about a frontend without data that joins a cluster with many keys and a trimmed log.
const bootstrapRow = "bootstrap"

// bootstrapped is what a bootstrap costs the others, which take puts at a steady rate that leaves half of what they can.
type bootstrapped struct {
	// Rate is that of the puts that are due, Before and During of those that were done, without and with the bootstrap.
	Rate, Before, During float64
	// Seconds is from the start of the process to its first linearizable answer.
	Seconds float64
	// Checkpoint says that the state came from a checkpoint, not from the whole log.
	Checkpoint bool
}

const (
	bootstrapClients  = 64
	bootstrapBaseline = 15 * time.Second
)

// runBootstrap has the last frontend lose its data while the first takes puts.
func runBootstrap(ctx context.Context, o options, directory string) (b *bootstrapped, err error) {
	directory = filepath.Join(directory, bootstrapRow)
	// The log keeps little, so that it has been trimmed when the frontend comes.
	s, err := startSystem("logmirror", o.binaries, directory, nil,
		"--checkpoint-log-bytes", "33554432", "--log-tail-bytes", "8388608", "--segment-bytes", "4194304")
	if err != nil {
		return nil, err
	}
	defer s.stop()
	defer func() {
		if err != nil {
			err = fmt.Errorf("bootstrap: %w\n%s", err, s.lastOutput())
		}
	}()
	if err := s.awaitReady(ctx); err != nil {
		return nil, err
	}
	if err := preload(ctx, s, o.largeKeys); err != nil {
		return nil, err
	}
	if err := s.awaitTrimmed(ctx); err != nil {
		return nil, err
	}
	client, err := dial(s.endpoints[0])
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	most, err := steadyPuts(ctx, client, o.largeKeys, 0, func(ctx context.Context) error { return pause(ctx, bootstrapBaseline/3) })
	if err != nil {
		return nil, err
	}
	b = &bootstrapped{Rate: most / 2}
	if b.Before, err = steadyPuts(ctx, client, o.largeKeys, b.Rate, func(ctx context.Context) error { return pause(ctx, bootstrapBaseline) }); err != nil {
		return nil, err
	}
	// The last process serves clients, and the last endpoint is its own.
	p := s.processes[len(s.processes)-1]
	_ = p.command.Process.Kill() // it may have ended by itself: Wait tells
	_ = p.command.Wait()         // killed on purpose
	if err := os.RemoveAll(filepath.Join(directory, p.name)); err != nil {
		return nil, err
	}
	b.During, err = steadyPuts(ctx, client, o.largeKeys, b.Rate, func(ctx context.Context) error {
		began := time.Now()
		if err := p.start(); err != nil {
			return err
		}
		err := awaitAnswer(ctx, s.endpoints[len(s.endpoints)-1])
		b.Seconds = time.Since(began).Seconds()
		return err
	})
	if err != nil {
		return nil, err
	}
	output, err := os.ReadFile(p.output)
	b.Checkpoint = strings.Contains(string(output), "the state is built from a checkpoint")
	return b, err
}

// awaitTrimmed waits until no log member has its first entry any more.
func (s *system) awaitTrimmed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	for trimmed := 0; trimmed < membersEach; {
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("wait until the log is trimmed: %w", err)
		}
		trimmed = 0
		for _, p := range s.processes[:membersEach] {
			if err := p.figures(func(name string, value float64) {
				if name == "logmirror_logservice_first_index" && value > 1 {
					trimmed++
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// steadyPuts puts at a rate, zero for as fast as it goes, until do returns, and returns how many a second were done.
func steadyPuts(ctx context.Context, client *clientv3.Client, keys int, rate float64, do func(context.Context) error) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	due := make(chan struct{}, 4*bootstrapClients)
	var done atomic.Int64
	var putting sync.WaitGroup
	for n := range bootstrapClients {
		putting.Go(func() {
			for i := n; ; i += bootstrapClients {
				if rate > 0 {
					select {
					case <-due:
					case <-ctx.Done():
						return
					}
				}
				bounded, end := context.WithTimeout(ctx, operationTimeout)
				_, err := client.Put(bounded, key(i%keys), value())
				end()
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					cancel(err)
					return
				}
				done.Add(1)
			}
		})
	}
	began := time.Now()
	if rate > 0 {
		putting.Go(func() {
			for sent := 0; ctx.Err() == nil; {
				for ; float64(sent) < time.Since(began).Seconds()*rate; sent++ {
					select {
					case due <- struct{}{}:
					default: // the clients are behind: what they do not take in time is not done
					}
				}
				_ = pause(ctx, 2*time.Millisecond) // an end of ctx ends the loop
			}
		})
	}
	err := do(ctx)
	perSecond := float64(done.Load()) / time.Since(began).Seconds()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	putting.Wait()
	return perSecond, err
}

func bootstrapMarkdown(w io.Writer, keys int, b *bootstrapped) error {
	if b == nil {
		return nil
	}
	from := "the log"
	if b.Checkpoint {
		from = "a checkpoint"
	}
	_, err := fmt.Fprintf(w, "\n| a frontend without data joins %d keys, from %s | puts/s due | done before | done during | ratio | first answer after s |\n"+
		"|---|---|---|---|---|---|\n| logmirror | %.0f | %.0f | %.0f | %.2f | %.1f |\n", keys, from, b.Rate, b.Before, b.During, b.During/b.Before, b.Seconds)
	return err
}
