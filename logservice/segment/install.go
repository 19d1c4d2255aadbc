package segment

import (
	"errors"
	"fmt"
	"iter"
)

// Base is the point that an installed log begins after: the last entry that a snapshot stands for.
type Base struct{ Index, Term, Digest uint64 }

// Reset begins the log anew after an entry that a snapshot stands for. HardState and membership stay as they are, but
// for the commit, which is raised to index. A crash leaves the old log or the new one.
func (l *Log) Reset(index, term uint64, digest uint64) error {
	return l.Install(Base{Index: index, Term: term, Digest: digest}, nil)
}

// Install begins the log anew after a base, with what the groups hold, all in one step: a crash leaves the old log or
// the new one with all groups. Groups are as for Append, the first of them at base.Index+1; nil stands for none. The base
// must not lie below the committed entries of the old log. ErrNoSpace, ErrInvalid and an error out of groups leave the old
// log as it is. The old log stays readable until the new one is durable; a group is not used after the next one is asked
// for.
func (l *Log) Install(b Base, groups iter.Seq2[Group, error]) error {
	if err := l.acquireWriter(); err != nil {
		return err
	}
	defer l.releaseWriter()
	if b.Index < l.hardState.Commit {
		return fmt.Errorf("%w: log would begin after %d, committed is %d", ErrInvalid, b.Index, l.hardState.Commit)
	}
	next, err := l.buildInstall(base{index: b.Index, term: b.Term, digest: b.Digest}, groups)
	if err != nil {
		return err
	}
	installed := next.active()
	if err := l.nameSegment(temporaryName, installed); err != nil {
		return err
	}
	l.mu.Lock()
	replaced := l.segments
	l.segments = []*segmentFile{installed}
	l.base, l.last, l.runs = next.base, next.last, next.runs
	l.hardState, l.membership = next.hardState, next.membership
	l.mu.Unlock()
	l.mustRoll = false
	for _, old := range replaced {
		if err := l.retire(old); err != nil {
			return err
		}
	}
	return nil
}

// buildInstall writes the new log to a temporary file and makes it durable. The result is a log of one segment that
// nobody else sees; its file grows as far as the groups need.
func (l *Log) buildInstall(begin base, groups iter.Seq2[Group, error]) (next *Log, err error) {
	h := l.nextHeader()
	h.reset, h.previousEnd, h.previousCRC = true, 0, 0
	h.base = begin
	h.hardState.Commit = max(h.hardState.Commit, begin.index)
	h.encode() // for the salt
	spare, err := l.makeFile(temporaryName, max(l.options.SegmentBytes, fileOffset(h.length())))
	if err != nil {
		if errors.Is(err, ErrNoSpace) {
			return nil, err
		}
		return nil, l.fail(err)
	}
	s := newSegmentFile(spare, &h)
	s.path = l.path(temporaryName)
	next = &Log{fs: l.fs, dir: l.dir, options: l.options, identity: l.identity, segments: []*segmentFile{s},
		base: begin, last: begin, hardState: h.hardState, membership: h.membership}
	if err := next.writeInstall(s, groups); err != nil {
		err = l.discard(s.path, s.file, err)
		var outside *groupsError
		if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrInvalid) || errors.As(err, &outside) {
			return nil, err
		}
		return nil, l.fail(err)
	}
	return next, nil
}

// writeInstall writes the groups behind each other, then the header, and syncs once.
func (l *Log) writeInstall(s *segmentFile, groups iter.Seq2[Group, error]) error {
	if groups != nil {
		for g, err := range groups {
			if err != nil {
				return &groupsError{err}
			}
			header, length, err := l.prepare(&g)
			if err != nil {
				return err
			}
			digest, err := l.putFrame(s, &g, &header, length)
			if err != nil {
				return err
			}
			l.applyFrame(s, &g, &header, length, digest)
			s.bytes = max(s.bytes, fileOffset(alignSector(s.tail.end)))
		}
	}
	s.header.fileBytes = s.bytes
	if err := s.writeHeader(); err != nil {
		return err
	}
	return s.file.Datasync()
}

// groupsError is an error that came out of the caller's groups.
type groupsError struct{ error }

func (e *groupsError) Unwrap() error { return e.error }
