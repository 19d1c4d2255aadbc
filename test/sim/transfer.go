package sim

import (
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/logservice/segment"
)

// This file is what a member does about checkpoints and snapshots: fetching, staging, installing, trimming.

var errTransfer = errors.New("simulated: nobody in reach has it")

// staging is what a snapshot needs until it is installed: a log of its own.
type staging struct {
	log   *segment.Log
	stage *logservice.StageSnapshot
}

func (m *member) performCheckpoints(effects *logservice.Effects) {
	for _, name := range effects.Remove {
		if err := m.store.Remove(name); err != nil && !errors.Is(err, errInjected) {
			m.s.fail("%s: remove checkpoint: %v", m.name, err)
		}
	}
	if effects.Trim != 0 {
		before := m.log.FirstIndex()
		if err := m.log.Trim(effects.Trim); err != nil {
			m.after(0, func() { m.broke(err) })
			return
		}
		if m.log.FirstIndex() > before {
			m.s.counts.add("trim")
			if !m.s.quiet && m.s.one(12) {
				m.s.counts.add("crash after a trim")
				m.after(m.s.between(0, time.Millisecond), func() { m.s.crashMember(m, m.s.between(50*time.Millisecond, time.Second)) })
			}
		}
	}
	if fetch := effects.Fetch; fetch != nil {
		m.fetch(fetch.Name, fetch.Holders, func(err error) {
			m.step(logservice.FetchedCheckpoint{Name: fetch.Name, Err: err})
		})
	}
	if stage := effects.Stage; stage != nil {
		m.stage(stage)
	}
	if effects.Unstage != 0 && m.staging.stage != nil && m.staging.stage.Index == effects.Unstage {
		m.unstage()
	}
	m.s.counts["snapshot sent"] += effects.SnapshotsSent
	m.s.counts["snapshot installed"] += effects.SnapshotsInstalled
}

// reachable tells whether another process answers now.
func (s *Simulation) reachable(a, b *process) bool {
	return b.running() && !s.severed(s.link(a, b)) && !s.severed(s.link(b, a))
}

// bytesOf reads a checkpoint that a member holds.
func (m *member) bytesOf(name checkpoint.Name) ([]byte, error) {
	reader, err := m.store.Open(name)
	if err != nil {
		return nil, err
	}
	defer reader.Close() //nolint:errcheck // it was only read
	var all []byte
	for {
		data, err := reader.ReadFrom(int64(len(all)))
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
}

// fetch copies a checkpoint from the first of some members that is in reach and holds it.
func (m *member) fetch(name checkpoint.Name, holders []uint64, done func(error)) {
	m.after(m.s.between(20*time.Millisecond, 200*time.Millisecond), func() {
		if m.store.Holds(name) {
			done(nil)
			return
		}
		for _, id := range holders {
			o := m.s.memberByID(id)
			if o == nil || o == m || !m.s.reachable(m.process, o.process) {
				continue
			}
			data, err := o.bytesOf(name)
			if err != nil {
				continue
			}
			if err := m.receive(name, data); err == nil {
				m.s.counts.add("checkpoint fetched")
				done(nil)
				return
			}
		}
		done(errTransfer)
	})
}

// receive makes the bytes of a checkpoint durable; sometimes the transfer breaks in the middle and goes on later.
func (m *member) receive(name checkpoint.Name, data []byte) error {
	incoming, err := m.store.Receive(name)
	if errors.Is(err, checkpoint.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	rest := data[incoming.Offset():]
	if !m.s.quiet && len(rest) > 1 && m.s.one(6) {
		m.s.counts.add("transfer broken")
		if err := incoming.Write(rest[:len(rest)/2]); err != nil {
			return err
		}
		incoming.Pause()
		return errTransfer
	}
	if err := incoming.Write(rest); err != nil {
		return err
	}
	if err := incoming.Commit(); err != nil {
		return err
	}
	m.step(logservice.HeldCheckpoints{Names: m.store.List()})
	return nil
}

// stage fetches what a snapshot needs.
func (m *member) stage(stage *logservice.StageSnapshot) {
	failed := func(err error) {
		m.unstage()
		m.step(logservice.SnapshotStaged{Index: stage.Index, Err: err})
	}
	m.fetch(stage.Checkpoint, stage.Sources, func(err error) {
		if err != nil {
			failed(err)
			return
		}
		m.after(m.s.between(5*time.Millisecond, 100*time.Millisecond), func() {
			result, err := m.stageEntries(stage)
			if err != nil {
				failed(err)
				return
			}
			if !m.s.quiet && m.s.one(4) {
				m.s.counts.add("crash in a snapshot")
				m.after(m.s.between(0, 5*time.Millisecond), func() { m.s.crashMember(m, m.s.between(50*time.Millisecond, time.Second)) })
			}
			m.step(result)
		})
	})
}

func (m *member) unstage() {
	if m.staging.log != nil {
		_ = m.staging.log.Close() // what is staged means nothing any more
	}
	m.staging = staging{}
	names, err := m.disk.ReadDir("data/staging")
	if err != nil {
		return
	}
	for _, name := range names {
		_ = m.disk.Remove("data/staging/" + name)
	}
}

// stageEntries copies the entries above the checkpoint and checks them against the snapshot.
func (m *member) stageEntries(stage *logservice.StageSnapshot) (result logservice.SnapshotStaged, err error) {
	m.unstage()
	result = logservice.SnapshotStaged{Index: stage.Index, Stamp: stage.CheckpointStamp}
	log, err := segment.Open(m.disk, "data/staging", segment.Options{SegmentBytes: segmentBytes, ManualReserve: true,
		Identity: segment.Identity{ClusterHash: 1, MemberID: m.id, DataDirectoryID: m.id}})
	if err != nil {
		return result, err
	}
	m.staging = staging{log, stage}
	if err := log.Reset(stage.Checkpoint.Index, stage.CheckpointTerm, stage.CheckpointDigest); err != nil {
		return result, err
	}
	digest, term := stage.CheckpointDigest, stage.CheckpointTerm
	for _, id := range stage.Sources {
		o := m.s.memberByID(id)
		if o == nil || o == m || !m.s.reachable(m.process, o.process) || o.published < stage.Index {
			continue
		}
		for log.LastIndex() < stage.Index {
			entries, err := o.log.Entries(log.LastIndex()+1, stage.Index+1, 1<<20)
			if err != nil {
				break
			}
			if err := log.Append(logservice.Group{Entries: entries}); err != nil {
				return result, err
			}
			for _, e := range entries {
				digest, term = segment.NextDigest(digest, e.Index, e.Term, e.Data), e.Term
				envelope := &logv1.Envelope{}
				if e.Type != 0 || len(e.Data) == 0 || proto.Unmarshal(e.Data, envelope) != nil {
					continue
				}
				result.Stamp = envelope.GetLogTimeNanoseconds()
				switch envelope.GetKind() {
				case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST, logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED:
					result.Entries = append(result.Entries, logservice.StagedEntry{Entry: e, Digest: digest})
				}
			}
		}
	}
	if log.LastIndex() < stage.Index || digest != stage.Digest || term != stage.Term {
		return result, errTransfer
	}
	return result, nil
}

// install begins the log anew with what was staged.
func (m *member) install(install *logservice.InstallSnapshot) {
	life := m.life
	m.s.after(m.s.between(0, 5*time.Millisecond), func() {
		if m.life != life || !m.up {
			return
		}
		if m.staging.log == nil {
			m.s.fail("%s: the snapshot at %d is not staged", m.name, install.Index)
			return
		}
		err := m.log.Install(segment.Base{Index: install.Base, Term: install.BaseTerm, Digest: install.BaseDigest}, m.staged(install))
		if err == nil {
			m.unstage()
			m.s.tell("%s begins its log anew after %d", m.name, install.Base)
		}
		m.wrote(err)
	})
}

// staged reads the staged entries back, and ends with the group that comes with the snapshot.
func (m *member) staged(install *logservice.InstallSnapshot) iter.Seq2[logservice.Group, error] {
	return func(yield func(logservice.Group, error) bool) {
		for next := install.Base + 1; next <= install.Index; {
			entries, err := m.staging.log.Entries(next, install.Index+1, 1<<20)
			if err != nil {
				yield(logservice.Group{}, err)
				return
			}
			next = entries[len(entries)-1].Index + 1
			if !yield(logservice.Group{Entries: slices.Clone(entries)}, nil) {
				return
			}
		}
		yield(install.Group, nil)
	}
}
