package logservice

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/logmirror/logmirror/logservice/segment"
)

// memoryStorage is a log that survives its member and nothing else. Its extents are extentEntries long.
type memoryStorage struct {
	mu         sync.Mutex
	hard       HardState
	membership []byte
	base       segment.Base
	entries    []Entry
	digests    []uint64
}

// extentEntries is how many entries of a memoryStorage are trimmed together.
const extentEntries = 8

func (s *memoryStorage) HardState() HardState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hard
}

func (s *memoryStorage) Membership() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.membership
}

func (s *memoryStorage) FirstIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.base.Index + 1
}

func (s *memoryStorage) LastIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last()
}

func (s *memoryStorage) last() uint64 { return s.base.Index + uint64(len(s.entries)) }

func (s *memoryStorage) Term(index uint64) (uint64, error) {
	if s.mu.Lock(); index == s.base.Index {
		defer s.mu.Unlock()
		return s.base.Term, nil
	}
	s.mu.Unlock()
	entries, err := s.Entries(index, index+1, 1)
	if err != nil {
		return 0, err
	}
	return entries[0].Term, nil
}

func (s *memoryStorage) Entries(lo, hi uint64, maxBytes int) ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lo <= s.base.Index {
		return nil, errTrimmed
	}
	if lo >= hi || hi > s.last()+1 {
		return nil, fmt.Errorf("entries [%d,%d) of a log that ends at %d", lo, hi, s.last())
	}
	entries := slices.Clone(s.entries[lo-s.base.Index-1 : hi-s.base.Index-1])
	for i, bytes := 0, 0; i < len(entries); i++ {
		if bytes += len(entries[i].Data); bytes > maxBytes && i > 0 {
			return entries[:i], nil
		}
	}
	return entries, nil
}

func (s *memoryStorage) Digest(index uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case index < s.base.Index:
		return 0, errTrimmed
	case index == s.base.Index:
		return s.base.Digest, nil
	case index > s.last():
		return 0, fmt.Errorf("digest at %d of a log that ends at %d", index, s.last())
	}
	return s.digests[index-s.base.Index-1], nil
}

// Extents begin at multiples of extentEntries.
func (s *memoryStorage) Extents() (extents []Extent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.entries {
		e := &s.entries[i]
		if i == 0 || e.Index%extentEntries == 0 {
			extents = append(extents, Extent{First: e.Index})
		}
		last := &extents[len(extents)-1]
		last.Last = e.Index
		last.Bytes += int64(len(e.Data)) + 32
	}
	return extents
}

// write is what storage does with a group.
func (s *memoryStorage) write(g Group) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(g.Entries) > 0 {
		first := g.Entries[0].Index
		if first > s.last()+1 || first <= s.base.Index {
			return fmt.Errorf("entry %d written to a log of %d to %d", first, s.base.Index+1, s.last())
		}
		kept := first - s.base.Index - 1
		s.entries, s.digests = s.entries[:kept:kept], s.digests[:kept:kept]
		digest := s.base.Digest
		if kept > 0 {
			digest = s.digests[kept-1]
		}
		for _, e := range g.Entries {
			digest = segment.NextDigest(digest, e.Index, e.Term, e.Data)
			s.entries, s.digests = append(s.entries, e), append(s.digests, digest)
		}
	}
	if g.HardState != (HardState{}) {
		s.hard = g.HardState
	}
	if g.Membership != nil {
		s.membership = g.Membership
	}
	if s.hard.Commit > s.last() {
		return errors.New("committed beyond the end of the log")
	}
	return nil
}

// trim is what storage does with Effects.Trim.
func (s *memoryStorage) trim(index uint64) error {
	extents := s.Extents()
	s.mu.Lock()
	defer s.mu.Unlock()
	if index > s.hard.Commit {
		return fmt.Errorf("trim to %d, committed is %d", index, s.hard.Commit)
	}
	for _, e := range extents[:max(0, len(extents)-1)] {
		if e.Last > index {
			break
		}
		n := e.Last - s.base.Index
		s.base = segment.Base{Index: e.Last, Term: s.entries[n-1].Term, Digest: s.digests[n-1]}
		s.entries, s.digests = s.entries[n:], s.digests[n:]
	}
	return nil
}

// install begins the log anew.
func (s *memoryStorage) install(base segment.Base, entries []Entry, hard HardState, membership []byte) error {
	s.mu.Lock()
	if base.Index < s.hard.Commit {
		defer s.mu.Unlock()
		return fmt.Errorf("log would begin after %d, committed is %d", base.Index, s.hard.Commit)
	}
	s.base, s.entries, s.digests = base, nil, nil
	s.mu.Unlock()
	return s.write(Group{HardState: hard, Entries: entries, Membership: membership})
}
