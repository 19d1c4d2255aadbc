package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/test/processes"
)

var regions = []string{"us", "eu", "ap"}

// home is the region that the leader is in where nothing is wrong.
const home = "us"

// The goals that drills check.
const (
	// writesBackWithin is how long writes elsewhere may be away after the loss of any one region, member or leader.
	writesBackWithin = 3 * time.Second
	// watchesBehindAtMost is how long a watch elsewhere may take to tell a write that was acknowledged: a watch that stays open
	// and says nothing is interrupted, too.
	watchesBehindAtMost = time.Second
	// equalWithin is how long after the heal, beside its lag, a region may take until it has the others' state.
	equalWithin = time.Second
)

func roundTrips() map[wan.Pair]time.Duration {
	return map[wan.Pair]time.Duration{
		{A: "us", B: "eu"}: 80 * time.Millisecond, {A: "us", B: "ap"}: 150 * time.Millisecond, {A: "eu", B: "ap"}: 100 * time.Millisecond,
	}
}

// world is a cluster with clients in each region.
type world struct {
	*processes.Cluster
	e     *environment
	links *processes.Links
	// clients are in the order of regions; nil before meet.
	clients []*clients
}

// newWorld starts a cluster whose leader is at home, and waits until each region serves. Close it.
func newWorld(ctx context.Context, e *environment, memberFlags ...string) (*world, error) {
	w, err := layOut(e, memberFlags...)
	if err != nil {
		return nil, err
	}
	if err = w.Start(); err == nil {
		err = w.meet(ctx)
	}
	if err != nil {
		processes.Show(e.log, w.All())
		w.close()
		return nil, err
	}
	return w, nil
}

// layOut is a cluster that is not started.
func layOut(e *environment, memberFlags ...string) (*world, error) {
	data, err := os.MkdirTemp(e.scratch, "cluster-")
	if err != nil {
		return nil, err
	}
	links := processes.NewLinks(roundTrips())
	c, err := processes.New(e.binaries, data, links, regions...)
	if err != nil {
		links.Close()
		return nil, err
	}
	for _, p := range c.Members {
		p.Arguments = append(append(p.Arguments, "--leader-policy", "fixed="+home), memberFlags...)
	}
	return &world{Cluster: c, e: e, links: links}, nil
}

// meet connects clients and waits until each region serves and the leader is at home.
func (w *world) meet(ctx context.Context) error {
	for i, region := range regions {
		c, err := newClients(region, w.Frontends[i].Address)
		if err != nil {
			return err
		}
		w.clients = append(w.clients, c)
	}
	return w.settle(ctx)
}

// settle waits until each region takes a write and the leader is at home.
func (w *world) settle(ctx context.Context) error {
	for _, c := range w.clients {
		if err := until(ctx, c.region+" takes writes", func(ctx context.Context) error {
			_, err := c.put(ctx, "settled/"+c.region, "")
			return err
		}); err != nil {
			return err
		}
	}
	return until(ctx, "the leader is in "+home, func(ctx context.Context) error {
		leader, err := processes.Leader(ctx, w.Members)
		if err == nil && leader != w.Members[0] {
			err = fmt.Errorf("%s leads", leader.Name)
		}
		return err
	})
}

func (w *world) close() {
	for _, c := range w.clients {
		c.close()
	}
	processes.KillAll(w.All())
	w.links.Close()
}

// note tells an observer what happens.
func (w *world) note(format string, arguments ...any) {
	fmt.Fprintf(w.e.log, "%s  %s\n", time.Now().Format("15:04:05.000"), fmt.Sprintf(format, arguments...))
}

// others are the clients of all regions but one.
func (w *world) others(region string) (others []*clients) {
	for _, c := range w.clients {
		if c.region != region {
			others = append(others, c)
		}
	}
	return others
}

// kvctl runs a command.
func (e *environment) kvctl(ctx context.Context, arguments ...string) (output string, err error) {
	command := exec.CommandContext(ctx, filepath.Join(e.binaries, "kvctl"), arguments...)
	all, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kvctl %s: %w: %s", strings.Join(arguments, " "), err, all)
	}
	return string(all), err
}

// patience is how long a drill waits for what must come: far longer than any goal.
const patience = 60 * time.Second

// until asks again and again until the condition holds.
func until(ctx context.Context, what string, condition func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	var last error
	for {
		attempt, done := context.WithTimeout(ctx, 5*time.Second)
		err := condition(attempt)
		done()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: not within %v: %w", what, patience, last), context.Cause(ctx))
		}
	}
}

// pause lets a time pass.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
