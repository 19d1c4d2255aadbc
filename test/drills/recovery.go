package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/test/processes"
)

// initialCluster is what all members are started with.
func (w *world) initialCluster() string {
	value, _ := w.Members[0].Flag("--initial-cluster")
	return value
}

// useData lets all processes start with the directories of another parent.
func (w *world) useData(directory string) {
	for _, p := range w.All() {
		useData(p, directory)
	}
}

func useData(p *processes.Process, parent string) {
	for i, argument := range p.Arguments {
		if argument == "--data-dir" {
			p.Arguments[i+1] = filepath.Join(parent, p.Name)
		}
	}
}

// writeNumbered has numbered keys acknowledged in all regions, from one on, and returns each one's value.
func (w *world) writeNumbered(ctx context.Context, prefix string, count int) (map[string]string, error) {
	all := make(map[string]string, count)
	for i := range count {
		key, value := fmt.Sprintf("%s/%04d", prefix, i), strconv.Itoa(i)
		if _, err := w.clients[i%len(w.clients)].put(ctx, key, value); err != nil {
			return nil, fmt.Errorf("put %s: %w", key, err)
		}
		all[key] = value
	}
	return all, nil
}

// missing counts the keys that a region does not show as they were acknowledged.
func (c *clients) missing(ctx context.Context, want map[string]string) (missing int, err error) {
	for key, value := range want {
		answer, err := c.read(ctx, key)
		if err != nil {
			return 0, err
		}
		if string(answer.GetKeyValue().GetValue()) != value {
			missing++
		}
	}
	return missing, nil
}

// servesAll waits until every region takes writes, and tells how long that took.
func (w *world) servesAll(ctx context.Context, since time.Time) (time.Duration, error) {
	for _, c := range w.clients {
		if err := until(ctx, c.region+" takes writes", func(ctx context.Context) error {
			_, err := c.put(ctx, "settled/"+c.region, "")
			return err
		}); err != nil {
			return 0, err
		}
	}
	return time.Since(since), nil
}

// allEqual compares the digests of all regions.
func (w *world) allEqual(ctx context.Context) error {
	revision, err := w.clients[0].put(ctx, "compared", "")
	if err != nil {
		return err
	}
	for _, c := range w.clients[1:] {
		if _, err := equal(ctx, c, w.clients[0], revision); err != nil {
			return err
		}
	}
	return nil
}

func lostQuorum(ctx context.Context, e *environment, r *result) (err error) {
	w, err := newWorld(ctx, e)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			processes.Show(e.log, w.All())
		}
		w.close()
	}()
	everywhere, err := w.writeNumbered(ctx, "everywhere", 60)
	if err != nil {
		return err
	}
	if err := w.allEqual(ctx); err != nil {
		return err
	}
	// ap's member falls behind: what is acknowledged now is on the disks of us and eu only.
	const survivor = 2
	w.note("log-ap sleeps, then us and eu are lost for good")
	w.Members[survivor].Kill()
	elsewhere := map[string]string{}
	for i := range 20 {
		key := fmt.Sprintf("elsewhere/%04d", i)
		if _, err := w.clients[0].put(ctx, key, "x"); err != nil {
			return err
		}
		elsewhere[key] = "x"
	}
	processes.KillAll(w.Members[:survivor])
	if err := w.Members[survivor].Start(); err != nil {
		return err
	}
	failed, err := w.withoutQuorum(ctx)
	if err != nil {
		return err
	}
	r.took("without a quorum: until a write is told so", failed)
	missing, err := w.clients[0].missing(ctx, everywhere)
	if err != nil {
		return fmt.Errorf("reads without a quorum: %w", err)
	}
	r.none("without a quorum: acknowledged writes that us does not show", missing)

	// The frontend of us has seen what the survivor has not.
	saved := filepath.Join(e.scratch, "frontend-us.backup")
	if _, err := e.kvctl(ctx, "--endpoints", w.Frontends[0].Address, "--consistency", "serializable", "snapshot", "save", saved); err != nil {
		return err
	}
	processes.KillAll(w.All())
	old := w.Data
	surviving := filepath.Join(old, w.Members[survivor].Name)
	for _, way := range []struct {
		name, into string
		more       []string
		lost       int
	}{
		{"from the survivor alone", "alone", nil, len(elsewhere)},
		{"with the backup of a frontend", "backup", []string{"--backup", saved}, 0},
	} {
		into := filepath.Join(e.scratch, way.into)
		recover := append([]string{"log", "recover", surviving, "--data-dir", into, "--initial-cluster", w.initialCluster()}, way.more...)
		if output, err := e.kvctl(ctx, recover...); err == nil || !strings.Contains(err.Error(), "--accept-loss") {
			return fmt.Errorf("it recovered without being told that loss is accepted: %s", output)
		}
		began := time.Now()
		output, err := e.kvctl(ctx, append(recover, "--accept-loss")...)
		if err != nil {
			return err
		}
		w.note("%s", strings.TrimSpace(output))
		r.took(way.name+": kvctl log recover", time.Since(began))
		w.useData(into)
		if err := w.Start(); err != nil {
			return err
		}
		took, err := w.servesAll(ctx, began)
		if err != nil {
			return err
		}
		r.took(way.name+": from the command until every region takes writes", took)
		missing, err := w.clients[0].missing(ctx, everywhere)
		if err != nil {
			return err
		}
		r.none(way.name+": writes lost of those that the survivor had", missing)
		if missing, err = w.clients[0].missing(ctx, elsewhere); err != nil {
			return err
		}
		r.count(fmt.Sprintf("%s: writes lost of %d that only lost disks had", way.name, len(elsewhere)), missing)
		if missing != way.lost {
			return fmt.Errorf("%s: %d writes are lost, and %d were to be", way.name, missing, way.lost)
		}
		if err := w.allEqual(ctx); err != nil {
			return err
		}
		processes.KillAll(w.All())
	}
	return w.oldIsRefused(ctx, r, old, filepath.Join(e.scratch, "backup"))
}

// withoutQuorum waits until writes fail everywhere and tells how long one waited for that.
func (w *world) withoutQuorum(ctx context.Context) (waited time.Duration, err error) {
	for _, c := range w.clients {
		began := time.Now()
		attempt, cancel := context.WithTimeout(ctx, patience)
		_, err := c.put(attempt, "refused", "")
		cancel()
		if err == nil {
			return 0, fmt.Errorf("a write without a quorum was acknowledged in %s", c.region)
		}
		if status.Code(err) == codes.DeadlineExceeded {
			return 0, fmt.Errorf("a write without a quorum has no answer in %s: %w", c.region, err)
		}
		waited = max(waited, time.Since(began))
	}
	return waited, nil
}

// oldIsRefused starts one member and one frontend with their directories of the old cluster among those of the new one.
func (w *world) oldIsRefused(ctx context.Context, r *result, old, now string) error {
	w.useData(now)
	member, frontend := w.Members[1], w.Frontends[1]
	useData(member, old)
	useData(frontend, old)
	w.note("%s and %s come back with what they had of the old cluster", member.Name, frontend.Name)
	if err := w.Start(); err != nil {
		return err
	}
	for _, c := range w.others("eu") {
		if err := until(ctx, c.region+" takes writes", func(ctx context.Context) error {
			_, err := c.put(ctx, "after", c.region)
			return err
		}); err != nil {
			return err
		}
	}
	served := 0
	if _, err := w.clients[1].read(ctx, "everywhere/0000"); err == nil {
		served++
	}
	r.none("a frontend of the old cluster: reads that it serves", served)
	if err := until(ctx, frontend.Name+" says why", func(context.Context) error {
		said, err := frontend.Said("another log")
		if err == nil && said == 0 {
			err = errors.New("it does not")
		}
		return err
	}); err != nil {
		return err
	}
	status, err := processes.MemberStatus(ctx, w.Members[0].Address)
	if err != nil {
		return err
	}
	heard := 0
	if got, err := processes.MemberStatus(ctx, member.Address); err == nil && got.GetLastIndex() >= status.GetFirstIndex() {
		heard++
	}
	r.none("a member of the old cluster: entries of the new one that it holds", heard)
	return nil
}

func restore(ctx context.Context, e *environment, r *result) (err error) {
	w, err := newWorld(ctx, e)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			processes.Show(e.log, w.All())
		}
		w.close()
	}()
	const keys = 2000
	value := strings.Repeat("v", 1000)
	for i := 0; i < keys; i += 50 {
		errs := make(chan error, 50)
		for j := i; j < i+50; j++ {
			go func() {
				_, err := w.clients[0].put(ctx, fmt.Sprintf("large/%05d", j), value)
				errs <- err
			}()
		}
		for range 50 {
			if putErr := <-errs; putErr != nil {
				err = putErr
			}
		}
		if err != nil {
			return err
		}
	}
	kept, err := w.writeNumbered(ctx, "before", 60)
	if err != nil {
		return err
	}
	backup := filepath.Join(e.scratch, "backup")
	began := time.Now()
	if _, err := e.kvctl(ctx, "--endpoints", w.Frontends[2].Address, "snapshot", "save", backup); err != nil {
		return err
	}
	r.took("snapshot save, through ap", time.Since(began))
	info, err := os.Stat(backup)
	if err != nil {
		return err
	}
	r.count("bytes of the backup", int(info.Size()))
	later, err := w.writeNumbered(ctx, "later", 30)
	if err != nil {
		return err
	}
	w.note("everything is lost but the backup")
	processes.KillAll(w.All())
	if err := os.RemoveAll(w.Data); err != nil {
		return err
	}
	if err := os.Mkdir(w.Data, 0o700); err != nil {
		return err
	}
	began = time.Now()
	if _, err := e.kvctl(ctx, "snapshot", "restore", backup, "--data-dir", w.Data, "--initial-cluster", w.initialCluster()); err != nil {
		return err
	}
	r.took("snapshot restore", time.Since(began))
	if err := w.Start(); err != nil {
		return err
	}
	took, err := w.servesAll(ctx, began)
	if err != nil {
		return err
	}
	r.took("from the restore until every region takes writes", took)
	missing, err := w.clients[1].missing(ctx, kept)
	if err != nil {
		return err
	}
	r.none("writes of before the backup that are missing", missing)
	if missing, err = w.clients[1].missing(ctx, later); err != nil {
		return err
	}
	r.count(fmt.Sprintf("writes lost of %d after the backup", len(later)), missing)
	return w.allEqual(ctx)
}
