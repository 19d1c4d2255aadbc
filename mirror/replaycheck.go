package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

const (
	// replayFile and replayNameFile hold the checkpoint that a replay begins with.
	replayFile     = "replay-check"
	replayNameFile = "replay-check-name"
)

// replayCheck builds a second state beside the mirror's own, from the newest sealed checkpoint and the log above it, or from
// the whole log where there is no checkpoint, and compares digests at every index at which the mirror remembers its own,
// until one at or above the given index was compared. It returns a *differsError where they differ. Until it returns the
// process holds two states.
func (m *Mirror) replayCheck(ctx context.Context, index uint64) error {
	config := logConfig(&m.config, m.directory, m.image.Identity())
	config.Registerer, config.MembersFile = nil, "" // both are the mirror's own client's
	for _, member := range m.client.Status(ctx) {
		config.Members = append(config.Members, member.Address)
	}
	client, err := logclient.Open(config)
	if err != nil {
		return err
	}
	defer client.Close()
	machine, err := m.checkpointMachine(ctx, client)
	if err != nil {
		return err
	}
	tail := client.Tail(machine.Index()+1, machine.Term())
	defer tail.Close()
	for {
		batch, err := tail.Next(ctx)
		if err != nil {
			return err
		}
		for i := range batch.Entries {
			entry := &batch.Entries[i]
			applied, err := machine.Apply(entry.Index, entry.Term, entry.Kind, entry.Envelope, false)
			if err != nil {
				return fmt.Errorf("entry %d cannot be applied: %w", entry.Index, err)
			}
			if !applied.DigestDue {
				continue
			}
			if err := m.WaitApplied(ctx, entry.Index); err != nil {
				return err
			}
			if known, err := m.digests.compare(machine); err != nil || known && entry.Index >= index {
				return err
			}
		}
	}
}

// checkpointMachine returns the state of the newest sealed checkpoint; that before the first entry where there is none.
func (m *Mirror) checkpointMachine(ctx context.Context, client *logclient.Client) (*statemachine.Machine, error) {
	b := newBootstrap(ctx, &m.config, m.directory, client, replayFile, replayNameFile)
	if err := b.open(); err != nil {
		return nil, err
	}
	defer func() { _ = b.file.Close() }()
	got, err := client.DownloadCheckpoint(ctx, b)
	if errors.Is(err, logclient.ErrNoCheckpoint) {
		return statemachine.New(m.config.StateMachine), b.forget()
	}
	if err != nil {
		return nil, err
	}
	machine, _, err := b.restore(ctx, got, func(checkpoint.Header) (checkpoint.Observer, error) { return nil, nil })
	return machine, errors.Join(err, b.forget())
}
