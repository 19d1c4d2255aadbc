package logservice

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice/checkpoint"
	"github.com/logmirror/logmirror/logservice/segment"
)

// Survivor is the data directory of a member that does not run, opened for reading after the loss of a quorum. Its log is
// read and checked as at a start of the member, and locked against one. It must be closed.
type Survivor struct {
	// Dir is the data directory, Name the member's.
	Dir, Name string
	MemberID  uint64
	// ClusterID is the log's name, zero where the member never learned it.
	ClusterID uint64
	// Members are those of the newest configuration that this member has applied, which was made at MembershipIndex.
	Members         []*logv1.Member
	MembershipIndex uint64
	// FirstIndex and LastIndex are the entries that it holds, LastTerm is the last one's. Commit is what it knew to be
	// committed; more of its entries may have been.
	FirstIndex, LastIndex, LastTerm, Commit uint64

	lock   io.Closer
	log    *segment.Log
	store  *checkpoint.Store
	record *record
}

// OpenSurvivor opens a data directory. The error matches ErrDamaged, or is the log's, where it can't be trusted; it is
// disk.ErrLocked where the member runs.
func OpenSurvivor(fsys disk.FS, dir string) (s *Survivor, err error) {
	d := &directory{fs: fsys, path: dir}
	content, err := disk.ReadFile(fsys, filepath.Join(dir, directoryFile), directoryMaxBytes)
	if err == nil {
		err = d.decode(content)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is no data directory of a log member: %w", dir, err)
	}
	s = &Survivor{Dir: dir, Name: d.record.Name, MemberID: d.record.MemberID}
	if s.lock, err = fsys.Lock(filepath.Join(dir, "lock")); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := s.read(fsys, d.identity()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), s.Close())
	}
	return s, nil
}

func (s *Survivor) read(fsys disk.FS, identity Identity) (err error) {
	if s.log, err = segment.OpenReadOnly(fsys, filepath.Join(s.Dir, "log")); err != nil {
		return err
	}
	if have := s.log.Identity(); have != identity {
		return &segment.OtherMemberError{File: filepath.Join(s.Dir, "log"), Want: identity, Have: have}
	}
	if s.record, err = decodeRecord(s.log.Membership()); err != nil {
		return err
	}
	s.FirstIndex, s.LastIndex, s.Commit = s.log.FirstIndex(), s.log.LastIndex(), s.log.HardState().Commit
	if s.LastTerm, err = s.log.Term(s.LastIndex); err != nil {
		return err
	}
	s.Members, s.MembershipIndex, s.ClusterID = s.record.members, s.record.confIndex, s.record.clusterID
	if s.store, err = checkpoint.Open(fsys, filepath.Join(s.Dir, "checkpoints"), checkpoint.Options{}); err != nil {
		return err
	}
	return s.noteSealed()
}

// noteSealed learns the checkpoints that were sealed, and the log's name, from what the record does not cover yet.
func (s *Survivor) noteSealed() error {
	held := make(map[CheckpointName]bool)
	for _, name := range s.store.List() {
		held[name] = true
	}
	for e, err := range s.entries(max(s.record.applied+1, s.FirstIndex)) {
		if err != nil {
			return err
		}
		entry := raftEntry(e)
		if isConfChange(entry) {
			continue
		}
		h, ok := parseEnvelope(e.Data)
		if !ok {
			continue
		}
		if genesis := (&logv1.Genesis{}); h.kind == logv1.EntryKind_ENTRY_KIND_GENESIS && s.ClusterID == 0 &&
			proto.Unmarshal(h.payload, genesis) == nil {
			s.ClusterID = genesis.GetClusterId()
		}
		const unused = 0 // the digest: no log goes on from here
		s.record.noteCheckpoint(entry, h, unused, held)
	}
	return nil
}

// ComparePoints orders two ends of one log by how much of what was ever published who holds the log up to there holds, as an
// election does: who has the later last term holds all that was published before it, and in one term the longer log holds the
// shorter.
func ComparePoints(termA, indexA, termB, indexB uint64) int {
	return cmp.Or(cmp.Compare(termA, termB), cmp.Compare(indexA, indexB))
}

// Checkpoint opens the newest sealed checkpoint that it holds and from which its log goes on; nil where the log goes on from
// the first entry. The caller closes it.
func (s *Survivor) Checkpoint() (*checkpoint.Reader, error) {
	for _, sealed := range s.record.sealed {
		if !s.store.Holds(sealed.name) || sealed.name.Index+1 < s.FirstIndex || sealed.name.Index > s.LastIndex {
			continue
		}
		return s.store.Open(sealed.name)
	}
	if s.FirstIndex == 1 {
		return nil, nil
	}
	return nil, fmt.Errorf("%s: the log begins at %d, and no checkpoint is held that it goes on from", s.Dir, s.FirstIndex)
}

// Entries are those from an index to the last one, as a tail has them: also those that were never published.
func (s *Survivor) Entries(from uint64) iter.Seq2[*logv1.Entry, error] {
	return func(yield func(*logv1.Entry, error) bool) {
		for e, err := range s.entries(from) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(tailEntry(raftEntry(e)), nil) {
				return
			}
		}
	}
}

func (s *Survivor) entries(from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		const bytesAtOnce = 4 << 20
		for from <= s.LastIndex {
			entries, err := s.log.Entries(from, s.LastIndex+1, bytesAtOnce)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			from += uint64(len(entries))
		}
	}
}

// Close gives the directory back.
func (s *Survivor) Close() error {
	err := s.lock.Close()
	if s.log != nil {
		err = errors.Join(err, s.log.Close())
	}
	return err
}
