package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/logmirror/logmirror/test/processes"
)

// smallLog lets a log be trimmed within a drill.
var smallLog = []string{"--segment-bytes", "262144", "--checkpoint-log-bytes", "1048576", "--log-tail-bytes", "524288"}

func laggingMirror(ctx context.Context, e *environment, r *result) error {
	return withLoad(ctx, e, r, smallLog, func(w *world, o *watching) error {
		const slow = 2
		sleeper, region := w.Frontends[slow], regions[slow]
		w.note("%s sleeps", sleeper.Name)
		began := time.Now()
		if err := sleeper.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		err := o.noticed(ctx, r, sleeper.Name+" asleep", began, w.others(region))
		if err == nil {
			err = pause(ctx, time.Until(began.Add(harm)))
		}
		missed := o.acknowledgedBy(time.Now()) - o.acknowledgedBy(began)
		woken := time.Now()
		w.note("%s wakes up", sleeper.Name)
		if err := errors.Join(err, sleeper.Signal(syscall.SIGCONT)); err != nil {
			return err
		}
		r.count(sleeper.Name+" woken: revisions that it missed", int(missed))
		if err := w.healed(ctx, o, r, sleeper.Name+" woken", slow, woken, 0); err != nil {
			return err
		}
		w.note("%s is killed until the log no longer reaches back", sleeper.Name)
		sleeper.Kill()
		if err := w.trimBeyondEnd(ctx); err != nil {
			return err
		}
		again := time.Now()
		if err := sleeper.Start(); err != nil {
			return err
		}
		if err := w.healed(ctx, o, r, sleeper.Name+" away for longer than the log reaches", slow, again, 0); err != nil {
			return err
		}
		if built, err := sleeper.Said("the state was built from a checkpoint"); err != nil || built == 0 {
			return fmt.Errorf("%s came back without a checkpoint: %w", sleeper.Name, errors.Join(errors.New("it was not built of one"), err))
		}
		return nil
	})
}

// trimBeyondEnd writes until every member has trimmed its log above where it ends now.
func (w *world) trimBeyondEnd(ctx context.Context) error {
	status, err := processes.MemberStatus(ctx, w.Members[0].Address)
	if err != nil {
		return err
	}
	end, value := status.GetLastIndex(), strings.Repeat("x", 32<<10)
	return until(ctx, "the log is trimmed", func(ctx context.Context) error {
		if _, err := w.clients[0].put(ctx, "filler", value); err != nil {
			return err
		}
		for _, p := range w.Members {
			status, err := processes.MemberStatus(ctx, p.Address)
			if err != nil {
				return err
			}
			if status.GetFirstIndex() <= end {
				return fmt.Errorf("%s begins at %d, must begin above %d", p.Name, status.GetFirstIndex(), end)
			}
		}
		return nil
	})
}
