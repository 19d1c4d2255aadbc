package logservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice/segment"
)

// stagingArea is where the entries of a snapshot are until the log takes them: a log of its own, in its own directory, so
// that they are checked when they are read back. What is left of it at a start means nothing.
type stagingArea struct {
	server *Server
	dir    string
	log    *segment.Log
	// index is that of the snapshot that is staged.
	index uint64
}

// clear gives up what was staged.
func (a *stagingArea) clear() error {
	var err error
	if a.log != nil {
		err = a.log.Close()
		a.log = nil
	}
	fsys := a.server.config.FS
	names, listErr := fsys.ReadDir(a.dir)
	if listErr != nil && !errors.Is(listErr, fs.ErrNotExist) {
		return errors.Join(err, listErr)
	}
	for _, name := range names {
		err = errors.Join(err, fsys.Remove(filepath.Join(a.dir, name)))
	}
	return err
}

// begin makes the area ready for the entries after a checkpoint.
func (a *stagingArea) begin(stage *StageSnapshot) (err error) {
	if err := a.clear(); err != nil {
		return err
	}
	s := a.server
	a.index = stage.Index
	if a.log, err = segment.Open(s.config.FS, a.dir, segment.Options{SegmentBytes: s.config.SegmentBytes, ManualReserve: true,
		Identity: s.directory.identity(), Logger: s.logger}); err != nil {
		return err
	}
	return a.log.Reset(stage.Checkpoint.Index, stage.CheckpointTerm, stage.CheckpointDigest)
}

// groups reads the staged entries back in pieces, and ends with the group that comes with the snapshot.
func (a *stagingArea) groups(install *InstallSnapshot) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		for next := install.Base + 1; next <= install.Index; {
			entries, err := a.log.Entries(next, install.Index+1, maxChunkBytes)
			if err != nil {
				yield(Group{}, err)
				return
			}
			next = entries[len(entries)-1].Index + 1
			if !yield(Group{Entries: entries}, nil) {
				return
			}
		}
		yield(install.Group, nil)
	}
}

// stage fetches what a snapshot needs, and tells the loop. The checkpoint goes to the store, the entries to the staging
// area; both are checked against what the snapshot says.
func (s *Server) stage(stage *StageSnapshot) {
	result := SnapshotStaged{Index: stage.Index, Stamp: stage.CheckpointStamp}
	s.staged.Lock()
	result.Err = s.fetchCheckpoint(s.ctx, stage.Checkpoint, stage.Sources)
	if result.Err == nil {
		result.Err = s.stageEntries(stage, &result)
	}
	if result.Err != nil {
		result.Err = errors.Join(result.Err, s.staging.clear())
	}
	s.staged.Unlock()
	_ = s.post(s.ctx, result)
}

// stageEntries fetches the entries; where one member stops another goes on.
func (s *Server) stageEntries(stage *StageSnapshot, result *SnapshotStaged) error {
	if err := s.staging.begin(stage); err != nil {
		return err
	}
	f := stagingFold{result: result, digest: stage.CheckpointDigest, term: stage.CheckpointTerm}
	err := errors.New("nobody has the entries above the checkpoint")
	for _, source := range stage.Sources {
		if s.staging.log.LastIndex() == stage.Index {
			break
		}
		if err = s.fetchEntries(s.ctx, source, stage.Index, &f); err != nil {
			s.logger.Info("entries were not fetched", "from", memberName(source), "error", err)
		}
	}
	switch last := s.staging.log.LastIndex(); {
	case last < stage.Index:
		return err
	case f.digest != stage.Digest || f.term != stage.Term:
		return fmt.Errorf("%w: the entries up to %d have digest %016x in term %d, the snapshot says %016x in term %d", errSnapshot,
			stage.Index, f.digest, f.term, stage.Digest, stage.Term)
	}
	return nil
}

// stagingFold is what is known of the entries staged so far.
type stagingFold struct {
	result       *SnapshotStaged
	digest, term uint64
}

// note takes the next entry.
func (f *stagingFold) note(e Entry) {
	f.digest, f.term = segment.NextDigest(f.digest, e.Index, e.Term, e.Data), e.Term
	h, ok := parseEnvelope(e.Data)
	if !ok || raftpb.EntryType(e.Type) != raftpb.EntryNormal {
		return
	}
	f.result.Stamp = h.stamp
	switch h.kind {
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST, logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED:
		f.result.Entries = append(f.result.Entries, StagedEntry{Entry: e, Digest: f.digest})
	}
}

// fetchEntries stages the entries up to an index from one member.
func (s *Server) fetchEntries(ctx context.Context, source, to uint64, f *stagingFold) error {
	client, hello, err := s.transport.Fetch(source)
	if err != nil {
		return err
	}
	return fetchAll(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[logv1.FetchLogResponse], error) {
		return client.FetchLog(ctx, &logv1.FetchLogRequest{Handshake: hello, FromIndex: s.staging.log.LastIndex() + 1, ToIndex: to},
			grpc.WaitForReady(true))
	}, func(response *logv1.FetchLogResponse) error {
		group := Group{}
		next := s.staging.log.LastIndex() + 1
		for _, e := range response.GetEntries() {
			if e.GetIndex() != next || e.GetIndex() > to || e.GetType() > uint32(raftpb.EntryConfChangeV2) {
				return fmt.Errorf("%w: entry %d of type %d where %d was wanted", errSnapshot, e.GetIndex(), e.GetType(), next)
			}
			group.Entries = append(group.Entries, Entry{Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.GetData()})
			next++
		}
		if err := s.staging.log.Append(group); err != nil {
			return err
		}
		for _, e := range group.Entries {
			f.note(e)
		}
		return nil
	})
}

// install begins the log anew with what was staged.
func (s *Server) install(install *InstallSnapshot) error {
	s.staged.Lock()
	defer s.staged.Unlock()
	if s.staging.log == nil {
		return fmt.Errorf("logservice: the snapshot at %d is not staged", install.Index)
	}
	err := s.storage.Install(segment.Base{Index: install.Base, Term: install.BaseTerm, Digest: install.BaseDigest},
		s.staging.groups(install))
	if err == nil {
		s.clearStaging()
	}
	return err
}

// clearStaging gives up what was staged; what can't be removed is removed the next time.
func (s *Server) clearStaging() {
	if err := s.staging.clear(); err != nil {
		s.logger.Warn("the staging area of snapshots was not cleared", "error", err)
	}
}
