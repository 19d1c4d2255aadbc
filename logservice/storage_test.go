package logservice

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// memoryStorage is a log that survives its member and nothing else.
type memoryStorage struct {
	mu         sync.Mutex
	hard       HardState
	membership []byte
	entries    []Entry
}

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

func (s *memoryStorage) FirstIndex() uint64 { return 1 }

func (s *memoryStorage) LastIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.entries))
}

func (s *memoryStorage) Term(index uint64) (uint64, error) {
	entries, err := s.Entries(index, index+1, 1)
	if err != nil {
		return 0, err
	}
	return entries[0].Term, nil
}

func (s *memoryStorage) Entries(lo, hi uint64, maxBytes int) ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lo < 1 || lo >= hi || hi > uint64(len(s.entries))+1 {
		return nil, fmt.Errorf("entries [%d,%d) of a log that ends at %d", lo, hi, len(s.entries))
	}
	entries := slices.Clone(s.entries[lo-1 : hi-1])
	for i, bytes := 0, 0; i < len(entries); i++ {
		if bytes += len(entries[i].Data); bytes > maxBytes && i > 0 {
			return entries[:i], nil
		}
	}
	return entries, nil
}

// write is what storage does with a group.
func (s *memoryStorage) write(g Group) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(g.Entries) > 0 {
		first := g.Entries[0].Index
		if first > uint64(len(s.entries))+1 {
			return fmt.Errorf("entry %d written after %d", first, len(s.entries))
		}
		s.entries = append(s.entries[:first-1:first-1], g.Entries...)
	}
	if g.HardState != (HardState{}) {
		s.hard = g.HardState
	}
	if g.Membership != nil {
		s.membership = g.Membership
	}
	if s.hard.Commit > uint64(len(s.entries)) {
		return errors.New("committed beyond the end of the log")
	}
	return nil
}
